"""torch tensors to the checkpoint's host arrays, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from parhelion.checkpoint import HostArray, Part, ShardedArray, StoredArray, dense_strides
from parhelion.errors import CheckpointMismatchError, UnsavableValueError

from .sharded import StoredTensor, as_spread, live_part, local_part, writes_part

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from torch.distributed.tensor import DTensor

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

    Of a ``DTensor`` each process writes its part, and what comes back where several processes run is a
    :class:`~parhelion_torch.sharded.StoredTensor`, of which each reads what it needs.
    """

    def identity(self, leaf: Any) -> Hashable | None:
        """Return a key that tensors share if they are the same elements in memory; None for others."""
        if not isinstance(leaf, torch.Tensor):
            return None
        spread = as_spread(leaf)
        if spread is not None:
            return "spread", tuple(leaf.shape), spread.placements, _local_identity(spread)
        if not _is_plain(leaf) or leaf.numel() == 0:
            # No memory of its own to compare; the pointer of every empty tensor is null.
            return "object", id(leaf)
        lazy_bits = leaf.is_conj(), leaf.is_neg()
        return leaf.data_ptr(), leaf.device, leaf.dtype, tuple(leaf.shape), leaf.stride(), lazy_bits

    def encode(self, leaf: Any, path: str) -> HostArray | ShardedArray:
        """Return the tensor's bytes, copied from its device, or a view of it where it lies in C order here.

        Raises:
            UnsavableValueError: the tensor is sparse, quantized, nested, packed, without data, of a subclass, or spread
                over processes in another way than by boxes.
        """
        spread = as_spread(leaf)
        if spread is not None:
            return self._encode_spread(spread, path)
        _check_savable(leaf, path)
        shape, strides = tuple(leaf.shape), dense_strides(leaf.shape, leaf.stride())
        # The bits that conjugate and negate lazily live outside the memory.
        host = leaf.detach().resolve_conj().resolve_neg().cpu().contiguous()
        is_fresh = leaf.numel() > 0 and host.data_ptr() != leaf.data_ptr()
        data = host.reshape(-1).view(torch.uint8).numpy()
        return HostArray(_name(leaf), shape, data, strides, is_fresh)

    def _encode_spread(self, tensor: DTensor, path: str) -> ShardedArray:
        """Return this process's part of a tensor; none where another one has the same, or where it is empty."""
        start, local = local_part(tensor, path)
        parts: tuple[Part, ...] = ()
        if local.numel() > 0 and writes_part(tensor):
            _check_savable(local, path)
            host = local.detach().resolve_conj().resolve_neg().cpu().contiguous()
            is_fresh = host.data_ptr() != local.data_ptr()
            data = host.reshape(-1).view(torch.uint8).numpy()
            parts = (Part(start, HostArray(_name(tensor), tuple(local.shape), data, None, is_fresh)),)
        return ShardedArray(_name(tensor), tuple(tensor.shape), parts)

    def decode_stored(self, stored: StoredArray) -> torch.Tensor | StoredTensor:
        """Return what stands for an array in parts: the tensor where one process runs, else what reads a part of it.

        Raises:
            CheckpointMismatchError: this torch has no such dtype.
        """
        if stored.dtype not in _DTYPES or _world_size() == 1:
            return self.decode(stored.read_all())

        def read(start: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
            return self.decode(stored.read(tuple(start), tuple(shape)))

        return StoredTensor(_DTYPES[stored.dtype], tuple(stored.shape), read)

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


def _local_identity(tensor: DTensor) -> Hashable:
    """Return what the parts of equal tensors share in this process, also where they are empty."""
    local = live_part(tensor)
    storage: Any = local.untyped_storage()
    where = local.data_ptr() or storage._cdata  # noqa: SLF001 - an empty part has no address
    return where, local.device, local.dtype, tuple(local.shape), local.stride()


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _world_size() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


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
