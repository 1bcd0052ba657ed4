"""Host batches to the device, values back."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs
import numpy as np
import torch
from torch import Tensor

from parhelion.errors import InvalidTypeError

__all__ = ["Placement", "map_leaves", "move", "pin", "to_tensor"]

# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance
_from_numpy: Callable[[Any], Tensor] = cast("Any", torch).from_numpy  # the stub leaves NumPy untyped
_SCALAR = "expected a number or a tensor with one. Reduce it, as with .mean()."
_NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
_TENSOR_DTYPES = frozenset(map(np.dtype, _NAMES.split()))  # of strings, objects and dates there are no tensors


def move(value: Any, device: torch.device) -> Any:
    """Return ``value`` with every tensor and numeric NumPy array in it as a tensor on ``device``.

    What has a ``to`` method (a packed sequence, a token encoding) moves itself. Dictionaries, lists, tuples, named
    tuples, attrs and dataclass records are rebuilt around what moved; the rest stays as it is. Copies from pinned
    memory do not block.
    """
    if _is(value, Tensor):
        return value if value.device == device else value.to(device, non_blocking=True)
    if _is(value, np.ndarray):
        tensor = to_tensor(value)
        return move(tensor, device) if _is(tensor, Tensor) else value
    to = getattr(value, "to", None)
    if callable(to):
        return to(device)
    return _rebuilt(value, lambda each: move(each, device))


def pin(value: Any) -> Any:
    """Return ``value`` with every tensor in it in page-locked memory; what has a ``pin_memory`` method does that."""
    pin_memory = getattr(value, "pin_memory", None)
    return pin_memory() if callable(pin_memory) else _rebuilt(value, pin)


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return ``value`` with every NumPy array in it changed; containers and records are rebuilt around them."""
    if _is(value, np.ndarray):
        return change(value)
    if value.__class__ is dict:
        return {key: map_leaves(each, change) for key, each in value.items()}
    return value if _is(value, Tensor) else _rebuilt(value, lambda each: map_leaves(each, change))


def to_tensor(array: Any) -> Any:
    """Return a tensor that shares the array's memory where torch can; the array if torch has no such dtype."""
    if array.flags.writeable:
        try:
            return _from_numpy(array)
        except (TypeError, ValueError):
            pass  # no such dtype, another byte order, or a negative stride
    if array.dtype.newbyteorder("=") not in _TENSOR_DTYPES:
        return array
    return _from_numpy(array.astype(array.dtype.newbyteorder("=")))  # a copy, in an order that torch takes


def _rebuilt(value: Any, go: Callable[[Any], Any]) -> Any:
    """Return a container or a record of the same kind with ``go`` applied to what it holds; any other value itself."""
    if _is(value, tuple):
        return type(value)(*map(go, value)) if hasattr(value, "_fields") else tuple(map(go, value))
    if _is(value, dict):
        moved = {key: go(each) for key, each in value.items()}
        return moved if value.__class__ is dict else _refilled(value, moved)
    if _is(value, list):
        moved = dict(enumerate(map(go, value)))
        return list(moved.values()) if value.__class__ is list else _refilled(value, moved)
    names = _field_names(value.__class__)
    if not names:
        return value
    record = copy.copy(value)
    for name in names:
        # Not the constructor, which would check and convert again; it may be frozen.
        object.__setattr__(record, name, go(getattr(value, name)))
    return record


def _refilled(value: Any, moved: dict[Any, Any]) -> Any:
    """Return a container of a kind of its own with other entries."""
    twin = copy.copy(value)
    for key, each in moved.items():
        twin[key] = each
    return twin


def _field_names(kind: type[Any]) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return [field.name for field in attrs.fields(kind)] if attrs.has(kind) else []


class Placement:
    """Places batches on one device.

    Args:
        device: where batches go.
    """

    def __init__(self, device: torch.device) -> None:
        # An index makes "cuda" and "cuda:0" the same device, so that nothing is copied onto itself.
        if device == torch.device("cuda"):
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self._on_cpu = device.type == "cpu"

    def place(self, batch: Any, *, shared: bool = False) -> Any:
        """Return the host batch with every array in it as a tensor on the device, whether or not it is shared."""
        if self._on_cpu and _is(batch, dict):
            # The common case costs a look: a dictionary of tensors that are where they should be.
            for value in batch.values():
                if type(value) is not Tensor or not value.is_cpu:
                    break
            else:
                return batch
        return move(batch, self.device)

    def hold(self, value: Any) -> Any:
        """Return a scalar as it can be kept for a while: still on the device, without a graph behind it.

        On the host there is nothing to wait for, and a number is lighter to keep than a tensor.

        Raises:
            InvalidTypeError: it is no scalar.
        """
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                raise InvalidTypeError(f"it is a tensor of {value.dtype} and shape {tuple(value.shape)}; {_SCALAR}")
            return value.item() if value.is_cpu else value.detach()
        if isinstance(value, (int, float)):
            return value
        array: Any = value if _is(value, (np.generic, np.ndarray)) else None
        if array is None or array.size != 1 or array.dtype.kind not in "biuf":
            raise InvalidTypeError(f"it is {value!r}; {_SCALAR}")
        return float(array.item())

    def to_host(self, values: Sequence[Any]) -> list[float]:
        """Return scalars as Python floats, with one copy per device and dtype."""
        host: list[float] = [0.0] * len(values)
        tensors: defaultdict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for place, value in enumerate(values):
            if isinstance(value, Tensor):
                tensors[value.device, value.dtype].append(place)
            else:
                host[place] = float(value)
        for places in tensors.values():
            together = torch.stack([cast("Tensor", values[place]).reshape(()) for place in places])
            for place, number in zip(places, cast("list[float]", together.cpu().tolist()), strict=True):  # pyright: ignore[reportUnknownMemberType]
                host[place] = float(number)
        return host
