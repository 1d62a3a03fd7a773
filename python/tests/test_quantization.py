"""The quantizer on arrays, held against NumPy written out."""

import numpy as np
import pytest

from zoo.gym.errors import TensorError
from zoo.gym.quantization import BitDeltaConfig, BitDeltaQuantizer

#: Scales are kept as 16-bit floats in units of the tensor's largest.
HALF = 1e-3


def pair(rows=12, cols=200, spread=0.1, seed=0, offset=0.0):
    """A base and its fine-tune, float32."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal((rows, cols)).astype(np.float32)
    return base, base + (offset + spread * generator.standard_normal((rows, cols))).astype(np.float32)


def quantizer(**fields):
    return BitDeltaQuantizer(BitDeltaConfig(**fields))


def test_one_bit_is_the_sign_and_the_mean_magnitude_of_each_group():
    base, weight = pair()
    signs, scales = quantizer(group_size=64, clip_outliers=False).quantize_delta(weight, base, "w")
    delta = weight - base
    assert signs.shape == (12, 200) and scales.shape == (12, 4) and scales.dtype == np.float32
    np.testing.assert_array_equal(signs.to_dense(), np.where(delta >= 0, 1.0, -1.0))
    # The last group of a row is shorter and has the mean of its own.
    means = [np.abs(delta[:, at : at + 64]).mean(axis=1) for at in range(0, 200, 64)]
    np.testing.assert_allclose(scales, np.stack(means, axis=1), rtol=HALF)


def test_packed_signs_are_bits_and_their_product_with_scales_is_the_difference():
    base, weight = pair()
    it = quantizer(group_size=64)
    signs, scales = it.quantize_delta(weight, base, "w")
    assert signs.packed.dtype == np.uint8 and signs.packed.shape == (12, 1, 32) and signs.nbytes == 12 * 32
    bits = np.unpackbits(signs.packed[:, 0], axis=1, bitorder="little")
    np.testing.assert_array_equal(bits[:, :200] * 2.0 - 1, signs.to_dense())
    assert not bits[:, 200:].any()
    by_hand = signs.to_dense() * np.repeat(scales, 64, axis=1)[:, :200]
    for product in (signs * scales, scales * signs, it.dequantize_delta(signs, scales, "w")):
        np.testing.assert_array_equal(product, by_hand)


def test_users_weights_are_written_as_on_the_page():
    base_weight, weight = pair()
    it, bitdelta_signs, bitdelta_scales = quantizer(group_size=64), {}, {}
    bitdelta_signs["ada"], bitdelta_scales["ada"] = it.quantize_delta(weight, base_weight)
    user_weight = base_weight + bitdelta_signs["ada"] * bitdelta_scales["ada"]
    assert np.linalg.norm(user_weight - weight) < 0.7 * np.linalg.norm(base_weight - weight)


@pytest.mark.parametrize("symmetric", [True, False])
def test_more_bits_leave_less_error(symmetric):
    base, weight = pair(offset=0.05)
    errors = []
    for bits in (1, 2, 4):
        it = quantizer(bits=bits, group_size=64, symmetric=symmetric, clip_outliers=False)
        signs, scales = it.quantize_delta(weight, base)
        codes = signs.to_dense()
        assert set(np.unique(codes)) <= set(range(-(2**bits) + 1, 2**bits, 2)) and codes.shape == weight.shape
        assert (signs.offsets is None) == symmetric
        by_hand = codes * np.repeat(scales, 64, axis=1)[:, :200]
        if not symmetric:
            by_hand += np.repeat(signs.offsets, 64, axis=1)[:, :200]
        np.testing.assert_allclose(signs * scales, by_hand, rtol=1e-6, atol=1e-7)
        errors.append(it.validate_delta(weight, base).relative_error)
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_an_offset_pays_where_a_group_lies_on_one_side_of_zero():
    base, weight = pair(offset=0.4)
    with_offset = quantizer(symmetric=False, clip_outliers=False).validate_delta(weight, base)
    without = quantizer(symmetric=True, clip_outliers=False).validate_delta(weight, base)
    assert with_offset.relative_error < 0.7 * without.relative_error


def test_outliers_are_clipped_when_asked():
    base, weight = pair(cols=256)
    weight[3, 5] += 1000
    clipped = quantizer(group_size=256, outlier_threshold=2.0).quantize_delta(weight, base)[1]
    whole = quantizer(group_size=256, clip_outliers=False).quantize_delta(weight, base)[1]
    assert whole[3, 0] > 3 and clipped[3, 0] < 0.9 * whole[3, 0]


def test_without_compression_the_difference_is_kept_to_half_precision():
    base, weight = pair()
    it = quantizer(enable_compression=False, clip_outliers=False)
    signs, scales = it.quantize_delta(weight, base)
    assert signs.bits == 16 and scales.shape == (12, 1) and signs.packed.shape == (12, 400)
    np.testing.assert_allclose(signs * scales, weight - base, rtol=HALF, atol=1e-6)


def test_a_zero_difference_is_exactly_zero_and_one_element_is_no_nan():
    base, _ = pair()
    it = quantizer()
    assert not (it.dequantize_delta(*it.quantize_delta(base, base))).any()
    assert it.validate_delta(base, base).relative_error == 0
    signs, scales = it.quantize_delta(np.float32([0.5]), np.float32([0.25]))
    np.testing.assert_allclose(signs * scales, [0.25])


def test_validation_reports_what_the_page_computes():
    generator = np.random.default_rng(7)
    base = generator.standard_normal((1024, 1024), dtype=np.float32)
    weight = base + 0.1 * generator.standard_normal((1024, 1024), dtype=np.float32)
    it = quantizer(bits=1, group_size=128)
    signs, scales = it.quantize_delta(weight, base, "w")
    error = np.abs(it.dequantize_delta(signs, scales, "w") - (weight - base))
    report = it.validate_delta(weight, base, "w", signs=signs, scales=scales)
    assert report.mean_absolute_error == pytest.approx(error.mean(dtype=np.float64))
    assert report.max_absolute_error == pytest.approx(error.max())
    # 0.1·randn has a mean magnitude of 0.0798; what one bit leaves is 0.048, and no one-bit code leaves less.
    assert report.mean_absolute_error == pytest.approx(0.048, abs=0.001)
    assert report.bits_per_weight == pytest.approx(1 + 16 / 128)
    assert it.validate_delta(weight, base, "w") == report


@pytest.mark.parametrize("shape", [(), (1,), (70,), (3, 1), (4, 6, 10), (2, 3, 4, 5)])
def test_any_shape_keeps_its_shape(shape):
    generator = np.random.default_rng(1)
    base, weight = generator.standard_normal((2, *shape)).astype(np.float32)
    it = quantizer(group_size=32, clip_outliers=False)
    signs, scales = it.quantize_delta(weight, base)
    assert signs.shape == shape == it.dequantize_delta(signs, scales).shape == signs.to_dense().shape
    assert scales.shape == (signs.rows, -(-signs.cols // 32))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_are_read_for_what_they_are(dtype):
    base, weight = (array.astype(dtype) for array in pair())
    same = [array.astype(np.float32) for array in (weight, base)]
    found, expected = (quantizer().quantize_delta(*arrays) for arrays in ((weight, base), same))
    np.testing.assert_array_equal(found[0].packed, expected[0].packed)
    np.testing.assert_array_equal(found[1], expected[1])


def test_rows_that_are_not_contiguous_are_read_right():
    base, weight = pair()
    it = quantizer(group_size=32)
    found = it.quantize_delta(weight.T, base.T)
    expected = it.quantize_delta(weight.T.copy(), base.T.copy())
    np.testing.assert_array_equal(found[0] * found[1], expected[0] * expected[1])


def test_what_cannot_be_compressed_is_named():
    base, weight = pair()
    it = quantizer()
    broken = weight.copy()
    broken[2, 3] = np.nan
    with pytest.raises(TensorError, match=r"layer\.0\.weight\[2, 3\] is NaN"):
        it.quantize_delta(broken, base, "layer.0.weight")
    with pytest.raises(TensorError, match="no pair"):
        it.quantize_delta(weight, base[:, :-1], "w")
    with pytest.raises(TensorError, match="w"):
        it.quantize_delta(weight[:0], base[:0], "w")
    with pytest.raises(TensorError, match="no weights"):
        it.quantize_delta(weight.astype(complex), base, "w")
    signs, scales = it.quantize_delta(weight, base)
    with pytest.raises(TensorError, match="w: scales of shape"):
        it.dequantize_delta(signs, scales[:, :1], "w")
