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
    if hasattr(one, "__array__"):
        if type(one) is not type(other):
            return False
        if "bfloat16" in f"{one.dtype}{other.dtype}":  # NumPy has none; every value of it is one of float32
            if one.dtype != other.dtype:
                return False
            one, other = one.float(), other.float()
        one, other = np.asarray(one), np.asarray(other)
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return one == other


def rows(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return a history without what a clock has written."""
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in history]


def last_tree(folder: Path, adapter: Any) -> Any:
    """Return everything that the newest checkpoint of a folder holds."""
    path = find_last_checkpoint(folder)
    assert path is not None
    return load_checkpoint(path, adapter).tree
