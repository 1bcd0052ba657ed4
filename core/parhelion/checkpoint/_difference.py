"""Which arrays and values of two checkpoints differ, and by how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import numpy.typing as npt

from ._arrays import HostArray, numpy_dtype
from ._entries import ArrayEntry, pieces_of
from ._format import Manifest, read_manifest
from ._inspection import as_table
from ._paths import format_path
from ._pieces import read_array
from ._places import as_place
from ._skeletons import array_in, leaves_of, show_leaf

if TYPE_CHECKING:
    from ._entries import Entry
    from ._places import Where

__all__ = ["ArrayDifference", "Difference", "ValueDifference", "diff"]


@attrs.frozen
class ArrayDifference:
    """How an array differs between two checkpoints.

    Attributes:
        name: where it lies in the tree.
        what: "dtype", "shape", "layout" (the same elements, in another order in memory) or "elements".
        a: dtype and shape in the first one.
        b: the same in the second one.
        count: elements that differ in any bit; None where they cannot be compared one by one.
        max_abs: the largest difference among those that are numbers in both; None where elements are no numbers.
        max_rel: the largest of them over the larger of the two magnitudes.
        nan_count: elements that are NaN in exactly one of both.
    """

    name: str
    what: str
    a: str
    b: str
    count: int | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    nan_count: int = 0


@attrs.frozen
class ValueDifference:
    """A value that differs, as Python would print it; None where there is none."""

    path: str
    a: str | None
    b: str | None


@attrs.frozen
class Difference:
    """What differs between two checkpoints. It is true if anything does, and a table as text.

    Attributes:
        only_in_a: arrays that the second one has not.
        only_in_b: arrays that the first one has not.
        arrays: arrays that both have.
        values: everything else in the trees.
    """

    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    arrays: tuple[ArrayDifference, ...]
    values: tuple[ValueDifference, ...]

    def __bool__(self) -> bool:
        return bool(self.only_in_a or self.only_in_b or self.arrays or self.values)

    def __str__(self) -> str:
        if not self:
            return "no difference"
        lines = [f"only in a: {name}" for name in self.only_in_a] + [f"only in b: {name}" for name in self.only_in_b]
        rows = [
            (each.name, each.what, each.a, each.b, *map(_number, (each.count, each.max_abs, each.max_rel)))
            for each in self.arrays
        ]
        lines += as_table(("array", "differs in", "a", "b", "elements", "max abs", "max rel"), rows)
        lines += as_table(("value", "a", "b"), [(each.path, each.a or "-", each.b or "-") for each in self.values])
        return "\n".join(lines)


def diff(a: Where, b: Where) -> Difference:
    """Return what differs between two checkpoints, to the bit; arrays of one hash are not read.

    Raises:
        DamagedCheckpointError: what has to be compared is not what was written.
        CheckpointError: a checkpoint is not there, or cannot be read.
    """
    folder_a, folder_b = as_place(a), as_place(b)
    one, other = read_manifest(folder_a), read_manifest(folder_b)
    arrays: list[ArrayDifference] = []
    for name, entry in one.arrays.items():
        if name in other.arrays and not _is_same(entry, other.arrays[name]):
            pair = (read_array(folder_a, one, name), read_array(folder_b, other, name))
            arrays += [] if (found := _compare(name, *pair)) is None else [found]
    return Difference(
        only_in_a=tuple(name for name in one.arrays if name not in other.arrays),
        only_in_b=tuple(name for name in other.arrays if name not in one.arrays),
        arrays=tuple(arrays),
        values=tuple(_value_differences(one, other)),
    )


def _is_same(one: Entry, other: Entry) -> bool:
    def facts(entry: Entry) -> object:
        pieces = [(getattr(piece, "start", None), piece.shape, piece.hash) for _, piece in pieces_of({"": entry})]
        strides = entry.strides if isinstance(entry, ArrayEntry) else None
        return entry.dtype, entry.shape, strides, sorted(map(repr, pieces))

    return facts(one) == facts(other)


def _compare(name: str, a: HostArray, b: HostArray) -> ArrayDifference | None:
    told = (f"{a.dtype}{list(a.shape)}", f"{b.dtype}{list(b.shape)}")
    for what in ("dtype", "shape"):
        if getattr(a, what) != getattr(b, what):
            return ArrayDifference(name, what, *told)
    if np.array_equal(a.data, b.data):
        return None if a.strides == b.strides else ArrayDifference(name, "layout", *told, count=0)
    width = a.data.size // max(int(np.prod(a.shape)), 1)
    differs = (a.data.reshape(-1, width) != b.data.reshape(-1, width)).any(axis=1)
    values = [_numbers(host, differs, width) for host in (a, b)]
    count = int(differs.sum())
    if values[0] is None or values[1] is None:
        return ArrayDifference(name, "elements", *told, count=count)
    max_abs, max_rel, nan_count = _distance(values[0], values[1])
    return ArrayDifference(name, "elements", *told, count, max_abs, max_rel, nan_count)


def _numbers(host: HostArray, chosen: npt.NDArray[np.bool_], width: int) -> npt.NDArray[Any] | None:
    """Return the chosen elements as numbers that NumPy subtracts, None if they are none."""
    rows = np.ascontiguousarray(host.data.reshape(-1, width)[chosen])
    if host.dtype == "bfloat16":
        # Half of a float32, the half that lies at the end.
        return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(-1).astype(np.float64)
    dtype = numpy_dtype(host.dtype)
    if dtype is None or dtype.kind not in "biufc":
        return None
    elements = rows.view(dtype).reshape(-1)
    if dtype.kind == "b":
        return elements.astype(np.int64)
    return elements if dtype.kind in "iu" else elements.astype(np.complex128 if dtype.kind == "c" else np.float64)


def _distance(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[float, float, int]:
    """Return the largest absolute and relative difference, and how many are NaN in one only."""
    if a.dtype.kind in "iu":
        # Exact also where the difference does not fit the type: unsigned arithmetic wraps to it.
        high, low = np.maximum(a, b), np.minimum(a, b)
        gap = (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)
        nan_count = 0
    else:
        nan_count = int((np.isnan(a) != np.isnan(b)).sum())
        both = ~(np.isnan(a) | np.isnan(b))
        a, b = a[both], b[both]
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.where(a == b, 0.0, np.abs(a - b))
    if not gap.size:
        return 0.0, 0.0, nan_count
    scale = np.maximum(_magnitude(a), _magnitude(b))
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(gap == 0, 0.0, gap / scale)
    return float(gap.max()), float(relative.max()), nan_count


def _magnitude(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.abs(values) if values.dtype.kind == "c" else np.abs(values.astype(np.float64))


def _value_differences(one: Manifest, other: Manifest) -> list[ValueDifference]:
    values = [_values_of(manifest) for manifest in (one, other)]
    paths = list(dict.fromkeys([*values[0], *values[1]]))
    pairs = ((path, values[0].get(path), values[1].get(path)) for path in paths)
    return [ValueDifference(path, a, b) for path, a, b in pairs if a != b]


def _values_of(manifest: Manifest) -> dict[str, str]:
    """Return every leaf of the tree as text by its path, but for arrays where they are named: these are compared."""
    texts = {format_path(keys): array_in(leaf) or show_leaf(leaf) for keys, leaf in leaves_of(manifest.tree)}
    return {path: text for path, text in texts.items() if not (text == path and path in manifest.arrays)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
