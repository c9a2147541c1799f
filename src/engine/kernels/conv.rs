//! Convolutions, channels last: x (b, h, w, in_channels) to y (b, h', w', out_channels).
//!
//! The weights are packed once in an order both ways of computing can read, and the way is chosen by the size of ONE
//! image, never by the batch: image k of a batch is bit for bit the image alone.
//! - 3x3 with stride 1, from 16 input channels and 4x4 pixels on: Winograd's F(4x4, 3x3) (`conv_winograd`), a quarter of the
//!   multiplications
//! - all others: a direct product whose rows are the taps' pixels where they lie (`gemm`), copied together a block at a time
use super::epilogue::{Epilogue, Finish};
use super::gemm::Product;
use super::input::{Lines, Parts};
use super::length;
use super::packed::{Panels, Weights};
use super::simd::Isa;
use super::winograd::transformed_sizes;

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
    /// About how large the weights are in each of Winograd's 36 places, where its products are `traded`.
    pub(super) sizes: Option<Box<[f32; 36]>>,
}

/// What one call reads and how large its result is.
pub(super) struct Call<'a> {
    pub parts: Parts<'a>,
    /// (b, h, w) of the maps in memory.
    pub size: (usize, usize, usize),
    /// The map convolved has these lines and columns of those in memory.
    pub rows: Lines,
    pub columns: Lines,
    /// Height and width of the result.
    pub result: (usize, usize),
}

impl Call<'_> {
    /// The pixel's numbers in a part; None beside the map, on the upper and left sides too, whose indices have wrapped around.
    pub fn pixel(&self, part: usize, image: usize, y: usize, x: usize) -> Option<*const f32> {
        let (_, h, w) = self.size;
        let (y, x) = (self.rows.get(y)?, self.columns.get(x)?);
        let c = self.parts.channels[part];
        Some(self.parts.x[part][((image * h + y) * w + x) * c..][..c].as_ptr())
    }
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
        let panels = Panels::pack(isa, weight, shape.out_channels, c * taps, taps);
        PackedConv2d {
            shape,
            panels,
            bias: bias.map(<[f32]>::to_vec),
            zeros: vec![0.0; c],
            sizes: transformed_sizes(isa, &shape, weight),
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
        x: Parts<'_>,
        size: (usize, usize, usize),
        epilogue: Epilogue<'_>,
        y: &mut [f32],
    ) {
        self.run_enlarged(x, size, (size.1, size.2), epilogue, y);
    }

    /// Of x (b, h, w) enlarged to the height and width `to` by nearest neighbours; the enlarged map is never made.
    pub fn run_enlarged(
        &self,
        x: Parts<'_>,
        size: (usize, usize, usize),
        to: (usize, usize),
        epilogue: Epilogue<'_>,
        y: &mut [f32],
    ) {
        let (b, h, w) = size;
        let (oh, ow) = self
            .output_size(to.0, to.1)
            .expect("callers ask output_size first");
        let n = self.shape.out_channels;
        assert_eq!(x.channels(), self.shape.in_channels, "input channels");
        x.check(length(&[b, h, w]));
        let m = length(&[b, oh, ow]);
        assert_eq!(y.len(), length(&[m, n]), "result of {m} x {n}");
        if y.is_empty() {
            return;
        }
        let finish = Finish::new(&epilogue, self.bias.as_deref(), m, n);
        let call = Call {
            parts: x,
            size,
            rows: Lines::new(h, to.0),
            columns: Lines::new(w, to.1),
            result: (oh, ow),
        };
        if self.suits_winograd(oh, ow) {
            self.winograd(&call, finish, y);
        } else {
            self.direct(&call, finish, y);
        }
    }

    /// Winograd wins from the smallest maps on, if there are enough input channels to pay for its
    /// transforms.
    fn suits_winograd(&self, oh: usize, ow: usize) -> bool {
        let shape = &self.shape;
        // the last layer, to 3 or 4 channels, gains too: a panel's idle columns cost a quarter as much
        shape.kernel == (3, 3) && shape.stride == 1 && shape.in_channels >= 16 && oh >= 4 && ow >= 4
    }

    pub(super) fn direct(&self, call: &Call<'_>, finish: Finish<'_>, y: &mut [f32]) {
        let shape = &self.shape;
        let (oh, ow) = call.result;
        let (kh, kw) = shape.kernel;
        let used = call.parts.count();
        let segments: Vec<usize> = (0..kh * kw * used)
            .map(|s| call.parts.channels[s % used])
            .collect();
        let product = Product {
            panels: &self.panels,
            segments: &segments,
            m: call.size.0 * oh * ow,
            finish,
        };
        let address = |row: usize, segment: usize| {
            let (tap, part) = (segment / used, segment % used);
            let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
            let iy = (oy * shape.stride + tap / kw).wrapping_sub(shape.padding[0]);
            let ix = (ox * shape.stride + tap % kw).wrapping_sub(shape.padding[2]);
            call.pixel(part, image, iy, ix)
                .unwrap_or(self.zeros.as_ptr())
        };
        // SAFETY: an address is that of a pixel, a checked slice of its part's channels as the segment is, or of the zeros, which
        // are as many as all channels; finish was made for m and n.
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
