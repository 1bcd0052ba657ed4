"""What a skeleton says, leaf by leaf, without making anything of it: the classes it names need not be here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from ._scalars import DECODERS, Json
from ._types import exact_type

__all__ = ["Keys", "array_in", "leaves_of", "node_at", "show_leaf"]

Keys: TypeAlias = "tuple[object, ...]"


def leaves_of(node: Json, keys: Keys = ()) -> Iterator[tuple[Keys, Json]]:
    """Yield every leaf beside the keys that lead to it; an empty container is a leaf."""
    entries = list(_entries_of(node))
    if not entries:
        yield keys, node
    for key, child in entries:
        yield from leaves_of(child, (*keys, key))


def node_at(node: Json, keys: Sequence[object]) -> Json | None:
    """Return the node that ``keys`` lead to, None if there is none."""
    for key in keys:
        found = dict(_entries_of(node))
        if key not in found:
            return None
        node = found[key]
    return node


def array_in(node: Json) -> str | None:
    """Return the name of the array that a leaf stands for, None if it stands for none."""
    return str(node[1]) if exact_type(node) is list and node[0] in ("array", "ndarray") else None


def show_leaf(node: Json) -> str:
    """Return a leaf as Python would print it, as far as that needs no class of anybody's."""
    if exact_type(node) is list:
        tag, *rest = node
        return repr(DECODERS[tag](*rest)) if tag in DECODERS else json.dumps(node)
    return repr(node)


def _entries_of(node: Json) -> Iterator[tuple[object, Json]]:
    """Yield the keys and the nodes in a container; nothing for a leaf."""
    if exact_type(node) is dict:
        yield from node.items()
    if exact_type(node) is not list:
        return
    tag, *rest = node
    if tag in ("list", "tuple"):
        yield from enumerate(rest)
    elif tag == "value":
        yield from rest[1].items()
    elif tag in ("dict", "ordered"):
        for key, child in rest if tag == "dict" else rest[1:]:
            yield _key(key), child
        if tag == "ordered":
            yield from rest[0].items()


def _key(node: Json) -> object:
    """Return a key as it was; keys are plain values, or tuples of them."""
    if exact_type(node) is not list:
        return node
    tag, *rest = node
    return tuple(map(_key, rest)) if tag == "tuple" else DECODERS[tag](*rest)
