"""The quantizer on bare tensors: a weight and its base in, packed signs and scales out, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _native, _tensors
from .config import BitDeltaConfig
from .errors import TensorError

__all__ = ["BitDeltaConfig", "BitDeltaQuantizer", "PackedSigns", "Reconstruction"]


class PackedSigns:
    """The signs of a weight difference, packed: a bit for each weight, under the weight's own ``shape``.

    ``signs * scales`` is the difference that they stand for. At 2 and 4 bits each weight has a code, an odd whole number
    (±1, ±3; ±1 to ±15), in place of a sign, and ``symmetric=False`` adds ``offsets``, one for each group.
    """

    # So that NumPy leaves `scales * signs` to this class.
    __array_ufunc__ = None

    def __init__(
        self,
        words: npt.NDArray[Any],
        bits: int,
        shape: tuple[int, ...],
        group_size: int,
        offsets: npt.NDArray[np.float32] | None,
        back: Callable[[npt.NDArray[Any]], Any],
    ) -> None:
        self._words = words
        self._back = back
        #: Bits a weight; 16 where compression is off.
        self.bits = bits
        #: The weight's shape.
        self.shape = shape
        #: Inputs that share a scale; a row's last group may be shorter.
        self.group_size = group_size
        self._offsets = offsets

    @property
    def rows(self) -> int:
        """Outputs: the first dimension (1 for a vector)."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def cols(self) -> int:
        """Inputs: the product of the other dimensions."""
        return int(np.prod(self.shape, dtype=np.int64)) // self.rows

    @property
    def packed(self) -> Any:
        """The bytes, uint8 of shape (rows, bits, bytes a row): no copy.

        Bit i (lowest first) of byte j of plane p is input 8j + i, 1 is "+", and plane p weighs 2^p. A row is padded with
        zeros to whole 64-bit words. Where compression is off it is (rows, 2 · cols), the difference as float16.
        """
        data = self._words.view(np.uint8)
        if self.bits == 16:
            return self._back(data.reshape(self.rows, -1))
        return self._back(data.reshape(self.rows, self.bits, -1))

    @property
    def offsets(self) -> Any:
        """What each group adds, (rows, groups); None when symmetric."""
        return None if self._offsets is None else self._back(self._offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form."""
        return self._words.nbytes + (0 if self._offsets is None else self._offsets.nbytes)

    def to_dense(self) -> Any:
        """±1 for each weight, float32 of the weight's shape (odd codes at 2 and 4 bits)."""
        return self._back(self._expand(None))

    def _expand(self, scales: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
        """Codes times scales plus offsets; the bare codes without scales."""
        if self.bits == 16:
            values = self._words.view(np.float16).astype(np.float32).reshape(self.rows, self.cols)
            if scales is not None and scales.shape != (self.rows, 1):
                raise TensorError(f"scales of shape {scales.shape}: these need ({self.rows}, 1)")
            return (values if scales is None else values * scales).reshape(self.shape)
        if scales is not None and scales.ndim != 2:
            raise TensorError(f"scales of shape {scales.shape}: expected (rows, groups)")
        offsets = None if scales is None else self._offsets
        shape = (self.rows, self.cols)
        return _native.dequantize(self._words, self.bits, shape, self.group_size, scales, offsets).reshape(self.shape)

    def __mul__(self, scales: Any) -> Any:
        return _tensors.like(scales)(self._expand(_tensors.floats(scales)))

    __rmul__ = __mul__

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        dense = self._expand(None)
        return dense if dtype is None else dense.astype(dtype)

    def __repr__(self) -> str:
        return f"PackedSigns(shape={self.shape}, bits={self.bits}, group_size={self.group_size}, nbytes={self.nbytes})"


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """How far a compressed difference is from the true one."""

    #: Mean of |reconstructed − true| over all weights.
    mean_absolute_error: float
    #: Largest |reconstructed − true|.
    max_absolute_error: float
    #: ‖reconstructed − true‖ ÷ ‖true‖: 0 is perfect, 1 is as bad as no variant at all.
    relative_error: float
    #: Bits a weight of signs and scales, as they take memory in a variant file.
    bits_per_weight: float


class BitDeltaQuantizer:
    """Compresses the difference of two tensors to signs and scales."""

    def __init__(self, config: BitDeltaConfig | None = None) -> None:
        self.config = BitDeltaConfig() if config is None else config

    def quantize_delta(self, weight: Any, base_weight: Any, name: str = "weight") -> tuple[PackedSigns, Any]:
        """``weight`` − ``base_weight`` as (signs, scales); ``scales`` has shape (rows, groups).

        NumPy arrays give NumPy arrays, PyTorch tensors give PyTorch tensors on the weight's device. ``name`` is for
        error messages: a NaN or an infinity is a :class:`~zoo.gym.errors.TensorError` that names the place.
        """
        tuned, base = _tensors.read(weight, name), _tensors.read(base_weight, f"{name} (base)")
        if tuned.shape != base.shape:
            raise TensorError(f"{name}: a weight of shape {tuned.shape} and a base of shape {base.shape} are no pair")
        bits, group, words, scales, offsets = _native.quantize(
            tuned.matrix, base.matrix, (tuned.bfloat, base.bfloat), name, self.config.to_json()
        )
        if scales is None:
            scales = np.ones((tuned.matrix.shape[0], 1), dtype=np.float32)
        return PackedSigns(words, bits, tuned.shape, group, offsets, tuned.back), tuned.back(scales)

    def dequantize_delta(self, signs: PackedSigns, scales: Any, name: str = "weight") -> Any:
        """The difference that signs and scales stand for, float32 of the weight's shape."""
        try:
            return signs * scales
        except TensorError as error:
            raise TensorError(f"{name}: {error}") from None

    def validate_delta(
        self,
        weight: Any,
        base_weight: Any,
        name: str = "weight",
        *,
        signs: PackedSigns | None = None,
        scales: Any = None,
    ) -> Reconstruction:
        """How much of ``weight`` − ``base_weight`` survives: with these signs and scales, or with what
        :meth:`quantize_delta` makes of it."""
        if (signs is None) != (scales is None):
            raise TensorError(f"{name}: pass signs and scales together, or neither")
        if signs is None:
            signs, scales = self.quantize_delta(weight, base_weight, name)
        tuned, base = _exact(weight, name), _exact(base_weight, name)
        true = tuned - base
        error = np.abs(signs._expand(_tensors.floats(scales)).reshape(true.shape) - true)
        norm = float(np.linalg.norm(true))
        distance = float(np.linalg.norm(error))
        stored = signs.nbytes + 2 * int(np.prod(scales.shape)) * (signs.bits != 16)
        if signs._offsets is not None:
            stored -= 2 * signs._offsets.size
        return Reconstruction(
            mean_absolute_error=float(error.mean(dtype=np.float64)),
            max_absolute_error=float(error.max()),
            relative_error=0.0 if distance == 0 else distance / norm if norm else float("inf"),
            bits_per_weight=8 * stored / true.size,
        )


def _exact(value: Any, name: str) -> npt.NDArray[np.float32]:
    """A tensor's values as float32, of its matrix's shape."""
    tensor = _tensors.read(value, name)
    if tensor.matrix.dtype == np.float32:
        return tensor.matrix
    if tensor.bfloat:
        return (tensor.matrix.astype(np.uint32) << 16).view(np.float32)
    return tensor.matrix.view(np.float16).astype(np.float32)
