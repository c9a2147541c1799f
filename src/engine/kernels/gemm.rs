//! The product behind linear layers and direct convolutions: y (m, n) = A (m, k) W^T, W packed in panels.
//!
//! The rows of A need not lie in memory as a matrix: each is a list of segments given by pointers, so that a
//! convolution is the same loop with one segment for each tap, and two maps joined on channels are two segments. A task
//! copies its rows of one block of k side by side: an im2col of 120 kB at a time, and rows a multiple of 4 kB apart,
//! which would all fall into one set of the first-level cache, do not.
//!
//! The sum over k is in blocks of at most [`K_BLOCK`], each summed in registers in order and then added to y, so a
//! result depends on nothing but its own row and column: not on the batch, the number of threads or its block of rows.
//!
//! Where additions are to be had beside multiplications, tiles are `traded`: a row, laid out, is also brought to the size of the weights.
use super::epilogue::Finish;
use super::length;
use super::packed::Panels;
use super::scratch::{Scratch, Shared};
use super::simd::{Simd, kernel};
use super::traded::{
    Columns, STEP, Tile, measure, own_terms_of_columns, power_of_two, resize, rows_of_tile,
};
use rayon::prelude::*;

/// Longest stretch of k summed in registers.
const K_BLOCK: usize = 320;
/// From one copied row to the next: an odd number of cache lines.
const LINE: usize = K_BLOCK + 16;
/// The most rows of a tile of any instruction set.
pub(super) const MOST_ROWS: usize = 12;
/// Rows of a task. Divisible by the tile rows of every instruction set.
pub(super) const M_BLOCK: usize = 144;
/// Columns of a task, so that its part of y stays in the second-level cache. Measured (Zen 4): 144 x 640 takes 0.95 of the time of 96 x 512 with k of
/// 1280 to 5120, and the same with 320.
const N_BLOCK: usize = 640;

/// Adds A W to `acc`: R rows by C vectors.
///
/// # Safety
/// Each row is valid for `len` numbers, `w` for len * C * LANES; and as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const R: usize, const C: usize>(
    rows: [*const f32; R],
    len: usize,
    w: *const f32,
    acc: &mut [[S::V; C]; R],
) {
    for p in 0..len {
        let mut b = [S::splat(0.0); C];
        for j in 0..C {
            b[j] = S::load(w.add((p * C + j) * S::LANES));
        }
        for i in 0..R {
            let a = S::splat(*rows[i].add(p));
            for j in 0..C {
                acc[i][j] = S::fma(a, b[j], acc[i][j]);
            }
        }
    }
}

/// A stretch of k that lies in one segment.
struct Piece {
    segment: usize,
    offset: usize,
    len: usize,
}

/// A stretch of k that is summed in registers without a stop.
struct KBlock {
    k: usize,
    len: usize,
    pieces: Vec<Piece>,
}

/// Cuts k, whole steps, into even blocks of at most K_BLOCK, each with the pieces of segments that it covers.
fn k_blocks(segments: &[usize], step: usize) -> Vec<KBlock> {
    let k: usize = segments.iter().sum();
    let count = k.div_ceil(K_BLOCK).max(1);
    let (mut segment, mut offset) = (0, 0);
    let block = |i: usize| {
        let [from, to] = [i, i + 1].map(|i| k / step * i / count * step);
        let (mut left, mut pieces) = (to - from, Vec::<Piece>::new());
        while left > 0 {
            let len = left.min(segments[segment] - offset);
            pieces.push(Piece {
                segment,
                offset,
                len,
            });
            left -= len;
            offset += len;
            if offset == segments[segment] {
                (segment, offset) = (segment + 1, 0);
            }
        }
        KBlock {
            k: from,
            len: to - from,
            pieces,
        }
    };
    (0..count).map(block).collect()
}

/// One product: who multiplies whom, and where it goes.
pub(super) struct Product<'a> {
    pub panels: &'a Panels,
    /// Lengths of the segments that make a row of A; their sum is k.
    pub segments: &'a [usize],
    pub m: usize,
    /// For a result (m, panels.n).
    pub finish: Finish<'a>,
}

