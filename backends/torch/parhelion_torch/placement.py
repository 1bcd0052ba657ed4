"""Host batches to the device, values back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import attrs
import numpy as np
import torch
from torch import Tensor

__all__ = ["Placement", "move"]


def move(value: Any, device: torch.device) -> Any:
    """Return ``value`` with every tensor and numeric NumPy array in it as a tensor on ``device``.

    Dictionaries, lists, tuples, named tuples, attrs and dataclass records are rebuilt around what moved; anything else
    with a ``to`` method (a packed sequence, a token encoding) moves itself; the rest stays as it is. Copies from pinned
    memory do not block.
    """
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device, non_blocking=True)
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, Any]", value)
        # Strings, objects and dates have no tensor.
        return move(torch.from_numpy(array), device) if array.dtype.kind in "biufc" else array  # pyright: ignore[reportUnknownMemberType]
    return _rebuilt(value, lambda each: move(each, device), device)


def _rebuilt(value: Any, go: Callable[[Any], Any], device: torch.device) -> Any:
    """Return a container with ``go`` applied to what it holds; any other value as it moves itself."""
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value)
        return {key: go(each) for key, each in items.items()}
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        parts = [go(each) for each in items]
        return type(items)(*parts) if hasattr(items, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [go(each) for each in cast("list[Any]", value)]
    kind = cast("type[Any]", type(value))
    names = getattr(kind, "__dataclass_fields__", None)
    if names is None and attrs.has(kind):
        names = [field.name for field in attrs.fields(kind)]
    if names is not None:
        return _record(value, {name: go(getattr(value, name)) for name in names})
    to = getattr(value, "to", None)
    return to(device) if callable(to) else value


def _record(record: Any, fields: Mapping[str, Any]) -> Any:
    """Return a record of the same class with other field values, without running its constructor's checks again."""
    twin: Any = object.__new__(cast("type[Any]", type(record)))
    for name, value in fields.items():
        object.__setattr__(twin, name, value)
    return twin


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

    def place(self, batch: Any) -> Any:
        """Return the host batch with every array in it as a tensor on the device."""
        if self._on_cpu and type(batch) is dict:
            # The common case costs a look: a dictionary of tensors that are where they should be.
            for value in cast("dict[Any, Any]", batch).values():
                if type(value) is not Tensor or not value.is_cpu:
                    break
            else:
                return cast("dict[Any, Any]", batch)
        return move(batch, self.device)

    def hold(self, value: Any) -> Any:
        """Return a scalar as it can be kept for a while: still on the device, without a graph behind it."""
        return value.detach() if isinstance(value, Tensor) else value

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
