//! A call of a network, recorded once and then started as a whole (CUDA graphs): some five hundred kernels cost the host as much as one.
//!
//! The first call runs as it stands: it loads what is loaded at the first use. The second is recorded on tensors that stay in their
//! place, and from then on the inputs are copied there, the recording is started, and the result is copied out. Where recording fails, for
//! want of memory too, the calls go on as they stand, with a line in the debug log.
use super::card::{self, Recording};
use candle_core::{Device, Result, Tensor};

/// The calls of one function of tensors, always of the same shapes and dtypes.
#[derive(Default)]
pub struct Recorder(State);

#[derive(Default)]
enum State {
    #[default]
    Untried,
    /// Ran once, with a result like this one.
    Warm(Tensor),
    Recorded(Box<Recorded>),
    Never,
}

struct Recorded {
    inputs: Vec<Tensor>,
    result: Tensor,
    recording: Recording,
}

impl Recorder {
    /// `f(inputs)`, a new tensor. On a card `f` may do nothing but queue work there.
    pub fn call(
        &mut self,
        inputs: &[&Tensor],
        f: impl Fn(&[&Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let device = inputs.first().map(|x| x.device());
        let Some(device) = device.filter(|device| card::serves(device)) else {
            return f(inputs);
        };
        match &self.0 {
            State::Never => return f(inputs),
            State::Untried => {
                let result = card::warm(device, || f(inputs))?;
                self.0 = State::Warm(result.zeros_like()?);
                return Ok(result);
            }
            State::Warm(result) => {
                let result = result.clone();
                self.0 = match record(inputs, result, &f) {
                    Ok(recorded) => State::Recorded(Box::new(recorded)),
                    Err(error) => {
                        tracing::debug!("calls are not recorded: {error}");
                        card::trim(device);
                        State::Never
                    }
                };
            }
            State::Recorded(_) => {}
        }
        match &self.0 {
            State::Recorded(recorded) => recorded.start(inputs),
            _ => f(inputs),
        }
    }
}

/// Gives back the memory that a card keeps for recordings that are gone and for nobody.
pub fn trim(device: &Device) {
    if card::serves(device) {
        card::trim(device);
    }
}

impl Drop for Recorder {
    /// A recording's memory stays the card's until it is asked for, and what follows needs it, a batch that has failed too.
    fn drop(&mut self) {
        if let State::Recorded(recorded) = std::mem::take(&mut self.0) {
            let device = recorded.result.device().clone();
            drop(recorded);
            card::trim(&device);
        }
    }
}

fn record(
    inputs: &[&Tensor],
    result: Tensor,
    f: impl Fn(&[&Tensor]) -> Result<Tensor>,
) -> Result<Recorded> {
    let device = result.device().clone();
    let inputs: Vec<Tensor> = inputs.iter().map(|x| x.copy()).collect::<Result<_>>()?;
    let places: Vec<&Tensor> = inputs.iter().collect();
    // What is made inside is freed inside, so that the recording can be started again and again.
    let recording = card::record(&device, || {
        result.slice_set(&f(&places)?.contiguous()?, 0, 0)
    })?;
    Ok(Recorded {
        inputs,
        result,
        recording,
    })
}

impl Recorded {
    fn start(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        for (place, input) in self.inputs.iter().zip(inputs) {
            place.slice_set(&input.contiguous()?, 0, 0)?;
        }
        self.recording.start()?;
        self.result.copy()
    }
}
