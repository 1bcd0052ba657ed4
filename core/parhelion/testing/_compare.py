"""Two runs, compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from parhelion.checkpoint import ArrayAdapter, find_last_checkpoint, load_checkpoint
from parhelion.errors import CheckpointError

__all__ = ["first_difference", "last_tree", "rows_without_clocks", "same"]

_CLOCKS: Final = ("samples_per_second", "time")
_Part: TypeAlias = "tuple[str, Any, Any]"

# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance


def same(one: Any, other: Any) -> bool:
    """Tell whether two trees of state are the same: types, keys in their order, arrays and floats bit for bit."""
    return first_difference(one, other) is None


def first_difference(expected: Any, found: Any, path: str = "state") -> str | None:
    """Return where two trees of state first differ, as a sentence; None if they are the same bits.

    Args:
        expected: dicts, lists and tuples of arrays of any framework and of plain values.
        found: the same, hopefully.
        path: what the message calls the whole tree.
    """
    if type(expected) is not type(found):
        return f"{path} should be a {_kind(expected)} and is a {_kind(found)}"
    if hasattr(expected, "__array__"):
        return _array_difference(expected, found, path)
    if _is(expected, dict):
        return _mapping_difference(expected, found, path)
    if _is(expected, (list, tuple)):
        return _sequence_difference(expected, found, path)
    # As hex, for a NaN would differ from itself and 0.0 would not differ from -0.0.
    is_same = expected.hex() == found.hex() if _is(expected, float) else expected == found
    return None if is_same else f"{path} should be {expected!r} and is {found!r}"


def _mapping_difference(expected: dict[Any, Any], found: dict[Any, Any], path: str) -> str | None:
    if list(expected) != list(found):
        return f"{path} should have the keys {list(expected)} and has {list(found)}"
    return _first((f"{path}[{key!r}]", expected[key], found[key]) for key in expected)


def _sequence_difference(expected: Sequence[Any], found: Sequence[Any], path: str) -> str | None:
    pairs = zip(expected, found, strict=False)
    difference = _first((f"{path}[{place}]", *pair) for place, pair in enumerate(pairs))
    if difference is None and len(expected) != len(found):
        return f"{path} should have {len(expected)} entries and has {len(found)}"
    return difference


def _first(parts: Iterable[_Part]) -> str | None:
    found = (first_difference(one, other, path) for path, one, other in parts)
    return next((difference for difference in found if difference is not None), None)


def _kind(value: Any) -> str:
    return type(value).__qualname__


def _array_difference(expected: Any, found: Any, path: str) -> str | None:
    one, other = _content(expected), _content(found)
    facts = (expected.dtype, one.shape), (found.dtype, other.shape)
    if facts[0] != facts[1]:
        return f"{path} should be of {facts[0][0]} and shape {facts[0][1]}, and is of {facts[1][0]} and {facts[1][1]}"
    if one.tobytes() == other.tobytes():
        return None
    bits = [np.frombuffer(each.tobytes(), np.uint8).reshape(one.size, -1) for each in (one, other)]
    places = np.flatnonzero((bits[0] != bits[1]).any(axis=1))
    place, values = int(places[0]), (one.reshape(-1), other.reshape(-1))
    return (
        f"{path} ({one.shape}) differs in {len(places)} of {one.size} elements: the first, {place}, should be "
        f"{values[0][place]!r} and is {values[1][place]!r}"
    )


def _content(array: Any) -> Any:
    try:
        return np.asarray(array)
    except TypeError:
        return np.asarray(array.tolist())  # NumPy has no such type, torch's bfloat16 for one; these are its values


def rows_without_clocks(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the rows of a history without what a clock has written."""
    return [{name: value for name, value in row.items() if name not in _CLOCKS} for row in history]


def last_tree(folder: Path, adapter: ArrayAdapter | None) -> Any:
    """Return everything that the newest checkpoint of a folder holds.

    Raises:
        CheckpointError: there is none.
    """
    path = find_last_checkpoint(folder)
    if path is None:
        raise CheckpointError(f"{folder} has no checkpoint; expected one. Train with a chkpt_root.")
    return load_checkpoint(path, adapter).tree
