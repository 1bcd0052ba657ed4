"""Processes that train together, each a thread of this one: the real trainer on many ranks, without a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs

from parhelion.data import DataLoaderParams, DatasetSplit, create_loader
from parhelion.errors import WorldError
from parhelion.training import BackendParts
from support.plain import parts

SECONDS = 30


class Table:
    """Where ranks lay down what they give, one round after another; a round is over when all have.

    A rank that has failed, or has returned, lays down nothing more: whoever waits for it then hears of that.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._changed = threading.Condition()
        self._rounds: list[dict[int, Any]] = []
        self._next = [0] * size
        self._gone: set[int] = set()

    def gather(self, rank: int, value: Any) -> list[Any]:
        with self._changed:
            number = self._next[rank]
            self._next[rank] += 1
            if number == len(self._rounds):
                self._rounds.append({})
            given = self._rounds[number]
            given[rank] = value
            self._changed.notify_all()
            settled = self._changed.wait_for(lambda: len(given) == self.size or self._gone - given.keys(), SECONDS)
            if len(given) < self.size:
                missing = sorted(self._gone - given.keys()) if settled else sorted({*range(self.size)} - given.keys())
                raise WorldError(f"process {missing[0]} is {'gone' if settled else 'late'}; expected it to go along.")
            return [given[each] for each in range(self.size)]

    def leave(self, rank: int) -> None:
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()


@attrs.define
class ThreadMeeting:
    """Wishes by a round of every unit: what :class:`parhelion.processes.Meeting` does, and does at less cost."""

    rank: int
    table: Table
    wishes: list[str] = attrs.field(factory=list)

    def ask(self, wish: str) -> None:
        if wish not in self.wishes:
            self.wishes.append(wish)

    def enter(self) -> tuple[str, ...]:
        mine, self.wishes = self.wishes, []
        every = self.table.gather(self.rank, mine)
        return tuple(dict.fromkeys(wish for wishes in every for wish in wishes))


@attrs.define
class Threads:
    """A world of threads."""

    rank: int
    size: int
    table: Table
    meeting: ThreadMeeting
    local_rank: int = 0

    def barrier(self) -> None:
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        return self.table.gather(self.rank, value)

    def gather_to_first(self, value: Any) -> list[Any]:
        every = self.gather(value)
        return every if self.rank == 0 else []


def in_all(act: Callable[[Threads], Any], size: int = 3) -> list[Any]:
    """Return by rank what each has returned, or the error that it has raised."""
    table, wishes = Table(size), Table(size)

    def one(rank: int) -> Any:
        try:
            return act(Threads(rank, size, table, ThreadMeeting(rank, wishes), rank))
        except Exception as error:
            return error
        finally:
            table.leave(rank)
            wishes.leave(rank)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


class Untouched:
    """The process-wide generators, which threads share: nothing of them is this rank's."""

    def seed(self, seed: int) -> None: ...

    def capture(self) -> Any:
        return {}

    def restore(self, state: Any) -> None: ...

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()


def rank_parts(world: Threads, **changes: Any) -> BackendParts:
    """Return a backend of NumPy alone on one rank, where each computes on its own unless ``changes`` say otherwise."""
    whole_tail = changes.get("computes_as_one", False)

    def create(dataset: Any, split: DatasetSplit, params: DataLoaderParams) -> tuple[Any, Any]:
        if params.is_distributed is None:
            params = attrs.evolve(params, is_distributed=world.size > 1)
        return create_loader(dataset, split, params, rank=world.rank, world=world.size, whole_tail=whole_tail)

    return parts(**{"world": world, "randomness": Untouched(), "create_dataloader": create, **changes})
