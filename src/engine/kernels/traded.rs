//! A tile of a product in which additions stand in for a third of the multiplications (Winograd 1968, "A new algorithm for inner product").
//!
//! For each two of k, with the row's numbers a and the column's w,
//!
//! (a0 + w1) (a1 + w0) = a0 w0 + a1 w1 + a0 a1 + w0 w1
//!
//! takes one multiply-add and two additions where the plain way takes two multiply-adds. The last two terms belong to the row alone and to
//! the column alone: whoever lays the numbers out sums them once, and the tile starts from what takes them off. A processor that adds
//! beside its multiplications, as Zen 4 does, is fastest when two pairs of three go this way: 4 cycles for what took 6. Here it is 5 of 8,
//! in steps of 8 numbers, and in an order that keeps both units busy: 11 cycles for 16. Which pairs depends on k and on the
//! column, never on the row, so that a row's results do not depend on its place. Measured on Zen 4, one core, 12 x 2 vectors: 171
//! GFLOP/s counted the plain way, where multiply-adds alone reach 118.
//!
//! Every second pair is taken with differences, -(w1 - a0) (w0 - a1), and its terms have the opposite sign: what rows and
//! columns have as their mean falls out of the sums, but for one pair. The digits lost are those of |a|^2 + |w|^2 over |a| |w|, so that both
//! sides should be about equally large: a power of two on one side costs no digits.
use super::simd::{Simd, kernel};

/// Numbers of k in a step: four pairs. Who comes with fewer fills up with zeros.
pub(super) const STEP: usize = 8;

/// Of the pairs of a step, in each half of the columns, the sign of their own terms: 0 where both are multiplied.
const SIGNS: [[i8; 4]; 2] = [[1, 0, -1, 1], [0, -1, 1, 0]];

/// SIGNS for two steps of the products of each number with the next.
const PRODUCT_SIGNS: [[f32; 2 * STEP]; 2] = {
    let mut signs = [[0.0; 2 * STEP]; 2];
    let mut i = 0;
    while i < 2 * STEP {
        signs[0][i] = if i % 2 == 0 {
            SIGNS[0][i % STEP / 2] as f32
        } else {
            0.0
        };
        signs[1][i] = if i % 2 == 0 {
            SIGNS[1][i % STEP / 2] as f32
        } else {
            0.0
        };
        i += 1;
    }
    signs
};

/// A step's worth of one half of the columns, added to their own terms.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn add_own_terms<S: Simd>(
    half: usize,
    step: [S::V; STEP],
    mut sum: S::V,
) -> S::V {
    for pair in 0..4 {
        let (even, odd) = (step[2 * pair], step[2 * pair + 1]);
        sum = match SIGNS[half][pair] {
            1 => S::fma(even, odd, sum),
            -1 => S::sub(sum, S::mul(even, odd)),
            _ => sum,
        };
    }
    sum
}

/// The own terms of columns w (len, two vectors), whole steps.
///
/// # Safety
/// `w` is valid for len * width numbers; and as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn own_terms_of_columns<S: Simd>(w: *const f32, len: usize) -> [S::V; 2] {
    // as above
    let mut sums = [[S::splat(0.0); 2]; 2];
    for i in (0..len).step_by(STEP) {
        for half in 0..2 {
            let mut step = [S::splat(0.0); STEP];
            for j in 0..STEP {
                step[j] = S::load(w.add(((i + j) * 2 + half) * S::LANES));
            }
            let sum = &mut sums[i / STEP % 2][half];
            *sum = add_own_terms::<S>(half, step, *sum);
        }
    }
    [0, 1].map(|half| S::add(sums[0][half], sums[1][half]))
}

/// Of a row, whole steps: the sum of its squares, and its own terms.
///
/// # Safety
/// `row` is valid for `len` numbers; and as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn measure<S: Simd>(row: *const f32, len: usize) -> (f32, [f32; 2]) {
    let (mut squares, mut terms) = (S::splat(0.0), [S::splat(0.0); 2]);
    for i in (0..len).step_by(S::LANES) {
        let x = S::load_up_to(row.add(i), len - i);
        squares = S::fma(x, x, squares);
        let products = S::mul(x, S::load_up_to(row.add(i + 1), len - i - 1));
        for half in 0..2 {
            let signs = S::load(PRODUCT_SIGNS[half].as_ptr().add(i % STEP));
            terms[half] = S::fma(products, signs, terms[half]);
        }
    }
    (
        S::reduce_add(squares),
        terms.map(|terms| S::reduce_add(terms)),
    )
}

