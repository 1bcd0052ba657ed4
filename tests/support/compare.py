"""Two runs, compared bit for bit."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from parhelion.checkpoint import find_last_checkpoint, load_checkpoint

CLOCKS = ("samples_per_second", "time")


def same(one: Any, other: Any) -> bool:
    """Whether two trees of state are the same bits."""
    if type(one) is not type(other):
        return False
    if hasattr(one, "__array__"):
        return one.dtype == other.dtype and _content(one) == _content(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return struct.pack("d", one) == struct.pack("d", other) if isinstance(one, float) else one == other


def _content(array: Any) -> tuple[Any, bytes]:
    # NumPy has no bfloat16; every value of it is one of float32.
    plain = np.asarray(array.float() if "bfloat16" in str(array.dtype) else array)
    return plain.shape, plain.tobytes()


def rows(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return a history without what a clock has written."""
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in history]


def last_tree(folder: Path, adapter: Any) -> Any:
    """Return everything that the newest checkpoint of a folder holds."""
    path = find_last_checkpoint(folder)
    assert path is not None
    return load_checkpoint(path, adapter).tree
