//! Two-dimensional convolution on maps.
use super::{Family, Map, small, values, write_f32};
use crate::engine::cuda::{product, weight::Weight};
use crate::engine::kernels::{self, Epilogue, PackedConv2d};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// The geometry of a convolution with a square kernel.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    pub in_channels: usize,
    pub out_channels: usize,
    pub kernel: usize,
    pub stride: usize,
    /// Zeros before the first and after the last row and column; they differ where the checkpoint asks for `downsample_padding` 0.
    pub padding: (usize, usize),
}

impl ConvShape {
    /// Stride 1 and a map of the same size: `kernel` is odd.
    pub fn same(in_channels: usize, out_channels: usize, kernel: usize) -> Self {
        let padding = (kernel / 2, kernel / 2);
        Self {
            in_channels,
            out_channels,
            kernel,
            stride: 1,
            padding,
        }
    }

    fn of_kernels(&self) -> kernels::ConvShape {
        let (before, after) = self.padding;
        kernels::ConvShape {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            kernel: (self.kernel, self.kernel),
            stride: self.stride,
            padding: [before, after, before, after],
        }
    }
}

/// `y = W * x + bias`
pub enum Conv2d {
    Packed(PackedConv2d),
    Card {
        shape: ConvShape,
        weight: Weight,
        bias: Option<Tensor>,
    },
    Candle {
        shape: ConvShape,
        weight: Tensor,
        bias: Option<Tensor>,
    },
}

impl Conv2d {
    /// Loads `weight` `(out, in, kernel, kernel)` and `bias` `(out)`.
    pub fn load(vb: VarBuilder, shape: ConvShape) -> Result<Self> {
        Self::load_with(vb, shape, true)
    }

    pub fn load_no_bias(vb: VarBuilder, shape: ConvShape) -> Result<Self> {
        Self::load_with(vb, shape, false)
    }

    fn load_with(vb: VarBuilder, shape: ConvShape, bias: bool) -> Result<Self> {
        let ConvShape {
            in_channels,
            out_channels,
            kernel,
            ..
        } = shape;
        let weight = vb.get((out_channels, in_channels, kernel, kernel), "weight")?;
        let whole = || bias.then(|| vb.get(out_channels, "bias")).transpose();
        Ok(match Family::of_weights(&vb) {
            Family::Cpu => {
                let bias = bias.then(|| small(&vb, out_channels, "bias")).transpose()?;
                let weight = values(&weight)?;
                let (shape, weight) = (shape.of_kernels(), weight.weights()?);
                Self::Packed(PackedConv2d::pack(shape, weight, bias.as_deref()))
            }
            Family::Card => Self::Card {
                shape,
                weight: Weight::of_convolution(&weight)?,
                bias: whole()?,
            },
            Family::Candle => Self::Candle {
                shape,
                weight,
                bias: whole()?,
            },
        })
    }

    pub fn forward(&self, x: &Map) -> Result<Map> {
        self.run(x, Extras::default())
    }

    /// Of the map enlarged to height and width `to` by nearest neighbours.
    pub fn forward_enlarged(&self, x: &Map, to: (usize, usize)) -> Result<Map> {
        self.run(
            x,
            Extras {
                enlarged: Some(to),
                ..Extras::default()
            },
        )
    }

    /// `W * x + bias + shift`, the shift `(1, out_channels)`, or `(b, out_channels)`, the same for every pixel of an image.
    pub fn forward_shifted(&self, x: &Map, shift: &Tensor) -> Result<Map> {
        self.run(
            x,
            Extras {
                shift: Some(shift),
                ..Extras::default()
            },
        )
    }

    /// `(W * x + bias + residual) / divisor`
    pub fn forward_residual(&self, x: &Map, residual: &Map, divisor: f64) -> Result<Map> {
        self.run(
            x,
            Extras {
                residual: Some(&residual.nhwc()?),
                divisor,
                ..Extras::default()
            },
        )
    }

