"""Processes that train together go on together: what fails in one ends all, and what must agree is compared.

One that is left alone in a computation over all of them would wait there without a word.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from parhelion.errors import InvalidValueError, ParhelionError, WorldError

from ._protocols import World

__all__ = ["act_in_turn", "check_agreement", "fail_together", "let_first_act"]

T = TypeVar("T")

# How long an error waits for the others to have it too: they may still be preparing, or are just behind.
_LATER, _SOON = 5.0, 2.0
_PART_SECONDS = 2.0
_TOLD = "parhelion_told"  # in the attributes of an error that the others know


def act_in_turn(world: World, act: Callable[[], T], doing: str) -> T:
    """Return what ``act`` does, which the first rank does before the others: what it tidies up is tidy for them.

    Args:
        world: the processes.
        act: every process does it.
        doing: what that is, for the message.

    Raises:
        WorldError: it failed in another process. In this one its own error leaves.
    """
    first = let_first_act(world, act, doing)
    if world.size == 1:
        return first[0]
    return _all_or_none(world, (first, None) if first else _try(act), doing)[0]


def let_first_act(world: World, act: Callable[[], T], doing: str) -> list[T]:
    """Return what ``act`` does in the first rank, in a list; an empty one in the others, which wait for it.

    Raises:
        WorldError: it failed there. In the first rank its own error leaves.
    """
    if world.size == 1:
        return [act()]
    nothing: list[T] = []
    return _all_or_none(world, _try(act) if world.rank == 0 else (nothing, None), doing)


def check_agreement(world: World, facts: Mapping[str, Any]) -> None:
    """Do nothing if all processes have the same facts: each decides by them when it takes part in what.

    Raises:
        InvalidValueError: a fact differs; shows the values.
    """
    if world.size == 1:
        return
    mine = {name: repr(value) for name, value in facts.items()}
    for rank, theirs in enumerate(told := world.gather(mine)):
        for name, value in theirs.items():
            if value != told[0].get(name):
                raise InvalidValueError(
                    f"{name} is {value} in process {rank} and {told[0].get(name)} in process 0; expected the same in "
                    "every process that trains with others. Give all the same arguments, data and checkpoints."
                )


@contextmanager
def fail_together(world: World, has_begun: Callable[[], bool]) -> Generator[None]:
    """Tell the other processes when an error leaves the context, so that they end instead of waiting for this one.

    What fails in all processes alike leaves them as they were: they can try something else. It may be nested.

    Args:
        world: the processes.
        has_begun: whether training has, where all come to an error at about the same time.

    Raises:
        WorldError: something failed here because another process has failed; in place of what the framework makes of
            that.
    """
    try:
        yield
    except Exception as error:
        if world.size == 1 or _TOLD in vars(error):
            raise
        raised = _tell(world, error, _SOON if has_begun() else _LATER)
        vars(raised)[_TOLD] = True
        if raised is error:
            raise
        raise raised from error


def _tell(world: World, error: Exception, patience: float) -> Exception:
    """Tell the others of an error unless they have it too, and return the one that is to leave."""
    has_spoken = threading.Event()

    def speak() -> None:
        has_spoken.set()
        world.fail("".join(traceback.format_exception(error)))

    silence = threading.Timer(patience, speak)
    silence.daemon = True
    silence.start()
    try:
        world.about("failing").gather(None)
    except WorldError:
        reason = world.failure
        world.close(_PART_SECONDS)  # this process may go on with something of its own
    else:
        return error
    finally:
        silence.cancel()
    is_consequence = isinstance(error, RuntimeError) and not isinstance(error, ParhelionError)
    if reason is None or has_spoken.is_set() or not is_consequence:
        return error
    return WorldError(reason)


def _try(act: Callable[[], T]) -> tuple[list[T], Exception | None]:
    try:
        return [act()], None
    except Exception as error:  # noqa: BLE001 - the others hear of it before it goes on
        return [], error


def _all_or_none(world: World, outcome: tuple[list[T], Exception | None], doing: str) -> list[T]:
    results, error = outcome
    told = world.gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, text in enumerate(told):
        if text is not None:
            raise WorldError(
                f"process {rank} failed at {doing} ({text}); expected all processes to go on together. See its own "
                "error."
            )
    return results
