//! GGUF's simple block-quantised types as they are: codes of at most 8 bits, a scale and a minimum for 32 values.
//!
//! A kernel that multiplies such codes loses nothing of the file. The K-quants are not among them: their scales are products
//! of two numbers, or of 16 values.

use crate::source::Dtype;
use half::f16;

/// Values that share a scale.
pub(crate) const BLOCK: usize = 32;

/// The most bits a code of the type has; `None` for a type without such codes.
pub(crate) fn bits(dtype: Dtype) -> Option<u32> {
    match dtype {
        Dtype::Q4_0 | Dtype::Q4_1 => Some(4),
        Dtype::Q5_0 | Dtype::Q5_1 => Some(5),
        Dtype::Q8_0 => Some(8),
        _ => None,
    }
}

/// Splits whole blocks of a type that has [`bits`]: value = code · scale + minimum, exactly what
/// [`dequantize`](super::quants::dequantize) gives. False where a minimum is beyond f16.
pub(crate) fn split(dtype: Dtype, bytes: &[u8], codes: &mut [u8], scales: &mut [u16], minima: &mut [u16]) -> bool {
    let mut finite = true;
    let blocks = bytes.chunks_exact(dtype.block().1).zip(codes.chunks_exact_mut(BLOCK));
    for ((block, codes), (scale, minimum)) in blocks.zip(scales.iter_mut().zip(minima)) {
        let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        let nibbles = |at: usize, codes: &mut [u8]| {
            for (i, byte) in block[at..at + 16].iter().enumerate() {
                (codes[i], codes[i + 16]) = (byte & 15, byte >> 4);
            }
        };
        let fifths = |at: usize, codes: &mut [u8]| {
            for (i, code) in codes.iter_mut().enumerate() {
                *code |= (block[at + i / 8] >> (i % 8) & 1) << 4;
            }
        };
        *scale = half(0);
        let below = |steps: f32| f16::from_f32(-steps * f16::from_bits(half(0)).to_f32());
        let least = match dtype {
            Dtype::Q4_0 => {
                nibbles(2, codes);
                below(8.0)
            }
            Dtype::Q4_1 => {
                nibbles(4, codes);
                f16::from_bits(half(2))
            }
            Dtype::Q5_0 => {
                nibbles(6, codes);
                fifths(2, codes);
                below(16.0)
            }
            Dtype::Q5_1 => {
                nibbles(8, codes);
                fifths(4, codes);
                f16::from_bits(half(2))
            }
            _ => {
                codes.iter_mut().zip(&block[2..]).for_each(|(code, byte)| *code = byte ^ 0x80);
                below(128.0)
            }
        };
        finite &= least.is_finite();
        *minimum = least.to_bits();
    }
    finite
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::quants::dequantize;

    #[test]
    fn split_blocks_hold_exactly_the_values_of_the_type() {
        let files: [(Dtype, &[u8]); 5] = [
            (Dtype::Q4_0, include_bytes!("../../../../tests/golden/gguf/Q4_0.bin")),
            (Dtype::Q4_1, include_bytes!("../../../../tests/golden/gguf/Q4_1.bin")),
            (Dtype::Q5_0, include_bytes!("../../../../tests/golden/gguf/Q5_0.bin")),
            (Dtype::Q5_1, include_bytes!("../../../../tests/golden/gguf/Q5_1.bin")),
            (Dtype::Q8_0, include_bytes!("../../../../tests/golden/gguf/Q8_0.bin")),
        ];
        for (dtype, bytes) in files {
            let blocks = bytes.len() / dtype.block().1;
            let mut values = vec![f32::NAN; blocks * BLOCK];
            dequantize(dtype, bytes, &mut values);
            let (mut codes, mut scales, mut minima) = (vec![0; blocks * BLOCK], vec![0; blocks], vec![0; blocks]);
            assert!(split(dtype, bytes, &mut codes, &mut scales, &mut minima), "{dtype:?}");
            for (at, value) in values.iter().enumerate() {
                let [scale, minimum] = [&scales, &minima].map(|halves| f16::from_bits(halves[at / BLOCK]).to_f32());
                assert_eq!(f32::from(codes[at]) * scale + minimum, *value, "{dtype:?}, value {at}");
                assert!(bits(dtype).is_some_and(|bits| u32::from(codes[at]) < 1 << bits), "{dtype:?}, value {at}");
            }
        }
    }

    #[test]
    fn a_minimum_beyond_f16_is_told() {
        let mut block = vec![0; Dtype::Q8_0.block().1];
        block[..2].copy_from_slice(&f16::from_f32(1000.0).to_le_bytes());
        assert!(!split(Dtype::Q8_0, &block, &mut [0; BLOCK], &mut [0], &mut [0]));
    }
}