    fn run(&self, x: &Map, extras: Extras) -> Result<Map> {
        match self {
            Self::Packed(conv) => run_packed(conv, x, extras),
            Self::Card {
                shape,
                weight,
                bias,
            } => run_card(shape, (weight, bias.as_ref()), x, extras),
            Self::Candle {
                shape,
                weight,
                bias,
            } => run_candle(shape, (weight, bias.as_ref()), x, extras),
        }
    }
}

/// What is done before and after a convolution.
struct Extras<'a> {
    enlarged: Option<(usize, usize)>,
    shift: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
    divisor: f64,
}

impl Default for Extras<'_> {
    fn default() -> Self {
        Self {
            enlarged: None,
            shift: None,
            residual: None,
            divisor: 1.0,
        }
    }
}

/// Of a map of height and width `of`, as the convolution sees it.
fn output_size(shape: &kernels::ConvShape, of: (usize, usize)) -> Result<(usize, usize)> {
    let (h, w) = of;
    match shape.output_size(h, w) {
        Some(size) => Ok(size),
        None => candle_core::bail!("a map of {w}x{h} is too small for this model"),
    }
}

fn run_packed(conv: &PackedConv2d, x: &Map, extras: Extras) -> Result<Map> {
    let (b, h, w, _) = x.dims()?;
    let to = extras.enlarged.unwrap_or((h, w));
    let (oh, ow) = output_size(&conv.shape(), to)?;
    let x = x.values()?;
    let shift = extras.shift.map(values).transpose()?;
    let residual = extras.residual.map(values).transpose()?;
    let epilogue = Epilogue {
        shift: shift.as_ref().map(|v| v.f32()).transpose()?,
        residual: residual.as_ref().map(|v| v.f32()).transpose()?,
        scale: (1.0 / extras.divisor) as f32,
    };
    let parts = x.parts()?;
    let shape = (b, oh, ow, conv.shape().out_channels);
    // SAFETY: the kernel writes all of y and reads nothing of it before.
    let y = unsafe {
        write_f32(shape, |y| {
            conv.run_enlarged(parts, (b, h, w), to, epilogue, y)
        })
    }?;
    Ok(Map::from_nhwc(y))
}

fn run_card(
    shape: &ConvShape,
    (weight, bias): (&Weight, Option<&Tensor>),
    x: &Map,
    extras: Extras,
) -> Result<Map> {
    let enlarged = extras.enlarged.map_or_else(|| x.size(), Ok)?;
    let geometry = product::Geometry {
        enlarged,
        out: output_size(&shape.of_kernels(), enlarged)?,
        stride: shape.stride,
        padding: shape.padding.0,
    };
    let shift = extras.shift.map(Tensor::contiguous).transpose()?;
    let extras = product::Extras {
        bias,
        shift: shift.as_ref(),
        residual: extras.residual,
        scale: 1.0 / extras.divisor,
        geglu: false,
    };
    let y = product::convolution(x.parts(), weight, geometry, extras)?;
    Ok(Map::from_nhwc(y))
}

fn run_candle(
    shape: &ConvShape,
    (weight, bias): (&Tensor, Option<&Tensor>),
    x: &Map,
    extras: Extras,
) -> Result<Map> {
    let x = match extras.enlarged {
        Some(to) => x.enlarged(to)?.to_nchw()?,
        None => x.to_nchw()?,
    };
    let (before, after) = shape.padding;
    let (x, padding) = match before == after {
        true => (x, before),
        false => (
            x.pad_with_zeros(2, before, after)?
                .pad_with_zeros(3, before, after)?,
            0,
        ),
    };
    let y = x.conv2d(weight, padding, shape.stride, 1, 1)?;
    let mut y = Map::from_nchw(&y)?.nhwc()?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(shift) = extras.shift {
        y = y.broadcast_add(&shift.unsqueeze(1)?.unsqueeze(1)?)?;
    }
    if let Some(residual) = extras.residual {
        y = (y + residual)?;
    }
    Ok(Map::from_nhwc(if extras.divisor == 1.0 {
        y
    } else {
        (y / extras.divisor)?
    }))
}
