//! 3x3 convolutions with stride 1 by Winograd's F(4x4, 3x3) (Lavin & Gray 2016): a quarter of the multiplications.
//!
//! Y = A^T [ (G g G^T) . (B^T d B) ] A for each 4x4 tile of the result, its 6x6 pixels d of the input and each pair of
//! channels; the 36 elementwise products, summed over input channels, are 36 matrix products. The transforms stand in `winograd`.
//!
//! Where additions are to be had beside multiplications, the 36 products are `traded`: a tile's row of each is brought to the size of the
//! weights there, and its results back when they are written. Measured (Zen 4): 0.90 to 0.93 of the time.
//!
//! Nothing is kept in Winograd's domain, where weights are four times as large: for a group of tiles
//! 1. the input is transformed, `[36][tile][c]`, shared by all threads, sized for the last-level cache;
//! 2. a task takes one panel of result channels. It transforms the panel's weights, multiplies, and writes the finished
//!    pixels of its channels.
//!
//! Few channels, which come with large maps, make one block: the panel's weights are transformed once for a group of
//! hundreds of tiles. Many are taken a block at a time, in the second-level cache beside the sums of fewer tiles.
use super::conv::{Call, PackedConv2d};
use super::epilogue::Finish;
use super::gemm::tile;
use super::packed::Panels;
use super::scratch::{Scratch, Shared};
use super::simd::{Simd, kernel};
use super::traded::{Columns, Tile, measure, own_terms_of_columns, power_of_two, resize};
use super::winograd::{output_line, transform_input, transform_weights};
use rayon::prelude::*;
use std::ops::Range;

/// How the work is cut, in numbers of f32.
struct Cut {
    /// Input channels whose weights are transformed together.
    block: usize,
    /// Tiles multiplied at a time: their sums share the second-level cache with a block's weights.
    tiles: usize,
    /// Most numbers of a group's transformed input.
    input: usize,
}

impl Cut {
    /// For `c` input channels and panels of `width`. Measured (Zen 4, 1 MB of second-level cache, 2 threads): few channels as one
    /// block with 4 MB of input take 0.90 of the time that blocks of 128 and 16 MB took.
    fn new(c: usize, width: usize) -> Self {
        match c {
            ..=256 => Cut {
                block: c,
                tiles: 48,
                input: 1 << 20,
            },
            _ => Cut {
                block: 2048 / width,
                tiles: 96,
                input: 4 << 20,
            },
        }
    }
}

/// Everything of one call that tiles share.
struct Plan {
    oh: usize,
    ow: usize,
    /// Tiles of an image, down and across.
    tiles: (usize, usize),
    top: usize,
    left: usize,
    /// First tile of the group and their number.
    first: usize,
    count: usize,
    channels: usize,
    /// From one of the 36 input matrices to the next.
    step: usize,
    /// Most tiles of a group.
    group: usize,
    /// Blocks of channels.
    blocks: usize,
}

impl Plan {
    /// Image, and the tile's row and column in it.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let per_image = self.tiles.0 * self.tiles.1;
        (
            tile / per_image,
            tile % per_image / self.tiles.1,
            tile % self.tiles.1,
        )
    }
}

