"""Parts of a model that have state of their own, wherever they hang: in attributes, lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

__all__ = ["Stateful", "gather_state", "has_state", "scatter_state"]


@runtime_checkable
class Stateful(Protocol):
    """Anything that can say and take back its state: a module, an optimizer, a scheduler, a metric."""

    def state_dict(self) -> Any:
        """Return the state as a tree."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Continue from a state."""
        ...


def has_state(value: Any) -> bool:
    """Return whether there is anything stateful in ``value``."""
    if isinstance(value, (Mapping, list, tuple)):
        return any(has_state(each) for _, each in _entries(value))
    return isinstance(value, Stateful) and not isinstance(value, type)


def gather_state(value: Any, take: Callable[[Any], Any]) -> Any:
    """Return what ``take`` takes of everything stateful in ``value``, in containers of the same shape, None elsewhere."""
    if not has_state(value):
        return None
    if isinstance(value, Mapping):
        return {key: gather_state(each, take) for key, each in _entries(value)}
    if isinstance(value, (list, tuple)):
        return [gather_state(each, take) for _, each in _entries(value)]
    return take(value)


def scatter_state(value: Any, state: Any, give: Callable[[Any, Any], None]) -> None:
    """Let ``give`` give everything stateful in ``value`` what :func:`gather_state` took from its like."""
    if not has_state(value):
        return
    if isinstance(value, (Mapping, list, tuple)):
        for key, each in _entries(value):
            scatter_state(each, state[key], give)
    else:
        give(value, state)


def _entries(container: Any) -> Iterable[tuple[Any, Any]]:
    """Return what a container holds, each with the key or the place it is held under."""
    if isinstance(container, Mapping):
        mapping: Mapping[Any, Any] = container
        return mapping.items()
    return enumerate(container)