kernel! {
    /// What the pairs of a row, whole steps, add to its products with each half of the columns.
    ///
    /// # Safety
    /// `row` is valid for `len` numbers.
    pub(super) fn own_terms[S](row: *const f32, len: usize, own: &mut [f32; 2]) {
        *own = measure::<S>(row, len).1;
    }
}

/// row * factor, in place.
///
/// # Safety
/// As for [`measure`].
#[inline(always)]
pub(super) unsafe fn resize<S: Simd>(row: *mut f32, len: usize, factor: f32) {
    for i in (0..len).step_by(S::LANES) {
        let x = S::load_up_to(row.add(i), len - i);
        S::store_up_to(row.add(i), S::mul(x, S::splat(factor)), len - i);
    }
}

/// The power of two nearest to `x`; 1 if there is none.
pub(super) fn power_of_two(x: f32) -> f32 {
    if x.is_normal() && x > 0.0 {
        x.log2().round().clamp(-60.0, 60.0).exp2()
    } else {
        1.0
    }
}

/// How far tiles of `left` rows go at once: even, at most 12, and so that the last has not many fewer.
pub(super) fn rows_of_tile(left: usize) -> usize {
    left.div_ceil(left.div_ceil(12)).next_multiple_of(2)
}

/// A number for each column of a tile.
#[repr(transparent)]
pub(super) struct Pair([f32; 32]);

impl Pair {
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    pub unsafe fn set<S: Simd>(&mut self, v: [S::V; 2]) {
        for half in 0..2 {
            S::store(self.0.as_mut_ptr().add(half * S::LANES), v[half]);
        }
    }
}

/// What the columns of a tile bring along.
#[repr(C)]
pub(super) struct Columns {
    /// Minus their own terms.
    pub own: Pair,
    /// For [`Tile::go_on`]: times what is there.
    pub factors: Pair,
}

impl Default for Columns {
    fn default() -> Self {
        Columns {
            own: Pair([0.0; 32]),
            factors: Pair([0.0; 32]),
        }
    }
}

impl Columns {
    /// For columns whose own terms are these, with factors of 0.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    pub unsafe fn new<S: Simd>(own: [S::V; 2]) -> Self {
        let mut columns = Columns::default();
        columns
            .own
            .set::<S>(own.map(|own| S::sub(S::splat(0.0), own)));
        columns
    }
}

/// A tile: rows of a times the columns w.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other processor trades
pub(super) struct Tile<'a> {
    /// Row r lies r * stride numbers on.
    pub a: *const f32,
    pub stride: usize,
    pub len: usize,
    /// (len, two vectors)
    pub w: *const f32,
    /// For each row its own terms, negative.
    pub own: *const [f32; 2],
    pub columns: &'a Columns,
    /// (rows, two vectors)
    pub to: *mut f32,
}

