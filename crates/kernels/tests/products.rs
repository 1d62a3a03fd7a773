//! Every product, on every instruction set of the machine, against its definition in f64 and, bit for bit, against the
//! scalar reference and against itself with other rows in the call.

use bitdelta_kernels::{
    Activations, Arena, Blocks, Elements, Int8Weights, Isa, KvElements, KvPages, Layout, LowRankTiles, Matrix, PAGE,
    Packed, PageLayout, PlaneTiles, Product, Queries, SparseRows, Team, Term, Weights, attend_on, project, project_on,
};
use half::{bf16, f16};

/// Relative to the sum of absolute terms: f32 rounding over at most a few hundred additions.
const TOLERANCE: f64 = 1e-5;

/// Half a step of a digit, relative to the greatest of what is rounded together.
const DIGIT: f64 = 0.5 / 127.0;

/// Odd sizes on purpose: below, at and above a vector, a word and a tile.
const SHAPES: [(usize, usize, usize); 9] =
    [(1, 1, 1), (1, 3, 16), (2, 5, 17), (3, 4, 64), (4, 9, 65), (5, 16, 100), (8, 33, 128), (9, 7, 191), (13, 70, 256)];

/// A small deterministic generator (xorshift) of values in −1..1.
struct Values(u64);

impl Values {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn next(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

fn assert_close(got: &[f32], want: &[(f64, f64)], what: &str) {
    for (i, (&got, &(want, magnitude))) in got.iter().zip(want).enumerate() {
        assert!((f64::from(got) - want).abs() <= TOLERANCE * (magnitude + 1.0), "{what}, output {i}: {got} for {want}");
    }
}

/// Value and magnitude of each output of `x · wᵀ + y`.
fn product(x: &[f32], w: &[f32], y: &[f32], k: usize) -> Vec<(f64, f64)> {
    let n = w.len() / k;
    let pairs = |m: usize, o: usize| {
        x[m * k..][..k].iter().zip(&w[o * k..][..k]).map(|(a, b)| f64::from(*a) * f64::from(*b)).collect::<Vec<_>>()
    };
    y.iter()
        .enumerate()
        .map(|(i, y)| {
            let terms = pairs(i / n, i % n);
            (f64::from(*y) + terms.iter().sum::<f64>(), f64::from(y.abs()) + terms.iter().map(|t| t.abs()).sum::<f64>())
        })
        .collect()
}

/// Runs `f` on every instruction set, checks it against `want` and for equal bits, and each row against itself alone.
fn check(
    what: &str,
    x: &[f32],
    input: usize,
    y: &[f32],
    output: usize,
    want: &[(f64, f64)],
    f: impl Fn(Isa, &[f32], &mut [f32]),
) {
    let run = |isa, x: &[f32], y: &[f32]| {
        let mut y = y.to_vec();
        f(isa, x, &mut y);
        y
    };
    let reference = run(Isa::Scalar, x, y);
    assert_close(&reference, want, what);
    for isa in Isa::available() {
        assert_eq!(run(isa, x, y), reference, "{what} on {isa:?} has the bits of the scalar reference");
        for (row, (x, y)) in x.chunks(input).zip(y.chunks(output)).enumerate() {
            let alone = run(isa, x, y);
            assert_eq!(alone, reference[row * output..][..output], "{what} on {isa:?}: row {row} alone and in company");
        }
    }
}

/// `y = x · mᵀ`, or `+=`, with inputs of width `k`.
fn multiply(isa: Isa, x: &[f32], k: usize, rounded: bool, matrix: Matrix, y: &mut [f32], add: bool) {
    let x = if rounded { Activations::rounded_on(isa, x, k) } else { Activations::exact(x, k) };
    let rows = 0..x.rows();
    project_on(isa, &x, &mut [Product { terms: vec![Term { matrix, rows }], y, add }]);
}

#[test]
fn the_base_product_is_right_for_every_type_and_shape() {
    let mut values = Values(7);
    for (m, n, k) in SHAPES {
        let (x, w, y) = (values.vec(m * k), values.vec(n * k), values.vec(m * n));
        let halves: Vec<u16> = w.iter().map(|w| f16::from_f32(*w).to_bits()).collect();
        let brains: Vec<u16> = w.iter().map(|w| bf16::from_f32(*w).to_bits()).collect();
        let as_f32 = |to: &dyn Fn(u16) -> f32, w: &[u16]| w.iter().map(|w| to(*w)).collect::<Vec<_>>();
        let stored = [
            (Elements::F32(&w), w.clone()),
            (Elements::F16(&halves), as_f32(&|b| f16::from_bits(b).to_f32(), &halves)),
            (Elements::Bf16(&brains), as_f32(&|b| bf16::from_bits(b).to_f32(), &brains)),
        ];
        for (elements, exact) in stored {
            let weights = Weights { elements, rows: n, cols: k };
            let what = format!("matmul ({m}, {n}, {k})");
            check(&what, &x, k, &y, n, &product(&x, &exact, &y, k), |isa, x, y| {
                multiply(isa, x, k, false, Matrix::Floats(weights), y, true);
            });
        }
    }
}

/// Rounded by half a unit of bf16's last place at most; the order in which a pair is added is the CPU's.
#[test]
fn a_bf16_product_with_narrow_activations_is_that_of_the_rounded_ones() {
    let mut values = Values(0x9a55);
    for (m, n, k) in SHAPES {
        let (x, y) = (values.vec(m * k), values.vec(m * n));
        let bits: Vec<u16> = values.vec(n * k).into_iter().map(|v| bf16::from_f32(v).to_bits()).collect();
        let narrow = |values: &[f32]| values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect::<Vec<f32>>();
        let weights: Vec<f32> = bits.iter().map(|b| bf16::from_bits(*b).to_f32()).collect();
        let matrix = Matrix::Floats(Weights { elements: Elements::Bf16(&bits), rows: n, cols: k });
        for isa in Isa::available() {
            let run = |x: &[f32], y: &[f32], add| {
                let mut y = y.to_vec();
                let rows = 0..x.len() / k;
                let product = Product { terms: vec![Term { matrix, rows }], y: &mut y, add };
                project_on(isa, &Activations::narrow_on(isa, x, k), &mut [product]);
                y
            };
            let rounds = isa == Isa::Avx512Bf16;
            let x_then = if rounds { narrow(&x) } else { x.clone() };
            let got = run(&x, &y, true);
            assert_close(&got, &product(&x_then, &weights, &y, k), &format!("{m}x{n}x{k} on {isa:?}"));
            for (row, (x, y)) in x.chunks(k).zip(y.chunks(n)).enumerate() {
                assert_eq!(run(x, y, true), got[row * n..][..n], "row {row} alone and in company on {isa:?}");
            }
            let alone = run(&x, &vec![f32::NAN; m * n], false);
            assert_close(&alone, &product(&x_then, &weights, &vec![0.0; m * n], k), "what y held does not matter");
        }
    }
}

/// Inputs as the products with rounded activations see them: with one digit or with two.
fn rounded_inputs(x: &[f32], k: usize, digits: usize) -> Vec<f32> {
    let round = |block: &[f32]| -> Vec<f32> {
        let greatest = block.iter().fold(0f32, |greatest, x| greatest.max(x.abs()));
        let rounded = |x: &f32| {
            let steps = x * (127.0 / greatest);
            let code = steps.round_ties_even();
            let fine = ((steps - code) * 128.0).round_ties_even() / 128.0;
            (if digits == 2 { code + fine } else { code }) * (greatest / 127.0)
        };
        block.iter().map(rounded).collect()
    };
    x.chunks(k).flat_map(|row| row.chunks(64)).flat_map(round).collect()
}

#[test]
fn the_int8_product_is_that_of_the_rounded_matrices() {
    let mut values = Values(23);
    for (m, n, k) in SHAPES {
        let (x, w) = (values.vec(m * k), values.vec(n * k));
        let weights = Int8Weights::quantize(&w, n, k, &mut Arena::default());
        let mut rounded = vec![0.0; n * k];
        rounded.chunks_mut(k).enumerate().for_each(|(row, out)| weights.copy_row(row, out));
        for (w, rounded) in w.iter().zip(&rounded) {
            // Half a step of a block that reaches from −1 to 1 at most, and the rounding of scale and minimum to f16.
            assert!((w - rounded).abs() <= 1.0 / 255.0 + 1e-3, "{w} became {rounded}");
        }
        let inputs = rounded_inputs(&x, k, 2);
        let want = product(&inputs, &rounded, &vec![0.0; m * n], k);
        let what = format!("int8 ({m}, {n}, {k})");
        check(&what, &x, k, &vec![0.0; m * n], n, &want, |isa, x, y| {
            multiply(isa, x, k, true, Matrix::Int8(&weights), y, false);
        });
    }
}

#[test]
fn a_files_own_codes_are_kept_and_multiplied_as_they_are() {
    let mut values = Values(41);
    for (m, n, k) in [(1, 1, 32), (2, 5, 64), (3, 33, 96), (9, 70, 160), (5, 16, 256)] {
        for (layout, most) in [(Layout::Nibbles, 15), (Layout::Bytes, 255)] {
            let codes: Vec<u8> = (0..n * k).map(|_| (values.bits() >> 20) as u8 & most).collect();
            let mut halves = || (0..n * k / 32).map(|_| f16::from_f32(values.next()).to_bits()).collect::<Vec<_>>();
            let (scales, minima) = (halves(), halves());
            let blocks = Blocks { codes: &codes, scales: &scales, minima: &minima };
            let weights = Int8Weights::keep(&blocks, layout, n, k, &mut Arena::default());
            assert_eq!(weights.bytes(), Int8Weights::bytes_of(layout, n, k));
            let real = |bits: u16| f16::from_bits(bits).to_f32();
            let exact: Vec<f32> = (codes.iter().enumerate())
                .map(|(i, code)| f32::from(*code) * real(scales[i / 32]) + real(minima[i / 32]))
                .collect();
            let mut found = vec![0.0; n * k];
            found.chunks_mut(k).enumerate().for_each(|(row, out)| weights.copy_row(row, out));
            assert_eq!(found, exact, "{layout:?} ({n}, {k})");
            let x = values.vec(m * k);
            let mut want = product(&rounded_inputs(&x, k, 2), &exact, &vec![0.0; m * n], k);
            // Codes and minimum are multiplied apart, and what they add up to may be less than either.
            want.iter_mut().for_each(|want| want.1 += f64::from(most) * k as f64);
            let what = format!("{layout:?} ({m}, {n}, {k})");
            check(&what, &x, k, &vec![0.0; m * n], n, &want, |isa, x, y| {
                multiply(isa, x, k, true, Matrix::Int8(&weights), y, false);
            });
        }
    }
}

struct Planes {
    bits: usize,
    rows: usize,
    cols: usize,
    group: usize,
    planes: Vec<u64>,
    scales: Vec<u16>,
    offsets: Vec<u16>,
}

impl Planes {
    fn random(values: &mut Values, bits: usize, rows: usize, cols: usize, group: usize, offset: bool) -> Self {
        let words = cols.div_ceil(64);
        let planes = (0..rows * bits * words)
            .map(|i| {
                values.bits()
                    & if i % words + 1 == words && !cols.is_multiple_of(64) { (1 << (cols % 64)) - 1 } else { !0 }
            })
            .collect();
        let mut halves = |n: usize| (0..n).map(|_| f16::from_f32(values.next()).to_bits()).collect::<Vec<_>>();
        let groups = rows * cols.div_ceil(group);
        let (scales, offsets) = (halves(groups), halves(if offset { groups } else { 0 }));
        Self { bits, rows, cols, group, planes, scales, offsets }
    }

    fn packed(&self) -> Packed<'_> {
        let Self { bits, rows, cols, group, .. } = *self;
        let (planes, scales, offsets) = (&self.planes, &self.scales, &self.offsets);
        Packed { bits, rows, cols, group, planes, scales, offsets, tensor_scale: 0.5 }
    }

    /// The definition in the module's documentation, element by element.
    fn expanded(&self) -> Vec<f32> {
        let words = self.cols.div_ceil(64);
        let groups = self.cols.div_ceil(self.group);
        let real = |bits: &u16| f16::from_bits(*bits).to_f32() * 0.5;
        let element = |row: usize, col: usize| {
            let odd: i32 = (0..self.bits)
                .map(|p| {
                    let word = self.planes[(row * self.bits + p) * words + col / 64];
                    (1 << p) * if word >> (col % 64) & 1 == 1 { 1 } else { -1 }
                })
                .sum();
            let g = row * groups + col / self.group;
            self.offsets.get(g).map_or(0.0, real) + real(&self.scales[g]) * odd as f32
        };
        (0..self.rows * self.cols).map(|i| element(i / self.cols, i % self.cols)).collect()
    }
}

#[test]
fn packed_products_are_right_for_every_width_group_and_direction() {
    let mut values = Values(11);
    for (m, rows, cols) in SHAPES {
        for (bits, group, offset) in [(1, 64, false), (1, cols, true), (2, 32, false), (4, 48, true), (3, 100, false)] {
            let d = Planes::random(&mut values, bits, rows, cols, group, offset);
            let exact = d.expanded();
            let what = format!("{bits} bits, group {group}, ({m}, {rows}, {cols})");

            let (x, y) = (values.vec(m * cols), values.vec(m * rows));
            check(&what, &x, cols, &y, rows, &product(&x, &exact, &y, cols), |isa, x, y| {
                multiply(isa, x, cols, false, Matrix::Packed(d.packed()), y, true);
            });
        }
    }
}

#[test]
fn low_rank_products_are_right_for_every_width_rank_and_group() {
    let mut values = Values(31);
    // The last has more groups of outputs than a vector holds.
    for (m, outputs, cols) in SHAPES.into_iter().chain([(2, 1100, 65)]) {
        let kinds = [(1, 64, false), (2, 64, false), (3, 128, false), (4, 64, false), (4, cols, false), (4, 48, true)];
        for (rank, (bits, group, offset)) in [1, 3, 4, 35, 16, 9].into_iter().zip(kinds) {
            let mut a = Planes::random(&mut values, bits, rank, cols, group, offset);
            let mut b = Planes::random(&mut values, bits, rank, outputs, group.min(64), offset);
            // Codes with a level at zero: every other shape, whatever its bits.
            if !offset && m % 2 == 0 {
                a.offsets.clone_from(&a.scales);
                b.offsets.clone_from(&b.scales);
            }
            let (exact_a, exact_b) = (a.expanded(), b.expanded());
            let across: Vec<f32> = (0..rank * outputs).map(|i| exact_b[i % rank * outputs + i / rank]).collect();
            let what = format!("rank {rank}, {bits} bits, group {group}, ({m}, {outputs}, {cols})");
            let (x, y) = (values.vec(m * cols), values.vec(m * outputs));
            let wanted = |inputs: &[f32]| {
                let t: Vec<(f64, f64)> = product(inputs, &exact_a, &vec![0.0; m * rank], cols);
                let exact_t: Vec<f32> = t.iter().map(|t| t.0 as f32).collect();
                let magnitude = t.iter().fold(0.0, |most: f64, t| most.max(t.1));
                let mut want = product(&exact_t, &across, &y, rank);
                want.iter_mut().for_each(|want| want.1 += magnitude * rank as f64);
                want
            };
            let factors = (a.packed(), b.packed());
            check(&what, &x, cols, &y, outputs, &wanted(&x), |isa, x, y| {
                multiply(isa, x, cols, false, Matrix::LowRank(factors.0, factors.1), y, true);
            });
            let tiles = LowRankTiles::new(&factors.0, &factors.1, &mut Arena::default());
            assert_eq!(tiles.is_none(), offset, "{what} in tiles");
            let Some(tiles) = tiles else { continue };
            // One digit of the greatest |scale · t|, over the ranks.
            let mut want = wanted(&rounded_inputs(&x, cols, 1));
            want.iter_mut().for_each(|want| want.1 += DIGIT * want.1 / TOLERANCE);
            check(&what, &x, cols, &y, outputs, &want, |isa, x, y| {
                multiply(isa, x, cols, true, Matrix::LowRankTiles(&tiles), y, true);
            });
            for row in 0..outputs {
                let mut found = vec![0.0; cols];
                tiles.add_row(row, &mut found);
                let want = product(&across[row * rank..][..rank], &transposed(&exact_a, cols), &vec![0.0; cols], rank);
                assert_close(&found, &want, &format!("{what}, row {row}"));
            }
        }
    }
    let (a, b) = (Planes::random(&mut values, 1, 257, 64, 64, false), Planes::random(&mut values, 1, 257, 9, 9, false));
    assert!(LowRankTiles::new(&a.packed(), &b.packed(), &mut Arena::default()).is_none(), "too many ranks");
}

/// (n, k) as (k, n).
fn transposed(w: &[f32], k: usize) -> Vec<f32> {
    (0..w.len()).map(|i| w[i % (w.len() / k) * k + i / (w.len() / k)]).collect()
}

#[test]
fn factors_of_floats_are_multiplied_as_they_are_whatever_the_activations() {
    let mut values = Values(41);
    for (m, outputs, cols) in SHAPES {
        for (rank, scale) in [(1, 1.0f32), (8, 0.25), (17, 3.0)] {
            let (a, b) = (values.vec(rank * cols), values.vec(outputs * rank));
            let halves: Vec<u16> = b.iter().map(|b| f16::from_f32(*b).to_bits()).collect();
            let b: Vec<f32> = halves.iter().map(|b| f16::from_bits(*b).to_f32()).collect();
            let (x, y) = (values.vec(m * cols), values.vec(m * outputs));
            let t = product(&x, &a, &vec![0.0; m * rank], cols);
            let scaled: Vec<f32> = t.iter().map(|t| t.0 as f32 * scale).collect();
            let magnitude = t.iter().fold(0.0, |most: f64, t| most.max(t.1));
            let mut want = product(&scaled, &b, &y, rank);
            want.iter_mut().for_each(|want| want.1 += magnitude * f64::from(scale) * rank as f64);
            let first = Weights { elements: Elements::F32(&a), rows: rank, cols };
            let second = Weights { elements: Elements::F16(&halves), rows: outputs, cols: rank };
            for rounded in [false, true] {
                let what = format!("rank {rank}, ({m}, {outputs}, {cols})");
                check(&what, &x, cols, &y, outputs, &want, |isa, x, y| {
                    multiply(isa, x, cols, rounded, Matrix::Factors(first, second, scale), y, true);
                });
            }
        }
    }
}

#[test]
fn sparse_products_are_right_from_empty_rows_to_full_ones() {
    let mut values = Values(43);
    for (m, n, k) in SHAPES {
        // One in so many levels is not zero.
        for share in [1u64, 3, 40] {
            let mut rows = SparseRows::new(k).expect("rows that are not too wide");
            let mut exact = vec![0.0; n * k];
            for exact in exact.chunks_mut(k) {
                let scale = values.next();
                let mut kept = Vec::new();
                for (column, exact) in exact.iter_mut().enumerate() {
                    let level = (values.bits() >> 30) as i8;
                    if level != 0 && (values.bits() >> 20).is_multiple_of(share) {
                        kept.push((column as u16, level));
                        *exact = f32::from(level) * scale;
                    }
                }
                assert!(rows.push(kept, scale));
            }
            for (row, want) in exact.chunks(k).enumerate() {
                let mut found = vec![0.0; k];
                rows.add_row(row, &mut found);
                assert_eq!(found, want, "row {row}");
            }
            let (x, y) = (values.vec(m * k), values.vec(m * n));
            let want = product(&x, &exact, &y, k);
            for rounded in [false, true] {
                let what = format!("one in {share} of ({m}, {n}, {k})");
                check(&what, &x, k, &y, n, &want, |isa, x, y| {
                    multiply(isa, x, k, rounded, Matrix::Sparse(&rows), y, true);
                });
            }
        }
    }
}

#[test]
fn sparse_rows_are_refused_where_they_are_none() {
    assert!(SparseRows::new(0).is_none() && SparseRows::new(1 << 16).is_none());
    let mut rows = SparseRows::new(5).expect("five columns");
    assert!(rows.push([(0, 1), (4, -3)], 0.5) && rows.push([], 0.0));
    let before = rows.clone();
    for wrong in [vec![(5, 1)], vec![(1, 0)], vec![(2, 1), (2, 1)], vec![(3, 1), (1, 1)]] {
        assert!(!rows.push(wrong.clone(), 1.0), "{wrong:?}");
        assert_eq!(rows, before, "{wrong:?} left nothing behind");
    }
    assert_eq!((rows.row(0), rows.row(1)), ((&[0, 4][..], &[1, -3][..], 0.5), (&[][..], &[][..], 0.0)));
}

#[test]
fn a_projection_adds_each_term_to_its_own_rows() {
    let mut values = Values(37);
    let (m, n, k) = (11, 200, 130);
    let (x, w) = (values.vec(m * k), values.vec(n * k));
    let dense = Planes::random(&mut values, 1, n, k, 64, false);
    let a = Planes::random(&mut values, 4, 5, k, 64, false);
    let b = Planes::random(&mut values, 4, 5, n, 64, false);
    let (tiles, int8) = (
        PlaneTiles::new(&dense.packed(), &mut Arena::default()).expect("a layout"),
        Int8Weights::quantize(&w, n, k, &mut Arena::default()),
    );
    let base = Term { matrix: Matrix::Int8(&int8), rows: 0..m };
    let first = Term { matrix: Matrix::Planes(&tiles), rows: 0..4 };
    let low_rank = LowRankTiles::new(&a.packed(), &b.packed(), &mut Arena::default()).expect("a layout");
    let second = Term { matrix: Matrix::LowRankTiles(&low_rank), rows: 3..9 };
    let (float_a, float_b) = (values.vec(5 * k), values.vec(n * 5));
    let float = |values, rows, cols| Weights { elements: Elements::F32(values), rows, cols };
    let third = Term { matrix: Matrix::Factors(float(&float_a, 5, k), float(&float_b, n, 5), 0.5), rows: 6..11 };
    let mut sparse = SparseRows::new(k).expect("rows");
    (0..n).for_each(|row| assert!(sparse.push((0..k as u16).step_by(row % 9 + 1).map(|column| (column, 2)), 0.1)));
    let fourth = Term { matrix: Matrix::Sparse(&sparse), rows: 2..11 };
    let run = |rows: std::ops::Range<usize>, terms: Vec<Term>| {
        let mut y = vec![0.0; rows.len() * n];
        project(
            &Activations::rounded(&x[rows.start * k..rows.end * k], k),
            &mut [Product { terms, y: &mut y, add: false }],
        );
        y
    };
    let together = run(0..m, vec![base.clone(), first.clone(), second.clone(), third.clone(), fourth.clone()]);
    for row in 0..m {
        let here = |term: &Term| term.rows.contains(&row);
        let terms = [&base, &first, &second, &third, &fourth].into_iter().filter(|t| here(t));
        let terms = terms.map(|t| Term { rows: 0..1, ..t.clone() }).collect();
        assert_eq!(run(row..row + 1, terms), together[row * n..(row + 1) * n], "row {row}");
    }
}

#[test]
fn users_of_one_batch_get_the_bits_that_each_gets_alone() {
    let mut values = Values(53);
    let (n, k) = (320, 200);
    // Rows of each user; two of them end where eight rows do, one reaches across.
    let users = [1, 1, 6, 3, 1, 4, 5, 3, 2, 1];
    let m = users.iter().sum();
    let (x, w) = (values.vec(m * k), values.vec(n * k));
    let int8 = Int8Weights::quantize(&w, n, k, &mut Arena::default());
    let planes: Vec<_> =
        users.iter().enumerate().map(|(i, _)| Planes::random(&mut values, [1, 2][i % 2], n, k, 64, false)).collect();
    let (a, b) = (Planes::random(&mut values, 4, 5, k, 64, false), Planes::random(&mut values, 4, 5, n, 64, false));
    let low_rank = LowRankTiles::new(&a.packed(), &b.packed(), &mut Arena::default()).expect("a layout");
    for isa in Isa::available() {
        let laid_out = |d: &Planes| PlaneTiles::new_on(isa, &d.packed(), &mut Arena::default()).expect("a layout");
        let tiles: Vec<PlaneTiles> = planes.iter().map(laid_out).collect();
        // One user has low rank, another nothing.
        let matrix = |user| match user {
            4 => None,
            7 => Some(Matrix::LowRankTiles(&low_rank)),
            _ => Some(Matrix::Planes(&tiles[user])),
        };
        let run = |rows: std::ops::Range<usize>, terms: Vec<Term>| {
            let (mut first, mut second) = (vec![0.0; rows.len() * n], vec![0.0; rows.len() * n]);
            let base = Term { matrix: Matrix::Int8(&int8), rows: 0..rows.len() };
            let both = [vec![base.clone()], terms].concat();
            // Of the other product only the base is there.
            let products = [(both, &mut first[..]), (vec![base], &mut second[..])];
            let mut products = products.map(|(terms, y)| Product { terms, y, add: false });
            project_on(isa, &Activations::rounded_on(isa, &x[rows.start * k..rows.end * k], k), &mut products);
            [first, second]
        };
        let mut start = 0;
        let terms = users.iter().enumerate().filter_map(|(user, count)| {
            let rows = start..start + count;
            start += count;
            Some(Term { matrix: matrix(user)?, rows })
        });
        let terms: Vec<Term> = terms.collect();
        let together = Team::new(3).expect("threads").install(|| run(0..m, terms.clone()));
        assert_eq!(run(0..m, terms.clone()), together, "{isa:?} on one thread");
        for row in 0..m {
            let own = terms.iter().filter(|term| term.rows.contains(&row));
            let alone = run(row..row + 1, own.map(|term| Term { rows: 0..1, ..term.clone() }).collect());
            for (alone, together) in alone.iter().zip(&together) {
                assert_eq!(alone, &together[row * n..][..n], "{isa:?}, row {row}");
            }
        }
    }
}

#[test]
fn plane_tiles_multiply_as_the_packed_matrix_does() {
    let mut values = Values(29);
    for (m, rows, cols) in SHAPES {
        for (bits, group, level_at_zero) in [
            (1, 64, false),
            (1, 128, false),
            (1, cols, false),
            (2, 64, false),
            (2, cols, true),
            (3, 64, false),
            (3, cols, true),
            (4, 64, true),
            (4, 192, false),
        ] {
            let mut d = Planes::random(&mut values, bits, rows, cols, group, false);
            if level_at_zero {
                d.offsets.clone_from(&d.scales);
            }
            let exact = d.expanded();
            let laid_out = |isa| {
                let tiles = PlaneTiles::new_on(isa, &d.packed(), &mut Arena::default());
                tiles.expect("a layout for this group")
            };
            for isa in Isa::available() {
                let tiles = laid_out(isa);
                for (row, want) in exact.chunks(cols).enumerate() {
                    let mut found = vec![0.0; cols];
                    tiles.add_row(row, &mut found);
                    let want: Vec<_> = want.iter().map(|w| (f64::from(*w), 0.0)).collect();
                    assert_close(&found, &want, &format!("row {row} of {bits} bits, group {group}, for {isa:?}"));
                }
            }
            let (x, y) = (values.vec(m * cols), values.vec(m * rows));
            let want = product(&rounded_inputs(&x, cols, 1), &exact, &y, cols);
            let what = format!("tiles of {bits} bits, group {group}, ({m}, {rows}, {cols})");
            check(&what, &x, cols, &y, rows, &want, |isa, x, y| {
                multiply(isa, x, cols, true, Matrix::Planes(&laid_out(isa)), y, true);
            });
        }
    }
    let no_layout = [(5, 64, false), (1, 32, false), (1, 100, false), (1, 64, true)];
    for (bits, group, offset) in no_layout {
        let d = Planes::random(&mut values, bits, 5, 130, group, offset);
        assert_eq!(
            PlaneTiles::new(&d.packed(), &mut Arena::default()),
            None,
            "{bits} bits, group {group}, offsets: {offset}"
        );
    }
}

#[test]
fn a_product_split_over_threads_has_the_same_bits() {
    let mut values = Values(13);
    let (m, n, k) = (5, 513, 320);
    let (x, w) = (values.vec(m * k), values.vec(n * k));
    let d = Planes::random(&mut values, 1, n, k, 64, false);
    let (a, b) = (Planes::random(&mut values, 4, 6, k, 64, false), Planes::random(&mut values, 4, 6, n, 64, false));
    let (int8, tiles) = (
        Int8Weights::quantize(&w, n, k, &mut Arena::default()),
        PlaneTiles::new(&d.packed(), &mut Arena::default()).expect("a layout"),
    );
    let low_rank = LowRankTiles::new(&a.packed(), &b.packed(), &mut Arena::default()).expect("a layout");
    let run = |threads| {
        let [mut floats, mut integers, mut factors] = [(); 3].map(|()| vec![0.0; m * n]);
        let rows = 0..m;
        let term = |matrix| Term { matrix, rows: rows.clone() };
        let weights = Weights { elements: Elements::F32(&w), rows: n, cols: k };
        Team::new(threads).expect("threads").install(|| {
            let terms = vec![term(Matrix::Floats(weights)), term(Matrix::Packed(d.packed()))];
            project(&Activations::exact(&x, k), &mut [Product { terms, y: &mut floats, add: false }]);
            let terms = vec![term(Matrix::Int8(&int8)), term(Matrix::Planes(&tiles))];
            project(&Activations::rounded(&x, k), &mut [Product { terms, y: &mut integers, add: false }]);
            // By itself, so that a task may begin inside a block of outputs.
            let terms = vec![term(Matrix::Int8(&int8)), term(Matrix::LowRankTiles(&low_rank))];
            project(&Activations::rounded(&x, k), &mut [Product { terms, y: &mut factors, add: false }]);
        });
        (floats, integers, factors)
    };
    [3, 8].into_iter().for_each(|threads| assert_eq!(run(1), run(threads), "{threads} threads"));
}

/// Pages of keys and values of one kind.
struct Pages {
    kind: u8,
    head_dim: usize,
    floats: [Vec<f32>; 2],
    halves: [Vec<u16>; 2],
    bytes: [Vec<i8>; 2],
    scales: [Vec<[f32; PAGE]>; 2],
}

impl Pages {
    fn layout(&self) -> PageLayout {
        if self.kind == 1 { PageLayout::pairs(self.head_dim) } else { PageLayout::plain(self.head_dim) }
    }

