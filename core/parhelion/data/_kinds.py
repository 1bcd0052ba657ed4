"""Which of the two kinds of datasets something is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["is_stream"]

_get_type: Callable[[Any], Any] = type


def is_stream(dataset: Any) -> bool:
    """Return whether a dataset is iterated over, and not asked for records by their index."""
    kind = _get_type(dataset)
    if getattr(kind, "is_read_in_lanes", False) or any(base.__name__ == "IterableDataset" for base in kind.__mro__):
        return True  # torch's has a __getitem__, which raises
    has_records = hasattr(kind, "__getitem__") or hasattr(kind, "__getitems__")
    return hasattr(kind, "__iter__") and not (has_records and hasattr(kind, "__len__"))