impl PackedConv2d {
    pub(super) fn winograd(&self, call: &Call<'_>, finish: Finish<'_>, y: &mut [f32]) {
        let (b, (oh, ow)) = (call.size.0, call.result);
        let (isa, panels, c) = (self.panels.isa, &self.panels, self.shape.in_channels);
        let tiles = (oh.div_ceil(4), ow.div_ceil(4));
        let all = b * tiles.0 * tiles.1;
        let cut = Cut::new(c, panels.width);
        let most = if cut.block >= c { all } else { cut.tiles };
        let group = ((cut.input / (36 * c)).clamp(48, most.max(48)) / 12 * 12).min(all);
        // the padding keeps the 36 matrices off each other's cache sets
        let step = (group * c).div_ceil(1024) * 1024 + 16;
        // a traded product may read a row that is not there
        let mut input = Scratch::take(36 * step + c);
        let blocks = c.div_ceil(cut.block);
        // of the rows of the 36 matrices: in each block `[36][block][tile]` their own terms, two and negative, then what brings their
        // results back to their own size, `[36][tile]`
        let (own, back) = (2 * 36 * blocks * group + 2, 36 * group);
        let mut rows = Scratch::take(if self.sizes.is_some() { own + back } else { 0 });
        let y = Shared::new(y);
        let mut plan = Plan {
            oh,
            ow,
            tiles,
            top: self.shape.padding[0],
            left: self.shape.padding[2],
            first: 0,
            count: 0,
            channels: c,
            step,
            group,
            blocks,
        };
        for first in (0..all).step_by(group) {
            plan.first = first;
            plan.count = group.min(all - first);
            let plan = &plan;
            let v = Shared::new(&mut input);
            let rows = Shared::new(&mut rows);
            let traded = |index: usize| Traded {
                own: rows.pointer().cast::<[f32; 2]>().wrapping_add(index),
                back: rows.pointer().wrapping_add(own + index),
            };
            (0..plan.count)
                .into_par_iter()
                .with_min_len(2)
                .for_each(|index| {
                    let mut offset = 0;
                    for part in 0..call.parts.count() {
                        let channels = call.parts.channels[part];
                        let pixels = self.pixels(plan, plan.first + index, call, part);
                        // SAFETY: each pixel is of `channels` numbers. A matrix has `step` numbers, at least group * c, and index < group: this
                        // row of the 36, whose channels from offset on are the part's, is there, and this task's alone.
                        unsafe {
                            let to = v.pointer().add(index * c + offset);
                            transform_input(isa, &pixels, channels, plan.step, to)
                        };
                        offset += channels;
                    }
                    if let Some(sizes) = &self.sizes {
                        // SAFETY: the tile's row of the 36 is written, it is whole steps, and it and the tile's places in `rows` are this task's.
                        unsafe {
                            let line = v.pointer().add(index * c);
                            lay_out(isa, line, plan, cut.block, sizes, &traded(index))
                        };
                    }
                });
            // With few panels and many threads a panel's tiles are shared out too.
            let runs = plan.count.div_ceil(cut.tiles);
            let shares = (4 * rayon::current_num_threads())
                .div_ceil(panels.count())
                .min(runs);
            (0..panels.count() * shares)
                .into_par_iter()
                .with_max_len(1)
                .for_each(|task| {
                    let (panel, share) = (task % panels.count(), task / panels.count());
                    let mut weights = Transformed::new(panels, panel, &cut);
                    for run in runs * share / shares..runs * (share + 1) / shares {
                        let from = run * cut.tiles;
                        let tiles = from..plan.count.min(from + cut.tiles);
                        // SAFETY: v is the group's input, which the tasks before have written and nobody writes now. The tiles are
                        // below count, and this task alone writes their pixels in this panel's channels of y, whose length
                        // `run_enlarged` checked.
                        unsafe {
                            let input = v.pointer().cast_const();
                            let traded = self.sizes.is_some().then(|| traded(from));
                            weights.multiply_and_write(
                                plan,
                                input,
                                tiles,
                                traded.as_ref(),
                                &finish,
                                y.pointer(),
                            )
                        };
                    }
                });
        }
    }

    /// Where a tile's 6x6 pixels lie, each as many numbers as the part has channels; those beside the map are zeros.
    fn pixels(&self, plan: &Plan, tile: usize, call: &Call<'_>, part: usize) -> [*const f32; 36] {
        let (image, ty, tx) = plan.place(tile);
        let mut pixels = [self.zeros.as_ptr(); 36];
        for (i, pixel) in pixels.iter_mut().enumerate() {
            let iy = (4 * ty + i / 6).wrapping_sub(plan.top);
            let ix = (4 * tx + i % 6).wrapping_sub(plan.left);
            if let Some(inside) = call.pixel(part, image, iy, ix) {
                *pixel = inside;
            }
        }
        pixels
    }
}

/// What traded products know of the rows of the 36 matrices, from a tile on.
struct Traded {
    /// From a block to the next they are `plan.group` apart, from a matrix to the next as many as the blocks have.
    own: *mut [f32; 2],
    /// From a matrix to the next they are `plan.group` apart.
    back: *mut f32,
}

kernel! {
    /// Brings a tile's row of each of the 36 matrices to the size of the weights, and takes down its own terms in each block.
    ///
    /// # Safety
    /// `line` is valid for `plan.channels` numbers, whole steps, at each of the 36 steps, and `traded` for this tile.
    fn lay_out[S](line: *mut f32, plan: &Plan, block: usize, sizes: &[f32; 36], traded: &Traded) {
        for xi in 0..36 {
            let line = line.add(xi * plan.step);
            let own = traded.own.add(xi * plan.blocks * plan.group);
            let mut squares = 0.0;
            for i in 0..plan.blocks {
                let from = i * block;
                let (sum, terms) = measure::<S>(line.add(from), block.min(plan.channels - from));
                squares += sum;
                *own.add(i * plan.group) = terms;
            }
            let scale = power_of_two(sizes[xi] / squares.sqrt());
            resize::<S>(line, plan.channels, scale);
            for i in 0..plan.blocks {
                let own = own.add(i * plan.group);
                *own = (*own).map(|terms| -terms * scale * scale);
            }
            *traded.back.add(xi * plan.group) = 1.0 / scale;
        }
    }
}