impl Product<'_> {
    /// `address(row, segment)` is where that segment of that row of A lies.
    ///
    /// # Safety
    /// Every address of a row below m is valid for its segment's length while this runs, and `finish` is for a result (m, n).
    pub unsafe fn run(&self, address: impl Fn(usize, usize) -> *const f32 + Sync, y: &mut [f32]) {
        let (panels, m) = (self.panels, self.m);
        assert_eq!(
            y.len(),
            length(&[m, panels.n]),
            "result of {m} x {}",
            panels.n
        );
        assert_eq!(
            self.segments.iter().sum::<usize>(),
            panels.k,
            "segments cover k"
        );
        if m == 0 || panels.n == 0 {
            return;
        }
        let trades = panels.isa.trades() && panels.k > 0 && panels.k.is_multiple_of(STEP);
        let blocks = k_blocks(self.segments, if trades { STEP } else { 1 });
        let longest = blocks.iter().map(|b| b.len).max().unwrap_or(0);
        let row_blocks = m.div_ceil(M_BLOCK);
        // Few rows: more, narrower tasks. The split does not change any sum.
        let wanted = 4 * rayon::current_num_threads();
        let mut columns = (N_BLOCK / panels.width).min(panels.count()).max(1);
        while columns > 1 && row_blocks * panels.count().div_ceil(columns) < wanted {
            columns = columns.div_ceil(2);
        }
        let y = Shared::new(y);
        // Row blocks are the inner index: a thread meets the same weights again while they are in its cache.
        (0..row_blocks * panels.count().div_ceil(columns))
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| {
                let (row_block, column_block) = (task % row_blocks, task / row_blocks);
                let first = row_block * M_BLOCK;
                let rows = M_BLOCK.min(m - first);
                // The task's rows of one block of k, side by side.
                let mut lines = Scratch::take((M_BLOCK + MOST_ROWS) * LINE);
                let mut traded = Traded::default();
                let mut buffer = Scratch::take(panels.buffer_len(longest));
                let first_panel = column_block * columns;
                for (index, block) in blocks.iter().enumerate() {
                    for i in 0..rows {
                        let mut to = lines[i * LINE..].as_mut_ptr();
                        for piece in &block.pieces {
                            // SAFETY: first + i < m, so the address is valid for the segment by this function's contract, and the piece lies
                            // in it; the line, this task's own, holds K_BLOCK numbers, and the pieces of a block are no more.
                            unsafe {
                                let from = address(first + i, piece.segment).add(piece.offset);
                                to.copy_from_nonoverlapping(from, piece.len);
                                to = to.add(piece.len);
                            }
                        }
                        if trades {
                            let line = lines[i * LINE..][..block.len].as_mut_ptr();
                            let (own, back) = (&mut traded.own[i], &mut traded.back[i]);
                            // SAFETY: the line is whole steps, as k is.
                            unsafe { lay_out(panels.isa, line, block.len, panels.size, own, back) };
                        }
                    }
                    for panel in first_panel..(first_panel + columns).min(panels.count()) {
                        let w = panels.rows(panel, block.k, block.len, &mut buffer);
                        let stage = Stage {
                            first,
                            rows,
                            traded: trades.then_some(&traded),
                            column: panel * panels.width,
                            n: panels.n,
                            begins: index == 0,
                            ends: index + 1 == blocks.len(),
                        };
                        // SAFETY: the lines hold M_BLOCK rows and MOST_ROWS more, w the block's; y was checked to be (m, n) above, these
                        // rows are below m, and no other task has these rows in this panel's columns.
                        unsafe {
                            column_of_tiles(
                                panels.isa,
                                &stage,
                                lines.as_ptr(),
                                block.len,
                                w.as_ptr(),
                                y.pointer(),
                                &self.finish,
                            )
                        };
                    }
                }
            });
    }
}

/// A task's rows for traded tiles.
struct Traded {
    /// Minus the own terms of each; the last tile may read the terms of rows that are not there.
    own: [[f32; 2]; M_BLOCK + MOST_ROWS],
    /// What brings each row's results back to its own size.
    back: [f32; M_BLOCK],
}

impl Default for Traded {
    fn default() -> Self {
        Traded {
            own: [[0.0; 2]; M_BLOCK + MOST_ROWS],
            back: [0.0; M_BLOCK],
        }
    }
}

/// Which part of y a run of tiles makes, and whether it is the first or the last block of k.
struct Stage<'a> {
    first: usize,
    rows: usize,
    traded: Option<&'a Traded>,
    column: usize,
    n: usize,
    begins: bool,
    ends: bool,
}