    fn elements(&self, which: usize, index: usize) -> KvElements<'_> {
        let size = self.layout().size();
        let at = index * size..(index + 1) * size;
        match self.kind {
            0 => KvElements::F32(&self.floats[which][at]),
            1 => KvElements::Bf16(&self.halves[which][at]),
            _ => KvElements::Int8(&self.bytes[which][at], &self.scales[which][index]),
        }
    }

    /// Element i of position j.
    fn exact(&self, which: usize, j: usize, i: usize) -> f64 {
        let (page, j, layout) = (j / PAGE, j % PAGE, self.layout());
        let at = page * layout.size() + if which == 0 { layout.key(j, i) } else { layout.value(j, i) };
        f64::from(match self.kind {
            0 => self.floats[which][at],
            1 => bf16::from_bits(self.halves[which][at]).to_f32(),
            _ => f32::from(self.bytes[which][at]) * self.scales[which][page][j],
        })
    }
}

impl KvPages for Pages {
    fn page(&self, index: usize) -> (KvElements<'_>, KvElements<'_>) {
        (self.elements(0, index), self.elements(1, index))
    }
}

/// A page of zeros in bf16.
struct Zeros(Vec<u16>);

impl KvPages for Zeros {
    fn page(&self, _: usize) -> (KvElements<'_>, KvElements<'_>) {
        (KvElements::Bf16(&self.0), KvElements::Bf16(&self.0))
    }
}

