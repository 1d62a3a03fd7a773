//! Every product, on every instruction set of the machine, against its definition in f64 and, bit for bit, against the
//! scalar reference and against itself with other rows in the call.

use bitdelta_kernels::{
    Elements, Int8Weights, Isa, KvPages, Packed, PlaneTiles, Weights, add_planes_on, attend_on, matmul_int8_on,
    matmul_on, packed,
};
use half::{bf16, f16};

/// Relative to the sum of absolute terms: f32 rounding over at most a few hundred additions.
const TOLERANCE: f64 = 1e-5;

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
            check(&what, &x, k, &y, n, &product(&x, &exact, &y, k), |isa, x, y| matmul_on(isa, x, &weights, y, true));
        }
    }
}

/// Inputs as the products with rounded activations see them.
fn rounded_inputs(x: &[f32], k: usize) -> Vec<f32> {
    let round = |block: &[f32]| -> Vec<f32> {
        let greatest = block.iter().fold(0f32, |greatest, x| greatest.max(x.abs()));
        block.iter().map(|x| (x * (127.0 / greatest)).round_ties_even() * (greatest / 127.0)).collect()
    };
    x.chunks(k).flat_map(|row| row.chunks(64)).flat_map(round).collect()
}

#[test]
fn the_int8_product_is_that_of_the_rounded_matrices() {
    let mut values = Values(23);
    for (m, n, k) in SHAPES {
        let (x, w) = (values.vec(m * k), values.vec(n * k));
        let weights = Int8Weights::quantize(&w, n, k);
        let mut rounded = vec![0.0; n * k];
        rounded.chunks_mut(k).enumerate().for_each(|(row, out)| weights.copy_row(row, out));
        for (w, rounded) in w.iter().zip(&rounded) {
            // Half a step of a block whose greatest magnitude is at most 1, and the scale's own rounding to f16.
            assert!((w - rounded).abs() <= 0.5 / 127.0 + 1e-3, "{w} became {rounded}");
        }
        let inputs = rounded_inputs(&x, k);
        let want = product(&inputs, &rounded, &vec![0.0; m * n], k);
        let what = format!("int8 ({m}, {n}, {k})");
        check(&what, &x, k, &vec![0.0; m * n], n, &want, |isa, x, y| matmul_int8_on(isa, x, &weights, y));
    }
}

struct Matrix {
    bits: usize,
    rows: usize,
    cols: usize,
    group: usize,
    planes: Vec<u64>,
    scales: Vec<u16>,
    offsets: Vec<u16>,
}

impl Matrix {
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
            let d = Matrix::random(&mut values, bits, rows, cols, group, offset);
            let exact = d.expanded();
            let what = format!("{bits} bits, group {group}, ({m}, {rows}, {cols})");

            let (x, y) = (values.vec(m * cols), values.vec(m * rows));
            check(&what, &x, cols, &y, rows, &product(&x, &exact, &y, cols), |isa, x, y| {
                packed::add_product_on(isa, x, &d.packed(), y);
            });

            let (t, y) = (values.vec(m * rows), values.vec(m * cols));
            let across: Vec<f32> = (0..rows * cols).map(|i| exact[i % rows * cols + i / rows]).collect();
            check(&what, &t, rows, &y, cols, &product(&t, &across, &y, rows), |isa, t, y| {
                packed::add_transposed_on(isa, t, &d.packed(), y);
            });
        }
    }
}

#[test]
fn plane_tiles_multiply_as_the_packed_matrix_does() {
    let mut values = Values(29);
    for (m, rows, cols) in SHAPES {
        for (bits, group) in [(1, 64), (1, 128), (1, cols), (2, 64), (2, cols), (4, 64), (4, 192)] {
            let d = Matrix::random(&mut values, bits, rows, cols, group, false);
            let tiles = PlaneTiles::new(&d.packed()).expect("a layout for this group");
            let exact = d.expanded();
            for (row, want) in exact.chunks(cols).enumerate() {
                let mut found = vec![0.0; cols];
                tiles.add_row(row, &mut found);
                assert_eq!(found, want, "row {row} of {bits} bits, group {group}");
            }
            let (x, y) = (values.vec(m * cols), values.vec(m * rows));
            let want = product(&rounded_inputs(&x, cols), &exact, &y, cols);
            let what = format!("tiles of {bits} bits, group {group}, ({m}, {rows}, {cols})");
            check(&what, &x, cols, &y, rows, &want, |isa, x, y| add_planes_on(isa, x, &tiles, y));
        }
    }
    let no_layout = [(3, 64, false), (1, 32, false), (1, 100, false), (1, 64, true)];
    for (bits, group, offset) in no_layout {
        let d = Matrix::random(&mut values, bits, 5, 130, group, offset);
        assert_eq!(PlaneTiles::new(&d.packed()), None, "{bits} bits, group {group}, offsets: {offset}");
    }
}

#[test]
fn a_product_split_over_threads_has_the_same_bits() {
    let mut values = Values(13);
    let (m, n, k) = (5, 513, 320);
    let (x, w) = (values.vec(m * k), values.vec(n * k));
    let d = Matrix::random(&mut values, 1, n, k, 64, false);
    let run = |threads| {
        let mut y = vec![0.0; m * n];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            bitdelta_kernels::matmul(&x, &Weights { elements: Elements::F32(&w), rows: n, cols: k }, &mut y, false);
            packed::add_product(&x, &d.packed(), &mut y);
            packed::add_transposed(&y.clone(), &d.packed(), &mut y[..m * k]);
        });
        y
    };
    assert_eq!(run(1), run(3));
}

struct Pages {
    keys: Vec<f32>,
    values: Vec<f32>,
    width: usize,
}

impl KvPages for Pages {
    fn page(&self, index: usize) -> (&[f32], &[f32]) {
        (&self.keys[index * self.width..], &self.values[index * self.width..])
    }
}

#[test]
fn attention_is_the_softmax_weighted_mean_of_the_values() {
    let mut values = Values(17);
    for (head_dim, page_size, positions) in [(16usize, 4usize, 1usize), (64, 64, 64), (20, 16, 65), (128, 64, 150)] {
        let scale = 3.0 / (head_dim as f32).sqrt();
        let q = values.vec(head_dim);
        let size = positions.next_multiple_of(page_size) * head_dim;
        let pages = Pages { keys: values.vec(size), values: values.vec(size), width: page_size * head_dim };

        let dots: Vec<f64> = (0..positions)
            .map(|j| pages.keys[j * head_dim..].iter().zip(&q).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>())
            .collect();
        let greatest = dots.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = dots.iter().map(|d| ((d - greatest) * f64::from(scale)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let value = |j: usize, i: usize| f64::from(pages.values[j * head_dim + i]);
        let want: Vec<(f64, f64)> = (0..head_dim)
            .map(|i| ((0..positions).map(|j| weights[j] * value(j, i)).sum::<f64>() / total, 1.0))
            .collect();

        let run = |isa| {
            let mut out = vec![0.0; head_dim];
            attend_on(isa, &q, &pages, page_size, positions, scale, &mut out);
            out
        };
        let reference = run(Isa::Scalar);
        assert_close(&reference, &want, &format!("attention over {positions} positions of {head_dim}"));
        for isa in Isa::available() {
            assert_eq!(run(isa), reference, "attention on {isa:?} has the bits of the scalar reference");
        }
    }
}
