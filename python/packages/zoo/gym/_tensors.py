"""From tensors to the memory that the quantizer reads, and back into the library that they came from.

NumPy arrays and PyTorch tensors on the CPU are read where they lie, in float32, float16 and bfloat16; float64 is
converted, other devices are copied. Anything else that speaks DLPack comes in through NumPy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import TensorError


class Tensor(NamedTuple):
    """A tensor as a contiguous matrix of its outputs and inputs."""

    #: (rows, cols) float32, or uint16 with the bits of a 16-bit float.
    matrix: npt.NDArray[Any]
    #: Whether the bits are bfloat16's.
    bfloat: bool
    #: As it came.
    shape: tuple[int, ...]
    #: Brings an array back into the library and to the device that this came from.
    back: Callable[[npt.NDArray[Any]], Any]


def read(value: Any, what: str) -> Tensor:
    """A tensor's memory. One dimension is one row; more than two are rows by all the rest."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _read_torch(torch, value, what)
    if not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__"):
        value = np.from_dlpack(value)
    array = np.asarray(value)
    if array.dtype == np.float16:
        return _tensor(array.view(np.uint16), False, array.shape, _same)
    if array.dtype.kind not in "fiu":
        raise TensorError(f"{what}: a tensor of type {array.dtype} has no weights; expected floats")
    return _tensor(array.astype(np.float32, copy=False), False, array.shape, _same)


def like(value: Any) -> Callable[[npt.NDArray[Any]], Any]:
    """What brings an array into the library and to the device of ``value``."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _to_torch(torch, value.device)
    return _same


def floats(value: Any) -> npt.NDArray[np.float32]:
    """A tensor of scales as a contiguous float32 array."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().to(device="cpu", dtype=torch.float32).numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


def _read_torch(torch: Any, tensor: Any, what: str) -> Tensor:
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TensorError(f"{what}: a tensor of type {tensor.dtype} has no weights; expected floats")
    back = _to_torch(torch, tensor.device)
    plain = tensor.detach().cpu()
    if plain.dtype in (torch.float16, torch.bfloat16):
        # NumPy has no bfloat16; the bits travel as they are.
        bits = plain.contiguous().view(torch.int16).numpy().view(np.uint16)
        return _tensor(bits, plain.dtype == torch.bfloat16, tuple(tensor.shape), back)
    return _tensor(plain.to(torch.float32).numpy(), False, tuple(tensor.shape), back)


def _tensor(array: npt.NDArray[Any], bfloat: bool, shape: tuple[int, ...], back: Callable[..., Any]) -> Tensor:
    rows = shape[0] if len(shape) > 1 else 1
    matrix = np.ascontiguousarray(array).reshape(rows, array.size // rows if rows else 0)
    return Tensor(matrix, bfloat, shape, back)


def _to_torch(torch: Any, device: Any) -> Callable[[npt.NDArray[Any]], Any]:
    return lambda array: torch.from_numpy(array).to(device)


def _same(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array
