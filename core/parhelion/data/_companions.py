"""What a backend brings along into worker processes, without loading its framework there.

A dataset of NumPy records needs no framework in the worker. One whose records are a framework's own has loaded it, and
only then is the backend's module imported that knows how to stack and to send them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["expect_companions", "get_reducers", "get_stacker", "load_companions", "register_leaves"]

_expected: dict[str, str] = {}
_stackers: dict[type, Callable[[list[Any]], Any]] = {}
_reducers: dict[type, Callable[[Any], Any]] = {}


def register_leaves(kind: type, *, stack: Callable[[list[Any]], Any], reduce: Callable[[Any], Any]) -> None:
    """Let a framework's arrays be leaves of records and batches in worker processes.

    Args:
        kind: their exact type.
        stack: makes one of a list of them, as :func:`parhelion.data.collate` wants it; it may return NumPy's.
        reduce: what pickle's ``__reduce__`` would return; buffers in it travel without a copy.
    """
    _stackers[kind] = stack
    _reducers[kind] = reduce


def expect_companions(companions: Mapping[str, str]) -> None:
    """Import each module once the framework that it goes with has been loaded.

    Args:
        companions: the module's name by the framework's.
    """
    _expected.update(companions)


def load_companions() -> None:
    """Import what goes with the frameworks that are loaded by now."""
    for framework in [*_expected]:
        if framework in sys.modules:
            importlib.import_module(_expected.pop(framework))


def get_stacker(kind: type) -> Callable[[list[Any]], Any] | None:
    """Return what stacks leaves of that type, if it has been registered."""
    return _stackers.get(kind)


def get_reducers() -> Mapping[type, Callable[[Any], Any]]:
    """Return what has been registered, by type; it changes with later registrations."""
    return _reducers
