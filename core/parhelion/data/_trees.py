"""Trees of arrays: one function for all leaves of a tree, and rows put back in their order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import attrs
import numpy as np
import numpy.typing as npt

from parhelion.errors import CollateError

__all__ = ["Indices", "fuse", "group_rows", "map_tree", "merge_rows", "name_leaves"]

Indices = npt.NDArray[np.int64]

_get_type: Callable[[Any], Any] = type
_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any
_Children = tuple[list[tuple[str, Any]], Callable[[list[Any]], Any]]


def fuse(tree: Any, make: Callable[[Any], Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Return a function that gives a tree like ``tree``, in which each leaf is what its own function gives.

    Args:
        tree: leaves in dicts, tuples, named tuples, lists, attrs and dataclass records.
        make: returns the function of a leaf. All of them get the argument of the whole.
    """
    kind = _get_type(tree)
    if kind is dict:
        return functools.partial(_call_each_key, [(key, fuse(part, make)) for key, part in tree.items()])
    if kind is tuple:
        return functools.partial(_call_each, [fuse(part, make) for part in tree])
    split = _split(tree)
    if split is None:
        return make(tree)
    children, build = split
    parts = [fuse(part, make) for _, part in children]
    return lambda argument: build([part(argument) for part in parts])


def _call_each_key(parts: list[tuple[Any, Callable[[Any], Any]]], argument: Any) -> dict[Any, Any]:
    return {key: part(argument) for key, part in parts}


def _call_each(parts: list[Callable[[Any], Any]], argument: Any) -> tuple[Any, ...]:
    return tuple([part(argument) for part in parts])  # quicker than a generator


def map_tree(tree: Any, change: Callable[[Any], Any], *, lists: bool = True) -> Any:
    """Return a tree like ``tree`` with ``change(leaf)`` for each leaf.

    Args:
        tree: leaves in dicts, tuples, named tuples, lists, attrs and dataclass records.
        change: gets each leaf, in the order of :func:`name_leaves`.
        lists: whether lists are nodes; otherwise they are leaves.
    """
    split = _split(tree, lists)
    if split is None:
        return change(tree)
    children, build = split
    return build([map_tree(part, change, lists=lists) for _, part in children])


def name_leaves(tree: Any, name: str = "", *, lists: bool = True) -> dict[str, Any]:
    """Return the leaves by names that say how to get there, such as ``images.left`` or ``[1]``."""
    split = _split(tree, lists)
    if split is None:
        return {name: tree}
    found: dict[str, Any] = {}
    for step, part in split[0]:
        found |= name_leaves(part, f"{name}{step}" if name else step.removeprefix("."), lists=lists)
    return found


def _split(tree: Any, lists: bool = True) -> _Children | None:
    """Return a node's children, each with the step that leads to it, and what builds such a node; None for a leaf."""
    kind: Any = _get_type(tree)
    if kind is np.ndarray:
        return None  # most of them are, and the rest takes long
    if kind is dict or _is(tree, Mapping):
        keys = list(tree)
        children = [(f".{key}", tree[key]) for key in keys]
        return children, lambda parts: dict(zip(keys, parts, strict=True))
    fields: Any = (
        attrs.fields(kind) if hasattr(kind, "__attrs_attrs__") else getattr(kind, "__dataclass_fields__", {}).values()
    )
    if fields:
        names = [field.name for field in fields]
        return [(f".{name}", getattr(tree, name)) for name in names], functools.partial(_build_record, kind, names)
    if _is(tree, tuple) and hasattr(kind, "_fields"):
        pairs = zip(kind._fields, tree, strict=True)
        return [(f".{name}", part) for name, part in pairs], lambda parts: kind(*parts)
    if _is(tree, tuple) or (lists and _is(tree, list)):
        children = [(f"[{place}]", part) for place, part in enumerate(tree)]
        return children, cast("Callable[[list[Any]], Any]", tuple if _is(tree, tuple) else list)
    return None


