"""Parts of a model that have state of their own, wherever they hang: in attributes, lists, tuples and dicts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from parhelion.errors import CheckpointMismatchError

__all__ = [
    "SCALARS",
    "Stateful",
    "entries",
    "gather_state",
    "generator_state",
    "has_state",
    "is_generator",
    "is_stateful",
    "restore_generator",
    "scatter_state",
]

SCALARS = (bool, int, float, complex, str, bytes, type(None))
IsPart: TypeAlias = Callable[[Any], bool]


@runtime_checkable
class Stateful(Protocol):
    """Anything that can say and take back its state: a module, an optimizer, a scheduler, a metric."""

    def state_dict(self) -> Any:
        """Return the state as a tree."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Continue from a state."""
        ...


def is_stateful(value: Any) -> bool:
    """Return whether ``value`` can say and take back its state."""
    return isinstance(value, Stateful) and not isinstance(value, type)


def is_generator(value: Any) -> bool:
    """Return whether ``value`` is a random generator of NumPy or Python whose state can be taken."""
    if isinstance(value, random.SystemRandom):
        return False
    return isinstance(value, (np.random.Generator, np.random.RandomState, random.Random))


def generator_state(generator: Any) -> Any:
    """Return the state of such a generator."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    version, words, gauss = generator.getstate()
    return {"version": version, "words": np.array(words, np.uint32), "gauss": gauss}


def restore_generator(generator: Any, state: Any) -> None:
    """Continue a generator from what :func:`generator_state` returned.

    Raises:
        CheckpointMismatchError: the state is of another kind of generator.
    """
    try:
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)
        else:
            generator.setstate((state["version"], tuple(state["words"].tolist()), state["gauss"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointMismatchError(
            f"the checkpoint's state of a generator does not fit {type(generator).__name__} ({error}). "
            "Build the model as it was when it was saved."
        ) from error


def has_state(value: Any, is_part: IsPart) -> bool:
    """Return whether there is a part in ``value``, or whether it is one."""
    if type(value) in SCALARS:  # most of what long lists hold
        return False
    return is_part(value) or any(has_state(each, is_part) for each in entries(value).values())


def gather_state(value: Any, is_part: IsPart, take: Callable[[Any], Any]) -> Any:
    """Return what ``take`` takes of every part in ``value``, in containers of the same shape, None elsewhere."""
    if not has_state(value, is_part):
        return None
    if is_part(value):
        return take(value)
    states = {key: gather_state(each, is_part, take) for key, each in entries(value).items()}
    return states if isinstance(value, Mapping) else list(states.values())


def scatter_state(where: str, value: Any, state: Any, is_part: IsPart, give: Callable[[str, Any, Any], None]) -> None:
    """Let ``give`` give every part in ``value`` what :func:`gather_state` took from its like.

    Args:
        where: what messages call ``value``.
        value: a part or a container.
        state: its state.
        is_part: whether something is a part.
        give: takes where, the part and its state.

    Raises:
        CheckpointMismatchError: a container has other entries.
    """
    if not has_state(value, is_part):
        return
    if is_part(value):
        give(where, value, state)
        return
    here, saved = entries(value), entries(state)
    if set(here) != set(saved):
        raise CheckpointMismatchError(
            f"{where} of the saved model has the entries {list(saved)} and here {list(here)}; expected the same. "
            "Build the model as it was when it was saved."
        )
    for key, each in here.items():
        scatter_state(f"{where}[{key!r}]", each, saved[key], is_part, give)


def entries(container: Any) -> dict[Any, Any]:
    """Return what a container holds, by the key or the place it is held under; nothing for what is no container."""
    if isinstance(container, Mapping):
        return dict(container)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(container, (list, tuple)):
        return dict(enumerate(container))  # pyright: ignore[reportUnknownArgumentType]
    return {}
