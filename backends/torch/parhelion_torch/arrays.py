"""torch tensors to the checkpoint's host arrays, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from parhelion.checkpoint import HostArray, dense_strides
from parhelion.errors import CheckpointMismatchError, UnsavableValueError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

__all__ = ["Arrays"]

_NAMES: Final = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "bfloat16",
    "float16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "complex32",
    "complex64",
    "complex128",
)
# The oldest torch that is supported lacks the last of the float8 kinds.
_DTYPES: Final[dict[str, torch.dtype]] = {name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)}
_SAVABLE: Final = frozenset(_DTYPES.values())


class Arrays:
    """The adapter by which checkpoints hold torch tensors.

    A tensor comes back on the CPU, without a gradient and as a plain tensor (a ``Parameter`` too), with the
    bits, the shape and the dense memory layout (channels last) that it had. Tied tensors come back as one.
    """

    def identity(self, leaf: Any) -> Hashable | None:
        """Return a key that tensors share if they are the same elements in memory; None for others."""
        if not isinstance(leaf, torch.Tensor):
            return None
        if not _is_plain(leaf) or leaf.numel() == 0:
            # No memory of its own to compare; the pointer of every empty tensor is null.
            return "object", id(leaf)
        lazy_bits = leaf.is_conj(), leaf.is_neg()
        return leaf.data_ptr(), leaf.device, leaf.dtype, tuple(leaf.shape), leaf.stride(), lazy_bits

    def encode(self, leaf: Any, path: str) -> HostArray:
        """Return the tensor's bytes, copied from its device, or a view of it where it lies in C order here.

        Raises:
            UnsavableValueError: the tensor is sparse, quantized, nested, packed, without data, or of a
                subclass.
        """
        _check_savable(leaf, path)
        shape, strides = tuple(leaf.shape), dense_strides(leaf.shape, leaf.stride())
        # The bits that conjugate and negate lazily live outside the memory.
        host = leaf.detach().resolve_conj().resolve_neg().cpu().contiguous()
        data = host.reshape(-1).view(torch.uint8).numpy()
        return HostArray(str(leaf.dtype).removeprefix("torch."), shape, data, strides)

    def decode(self, array: HostArray) -> torch.Tensor:
        """Return the tensor over ``array.data``; a copy if its layout differs or the data is read-only.

        Raises:
            CheckpointMismatchError: this torch has no such dtype.
        """
        dtype = _DTYPES.get(array.dtype)
        if dtype is None:
            raise CheckpointMismatchError(
                f"dtype is {array.dtype!r}; expected one that torch {torch.__version__} has. Use a newer "
                "torch, or load without an adapter."
            )
        data = array.data if array.data.flags.writeable else array.data.copy()
        raw = torch.from_numpy(data)  # pyright: ignore[reportUnknownMemberType] - torch leaves NumPy untyped
        tensor = raw.view(dtype).reshape(array.shape)
        if array.strides is None:
            return tensor
        return torch.empty_strided(array.shape, array.strides, dtype=dtype).copy_(tensor)


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and tensor.device.type != "meta"
    )


def _check_savable(tensor: torch.Tensor, path: str) -> None:
    for applies, what, way_out in _refusals(tensor):
        if applies:
            raise UnsavableValueError(
                f"{path} is {what}; expected a dense tensor of whole-byte elements that has data. {way_out}"
            )


def _refusals(tensor: torch.Tensor) -> Iterator[tuple[bool, str, str]]:
    """Yield what may keep a tensor out of a checkpoint: whether it does, its name, a way out."""
    yield tensor.is_nested, "a nested tensor", "Save tensor.unbind() as a list."
    yield (
        tensor.layout is not torch.strided,
        f"a sparse tensor ({tensor.layout})",
        "Save tensor.to_dense(), or its indices and values.",
    )
    yield (
        tensor.is_quantized,
        f"a quantized tensor ({tensor.dtype})",
        "Save tensor.int_repr() with its scale and zero point.",
    )
    yield (
        tensor.device.type == "meta",
        "a tensor on the meta device, without data",
        "Give it memory first (module.to_empty).",
    )
    yield (
        not _is_plain(tensor),
        f"a tensor of the subclass {type(tensor).__qualname__}",
        "Save the plain tensor in it (full_tensor, as_subclass).",
    )
    yield (
        tensor.dtype not in _SAVABLE,
        f"a tensor of the packed dtype {tensor.dtype}",
        "Save tensor.view(torch.uint8).",
    )