#[test]
#[should_panic(expected = "do not lie in pairs")]
fn heads_of_odd_width_are_refused_over_pairs() {
    let (q, head_dim) = ([0.0; 3], 3);
    let queries = Queries { q: &q, width: head_dim, shared: 0..head_dim, head_dim, positions: 1, scale: 1.0 };
    attend_on(Isa::selected(), &queries, &Zeros(vec![0; PAGE * head_dim]), &mut [0.0; 3]);
}

/// Softmax-weighted means of the values, in f64.
fn attended(queries: &Queries, pages: &Pages) -> Vec<f32> {
    let Queries { q, width, ref shared, head_dim, positions, scale } = *queries;
    let mut want = vec![f32::NAN; q.len()];
    for (row, (q, want)) in q.chunks(width).zip(want.chunks_mut(width)).enumerate() {
        for head in shared.clone().step_by(head_dim) {
            let q = &q[head..head + head_dim];
            let dot = |j| (0..head_dim).map(|i| f64::from(q[i]) * pages.exact(0, j, i)).sum::<f64>();
            let dots: Vec<f64> = (0..positions + row).map(dot).collect();
            let greatest = dots.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = dots.iter().map(|d| ((d - greatest) * f64::from(scale)).exp()).collect();
            let total: f64 = weights.iter().sum();
            let sum = |i| (0..positions + row).map(|j| weights[j] * pages.exact(1, j, i)).sum::<f64>();
            (0..head_dim).for_each(|i| want[head + i] = (sum(i) / total) as f32);
        }
    }
    want
}

