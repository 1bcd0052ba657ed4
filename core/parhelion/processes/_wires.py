"""All that the thread waits for which talks to the other processes: their lines, newcomers, and what is posted here."""

from __future__ import annotations

import contextlib
import pickle
import queue
import selectors
import socket
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ._gate import Gate
from ._line import Line

__all__ = ["GONE", "POSTED", "Wires"]

POSTED: Final = -1
"""In place of a rank: something was posted in this process."""

GONE: Final = ("gone",)
"""In place of a message: the connection has ended."""


class Wires:
    """The lines of one process by the rank at the other end. ``post`` is for everybody, the rest for one thread."""

    def __init__(self) -> None:
        self._posts: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._lines: dict[int, Line] = {}
        self._ranks: dict[Line, int | None] = {}
        self._gate: Gate | None = None

    def post(self, item: Any) -> None:
        """Let the thread have something; from any thread, and from a signal handler at any point."""
        self._posts.put(item)
        with contextlib.suppress(OSError):  # it is full, so the thread wakes anyway; or closed
            self._wake.send(b"\0")

    def take_posted(self) -> Iterator[Any]:
        """Yield what has been posted."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._posts.get_nowait()

    def open(self, gate: Gate) -> None:
        """Let others in from now on."""
        self._gate = gate
        self._selector.register(gate.socket, selectors.EVENT_READ)

    def shut(self) -> None:
        """Let nobody in any more."""
        if self._gate is not None:
            self._selector.unregister(self._gate.socket)
            self._gate.socket.close()
            self._gate = None
        for line in [line for line, rank in self._ranks.items() if rank is None]:
            self._drop(line)

    def attach(self, line: Line, rank: int | None) -> None:
        """Listen to a line; without a rank, until it is known whose it is."""
        self._ranks[line] = rank
        if rank is not None:
            self._lines[rank] = line
        self._selector.register(line.socket, selectors.EVENT_READ, line)

    def send(self, ranks: Iterable[int], message: tuple[Any, ...]) -> bool:
        """Send a message to each of them that is there, and return whether any is."""
        data = pickle.dumps(message, 5)
        lines = [self._lines[rank] for rank in ranks if rank in self._lines]
        for line in lines:
            line.put(data)
            self._watch(line)
        return bool(lines)

    def is_flushed(self) -> bool:
        """Whether nothing is left to be sent."""
        return all(line.is_flushed for line in self._lines.values())

    def wait(self, timeout: float | None = None) -> Iterator[tuple[int, Any]]:
        """Yield what has come, each with the rank that it is of; wait for it if there is nothing."""
        for key, events in self._selector.select(timeout):
            line = key.data
            if key.fileobj is self._woken:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            elif line is None:
                self._let_in()
            elif line in self._ranks:
                if events & selectors.EVENT_WRITE:
                    line.flush()
                    self._watch(line)
                if events & selectors.EVENT_READ:
                    yield from self._read(line)
        for item in self.take_posted():
            yield POSTED, item

    def _let_in(self) -> None:
        if self._gate is not None and (line := self._gate.accept()) is not None:
            self.attach(line, None)

    def _watch(self, line: Line) -> None:
        wanted = selectors.EVENT_READ | (0 if line.is_flushed else selectors.EVENT_WRITE)
        if self._selector.get_key(line.socket).events != wanted:
            self._selector.modify(line.socket, wanted, line)

    def _read(self, line: Line) -> Iterator[tuple[int, Any]]:
        try:
            for data in line.read():
                rank = self._ranks.get(line)
                if rank is not None:
                    yield rank, pickle.loads(data)  # noqa: S301 - from this very program, which has proved that it is
                elif not self._admit(line, data):
                    return
        except (EOFError, OSError):
            rank = self._drop(line)
            if rank is not None:
                yield rank, GONE

    def _admit(self, line: Line, data: bytes) -> bool:
        rank = None
        if self._gate is not None:
            rank = self._gate.admit(line, data)
        if rank is None or rank in self._lines:
            self._drop(line)
            return False
        self._ranks[line], self._lines[rank] = rank, line
        return True

    def _drop(self, line: Line) -> int | None:
        if self._gate is not None:
            self._gate.forget(line)
        rank = self._ranks.pop(line, None)
        if rank is not None:
            del self._lines[rank]
        self._selector.unregister(line.socket)
        line.close()
        return rank

    def close(self) -> None:
        """Close all connections."""
        self.shut()
        self.forget()

    def forget(self) -> None:
        """Close what this process has of the connections, as a fork must that is no rank itself.

        Nothing is taken out of the selector, which a fork shares with its parent.
        """
        for sock in (self._woken, self._wake, *(line.socket for line in self._ranks)):
            sock.close()
        if self._gate is not None:
            self._gate.socket.close()
        self._selector.close()
