//! Claims about the quantizer, against NumPy's computation of the same method and against plain arithmetic.
#![allow(clippy::unwrap_used)]

use bitdelta_delta::{
    BitDeltaConfig, Error, GroupSize, PackedMatrix, Part, Values, metrics,
    part::dequantize,
    quantize,
    quantize::{Codes, pack},
    quantize_pair,
};
use proptest::prelude::*;
use serde::Deserialize;

/// One step of f16 (2^-10 relative): two roundings of nearly equal numbers may fall on neighbours.
const F16_STEP: f64 = 1.0 / 1024.0;

#[derive(Deserialize)]
struct Case {
    bits: u8,
    symmetric: bool,
    rows: usize,
    cols: usize,
    group: Option<usize>,
    threshold: Option<f32>,
    delta: Vec<f32>,
    codes: Vec<u32>,
    scales: Vec<f64>,
    offsets: Vec<f64>,
}

/// The code of one element, read from the documented layout.
fn code(matrix: &PackedMatrix, row: usize, col: usize) -> u32 {
    let bits = usize::from(matrix.bits);
    let bit = |p| matrix.planes[(row * bits + p) * matrix.words_per_row() + col / 64] >> (col % 64) & 1;
    (0..bits).map(|p| (bit(p) as u32) << p).sum()
}

fn signs(delta: &[f32], rows: usize, cols: usize, group: usize) -> PackedMatrix {
    pack("w", delta, rows, cols, Codes { bits: 1, group, symmetric: true, clip: None }).unwrap()
}

#[test]
fn codes_scales_and_offsets_are_numpys() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/quantizer/quantizer.json");
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 24);
    for (index, case) in cases.iter().enumerate() {
        let codes = Codes {
            bits: case.bits,
            group: case.group.unwrap_or(case.cols),
            symmetric: case.symmetric,
            clip: case.threshold,
        };
        let matrix = pack("w", &case.delta, case.rows, case.cols, codes).unwrap();
        let found: Vec<u32> = (0..case.codes.len()).map(|i| code(&matrix, i / case.cols, i % case.cols)).collect();
        assert_eq!(found, case.codes, "case {index}");
        let groups = matrix.groups_per_row();
        let largest = case.scales.iter().chain(&case.offsets).fold(0.0f64, |most, x| most.max(x.abs()));
        for i in 0..case.scales.len() {
            for (found, expected) in [
                (matrix.scale(i / groups, i % groups), case.scales[i]),
                (matrix.offset(i / groups, i % groups), case.offsets[i]),
            ] {
                let distance = (f64::from(found) - expected).abs();
                assert!(distance <= F16_STEP * expected.abs().max(1e-4 * largest), "case {index}: {found} {expected}");
            }
        }
    }
}

#[test]
fn a_group_tail_keeps_its_own_scale() {
    let delta: Vec<f32> = (0..35).map(|i| if i < 32 { 1.0 } else { -0.25 }).collect();
    let matrix = signs(&delta, 1, 35, 32);
    assert_eq!((matrix.scale(0, 0), matrix.scale(0, 1)), (1.0, 0.25));
    assert_eq!(matrix.dequantize(), delta);
}

#[test]
fn both_zeros_are_plus_and_the_mean_counts_them() {
    let matrix = signs(&[0.0, -0.0, 2.0, -2.0], 1, 4, 4);
    assert_eq!(matrix.planes, [0b0111]);
    assert_eq!(matrix.scale(0, 0), 1.0);
}

#[test]
fn a_zero_delta_is_exact() {
    for bits in [1, 2, 4] {
        for symmetric in [true, false] {
            let config = BitDeltaConfig { bits, symmetric, ..Default::default() };
            let part = quantize("w", &[0.0; 5 * 130], 5, 130, &config).unwrap();
            assert_eq!(dequantize(std::slice::from_ref(&part), 5, 130), [0.0; 5 * 130]);
            assert_eq!(metrics::relative_error(&[part], &[0.0; 5 * 130], 130), 0.0);
        }
    }
}

#[test]
fn one_element_is_kept_and_not_clipped() {
    for bits in [1, 2, 4] {
        let config = BitDeltaConfig { bits, outlier_threshold: 1e-3, ..Default::default() };
        assert_eq!(dequantize(&[quantize("w", &[-0.37], 1, 1, &config).unwrap()], 1, 1), [-0.37]);
    }
}

