"""What the first process does for all: it matches calls, agrees on wishes, and tells everybody what has failed.

No sockets and no threads: messages come in by ``receive`` and go out by ``send``. All are tuples whose first element
says what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from ._agreement import Convener

__all__ = ["BARRIER", "GATHER", "GATHER_TO_FIRST", "Hub", "describe_loss"]

BARRIER, GATHER, GATHER_TO_FIRST = "barrier", "gather", "gather_to_first"

Message = tuple[Any, ...]


def describe_loss(who: str) -> str:
    """Return what is said of a process whose connection has ended."""
    return (
        f"{who} is gone without a word; expected every process to part in order, or to say how it failed. It may have "
        "been killed: see its own output, and the system's log for memory that ran out."
    )


@attrs.define
class _Call:
    """What has been given for one call of :meth:`World.gather` and the like."""

    kind: str
    given: dict[int, bytes] = attrs.field(factory=dict[int, bytes])


class Hub:
    """The middle of the star.

    Args:
        size: how many processes there are.
        send: sends a message to processes by their ranks; 0 among them.
    """

    def __init__(self, size: int, send: Callable[[Iterable[int], Message], None]) -> None:
        self._size, self._send = size, send
        self._convener = Convener(size, lambda message: send(range(size), message))
        self._calls: dict[tuple[str, int], _Call] = {}
        self._names: dict[int, str] = {}
        self._parted: dict[int, str] = {}
        self._lost: set[int] = set()
        self._has_failed = False
        self._is_closing = False
        self._acts: dict[str, Callable[..., None]] = {
            "hello": self._on_hello,
            "wish": self._on_wish,
            "here": self._convener.here,
            "give": self._on_give,
            "fail": self._on_fail,
            "bye": self._on_bye,
        }

    @property
    def missing(self) -> list[int]:
        """The ranks that have not said hello."""
        return [rank for rank in range(self._size) if rank not in self._names]

    def receive(self, rank: int, message: Message) -> None:
        """Act on what a process says."""
        kind, *content = message
        self._acts[kind](rank, *content)

    def _on_hello(self, rank: int, size: int, place: str) -> None:
        self._names[rank] = f"process {rank} ({place})"
        if size != self._size:
            text = (
                f"{self._names[rank]} takes part in {size} processes, and process 0 in {self._size}; expected one size."
            )
            self._fail(rank, text, is_for_all=True)
        elif not self.missing:
            self._send(range(self._size), ("welcome", self._names[0]))

    def _on_wish(self, _: int, tick: int, text: str) -> None:
        self._convener.wish(tick, text)

    def _on_give(self, rank: int, topic: str, number: int, kind: str, payload: bytes) -> None:
        call = self._calls.setdefault((topic, number), _Call(kind))
        if call.kind != kind:
            others = ", ".join(map(str, sorted(call.given)))
            self._fail(
                rank,
                f"process {rank} is at {kind} where process {others} is at {call.kind} (call {number} of topic "
                f"{topic!r}); expected all processes to do the same in the same order. See that none does what "
                "depends on its rank, and that each thread which does it has a topic of its own.",
                is_for_all=True,
            )
            return
        call.given[rank] = payload
        if len(call.given) == self._size:
            del self._calls[topic, number]
            payloads = [call.given[each] for each in range(self._size)] if kind != BARRIER else []
            whom = (0,) if kind == GATHER_TO_FIRST else range(self._size)
            self._send(whom, ("given", topic, number, payloads))
        else:
            self._refuse_hopeless(topic, number, call)

    def _refuse_hopeless(self, topic: str, number: int, call: _Call) -> None:
        """Let nobody wait for one that has parted."""
        parted = [rank for rank in self._parted if rank not in call.given]
        waiting = [rank for rank in call.given if call.kind != GATHER_TO_FIRST or rank == 0]
        if parted and waiting:
            who = ", ".join(self._name(rank) for rank in parted)
            text = f"{who} has closed its world while processes {sorted(call.given)} are at {call.kind}"
            self._send(waiting, ("refused", topic, number, f"{text}; expected all to do the same, or none."))

    def _on_fail(self, rank: int, text: str) -> None:
        self._fail(rank, f"{self._name(rank)} failed:\n{text}")

    def _on_bye(self, rank: int, tick: int) -> None:
        self._parted[rank] = self._name(rank)
        self._convener.part(rank, tick)
        for (topic, number), call in [*self._calls.items()]:
            self._refuse_hopeless(topic, number, call)
        if rank == 0:
            self._is_closing = True
            self._send([each for each in range(1, self._size) if each not in self._parted], ("bye",))
        else:
            self._send((rank,), ("bye",))
        self._end_if_alone()

    def lost(self, rank: int) -> None:
        """Act on that a connection has ended."""
        self._lost.add(rank)
        if rank not in self._parted:
            self._fail(rank, describe_loss(self._name(rank)))
        self._end_if_alone()

    def _fail(self, rank: int, text: str, *, is_for_all: bool = False) -> None:
        if not self._has_failed:  # what follows from the first failure is no news
            self._has_failed = True
            # The first process last: it may end as soon as it knows.
            whom = [*range(1, self._size), 0]
            self._send([each for each in whom if is_for_all or each != rank], ("failed", text))
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        """Let this process end once nobody needs it any more."""
        others = set(range(1, self._size)) - self._lost - self._parted.keys()
        if self._is_closing and (self._has_failed or not others):
            self._send((0,), ("bye",))

    def _name(self, rank: int) -> str:
        return self._names.get(rank, f"process {rank}")
