//! Nearest-neighbour enlargement, channels last.
use rayon::prelude::*;

/// (b, h, w, c) to (b, 2h, 2w, c)
pub fn upsample_nearest_2x(x: &[f32], (b, h, w, c): (usize, usize, usize, usize), y: &mut [f32]) {
    upsample_nearest(x, (b, h, w, c), (2 * h, 2 * w), y);
}

/// (b, h, w, c) to (b, to_h, to_w, c): pixel i comes from floor(i * size / to_size), as in torch.
pub fn upsample_nearest(
    x: &[f32],
    (b, h, w, c): (usize, usize, usize, usize),
    (to_h, to_w): (usize, usize),
    y: &mut [f32],
) {
    assert_eq!(x.len(), b * h * w * c, "input of {b} x {h} x {w} x {c}");
    assert_eq!(
        y.len(),
        b * to_h * to_w * c,
        "result of {b} x {to_h} x {to_w} x {c}"
    );
    if y.is_empty() {
        return;
    }
    // torch computes the source in f32 from the ratio of the sizes, and so do we, rounding included
    let source = |i: usize, from: usize, to: usize| {
        if to == 2 * from {
            return i / 2;
        }
        ((i as f32 * (from as f32 / to as f32)) as usize).min(from - 1)
    };
    y.par_chunks_mut(to_w * c)
        .enumerate()
        .for_each(|(row, out)| {
            let (image, oy) = (row / to_h, row % to_h);
            let line = &x[(image * h + source(oy, h, to_h)) * w * c..][..w * c];
            for (ox, pixel) in out.chunks_mut(c).enumerate() {
                pixel.copy_from_slice(&line[source(ox, w, to_w) * c..][..c]);
            }
        });
}
