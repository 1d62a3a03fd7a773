//! GGUF's block-quantised types to f32.
//!
//! The layouts are those of ggml's `block_q*` structures, little-endian, checked against the `gguf` package's own
//! dequantisation (`tests/golden/gguf`). A block of the simple types holds 32 values: low nibbles are values 0–15, high
//! nibbles 16–31. A K-quant block holds 256: sub-blocks of 16 or 32 with small scales, scaled by one or two f16.

use crate::source::Dtype;
use half::f16;

/// Dequantises whole blocks of a quantised type into `out`.
///
/// `bytes` holds exactly the blocks of `out.len()` values; a plain float type is the caller's to read.
pub(crate) fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let (values, size) = dtype.block();
    for (block, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(values)) {
        match dtype {
            Dtype::Q4_0 => q4(block, 2, half(block, 0), -8.0 * half(block, 0), out),
            Dtype::Q4_1 => q4(block, 4, half(block, 0), half(block, 2), out),
            Dtype::Q5_0 => q5(block, 2, half(block, 0), -16.0 * half(block, 0), out),
            Dtype::Q5_1 => q5(block, 4, half(block, 0), half(block, 2), out),
            Dtype::Q8_0 => q8_0(block, out),
            Dtype::Q2K => q2_k(block, out),
            Dtype::Q3K => q3_k(block, out),
            Dtype::Q4K => q4_k(block, out),
            Dtype::Q5K => q5_k(block, out),
            Dtype::Q6K => q6_k(block, out),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => {}
        }
    }
}

/// The f16 at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 nibbles from byte `at`: value = code · scale + offset.
fn q4(block: &[u8], at: usize, scale: f32, offset: f32, out: &mut [f32]) {
    for (i, byte) in block[at..at + 16].iter().enumerate() {
        out[i] = f32::from(byte & 15) * scale + offset;
        out[i + 16] = f32::from(byte >> 4) * scale + offset;
    }
}

/// As [`q4`], with the fifth bits in a 32-bit word before the nibbles.
fn q5(block: &[u8], at: usize, scale: f32, offset: f32, out: &mut [f32]) {
    let high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    for (i, byte) in block[at + 4..at + 20].iter().enumerate() {
        let fifth = |bit: usize| ((high >> bit) as u8 & 1) << 4;
        out[i] = f32::from((byte & 15) | fifth(i)) * scale + offset;
        out[i + 16] = f32::from((byte >> 4) | fifth(i + 16)) * scale + offset;
    }
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    for (value, byte) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(*byte as i8) * scale;
    }
}

/// 16 bytes of (minimum, scale) nibbles, 64 bytes of 2-bit codes, d, dmin; sub-blocks of 16.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (i, value) in out.iter_mut().enumerate() {
        let scale = scales[i / 16];
        let code = (codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
        *value = d * f32::from(scale & 15) * f32::from(code) - dmin * f32::from(scale >> 4);
    }
}

/// 32 bytes of third bits, 64 bytes of 2-bit codes, 12 bytes of 6-bit scales, d; sub-blocks of 16.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, codes, packed, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    for (i, value) in out.iter_mut().enumerate() {
        let sub = i / 16;
        let low = if sub < 8 { packed[sub] & 15 } else { packed[sub - 8] >> 4 };
        let top = (packed[8 + sub % 4] >> (sub / 4 * 2)) & 3;
        let scale = f32::from(low | (top << 4)) - 32.0;
        let code = (codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
        let third = (high[i % 32] >> (i / 32)) & 1;
        *value = d * scale * (f32::from(code) - if third == 1 { 0.0 } else { 4.0 });
    }
}

/// The 6-bit scale and minimum of sub-block `sub` (0–7) of a Q4_K or Q5_K block.
fn scale_and_minimum(packed: &[u8], sub: usize) -> (f32, f32) {
    let (scale, minimum) = if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let both = packed[sub + 4];
        ((both & 15) | (packed[sub - 4] >> 6 << 4), (both >> 4) | (packed[sub] >> 6 << 4))
    };
    (f32::from(scale), f32::from(minimum))
}

/// d, dmin, 12 bytes of scales and minima, 128 bytes of nibbles; sub-blocks of 32.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, packed, codes) = (half(block, 0), half(block, 2), &block[4..16], &block[16..144]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, sub);
        let (scale, minimum) = (d * scale, dmin * minimum);
        for (value, byte) in out.iter_mut().zip(&codes[sub / 2 * 32..]) {
            *value = scale * f32::from((byte >> (sub % 2 * 4)) & 15) - minimum;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the nibbles: bit `sub` of byte i.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    let (high, codes) = (&block[16..48], &block[48..176]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, sub);
        let (scale, minimum) = (d * scale, dmin * minimum);
        for ((value, byte), high) in out.iter_mut().zip(&codes[sub / 2 * 32..]).zip(high) {
            let code = ((byte >> (sub % 2 * 4)) & 15) | (((high >> sub) & 1) << 4);
            *value = scale * f32::from(code) - minimum;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of top 2-bit pairs, 16 signed scales, d; sub-blocks of 16.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (i, value) in out.iter_mut().enumerate() {
        let (part, inside) = (i / 128, i % 128);
        let nibble = (low[part * 64 + inside % 64] >> (inside / 64 * 4)) & 15;
        let top = (high[part * 32 + inside % 32] >> (inside / 32 * 2)) & 3;
        let code = f32::from(nibble | (top << 4)) - 32.0;
        *value = d * f32::from(scales[i / 16] as i8) * code;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks and values that the `gguf` package makes of them (`tests/golden/gguf/make_gguf.py`).
    macro_rules! golden {
        ($($name:ident: $dtype:expr, $file:literal;)*) => {$(
            #[test]
            fn $name() {
                let blocks = include_bytes!(concat!("../../../../tests/golden/gguf/", $file, ".bin"));
                let expected = include_bytes!(concat!("../../../../tests/golden/gguf/", $file, ".f32"));
                let expected: Vec<f32> = expected.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect();
                let mut values = vec![f32::NAN; expected.len()];
                dequantize($dtype, blocks, &mut values);
                for (at, (value, expected)) in values.iter().zip(&expected).enumerate() {
                    // The package rounds products in another order: one unit in the last place of the larger term.
                    assert!((value - expected).abs() <= 1e-6 * expected.abs().max(0.1), "{at}: {value} for {expected}");
                }
            }
        )*};
    }

    golden! {
        q4_0_is_what_the_gguf_package_reads: Dtype::Q4_0, "Q4_0";
        q4_1_is_what_the_gguf_package_reads: Dtype::Q4_1, "Q4_1";
        q5_0_is_what_the_gguf_package_reads: Dtype::Q5_0, "Q5_0";
        q5_1_is_what_the_gguf_package_reads: Dtype::Q5_1, "Q5_1";
        q8_0_is_what_the_gguf_package_reads: Dtype::Q8_0, "Q8_0";
        q2_k_is_what_the_gguf_package_reads: Dtype::Q2K, "Q2_K";
        q3_k_is_what_the_gguf_package_reads: Dtype::Q3K, "Q3_K";
        q4_k_is_what_the_gguf_package_reads: Dtype::Q4K, "Q4_K";
        q5_k_is_what_the_gguf_package_reads: Dtype::Q5K, "Q5_K";
        q6_k_is_what_the_gguf_package_reads: Dtype::Q6K, "Q6_K";
    }
}
