"""The quantizer on PyTorch tensors, where PyTorch is installed (`make oracles`)."""

import pytest

torch = pytest.importorskip("torch")

from zoo.gym.quantization import BitDeltaConfig, BitDeltaQuantizer  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_come_out_as_tensors_with_numpys_bits(dtype):
    torch.manual_seed(0)
    base = torch.randn(16, 130).to(dtype)
    weight = (base + 0.1 * torch.randn(16, 130)).to(dtype)
    it = BitDeltaQuantizer(BitDeltaConfig(group_size=64))
    signs, scales = it.quantize_delta(weight, base, "w")
    plain = it.quantize_delta(weight.float().numpy(), base.float().numpy(), "w")
    assert isinstance(signs.packed, torch.Tensor) and signs.packed.dtype == torch.uint8
    assert (signs.packed.numpy() == plain[0].packed).all() and (scales.numpy() == plain[1]).all()
    restored = it.dequantize_delta(signs, scales, "w")
    assert restored.dtype == torch.float32 and restored.shape == weight.shape
    assert torch.equal(restored, signs * scales)
    assert torch.equal(signs.to_dense(), torch.where(weight.float() >= base.float(), 1.0, -1.0))


def test_a_parameter_that_learns_and_a_transposed_one_are_read():
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(32, 48))
    it = BitDeltaQuantizer()
    found = it.quantize_delta(weight.T, torch.zeros(48, 32))
    expected = it.quantize_delta(weight.detach().T.contiguous(), torch.zeros(48, 32))
    assert torch.equal(found[0] * found[1], expected[0] * expected[1])
