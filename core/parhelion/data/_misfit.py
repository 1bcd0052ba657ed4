"""Why records do not fit together: which one, where in it, and what was expected there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

__all__ = ["Misfit", "blame", "describe", "describe_kind"]

_ANYTHING = "a number, an array, a string, or a dict, list, tuple, attrs or dataclass record made of these"


class Misfit(Exception):  # noqa: N818 - not an error to be seen: collate turns it into one
    """The value at one place of a batch does not fit.

    Args:
        place: which record of the batch.
        found: what its value is.
        expected: what would have been right.
        path: the keys and positions that lead to the value, outermost first.
    """

    def __init__(self, place: int, found: str, expected: str = _ANYTHING, path: Sequence[Any] | None = None) -> None:
        super().__init__(place, found, expected)
        self.place = place
        self.found = found
        self.expected = expected
        self.path = list(path or ())

    def message(self, indices: Sequence[int] | None) -> str:
        """Return the sentence for the user, with the sample index where ``indices`` tells it."""
        where = f"record {self.place} of the batch"
        if indices is not None and self.place < len(indices):
            where = f"sample index {indices[self.place]} ({where})"
        if self.path:
            where = f"field {_write_path(self.path)!r} of {where}"
        return (
            f"records cannot be collated: {where} is {self.found}; expected {self.expected}. "
            "Change what the dataset returns, or give the loader a collate_fn that can handle it."
        )


def describe(value: Any) -> str:
    """Return a few words for what ``value`` is."""
    if value is None:
        return "None"
    if type(value) in (bool, int, float, complex):
        return f"{value!r} ({type(value).__name__})"
    return describe_kind(value)


def describe_kind(value: Any) -> str:
    """Return a few words for what ``value`` has in common with what it fits to: type, shape, dtype."""
    name = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{name} of shape {tuple(shape)} and dtype {dtype}"
    if isinstance(value, (list, tuple)):
        return f"{name} of length {len(cast('list[Any]', value))}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def blame(values: Sequence[Any], error: Exception) -> Misfit:
    """Return the misfit for leaves that cannot be stacked: the first that differs from the first record's."""
    traits = [_trait(value) for value in values]
    for place, trait in enumerate(traits):
        if trait != traits[0]:
            return Misfit(place, describe(values[place]), f"{describe_kind(values[0])} as in the batch's first record")
    for place, value in enumerate(values):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return Misfit(place, describe(value), "an integer that fits in 64 bits")
    return Misfit(0, f"{describe(values[0])}, which failed ({type(error).__name__}: {error})")


def _trait(value: Any) -> tuple[Any, ...]:
    """Return what must agree over the records: shape and dtype, or the kind of number."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return (*shape, str(dtype).rpartition(".")[2])
    for kind, name in ((bool, "bool"), (int, "int64"), (float, "float32"), (complex, "complex64")):
        if isinstance(value, kind):
            return (name,)
    return (type(value).__qualname__,)


def _write_path(path: Sequence[Any]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