impl Tile<'_> {
    /// The products of `count` rows, tile by tile: begun, or added to what is at `to` times the factors.
    ///
    /// # Safety
    /// As for [`Tile::begin`], with any number of rows; where it is odd all that rows have is valid for one more.
    pub unsafe fn all(&self, count: usize, goes_on: bool) {
        let mut i = 0;
        while i < count {
            let rows = rows_of_tile(count - i);
            let tile = Tile {
                a: self.a.add(i * self.stride),
                own: self.own.add(i),
                to: self.to.add(i * 32),
                ..*self
            };
            if goes_on {
                tile.go_on(rows);
            } else {
                tile.begin(rows);
            }
            i += rows;
        }
    }

    /// The product of the first `rows` rows, to `to`.
    ///
    /// # Safety
    /// The processor is one of [`super::simd::Isa::trades`]; rows is 2, 4, 6, 8, 10 or 12, len a multiple of [`STEP`] and not zero, and all
    /// pointers are valid for what their lines say.
    pub unsafe fn begin(&self, rows: usize) {
        #[cfg(target_arch = "x86_64")]
        x86::begin(self, rows);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{rows} rows on a processor that does not trade");
    }

    /// The product, added to what is at `to` times the factors.
    ///
    /// # Safety
    /// As for [`Tile::begin`].
    unsafe fn go_on(&self, rows: usize) {
        #[cfg(target_arch = "x86_64")]
        x86::go_on(self, rows);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{rows} rows on a processor that does not trade");
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Tile;
    use std::arch::asm;

    // The sums are zmm0 to zmm23, two for each row; zmm24 and zmm25 are the columns' vectors of an even k, zmm26 and zmm27 those of the
    // odd one after it. In asm, because a compiler loads a row's number to a register for its four uses, and broadcasts as operands are
    // what leaves room for the additions.

    /// A pair by one multiplication.
    macro_rules! traded {
        ($sum:literal $even:literal $odd:literal $op:literal $fma:literal $a:literal $p:literal $q:literal $t:literal $u:literal) => {
            concat!(
                $op,
                " ",
                $t,
                ", ",
                $odd,
                ", dword ptr [",
                $a,
                " + ",
                $p,
                "]{{1to16}}\n",
                $op,
                " ",
                $u,
                ", ",
                $even,
                ", dword ptr [",
                $a,
                " + ",
                $q,
                "]{{1to16}}\n",
                $fma,
                " zmm",
                $sum,
                ", ",
                $t,
                ", ",
                $u,
                "\n",
            )
        };
    }
    /// A pair by two.
    macro_rules! plain {
        ($sum:literal $even:literal $odd:literal $a:literal $p:literal $q:literal) => {
            concat!(
                "vfmadd231ps zmm",
                $sum,
                ", ",
                $even,
                ", dword ptr [",
                $a,
                " + ",
                $p,
                "]{{1to16}}\n",
                "vfmadd231ps zmm",
                $sum,
                ", ",
                $odd,
                ", dword ptr [",
                $a,
                " + ",
                $q,
                "]{{1to16}}\n",
            )
        };
    }
    // A row's pair, of which `p` and `q` are the places, in both halves of the columns: with additions in the left one alone,
    macro_rules! left {
        ($p:literal $q:literal $a:literal $row:literal $left:literal $right:literal) => {
            concat!(
                traded!($left "zmm24" "zmm26" "vaddps" "vfmadd231ps" $a $p $q "zmm28" "zmm29"),
                plain!($right "zmm25" "zmm27" $a $p $q),
            )
        };
    }
    // with differences in the right one alone,
    macro_rules! right {
        ($p:literal $q:literal $a:literal $row:literal $left:literal $right:literal) => {
            concat!(
                plain!($left "zmm24" "zmm26" $a $p $q),
                traded!($right "zmm25" "zmm27" "vsubps" "vfnmadd231ps" $a $p $q "zmm30" "zmm31"),
            )
        };
    }
    // with differences in the left one and additions in the right.
    macro_rules! both {
        ($p:literal $q:literal $a:literal $row:literal $left:literal $right:literal) => {
            concat!(
                traded!($left "zmm24" "zmm26" "vsubps" "vfnmadd231ps" $a $p $q "zmm28" "zmm29"),
                traded!($right "zmm25" "zmm27" "vaddps" "vfmadd231ps" $a $p $q "zmm30" "zmm31"),
            )
        };
    }
    /// The four vectors of a pair of k.
    macro_rules! columns {
        ($at:literal) => {
            concat!(
                "vmovups zmm24, [rcx + ",
                $at,
                "]\n",
                "vmovups zmm25, [rcx + ",
                $at,
                " + 64]\n",
                "vmovups zmm26, [rcx + ",
                $at,
                " + 128]\n",
                "vmovups zmm27, [rcx + ",
                $at,
                " + 192]\n",
            )
        };
    }
    /// A row's sums begin with its own terms and the columns',
    macro_rules! begin {
        ($a:literal $row:literal $left:literal $right:literal) => {
            concat!(
                "vbroadcastss zmm28, dword ptr [rsi + 8 * ",
                $row,
                "]\n",
                "vbroadcastss zmm29, dword ptr [rsi + 8 * ",
                $row,
                " + 4]\n",
                "vaddps zmm",
                $left,
                ", zmm28, [rdx]\n",
                "vaddps zmm",
                $right,
                ", zmm29, [rdx + 64]\n",
            )
        };
    }
    /// and with what is there, times the factors.
    macro_rules! go_on {
        ($a:literal $row:literal $left:literal $right:literal) => {
            concat!(
                begin!($a $row $left $right),
                "vmovups zmm28, [rdi + 128 * ", $row, "]\n",
                "vmovups zmm29, [rdi + 128 * ", $row, " + 64]\n",
                "vfmadd231ps zmm", $left, ", zmm28, [rdx + 128]\n",
                "vfmadd231ps zmm", $right, ", zmm29, [rdx + 192]\n",
            )
        };
    }
    macro_rules! store {
        ($a:literal $row:literal $left:literal $right:literal) => {
            concat!(
                "vmovups [rdi + 128 * ",
                $row,
                "], zmm",
                $left,
                "\n",
                "vmovups [rdi + 128 * ",
                $row,
                " + 64], zmm",
                $right,
                "\n",
            )
        };
    }
    macro_rules! tile {
        ($x:ident $start:ident $(($($row:literal)*))*) => {
            asm!(
                concat!($($start!($($row)*)),*),
                "2:",
                // the pairs of a step, as SIGNS has them
                columns!("0"),
                concat!($(left!("0" "4" $($row)*)),*),
                columns!("256"),
                concat!($(right!("8" "12" $($row)*)),*),
                columns!("512"),
                concat!($(both!("16" "20" $($row)*)),*),
                columns!("768"),
                concat!($(left!("24" "28" $($row)*)),*),
                "add r8, 32",
                "add r9, 32",
                "add r10, 32",
                "add r11, 32",
                "add rcx, 1024",
                "sub rax, 8",
                "jnz 2b",
                concat!($(store!($($row)*)),*),
                inout("r8") $x.a => _,
                inout("r9") $x.a.wrapping_add(3 * $x.stride) => _,
                inout("r10") $x.a.wrapping_add(6 * $x.stride) => _,
                inout("r11") $x.a.wrapping_add(9 * $x.stride) => _,
                in("r12") 4 * $x.stride,
                inout("rcx") $x.w => _,
                inout("rax") $x.len => _,
                in("rdi") $x.to,
                in("rsi") $x.own,
                in("rdx") $x.columns,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
                options(nostack),
            )
        };
    }
    /// The tile of so many rows: two at a time come before those that are there, and all go to `tile!`. Each is where its numbers lie, its
    /// place, and its two sums.
    macro_rules! rows {
        (12 $x:ident $start:ident $($rows:tt)*) => { rows!(10 $x $start ("r11 + r12" "10" "20" "21") ("r11 + 2 * r12" "11" "22" "23") $($rows)*) };
        (10 $x:ident $start:ident $($rows:tt)*) => { rows!(8 $x $start ("r10 + 2 * r12" "8" "16" "17") ("r11" "9" "18" "19") $($rows)*) };
        (8 $x:ident $start:ident $($rows:tt)*) => { rows!(6 $x $start ("r10" "6" "12" "13") ("r10 + r12" "7" "14" "15") $($rows)*) };
        (6 $x:ident $start:ident $($rows:tt)*) => { rows!(4 $x $start ("r9 + r12" "4" "8" "9") ("r9 + 2 * r12" "5" "10" "11") $($rows)*) };
        (4 $x:ident $start:ident $($rows:tt)*) => { rows!(2 $x $start ("r8 + 2 * r12" "2" "4" "5") ("r9" "3" "6" "7") $($rows)*) };
        (2 $x:ident $start:ident $($rows:tt)*) => { tile!($x $start ("r8" "0" "0" "1") ("r8 + r12" "1" "2" "3") $($rows)*) };
    }
    /// The tile of any number of rows.
    macro_rules! all {
        ($rows:ident $x:ident $start:ident) => {
            match $rows {
                12 => rows!(12 $x $start),
                10 => rows!(10 $x $start),
                8 => rows!(8 $x $start),
                6 => rows!(6 $x $start),
                4 => rows!(4 $x $start),
                _ => rows!(2 $x $start),
            }
        };
    }

    /// # Safety
    /// As for [`Tile::begin`].
    pub unsafe fn begin(x: &Tile, rows: usize) {
        all!(rows x begin)
    }

    /// # Safety
    /// As for [`Tile::go_on`].
    pub unsafe fn go_on(x: &Tile, rows: usize) {
        all!(rows x go_on)
    }
}
