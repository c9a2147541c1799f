//! A map for which a card has no room: it lies in main memory and goes through the layers in bands of rows, a band on the card at a time.
//!
//! The numbers are those of the whole map. A convolution sees the rows beside its band, and a group norm takes its moments from all bands:
//! each band's channels have theirs from when it was made, and they are joined pair by pair (Chan, Golub & LeVeque 1979).
use super::{Map, wide};
use candle_core::{DType, Device, Result, Tensor};

/// Rows that layers read beyond the band that they make, on each side: what a kernel of 3 reaches.
const HALO: usize = 1;

/// One image, `(1, h, w, c)`.
pub struct Bands {
    /// From the top.
    bands: Vec<Band>,
    device: Device,
}

struct Band {
    /// `(1, rows, w, c)`, in main memory.
    map: Tensor,
    /// Of each channel.
    moments: Vec<Moments>,
}

/// Of some numbers.
#[derive(Clone, Copy, Default)]
pub(super) struct Moments {
    count: f64,
    pub mean: f64,
    /// The sum of the squared distances from the mean.
    squares: f64,
}

impl Moments {
    fn and(self, more: Self) -> Self {
        let distance = more.mean - self.mean;
        let count = self.count + more.count;
        let share = more.count / count;
        Self {
            count,
            mean: self.mean + distance * share,
            squares: self.squares + more.squares + distance * distance * self.count * share,
        }
    }

    pub fn variance(&self) -> f64 {
        self.squares / self.count
    }
}

impl Band {
    /// Takes the map home.
    fn new(map: &Tensor) -> Result<Self> {
        let x = wide(&map.flatten_to(2)?)?;
        let mean = x.mean_keepdim(0)?;
        let squares = x.broadcast_sub(&mean)?.sqr()?.sum(0)?;
        let numbers = |x: &Tensor| x.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
        let count = x.dim(0)? as f64;
        let moments = std::iter::zip(numbers(&mean)?, numbers(&squares)?);
        let moments = moments.map(|(mean, squares)| Moments {
            count,
            mean,
            squares,
        });
        Ok(Self {
            // A part of a map would take all of it along.
            map: map.force_contiguous()?.to_device(&Device::Cpu)?,
            moments: moments.collect(),
        })
    }

    fn rows(&self) -> Result<usize> {
        self.map.dim(1)
    }
}

impl Bands {
    /// Of `rows` each, and what is left.
    pub fn cut(map: &Map, rows: usize) -> Result<Self> {
        let map = map.nhwc()?;
        let height = map.dim(1)?;
        let bands = (0..height)
            .step_by(rows)
            .map(|top| Band::new(&map.narrow(1, top, rows.min(height - top))?));
        Ok(Self {
            bands: bands.collect::<Result<_>>()?,
            device: map.device().clone(),
        })
    }

    /// What a layer makes of the map, from what it makes of each band with the rows beside it.
    pub fn each(&self, layer: impl Fn(&Map) -> Result<Map>) -> Result<Self> {
        self.made(|i| layer(&self.with_halo(i)?))
    }

    /// The same of two maps of one size.
    pub fn each_with(
        &self,
        other: &Self,
        layer: impl Fn(&Map, &Map) -> Result<Map>,
    ) -> Result<Self> {
        self.made(|i| layer(&self.with_halo(i)?, &other.with_halo(i)?))
    }

    fn made(&self, layer: impl Fn(usize) -> Result<Map>) -> Result<Self> {
        let bands = 0..self.bands.len();
        let bands = bands.map(|i| Band::new(&self.without_halo(i, layer(i)?)?));
        Ok(Self {
            bands: bands.collect::<Result<_>>()?,
            device: self.device.clone(),
        })
    }

    /// Where the work is done.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The map in one piece, in main memory.
    pub fn joined(&self) -> Result<Map> {
        let bands: Vec<_> = self.bands.iter().map(|band| &band.map).collect();
        Ok(Map::from_nhwc(Tensor::cat(&bands, 1)?))
    }

    /// Band `i` with the rows beside it, of which the map's first and last band have none on one side, where a convolution pads.
    fn with_halo(&self, i: usize) -> Result<Map> {
        let mut parts = vec![self.bands[i].map.clone()];
        if let Some(before) = i.checked_sub(1) {
            let before = &self.bands[before];
            parts.insert(0, before.map.narrow(1, before.rows()? - HALO, HALO)?);
        }
        if let Some(after) = self.bands.get(i + 1) {
            parts.push(after.map.narrow(1, 0, HALO)?);
        }
        let rows = Tensor::cat(&parts, 1)?;
        Ok(Map::from_nhwc(rows.to_device(&self.device)?))
    }

    /// Of what was made of [`Bands::with_halo`], and may be larger, the band's own rows.
    fn without_halo(&self, i: usize, made: Map) -> Result<Tensor> {
        let made = made.nhwc()?;
        let own = self.bands[i].rows()?;
        let before = HALO * usize::from(i > 0);
        let after = HALO * usize::from(i + 1 < self.bands.len());
        let times = made.dim(1)? / (before + own + after);
        made.narrow(1, before * times, own * times)
    }

    /// Of each of `groups` groups of channels.
    pub(super) fn moments(&self, groups: usize) -> Vec<Moments> {
        let mut all = vec![Moments::default(); groups];
        for band in &self.bands {
            let width = band.moments.len() / groups;
            for (of_all, channels) in all.iter_mut().zip(band.moments.chunks(width)) {
                *of_all = channels.iter().copied().fold(*of_all, Moments::and);
            }
        }
        all
    }
}
