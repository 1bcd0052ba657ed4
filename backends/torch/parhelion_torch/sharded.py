"""Tensors that are spread over processes: which box of the whole is here, and how it comes out of a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from parhelion.errors import UnsavableValueError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "StoredTensor",
    "as_spread",
    "fitted",
    "is_spread",
    "live_part",
    "local_box",
    "local_part",
    "whole",
    "writes_part",
]

Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


class StoredTensor:
    """A tensor of a checkpoint that several processes wrote, of which only what is needed is read.

    Args:
        dtype: the type of its elements.
        shape: the size of every axis of the whole.
        read: returns the elements in the box that begins at a place and has a shape.
    """

    def __init__(
        self, dtype: torch.dtype, shape: tuple[int, ...], read: Callable[[tuple[int, ...], tuple[int, ...]], Tensor]
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.read = read

    def whole(self) -> Tensor:
        """Return all of it, on the CPU."""
        return self.read((0,) * len(self.shape), self.shape)


def as_spread(value: Any) -> DTensor | None:
    """Return a value that is a ``DTensor``; None for any other."""
    # Who has one has imported the module, which takes a second.
    module: Any = sys.modules.get("torch.distributed.tensor")
    return value if module is not None and isinstance(value, module.DTensor) else None


def is_spread(module: nn.Module) -> bool:
    """Return whether a module has parameters that are spread over processes, as ``fully_shard`` leaves them."""
    return any(as_spread(parameter) is not None for parameter in module.parameters())


def local_part(tensor: DTensor, path: str) -> tuple[tuple[int, ...], Tensor]:
    """Return where this process's part of a tensor begins, and its elements; they are the live ones.

    Raises:
        UnsavableValueError: its part is no box of the whole.
    """
    start, shape = local_box(tensor, path)
    local = live_part(tensor)
    if tuple(local.shape) != shape:
        raise _refused(tensor, path)
    return start, local


def live_part(tensor: DTensor) -> Tensor:
    """Return this process's part of a tensor itself; ``to_local()`` makes another view each time."""
    part: Tensor = cast("Any", tensor)._local_tensor  # noqa: SLF001 - see above
    return part


def writes_part(tensor: DTensor) -> bool:
    """Return whether this process is the one that saves its part: the first of those that have the same."""
    from torch.distributed.tensor import Replicate  # noqa: PLC0415 - see as_spread

    coordinate = _coordinate(tensor)
    if coordinate is None:
        return False
    here = zip(coordinate, tensor.placements, strict=True)
    return all(place == 0 for place, placement in here if isinstance(placement, Replicate))


def whole(value: Any) -> Any:
    """Return a tensor of a checkpoint as a plain one; what is no stored tensor stays as it is."""
    return value.whole() if isinstance(value, StoredTensor) else value


def fitted(value: Any, target: Any) -> Any:
    """Return a saved tensor as ``target`` can take it: this process's part where that is spread, else the whole.

    Args:
        value: a tensor, or a stored one, of the target's shape; anything else stays as it is.
        target: what will take it.
    """
    spread = as_spread(target)
    if spread is None or not isinstance(value, (Tensor, StoredTensor)) or as_spread(value) is not None:
        return whole(value)
    start, shape = local_box(spread, "a parameter")
    if isinstance(value, StoredTensor):
        local = value.read(start, shape)
    else:
        local = value[tuple(slice(begin, begin + size) for begin, size in zip(start, shape, strict=True))]
    return _spread_like(spread, local, tuple(value.shape))


def _spread_like(target: DTensor, local: Tensor, shape: tuple[int, ...]) -> Tensor:
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - see as_spread

    device = live_part(target).device
    return DTensor.from_local(
        local.to(device).contiguous(),
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )


def local_box(tensor: DTensor, path: str) -> Box:
    """Return where the part of this process begins in the whole, and its shape.

    An axis is cut as ``torch.chunk`` cuts it; by several dimensions of the mesh, one after another.
    """
    from torch.distributed.tensor import Replicate, Shard  # noqa: PLC0415 - see as_spread

    start, shape = [0] * tensor.ndim, list(tensor.shape)
    coordinate = _coordinate(tensor)
    if coordinate is None:
        return (0,) * tensor.ndim, (0,) * tensor.ndim
    mesh = tuple(tensor.device_mesh.shape)
    for place, size, placement in zip(coordinate, mesh, tensor.placements, strict=True):
        if type(placement) is Shard:
            axis = int(cast("Any", placement).dim)
            chunk = -(-shape[axis] // size)
            begin = min(place * chunk, shape[axis])
            start[axis], shape[axis] = start[axis] + begin, min(chunk, shape[axis] - begin)
        elif type(placement) is not Replicate:
            raise _refused(tensor, path)
    return tuple(start), tuple(shape)


def _coordinate(tensor: DTensor) -> Sequence[int] | None:
    return cast("Sequence[int] | None", tensor.device_mesh.get_coordinate())


def _refused(tensor: DTensor, path: str) -> UnsavableValueError:
    return UnsavableValueError(
        f"{path} is a DTensor with the placements {tuple(tensor.placements)}; expected Shard and Replicate, by which "
        "every process has a box of the whole. Redistribute it, or save tensor.full_tensor()."
    )
