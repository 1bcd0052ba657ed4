"""Where a value lies in a tree, as a reader would write it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

__all__ = ["ROOT", "format_path", "unique_name"]

ROOT = "state"
_PLAIN_KEY = re.compile(r"[\w.\-]+")
# The name of an array becomes a key of the safetensors header, where this one means something else.
_RESERVED = "__metadata__"


def format_path(keys: Sequence[object]) -> str:
    """Return the path that ``keys`` lead along: ``model.history[3].fn``; "state" for the tree itself."""
    return "".join(_format_key(key) for key in keys).removeprefix(".") or ROOT


def unique_name(path: str, taken: Container[str]) -> str:
    """Return ``path``, or the first of ``path~2``, ``path~3``, ... that is not taken."""
    name, count = path, 1
    while name in taken or name == _RESERVED:
        count += 1
        name = f"{path}~{count}"
    return name


def _format_key(key: object) -> str:
    if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
        return f".{key}"
    return f"[{key!r}]"
