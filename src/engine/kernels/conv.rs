//! Convolutions, channels last: x (b, h, w, in_channels) to y (b, h', w', out_channels).
//!
//! The weights are packed once in an order both ways of computing can read, and the way is chosen by the size of ONE
//! image, never by the batch: image k of a batch is bit for bit the image alone.
//! - 3x3, stride 1: Winograd's F(4x4, 3x3) (`conv_winograd`), a quarter of the multiplications
//! - all others: a direct product whose rows are the taps' pixels where they lie (`gemm`), nothing copied
use super::epilogue::{Epilogue, Finish};
use super::gemm::Product;
use super::packed::{Panels, Weights};
use super::simd::Isa;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    pub in_channels: usize,
    pub out_channels: usize,
    /// height, width
    pub kernel: (usize, usize),
    pub stride: usize,
    /// top, bottom, left, right
    pub padding: [usize; 4],
}

impl ConvShape {
    /// Height and width of the result for an image of that size; `None` when the kernel does not fit.
    pub fn output_size(&self, h: usize, w: usize) -> Option<(usize, usize)> {
        let [top, bottom, left, right] = self.padding;
        let extent = |size: usize, kernel: usize| Some(size.checked_sub(kernel)? / self.stride + 1);
        Some((
            extent(h + top + bottom, self.kernel.0)?,
            extent(w + left + right, self.kernel.1)?,
        ))
    }
}

/// A convolution with its weights packed.
#[derive(Clone)]
pub struct PackedConv2d {
    pub(super) shape: ConvShape,
    pub(super) panels: Panels,
    pub(super) bias: Option<Vec<f32>>,
    /// Where taps beside the map point.
    pub(super) zeros: Vec<f32>,
}

/// A map of which some channels come from one place and the rest from another.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub x: [&'a [f32]; 2],
    pub channels: [usize; 2],
}

impl PackedConv2d {
    /// `weight` is (out_channels, in_channels, kernel height, kernel width), as torch keeps it.
    pub fn pack(shape: ConvShape, weight: Weights<'_>, bias: Option<&[f32]>) -> Self {
        Self::pack_for(Isa::best(), shape, weight, bias)
    }

    pub(super) fn pack_for(
        isa: Isa,
        shape: ConvShape,
        weight: Weights<'_>,
        bias: Option<&[f32]>,
    ) -> Self {
        assert!(
            bias.is_none_or(|b| b.len() == shape.out_channels),
            "bias of {}",
            shape.out_channels
        );
        let (c, taps) = (shape.in_channels, shape.kernel.0 * shape.kernel.1);
        let panels = Panels::pack(isa, weight, shape.out_channels, c * taps, |s| {
            (s % taps) * c + s / taps
        });
        PackedConv2d {
            shape,
            panels,
            bias: bias.map(<[f32]>::to_vec),
            zeros: vec![0.0; c],
        }
    }

    pub fn shape(&self) -> ConvShape {
        self.shape
    }

    /// Height and width of the result; `None` when the kernel does not fit into the image.
    pub fn output_size(&self, h: usize, w: usize) -> Option<(usize, usize)> {
        self.shape.output_size(h, w)
    }

    /// `size` is (b, h, w) of x.
    pub fn run(
        &self,
        x: &[f32],
        size: (usize, usize, usize),
        epilogue: Epilogue<'_>,
        y: &mut [f32],
    ) {
        self.run_parts(
            Parts {
                x: [x, &[]],
                channels: [self.shape.in_channels, 0],
            },
            size,
            epilogue,
            y,
        );
    }

    /// The input is two maps joined on channels, x0's first; the joined map is never made.
    pub fn run2(
        &self,
        (x0, c0): (&[f32], usize),
        (x1, c1): (&[f32], usize),
        size: (usize, usize, usize),
        epilogue: Epilogue<'_>,
        y: &mut [f32],
    ) {
        self.run_parts(
            Parts {
                x: [x0, x1],
                channels: [c0, c1],
            },
            size,
            epilogue,
            y,
        );
    }