#[test]
fn outliers_are_clipped_at_the_tensors_sigma() {
    // 99 zeros and 100: mean 1, sample sigma 10, so 3 sigma clips at 31.
    let mut delta = vec![0.0f32; 100];
    delta[42] = 100.0;
    let row = Some(GroupSize::Row);
    let config = BitDeltaConfig { group_size: row, ..Default::default() };
    let Part::Dense(matrix) = quantize("w", &delta, 1, 100, &config).unwrap() else { panic!("dense") };
    assert!((matrix.scale(0, 0) - 0.31).abs() < 1e-6, "{}", matrix.scale(0, 0));
    let whole = BitDeltaConfig { clip_outliers: false, ..config };
    let Part::Dense(matrix) = quantize("w", &delta, 1, 100, &whole).unwrap() else { panic!("dense") };
    assert_eq!(matrix.scale(0, 0), 1.0);
}

#[test]
fn clipping_a_shifted_tensor_may_change_signs() {
    // All but one value lie near 10: the lower bound is above 0, so the outlier becomes "+" with the rest.
    let delta: Vec<f32> = (0..100).map(|i| if i == 3 { -20.0 } else { 10.0 }).collect();
    let config = BitDeltaConfig { outlier_threshold: 1.0, ..Default::default() };
    let Part::Dense(matrix) = quantize("w", &delta, 1, 100, &config).unwrap() else { panic!("dense") };
    assert_eq!(code(&matrix, 0, 3), 1);
}

#[test]
fn nan_and_infinity_are_named_with_row_and_column() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for enable_compression in [true, false] {
            let mut delta = vec![1.0f32; 3 * 50];
            delta[50 + 7] = bad;
            let config = BitDeltaConfig { enable_compression, ..Default::default() };
            let error = quantize("layers.3.q_proj", &delta, 3, 50, &config).unwrap_err();
            assert!(matches!(error, Error::NonFinite { row: 1, col: 7, .. }), "{error}");
            assert!(error.to_string().starts_with("layers.3.q_proj[1, 7] is "), "{error}");
        }
    }
}

#[test]
fn a_delta_near_the_end_of_f32_is_refused() {
    for bits in [1, 2, 4] {
        let config = BitDeltaConfig { bits, ..Default::default() };
        let error = quantize("w", &[1.0, -3e38], 2, 1, &config).unwrap_err();
        assert!(matches!(error, Error::TooLarge { row: 1, col: 0, .. }), "{error}");
        let part = quantize("w", &[9e13, -9e13, 1e-30], 1, 3, &config).unwrap();
        assert!(dequantize(&[part], 1, 3).iter().all(|x| x.is_finite()));
    }
    let whole = BitDeltaConfig { enable_compression: false, ..Default::default() };
    assert!(matches!(quantize("w", &[1e6], 1, 1, &whole), Err(Error::TooLarge { .. })));
}

#[test]
fn a_wrong_length_is_a_shape_error() {
    let config = BitDeltaConfig::default();
    for (values, rows, cols) in [(5, 2, 3), (0, 0, 3), (0, 3, 0), (1, usize::MAX, 2)] {
        assert!(matches!(quantize("w", &vec![0.0; values], rows, cols, &config), Err(Error::Shape { .. })));
    }
}

