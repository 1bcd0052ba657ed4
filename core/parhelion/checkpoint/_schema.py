"""Versions of what the parts of a run put into a checkpoint, and how an old one is brought up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from parhelion.errors import (
    CheckpointMismatchError,
    CheckpointVersionError,
    DuplicateNameError,
    InvalidTypeError,
    InvalidValueError,
)

from ._types import exact_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Upgrade: TypeAlias = Callable[[Any], Any]

__all__ = ["FIRST_VERSION", "register_upgrade", "upgrade"]

# What a checkpoint has of a component that it says nothing of: versions came later than checkpoints.
FIRST_VERSION: Final = 1
_steps: dict[tuple[str, int], Upgrade] = {}


def register_upgrade(component: str, from_version: int, function: Upgrade) -> None:
    """Bring trees in which ``component`` has ``from_version`` to the next version with ``function``.

    Registering a function again, also one that was defined anew, changes nothing. A value type whose fields have
    changed beyond what defaults can mend is registered under a new name, and its former shape kept under the old one:
    then the tree can be read, and ``function`` makes new values of the old ones.

    Args:
        component: what has versions: "trainer", "sampler", a class of one's own.
        from_version: the version that ``function`` takes, at least 1; it returns the one after.
        function: takes the whole tree of a checkpoint and returns the new one.

    Raises:
        InvalidValueError: ``from_version`` is below 1.
        DuplicateNameError: another function does that step.
    """
    if from_version < FIRST_VERSION:
        raise InvalidValueError(
            f"from_version of {component!r} is {from_version!r}; expected an integer >= {FIRST_VERSION}, the version "
            "of what says none. Count from there."
        )
    taken = _steps.get((component, from_version))
    if taken is not None and _name_of(taken) != _name_of(function):
        raise DuplicateNameError(
            f"the upgrade of {component!r} from version {from_version} is {_name_of(taken)} already; expected one "
            f"function for each step. Take {_name_of(function)} for a later one."
        )
    _steps[component, from_version] = function


def upgrade(tree: Any, versions: Mapping[str, int], current: Mapping[str, int]) -> Any:
    """Return ``tree`` with every component at its current version; what is on disk, and ``tree``, stay as they are.

    Args:
        tree: what a checkpoint holds.
        versions: the version of each component when it was written; one that is missing had version 1.
        current: the version of each component now, in the order in which they are brought up to date. Components of
            ``versions`` that are not among them are none of ours.

    Raises:
        CheckpointVersionError: a component was written by a newer release, or there is no way up from its version.
        CheckpointMismatchError: an upgrade failed.
    """
    for component, now in current.items():
        then = versions.get(component, FIRST_VERSION)
        for version in _way_up(component, then, now):
            tree = _apply(component, version, tree)
    return tree


def _way_up(component: str, then: int, now: int) -> range:
    if then > now:
        raise CheckpointVersionError(
            f"the checkpoint has version {then} of {component!r}; expected at most {now}, the newest that is known "
            "here. Upgrade what provides it, or resume from another checkpoint by its path."
        )
    steps = range(then, now)
    for version in steps:
        if (component, version) not in _steps:
            raise CheckpointVersionError(
                f"the checkpoint has version {then} of {component!r}, now {now}, and nothing leads from {version} to "
                f"{version + 1}; expected an upgrade for each step. Register it with register_upgrade({component!r}, "
                f"{version}, ...), or load it with the release that wrote it."
            )
    return steps


def _apply(component: str, version: int, tree: Any) -> Any:
    try:
        # A function that changes what it is given must not change what the caller has.
        upgraded = _steps[component, version](_copy(tree))
    except Exception as error:
        raise CheckpointMismatchError(
            f"the upgrade of {component!r} from version {version} failed ({type(error).__name__}: {error}); expected a "
            "tree of that version. Load it with the release that wrote it."
        ) from error
    if upgraded is None and tree is not None:
        raise InvalidTypeError(
            f"the upgrade of {component!r} from version {version} returned None; expected the new tree. End it with "
            "return."
        )
    return upgraded


def _copy(tree: Any) -> Any:
    """Return new dicts and lists around the same leaves."""
    kind = exact_type(tree)
    if kind is dict:
        return {key: _copy(value) for key, value in tree.items()}
    if kind is list:
        return [_copy(value) for value in tree]
    return tuple(_copy(value) for value in tree) if kind is tuple else tree


def _name_of(function: Upgrade) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