#[test]
fn attention_is_the_softmax_weighted_mean_of_the_values() {
    let mut values = Values(17);
    for (head_dim, heads, positions, rows) in [
        (16usize, 1usize, 1usize, 1usize),
        (64, 3, 32, 1),
        (20, 5, 33, 3),
        (128, 4, 150, 7),
        (64, 2, 64, 1),
        (64, 3, 1, 70),
        (20, 12, 31, 2),
    ] {
        let scale = 3.0 / (head_dim as f32).sqrt();
        let width = heads * head_dim + 7;
        let q = values.vec(rows * width);
        let queries = Queries { q: &q, width, shared: 7..width, head_dim, positions, scale };
        let count = (positions + rows - 1).div_ceil(PAGE);
        let floats = [(); 2].map(|()| values.vec(count * PAGE * head_dim));
        let halves = floats.each_ref().map(|v| v.iter().map(|v| bf16::from_f32(*v).to_bits()).collect());
        let bytes = floats.each_ref().map(|v| v.iter().map(|v| (v * 127.0) as i8).collect());
        let scales = [(); 2].map(|()| (0..count).map(|_| [(); PAGE].map(|()| values.next() / 100.0)).collect());
        let mut pages = Pages { kind: 0, head_dim, floats, halves, bytes, scales };
        for kind in 0..3 {
            pages.kind = kind;
            let want = attended(&queries, &pages);
            let run = |isa, queries: &Queries| {
                let mut out = vec![f32::NAN; queries.q.len()];
                attend_on(isa, queries, &pages, &mut out);
                out
            };
            let what =
                format!("attention of {rows} x {heads} heads over {positions} positions of {head_dim}, kind {kind}");
            // What is not of the shared heads is neither read nor written.
            let reference = run(Isa::Scalar, &queries);
            let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for isa in Isa::available() {
                let got = run(isa, &queries);
                // With dot products of bf16, queries and weights are rounded to it, too.
                let rounds = kind == 1 && isa >= Isa::Avx512Bf16;
                assert!(
                    rounds || bits(&got) == bits(&reference),
                    "{what} on {isa:?}: not the bits of the scalar reference"
                );
                let tolerance = if rounds { 1e-2 } else { TOLERANCE as f32 };
                for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                    let same = if want.is_nan() { got.is_nan() } else { (got - want).abs() <= tolerance };
                    assert!(same, "{what} on {isa:?}, output {at}: {got} for {want}");
                }
                for (row, q) in q.chunks(width).enumerate() {
                    for head in (7..width).step_by(head_dim) {
                        let alone = Queries { q, shared: head..head + head_dim, positions: positions + row, ..queries };
                        let (alone, head) = (run(isa, &alone), head..head + head_dim);
                        let company = &got[row * width..][head.clone()];
                        assert_eq!(alone[head], *company, "{what} on {isa:?}: each head of each row alone");
                    }
                }
            }
        }
    }
}