    fn run_parts(
        &self,
        parts: Parts<'_>,
        size: (usize, usize, usize),
        epilogue: Epilogue<'_>,
        y: &mut [f32],
    ) {
        let (b, h, w) = size;
        let (oh, ow) = self
            .output_size(h, w)
            .expect("callers ask output_size first");
        assert_eq!(
            parts.channels[0] + parts.channels[1],
            self.shape.in_channels,
            "input channels"
        );
        for (x, c) in parts.x.iter().zip(parts.channels) {
            assert_eq!(x.len(), b * h * w * c, "input of {b} x {h} x {w} x {c}");
        }
        let m = b * oh * ow;
        assert_eq!(
            y.len(),
            m * self.shape.out_channels,
            "result of {m} x {}",
            self.shape.out_channels
        );
        let finish = Finish::new(&epilogue, self.bias.as_deref(), m, self.shape.out_channels);
        if self.suits_winograd(oh, ow) {
            self.winograd(&parts, size, finish, y);
        } else {
            self.direct(&parts, size, finish, y);
        }
    }

    /// Winograd wins from the smallest maps on, if there are enough input channels to pay for its
    /// transforms.
    fn suits_winograd(&self, oh: usize, ow: usize) -> bool {
        let shape = &self.shape;
        // the last layer, to 3 or 4 channels, gains too: a panel's idle columns cost a quarter as much
        shape.kernel == (3, 3) && shape.stride == 1 && shape.in_channels >= 16 && oh >= 4 && ow >= 4
    }

    pub(super) fn direct(
        &self,
        parts: &Parts<'_>,
        (b, h, w): (usize, usize, usize),
        finish: Finish,
        y: &mut [f32],
    ) {
        let shape = &self.shape;
        let (oh, ow) = self.output_size(h, w).expect("checked by the caller");
        let (kh, kw) = shape.kernel;
        let used = if parts.channels[1] == 0 { 1 } else { 2 };
        let segments: Vec<usize> = (0..kh * kw * used)
            .map(|s| parts.channels[s % used])
            .collect();
        let product = Product {
            panels: &self.panels,
            segments: &segments,
            m: b * oh * ow,
            finish,
        };
        let address = |row: usize, segment: usize| {
            let (tap, part) = (segment / used, segment % used);
            let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
            // a pixel above or left of the map wraps around to a large number and is refused like one below
            let iy = (oy * shape.stride + tap / kw).wrapping_sub(shape.padding[0]);
            let ix = (ox * shape.stride + tap % kw).wrapping_sub(shape.padding[2]);
            if iy < h && ix < w {
                let c = parts.channels[part];
                parts.x[part][((image * h + iy) * w + ix) * c..][..c].as_ptr()
            } else {
                self.zeros.as_ptr()
            }
        };
        // SAFETY: each address is of `channels` numbers in x or of the zeros, which are as many as all channels.
        unsafe { product.run(address, y) };
    }
}

/// The definition.
pub fn conv2d_naive(
    shape: &ConvShape,
    weight: &[f32],
    bias: Option<&[f32]>,
    x: &[f32],
    (b, h, w): (usize, usize, usize),
    y: &mut [f32],
) {
    let (oh, ow) = shape.output_size(h, w).expect("the kernel fits");
    let (c, n, (kh, kw)) = (shape.in_channels, shape.out_channels, shape.kernel);
    for (row, out) in y.chunks_mut(n).enumerate().take(b * oh * ow) {
        let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
        for (o, value) in out.iter_mut().enumerate() {
            let mut sum = bias.map_or(0.0, |bias| f64::from(bias[o]));
            for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                let iy = (oy * shape.stride + ky).wrapping_sub(shape.padding[0]);
                let ix = (ox * shape.stride + kx).wrapping_sub(shape.padding[2]);
                if iy < h && ix < w {
                    let pixel = &x[((image * h + iy) * w + ix) * c..][..c];
                    for (i, p) in pixel.iter().enumerate() {
                        sum += f64::from(*p) * f64::from(weight[((o * c + i) * kh + ky) * kw + kx]);
                    }
                }
            }
            *value = sum as f32;
        }
    }
}