kernel! {
    /// All the tiles of a panel in a task's rows, for one block of k.
    ///
    /// # Safety
    /// `lines` is valid for `stage.rows + MOST_ROWS` rows of LINE numbers, of which `len` are used, and `w` for len panel rows;
    /// y is (m, stage.n) with first + rows <= m, nobody else uses these rows in this panel's columns, and `finish` is for (m, n).
    fn column_of_tiles[S](
        stage: &Stage,
        lines: *const f32,
        len: usize,
        w: *const f32,
        y: *mut f32,
        finish: &Finish,
    ) {
        if let Some(traded) = stage.traded {
            let columns = Columns::new::<S>(own_terms_of_columns::<S>(w, len));
            let (mut i, mut sums) = (0, [0f32; MOST_ROWS * 32]);
            while i < stage.rows {
                let rows = rows_of_tile(stage.rows - i);
                let tile = Tile {
                    a: lines.add(i * LINE),
                    stride: LINE,
                    len,
                    w,
                    own: traded.own.as_ptr().add(i),
                    columns: &columns,
                    to: sums.as_mut_ptr(),
                };
                tile.begin(rows);
                write_tile::<S>(stage, i, rows, &sums, y, finish);
                i += rows;
            }
            return;
        }
        let mut i = 0;
        while i < stage.rows {
            let left = stage.rows - i;
            let rows = lines.add(i * LINE);
            if S::TILE_ROWS == 12 && left >= 9 {
                one_tile::<S, 12>(stage, i, rows, len, w, y, finish);
                i += 12;
            } else if left >= 5 {
                one_tile::<S, 6>(stage, i, rows, len, w, y, finish);
                i += 6;
            } else if left >= 3 {
                one_tile::<S, 4>(stage, i, rows, len, w, y, finish);
                i += 4;
            } else {
                one_tile::<S, 2>(stage, i, rows, len, w, y, finish);
                i += 2;
            }
        }
    }
}

/// R rows from the block's row `i` on. Those past the last are computed from what lies in the lines and not written.
///
/// # Safety
/// `lines` is row i; otherwise as for [`column_of_tiles`], and as for [`Simd`].
#[inline(always)]
unsafe fn one_tile<S: Simd, const R: usize>(
    stage: &Stage,
    i: usize,
    lines: *const f32,
    len: usize,
    w: *const f32,
    y: *mut f32,
    finish: &Finish,
) {
    let mut acc = [[S::splat(0.0); 2]; R];
    let mut rows = [lines; R];
    for r in 0..R {
        rows[r] = lines.add(r * LINE);
    }
    tile::<S, R, 2>(rows, len, w, &mut acc);
    // Through memory: the loops that write must not keep the sums from living in registers above.
    let mut sums = [0f32; MOST_ROWS * 32];
    for r in 0..R {
        for j in 0..2 {
            S::store(sums.as_mut_ptr().add((r * 2 + j) * S::LANES), acc[r][j]);
        }
    }
    write_tile::<S>(stage, i, R, &sums, y, finish);
}

/// A tile's sums (rows, two vectors) from the block's row `i` on, as far as there are rows.
///
/// # Safety
/// As for [`column_of_tiles`], and as for [`Simd`].
#[inline(always)]
unsafe fn write_tile<S: Simd>(
    stage: &Stage,
    i: usize,
    rows: usize,
    sums: &[f32; MOST_ROWS * 32],
    y: *mut f32,
    finish: &Finish,
) {
    for r in 0..rows.min(stage.rows - i) {
        let row = stage.first + i + r;
        for j in 0..2 {
            let column = stage.column + j * S::LANES;
            if column >= stage.n {
                break;
            }
            let len = stage.n - column;
            let at = y.add(row * stage.n + column);
            let mut v = S::load(sums.as_ptr().add((r * 2 + j) * S::LANES));
            if let Some(traded) = stage.traded {
                v = S::mul(v, S::splat(traded.back[i + r]));
            }
            if !stage.begins {
                v = S::add(v, S::load_up_to(at, len));
            }
            if stage.ends {
                v = finish.apply::<S>(v, row, column, len);
            }
            S::store_up_to(at, v, len);
        }
    }
}

kernel! {
    /// Brings a row of A to numbers as large as the weights'. Gives its own terms, negative, and what brings its results back.
    ///
    /// # Safety
    /// `line` is valid for `len` numbers, whole steps.
    fn lay_out[S](line: *mut f32, len: usize, size: f32, own: &mut [f32; 2], back: &mut f32) {
        let (squares, terms) = measure::<S>(line, len);
        let scale = power_of_two(size / (squares / len as f32).sqrt());
        resize::<S>(line, len, scale);
        *own = terms.map(|terms| -terms * scale * scale);
        *back = 1.0 / scale;
    }
}
