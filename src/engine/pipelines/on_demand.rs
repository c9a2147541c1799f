//! A network that makes room on a full card, and comes back when it is needed again.
use crate::engine::cuda::graph;
use crate::engine::runtime;
use anyhow::Result;
use candle_core::Device;
use std::cell::RefCell;
use std::rc::Rc;

pub struct OnDemand<'a, M> {
    model: RefCell<Option<Rc<M>>>,
    load: Box<dyn Fn() -> Result<M> + 'a>,
    device: Device,
}

impl<'a, M> OnDemand<'a, M> {
    /// Loads it to `device`.
    pub fn new(device: &Device, load: impl Fn() -> Result<M> + 'a) -> Result<Self> {
        Ok(Self {
            model: RefCell::new(Some(Rc::new(load()?))),
            load: Box::new(load),
            device: device.clone(),
        })
    }

    /// The network, loaded again if it was let go.
    pub fn get(&self) -> Result<Rc<M>> {
        let mut model = self.model.borrow_mut();
        if let Some(model) = &*model {
            return Ok(model.clone());
        }
        let loaded = Rc::new((self.load)()?);
        *model = Some(loaded.clone());
        Ok(loaded)
    }

    /// Frees its memory; whether there was any.
    pub fn let_go(&self) -> bool {
        let there = self.model.take().is_some();
        if there {
            graph::trim(&self.device);
        }
        there
    }

    /// What `f` gives. Where a card's memory is too small for it, the network makes room, and `f` is called again.
    pub fn make_room_for<T>(&self, f: impl Fn() -> Result<T>) -> Result<T> {
        let result = f();
        let is_full = result.as_ref().is_err_and(runtime::is_full);
        if !is_full || !self.let_go() {
            return result;
        }
        tracing::debug!("the card's memory is full: the UNet makes room");
        f()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn full() -> anyhow::Error {
        candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")").into()
    }

    #[test]
    fn a_full_card_lets_the_network_go_and_it_comes_back() {
        let loads = Cell::new(0);
        let network = OnDemand::new(&Device::Cpu, || {
            loads.set(loads.get() + 1);
            Ok(loads.get())
        })
        .unwrap();
        let there = || network.model.borrow().is_some();
        let fits_alone = || match there() {
            true => Err(full()),
            false => Ok("a picture"),
        };
        assert_eq!(*network.get().unwrap(), 1);
        assert_eq!(network.make_room_for(fits_alone).unwrap(), "a picture");
        assert!(!there());
        // The second time it is loaded anew, and then no more.
        assert_eq!((*network.get().unwrap(), *network.get().unwrap()), (2, 2));
    }

    #[test]
    fn another_error_or_a_second_one_is_the_callers() {
        let network = OnDemand::new(&Device::Cpu, || Ok(())).unwrap();
        let calls = Cell::new(0);
        let fails = |error: fn() -> anyhow::Error| {
            let result: Result<()> = network.make_room_for(|| {
                calls.set(calls.get() + 1);
                Err(error())
            });
            (runtime::is_full(&result.unwrap_err()), calls.take())
        };
        assert_eq!(fails(|| anyhow::anyhow!("other")), (false, 1));
        assert_eq!(fails(full), (true, 2));
        // It is gone already, so there is nothing more to let go.
        assert_eq!(fails(full), (true, 1));
    }
}
