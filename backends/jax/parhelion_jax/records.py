"""Records in batches: attrs classes, dataclasses and containers of one's own, as pytrees."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import jax

__all__ = ["field_name", "flatten"]

_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any
_tree: Any = jax.tree_util  # it leaves keys and structures untyped
_lock = threading.Lock()
# Those of the base classes: a derived one may check, or ask for arguments.
_dict: Any = dict
_list: Any = list
_tuple: Any = tuple
_seen: set[Any] = set()  # classes that are pytrees by now, or stay leaves


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """Return the leaves of a tree and its structure, and make pytrees of the records in it.

    An attrs class, a dataclass, or a class derived from dict, list or tuple that is no pytree is registered with jax
    when the first object of it is seen, for good: a compiled step can then take it. Fields that hold text, bytes or
    members of an enumeration belong to the structure, so that a step is compiled for each. Objects are rebuilt without
    their constructor, as the leaves may be anything then.
    """
    while True:
        leaves, structure = _tree.tree_flatten(tree)
        kinds = set(map(type, leaves))
        if kinds <= _seen:
            return leaves, structure
        for kind in kinds:
            _register(kind)


def field_name(tree: Any, place: int) -> str:
    """Return the name of a leaf, such as ``inputs/x``, by its place among the leaves."""
    path, _ = _tree.tree_flatten_with_path(tree)[0][place]
    return str(_tree.keystr(path, simple=True, separator="/"))


def _register(kind: Any) -> None:
    with _lock:
        if kind in _seen:
            return
        if issubclass(kind, dict):
            _register_dict(kind)
        elif issubclass(kind, (list, tuple)):
            _register_sequence(kind)
        elif attrs.has(kind) or dataclasses.is_dataclass(kind):
            _register_record(kind)
        _seen.add(kind)


def _register_record(kind: Any) -> None:
    fields = attrs.fields(kind) if attrs.has(kind) else dataclasses.fields(kind)
    names = [field.name for field in fields]

    def split(record: Any) -> tuple[list[tuple[Any, Any]], Any]:
        values = {name: getattr(record, name) for name in names}
        fixed = tuple((name, value) for name, value in values.items() if _is(value, (str, bytes, enum.Enum)))
        for name, _ in fixed:
            del values[name]
        return [(_tree.GetAttrKey(name), value) for name, value in values.items()], (tuple(values), fixed)

    def join(structure: Any, values: Sequence[Any]) -> Any:
        free, fixed = structure
        record = object.__new__(kind)
        for name, value in (*zip(free, values, strict=True), *fixed):
            object.__setattr__(record, name, value)  # it may be frozen
        return record

    _tree.register_pytree_with_keys(kind, split, join)


def _register_dict(kind: Any) -> None:
    def split(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
        return [(_tree.DictKey(key), each) for key, each in value.items()], tuple(value)

    def join(keys: Any, values: Sequence[Any]) -> Any:
        twin = kind.__new__(kind)
        _dict.update(twin, zip(keys, values, strict=True))
        return twin

    _tree.register_pytree_with_keys(kind, split, join)


def _register_sequence(kind: Any) -> None:
    fill = _tuple.__new__ if issubclass(kind, tuple) else _new_list

    def split(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
        return [(_tree.SequenceKey(place), each) for place, each in enumerate(value)], None

    def join(_: Any, values: Sequence[Any]) -> Any:
        return fill(kind, values)

    _tree.register_pytree_with_keys(kind, split, join)


def _new_list(kind: Any, values: Sequence[Any]) -> Any:
    twin = kind.__new__(kind)
    _list.extend(twin, values)
    return twin