#[test]
fn without_compression_values_stay_f16() {
    let config = BitDeltaConfig { enable_compression: false, clip_outliers: false, ..Default::default() };
    let delta = [0.5, -0.25, 3.0, 1e-3];
    let part = quantize("w", &delta, 2, 2, &config).unwrap();
    assert_eq!(part.kind(), "full");
    assert!(metrics::relative_error(&[part], &delta, 2) < 1e-3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn more_bits_never_hurt_much_and_offsets_never_hurt(
        delta in prop::collection::vec(-1.0f32..1.0, 1..200),
        group in 1usize..100,
    ) {
        let cols = delta.len();
        let error = |bits, symmetric| {
            let codes = Codes { bits, group, symmetric, clip: None };
            let part = Part::Dense(pack("w", &delta, 1, cols, codes).unwrap());
            metrics::relative_error(&[part], &delta, cols)
        };
        // Scales and offsets are rounded to f16 of the largest: that is all that may be lost.
        let slack = 2e-3;
        prop_assert!(error(2, true) <= error(1, true) + slack);
        prop_assert!(error(4, true) <= error(2, true) + slack);
        prop_assert!(error(8, true) <= error(4, true) + slack);
        prop_assert!(error(4, false) <= error(1, false) + slack);
    }

    #[test]
    fn every_code_is_the_nearest_stored_value(
        delta in prop::collection::vec(-1.0f32..1.0, 1..200),
        bits in 1u8..=8,
        symmetric: bool,
    ) {
        let cols = delta.len();
        let matrix = pack("w", &delta, 1, cols, Codes { bits, group: 48, symmetric, clip: None }).unwrap();
        for (col, (&wanted, stored)) in delta.iter().zip(matrix.dequantize()).enumerate() {
            let (scale, offset) = (matrix.scale(0, col / 48), matrix.offset(0, col / 48));
            let top = (1u32 << bits) - 1;
            let best = (0..=top).map(|u| (offset + scale * (2.0 * u as f32 - top as f32) - wanted).abs());
            let best = best.fold(f32::INFINITY, f32::min);
            prop_assert!((stored - wanted).abs() <= best + 1e-6, "{col}: {stored} for {wanted}, best {best}");
        }
    }

    #[test]
    fn the_order_of_rows_does_not_matter(delta in prop::collection::vec(-1.0f32..1.0, 64..=64)) {
        let codes = Codes { bits: 4, group: 8, symmetric: false, clip: None };
        let turned: Vec<f32> = [&delta[32..], &delta[..32]].concat();
        let (x, y) = (pack("w", &delta, 2, 32, codes).unwrap(), pack("w", &turned, 2, 32, codes).unwrap());
        prop_assert_eq!(&x.planes[..4], &y.planes[4..]);
        prop_assert_eq!(&x.planes[4..], &y.planes[..4]);
    }
}

/// Pairs of every type, of sizes that leave tails, with outliers and zeros: (name, base, tuned) as f32.
fn pairs(rows: usize, cols: usize) -> Vec<(&'static str, Vec<f32>, Vec<f32>)> {
    let mut state = 0x2545_F491_4F6C_DD1Du64 ^ (rows * 1000 + cols) as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let base: Vec<f32> = (0..rows * cols).map(|_| next()).collect();
    let near: Vec<f32> =
        base.iter().enumerate().map(|(i, b)| b + next() * if i % 37 == 0 { 0.5 } else { 0.01 }).collect();
    let shifted: Vec<f32> = base.iter().map(|b| b + 4.0 + 0.001 * next()).collect();
    vec![("near", base.clone(), near), ("equal", base.clone(), base.clone()), ("all on one side", base, shifted)]
}

#[test]
fn a_pair_gives_the_part_that_its_difference_gives() {
    let bf16 = |values: &[f32]| values.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect::<Vec<u16>>();
    let f16 = |values: &[f32]| values.iter().map(|v| half::f16::from_f32(*v).to_bits()).collect::<Vec<u16>>();
    let configs = [
        BitDeltaConfig::default(),
        BitDeltaConfig { clip_outliers: false, ..Default::default() },
        BitDeltaConfig { outlier_threshold: 0.3, group_size: Some(GroupSize::Elements(37)), ..Default::default() },
        BitDeltaConfig { group_size: Some(GroupSize::Row), ..Default::default() },
        BitDeltaConfig { bits: 2, symmetric: false, ..Default::default() },
        BitDeltaConfig { enable_compression: false, ..Default::default() },
    ];
    for (rows, cols) in [(1, 1), (2, 1), (3, 15), (5, 64), (4, 77), (7, 300)] {
        for (name, base, tuned) in pairs(rows, cols) {
            let (b16, t16, h16) = (bf16(&base), bf16(&tuned), f16(&tuned));
            let typed = [
                (Values::F32(&base), Values::F32(&tuned)),
                (Values::Bf16(&b16), Values::Bf16(&t16)),
                (Values::Bf16(&b16), Values::F16(&h16)),
                (Values::F16(&h16), Values::F32(&tuned)),
            ];
            for (b, t) in typed {
                let wide = |values: Values<'_>| -> Vec<f32> {
                    match values {
                        Values::F32(v) => v.to_vec(),
                        Values::Bf16(v) => v.iter().map(|v| half::bf16::from_bits(*v).to_f32()).collect(),
                        Values::F16(v) => v.iter().map(|v| half::f16::from_bits(*v).to_f32()).collect(),
                    }
                };
                let delta: Vec<f32> = wide(t).iter().zip(wide(b)).map(|(t, b)| t - b).collect();
                for config in &configs {
                    let want = quantize("w", &delta, rows, cols, config).unwrap();
                    let got = quantize_pair("w", b, t, rows, cols, config).unwrap();
                    assert_eq!(got, want, "{name}, {rows} x {cols}, {config:?}");
                }
            }
        }
    }
}

#[test]
fn a_pair_with_a_value_that_is_not_finite_is_refused_with_its_place() {
    for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY, 1e20] {
        let (base, mut tuned) = (vec![0.5; 200], vec![0.25; 200]);
        tuned[130] = bad;
        let config = BitDeltaConfig::default();
        let error = quantize_pair("w", Values::F32(&base), Values::F32(&tuned), 2, 100, &config).unwrap_err();
        let (Error::NonFinite { row, col, .. } | Error::TooLarge { row, col, .. }) = error else { panic!("{error}") };
        assert_eq!((row, col), (1, 30), "{bad}");
    }
    let config = BitDeltaConfig::default();
    let short = quantize_pair("w", Values::F32(&[1.0; 3]), Values::F32(&[1.0; 4]), 2, 2, &config);
    assert!(matches!(short, Err(Error::Shape { found: 3, .. })));
}