kernel! {
    /// The own terms of the columns of the 36 matrices.
    ///
    /// # Safety
    /// At each of the 36 steps `weights` is valid for `len` panel rows, whole steps.
    fn columns_of[S](weights: *const f32, step: usize, len: usize, columns: &mut [Columns]) {
        for (xi, columns) in columns.iter_mut().enumerate() {
            *columns = Columns::new::<S>(own_terms_of_columns::<S>(weights.add(xi * step), len));
            columns.factors.set::<S>([S::splat(1.0); 2]);
        }
    }
}

/// A task's weights in Winograd's domain, one channel block of a panel, and its sums.
struct Transformed<'a> {
    panels: &'a Panels,
    panel: usize,
    /// Channels of a block; the last may have fewer.
    block: usize,
    /// From one of the 36 matrices to the next.
    weights_step: usize,
    sums_step: usize,
    scratch: Scratch,
    /// For 16-bit weights, widened.
    buffer: Scratch,
    /// Whether the weights are there: with a single block they stay.
    ready: bool,
    /// For traded products, of each of the 36 matrices.
    columns: Vec<Columns>,
}

impl<'a> Transformed<'a> {
    fn new(panels: &'a Panels, panel: usize, &Cut { block, tiles, .. }: &Cut) -> Self {
        let (weights_step, sums_step) = (block * panels.width + 16, tiles * panels.width + 16);
        Self {
            panels,
            panel,
            block,
            weights_step,
            sums_step,
            scratch: Scratch::take(36 * (weights_step + sums_step)),
            buffer: Scratch::take(panels.buffer_len(9 * block)),
            ready: false,
            columns: (0..36).map(|_| Columns::default()).collect(),
        }
    }

    /// # Safety
    /// `v` holds the group's transformed input, `tiles`, at most `cut.tiles`, lie below `plan.count`, `traded` is for the first of them,
    /// y is (b, oh, ow, n), `finish` is for it, and nobody else uses these tiles of y in this panel's channels.
    unsafe fn multiply_and_write(
        &mut self,
        plan: &Plan,
        v: *const f32,
        tiles: Range<usize>,
        traded: Option<&Traded>,
        finish: &Finish,
        y: *mut f32,
    ) {
        let (isa, width, c) = (self.panels.isa, self.panels.width, plan.channels);
        let (weights, sums) = self.scratch.split_at_mut(36 * self.weights_step);
        let v = v.add(tiles.start * c);
        for from in (0..c).step_by(self.block) {
            let len = self.block.min(c - from);
            if !self.ready {
                let mut taps: [&[f32]; 9] = [&[]; 9];
                let mut buffer = &mut self.buffer[..];
                for (tap, rows) in taps.iter_mut().enumerate() {
                    let (own, rest) = buffer.split_at_mut(self.panels.buffer_len(len));
                    *rows = self.panels.rows(self.panel, tap * c + from, len, own);
                    buffer = rest;
                }
                transform_weights(
                    isa,
                    &taps.map(<[f32]>::as_ptr),
                    len * width,
                    self.weights_step,
                    weights.as_mut_ptr(),
                );
                if traded.is_some() {
                    let weights = weights.as_ptr();
                    columns_of(isa, weights, self.weights_step, len, &mut self.columns);
                }
                self.ready = self.block >= c;
            }
            let stacks = Stacks {
                v: v.add(from),
                tiles: tiles.len(),
                len,
                weights: weights.as_ptr(),
                weights_step: self.weights_step,
                sums: sums.as_mut_ptr(),
                sums_step: self.sums_step,
                begins: from == 0,
            };
            match traded {
                Some(traded) => {
                    let own = traded.own.add(from / self.block * plan.group);
                    multiply_traded(plan, &stacks, own, &self.columns);
                }
                None => multiply(isa, plan, &stacks),
            }
        }
        let (step, column) = (self.sums_step, self.panel * width);
        let (sums, n) = (sums.as_ptr(), self.panels.n);
        let back = traded.map(|traded| traded.back.cast_const());
        write_tiles(isa, plan, tiles, sums, step, back, column, n, finish, y);
    }
}

/// Three stacks of 36 matrices: the input of some tiles, a block of `len` channels of a panel, and their products.
struct Stacks {
    /// (tiles, len), rows `plan.channels` apart
    v: *const f32,
    tiles: usize,
    len: usize,
    /// (len, two vectors)
    weights: *const f32,
    weights_step: usize,
    /// (tiles, two vectors)
    sums: *mut f32,
    sums_step: usize,
    /// Whether the products begin the sums, or are added to them.
    begins: bool,
}