def _build_record(kind: Any, names: Sequence[str], parts: Sequence[Any]) -> Any:
    # Its constructor speaks about one record and may check; it may be frozen, too.
    record = object.__new__(kind)
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(record, name, part)
    return record


def group_rows(which: npt.NDArray[Any]) -> list[tuple[int, Indices]]:
    """Return, for each number in ``which``, the places where it stands, in their order."""
    order = np.argsort(which, kind="stable")
    numbers = which[order]
    bounds = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(order)]
    return [(int(numbers[start]), order[start:stop]) for start, stop in itertools.pairwise(bounds)]


def merge_rows(parts: Sequence[tuple[Indices, Any]], size: int, names: Sequence[str]) -> Any:
    """Return one batch of ``size`` rows from batches that each have some of them.

    Arrays are joined along their first axis; a list is taken as one value for each row.

    Args:
        parts: the places of the rows, and the batch that has them.
        size: rows in all.
        names: what each batch is called in an error.

    Raises:
        CollateError: the batches differ in structure, shape or dtype.
    """
    columns = [name_leaves(batch, lists=False) for _, batch in parts]
    for name, other in zip(names, columns, strict=True):
        if list(other) != list(columns[0]):
            raise CollateError(
                f"batches cannot be joined: that of {name} has the fields {_write(other)}; expected "
                f"{_write(columns[0])} as in that of {names[0]}. Let all of them return the same structure."
            )
    origin = np.empty(size, np.int64)
    origin[np.concatenate([places for places, _ in parts])] = np.arange(size)
    leaves = iter([_merge([column[key] for column in columns], origin, key, names) for key in columns[0]])
    return map_tree(parts[0][1], lambda _: next(leaves), lists=False)


def _merge(leaves: list[Any], origin: Indices, key: str, names: Sequence[str]) -> Any:
    """Return the rows of several leaves, the row at each place being that of ``origin`` of all in a line."""
    traits = [_trait(leaf) for leaf in leaves]
    if traits.count(traits[0]) != len(traits) or traits[0][0] is None:
        raise _differs(leaves, key, names)
    if _is(leaves[0], list):
        values = [*itertools.chain.from_iterable(leaves)]
        return [values[place] for place in origin.tolist()]
    if not hasattr(leaves[0], "new_empty"):
        return np.concatenate(leaves).take(origin, axis=0)
    # A tensor is made by its own kind; torch takes NumPy's places.
    joined: Any = leaves[0].new_empty((len(origin), *leaves[0].shape[1:]))
    start = 0
    places = np.argsort(origin)
    for leaf in leaves:
        joined[places[start : start + len(leaf)]] = leaf
        start += len(leaf)
    return joined


def _trait(leaf: Any) -> tuple[Any, Any]:
    """Return what leaves that are joined have in common; None where they cannot be."""
    if _is(leaf, list):
        return list, None
    shape = getattr(leaf, "shape", None)
    return (leaf.dtype, tuple(shape[1:])) if shape else (None, _get_type(leaf))


def _differs(leaves: list[Any], key: str, names: Sequence[str]) -> CollateError:
    what = f"field {key!r}" if key else "the batch"
    expected = _describe(leaves[0])
    for name, leaf in zip(names, leaves, strict=True):
        if _describe(leaf) != expected:
            return CollateError(
                f"batches cannot be joined: {what} of {name} is {_describe(leaf)}; expected {expected} as in that of "
                f"{names[0]}. Change what one of them returns."
            )
    return CollateError(
        f"batches cannot be joined: {what} is {expected}; expected an array or a list, with an entry for each record. "
        "Change what the datasets return."
    )


def _describe(leaf: Any) -> str:
    dtype, shape = _trait(leaf)
    if dtype is list or dtype is None:
        return f"a {_get_type(leaf).__name__}"
    return f"{dtype} with rows of shape {shape}"


def _write(columns: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, columns))
