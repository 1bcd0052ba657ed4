"""Attributes that a run has changed: counters, running values and hidden states that steps keep in ``self``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import attrs
import numpy as np

from parhelion.checkpoint import register_value_type
from parhelion.errors import CheckpointMismatchError

from ._stateful import SCALARS, entries

__all__ = ["Attributes", "OnDevice", "mark_array", "put_array", "put_attributes"]


@attrs.frozen
class OnDevice:
    """A framework's array in an attribute that was on an accelerator when it was saved, and goes back there."""

    array: Any


# One name for all backends, so that each can open what another wrote.
register_value_type(OnDevice, name="parhelion.OnDevice")

# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance


class Attributes:
    """What a run has changed in the attributes of some objects since they were set up.

    Kept are numbers, strings and None, and arrays, also in lists, tuples and dicts with an array in them. Not kept are
    containers without one (they are mostly diaries, and grow) and whatever a checkpoint cannot hold.

    Only what has changed is kept, so what is the same in every process, and what a user changes between two of them,
    stays what the code says.

    Args:
        find: returns the objects, each by the name that its state is kept under.
        mark: returns what tells one content of an array from another; None for anything that is no array.
    """

    def __init__(self, find: Callable[[], Mapping[str, object]], mark: Callable[[Any], Hashable | None]) -> None:
        self._find = find
        self._mark = mark
        # Marks may hold the identity of an array, which only an array that is kept alive does not pass on.
        self._before = {name: _attributes(owner) for name, owner in find().items()}
        self._marks = {
            name: {attribute: self._marked(value)[0] for attribute, value in values.items()}
            for name, values in self._before.items()
        }

    def changed(self) -> dict[str, dict[str, tuple[bool, Any]]]:
        """Return the attributes that differ, by object and name: whether it is the same object still, and the value."""
        found: dict[str, dict[str, tuple[bool, Any]]] = {}
        for name, owner in self._find().items():
            marks, before = self._marks.get(name, {}), self._before.get(name, {})
            for attribute, value in _attributes(owner).items():
                mark, is_kept = self._marked(value)
                if is_kept and marks.get(attribute) != mark:
                    found.setdefault(name, {})[attribute] = (before.get(attribute) is value, value)
        return found

    def _marked(self, value: Any) -> tuple[Any, bool]:
        """Return a mark of the value, and whether it is of a kind that is kept."""
        if _is_scalar(value):
            return (type(value), repr(value)), True  # repr tells 0.0 from -0.0, and NaN equals itself
        mark = self._mark(value)
        if mark is not None:
            return mark, True
        inside = entries(value) if type(value) in (list, tuple, dict) else {}
        if not (self._has_array(value) and all(map(_is_scalar, inside))):
            return None, False
        marks = [(key, *self._marked(each)) for key, each in inside.items()]
        return (type(value), marks), all(is_kept for *_, is_kept in marks)

    def _has_array(self, value: Any) -> bool:
        if _is_scalar(value):  # most of what long lists hold
            return False
        return self._mark(value) is not None or any(map(self._has_array, entries(value).values()))


def put_attributes(
    objects: Mapping[str, object],
    state: Mapping[str, Mapping[str, tuple[bool, Any]]],
    put: Callable[[Any, Any], Any],
    *,
    strict: bool = True,
) -> None:
    """Give attributes back what :meth:`Attributes.changed` returned.

    Args:
        objects: the objects by name.
        state: what is to be put where.
        put: takes the present value, or None where another took its place, and the saved one; returns what the
            attribute becomes.
        strict: whether an object must be there for all of it.

    Raises:
        CheckpointMismatchError: one is not.
    """
    missing = [name for name in state if name not in objects]
    if missing and strict:
        raise CheckpointMismatchError(
            f"the saved model has attributes of {', '.join(map(repr, missing))} and this one has no such part; "
            "expected the same parts. Build the model as it was when it was saved."
        )
    for name, values in state.items():
        # Not setattr: a name in a file must not reach a descriptor.
        attributes = getattr(objects.get(name), "__dict__", {})
        for attribute, (is_same, value) in values.items():
            attributes[attribute] = put(attributes.get(attribute) if is_same else None, value)


def mark_array(value: Any) -> Hashable | None:
    """Return what tells one content of a NumPy array from another; None for what is no array of numbers."""
    if not _is(value, np.ndarray) or value.dtype.kind not in "biufc":
        return None
    import xxhash  # noqa: PLC0415 - needed only where an attribute is an array

    content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return "ndarray", str(value.dtype), value.shape, xxhash.xxh3_128_hexdigest(content.data)


def put_array(present: Any, saved: Any) -> Any:
    """Return what an attribute becomes: the array that it is, with the saved content, where that is possible."""
    if _is(present, np.ndarray) and _is(saved, np.ndarray) and present.shape == saved.shape:
        present[...] = saved
        return present
    return saved


def _is_scalar(value: Any) -> bool:
    if _is(value, np.generic):
        return value.dtype.kind in "biufcmMSU"
    return type(value) in SCALARS


def _attributes(owner: object) -> dict[str, Any]:
    return dict(getattr(owner, "__dict__", {}))