/// The 36 products.
///
/// # Safety
/// The stacks are valid for what their lines say and a row more of v and of the sums where the tiles are odd, `own` for the tiles and block,
/// and the processor trades.
unsafe fn multiply_traded(plan: &Plan, stacks: &Stacks, own: *const [f32; 2], columns: &[Columns]) {
    for (xi, columns) in columns.iter().enumerate() {
        let tile = Tile {
            a: stacks.v.add(xi * plan.step),
            stride: plan.channels,
            len: stacks.len,
            w: stacks.weights.add(xi * stacks.weights_step),
            own: own.add(xi * plan.blocks * plan.group),
            columns,
            to: stacks.sums.add(xi * stacks.sums_step),
        };
        tile.all(stacks.tiles, !stacks.begins);
    }
}

kernel! {
    /// The 36 products.
    ///
    /// # Safety
    /// The stacks are valid for what their lines say.
    fn multiply[S](plan: &Plan, stacks: &Stacks) {
        let &Stacks { tiles, len, begins, .. } = stacks;
        for xi in 0..36 {
            let v = stacks.v.add(xi * plan.step);
            let w = stacks.weights.add(xi * stacks.weights_step);
            let to = stacks.sums.add(xi * stacks.sums_step);
            let mut i = 0;
            while i < tiles {
                let left = tiles - i;
                let (v, to) = (v.add(i * plan.channels), to.add(i * 2 * S::LANES));
                if S::TILE_ROWS == 12 && left >= 12 {
                    product::<S, 12>(v, plan.channels, len, w, to, begins);
                    i += 12;
                } else if left >= 6 {
                    product::<S, 6>(v, plan.channels, len, w, to, begins);
                    i += 6;
                } else if left >= 4 {
                    product::<S, 4>(v, plan.channels, len, w, to, begins);
                    i += 4;
                } else if left >= 2 {
                    product::<S, 2>(v, plan.channels, len, w, to, begins);
                    i += 2;
                } else {
                    product::<S, 1>(v, plan.channels, len, w, to, begins);
                    i += 1;
                }
            }
        }
    }
}

/// R rows of one of the 36 products.
///
/// # Safety
/// `v` is valid for R rows of `len` numbers `stride` apart, `w` for len panel rows and `to` for R; and as for [`Simd`].
#[inline(always)]
unsafe fn product<S: Simd, const R: usize>(
    v: *const f32,
    stride: usize,
    len: usize,
    w: *const f32,
    to: *mut f32,
    begins: bool,
) {
    let mut rows = [v; R];
    for r in 0..R {
        rows[r] = v.add(r * stride);
    }
    let mut acc = [[S::splat(0.0); 2]; R];
    tile::<S, R, 2>(rows, len, w, &mut acc);
    for r in 0..R {
        for j in 0..2 {
            let at = to.add((r * 2 + j) * S::LANES);
            let sum = if begins {
                acc[r][j]
            } else {
                S::add(S::load(at), acc[r][j])
            };
            S::store(at, sum);
        }
    }
}

kernel! {
    /// A^T m A of some tiles for a panel's channels, finished and written.
    ///
    /// # Safety
    /// `sums` is valid for `tiles.len()` panel rows at each of its 36 steps, and `back` for as many numbers, `plan.group` apart; the tiles
    /// lie below `plan.count`, y is (b, oh, ow, n), `finish` is for it, and nobody else uses these tiles of y in the channels from
    /// `column` on.
    #[allow(clippy::too_many_arguments)] // as above
    fn write_tiles[S](
        plan: &Plan,
        tiles: Range<usize>,
        sums: *const f32,
        sums_step: usize,
        back: Option<*const f32>,
        column: usize,
        n: usize,
        finish: &Finish,
        y: *mut f32,
    ) {
        for (index, tile) in tiles.enumerate() {
            let (image, ty, tx) = plan.place(plan.first + tile);
            for j in 0..2 {
                let column = column + j * S::LANES;
                if column >= n {
                    break;
                }
                let m = sums.add((index * 2 + j) * S::LANES);
                let mut columns = [[S::splat(0.0); 4]; 6];
                for x in 0..6 {
                    let mut line = [S::splat(0.0); 6];
                    for y in 0..6 {
                        line[y] = S::load(m.add((y * 6 + x) * sums_step));
                        if let Some(back) = back {
                            let back = *back.add((y * 6 + x) * plan.group + index);
                            line[y] = S::mul(line[y], S::splat(back));
                        }
                    }
                    columns[x] = output_line::<S>(line);
                }
                for dy in 0..4 {
                    let oy = 4 * ty + dy;
                    if oy >= plan.oh {
                        break;
                    }
                    let mut line = [S::splat(0.0); 6];
                    for x in 0..6 {
                        line[x] = columns[x][dy];
                    }
                    let line = output_line::<S>(line);
                    for dx in 0..4 {
                        let ox = 4 * tx + dx;
                        if ox < plan.ow {
                            let row = (image * plan.oh + oy) * plan.ow + ox;
                            let v = finish.apply::<S>(line[dx], row, column, n - column);
                            S::store_up_to(y.add(row * n + column), v, n - column);
                        }
                    }
                }
            }
        }
    }
}
