"""How requests reach a worker process and results come back: framed messages over a socket.

This is all that knows of the transport. The parent's end never blocks; where it must wait, its caller says how.
The worker's end blocks for requests only: what the socket does not take of a result at once, a thread sends
while the next batch is made.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from parhelion.sampling import FetchRequest

__all__ = ["BATCH", "FAILED", "READY", "SKIPPED", "UNUSABLE", "Asked", "ParentEnd", "Result", "WorkerEnd"]

READY, BATCH, FAILED, SKIPPED, UNUSABLE = range(5)
"""Kinds of results: ready for work; a batch; an error instead of one; no batch, as it was canceled in time; an error
for which this process cannot work at all."""

_REQUEST: Final = struct.Struct("<5q")  # iteration, number, epoch, place, count of indices
_RESULT: Final = struct.Struct("<4q")  # iteration, number, kind, count of parts
_CANCEL: Final = -1
_STAGING: Final = 1 << 16
_MANY: Final = 512  # buffers in one call; the system allows 1024


class Asked(NamedTuple):
    """A batch that a worker was asked for.

    Attributes:
        iteration: which iteration of the loader wants it.
        number: its place in that iteration, from 0.
        request: what to fetch.
    """

    iteration: int
    number: int
    request: FetchRequest


class Result(NamedTuple):
    """What a worker sent.

    Attributes:
        iteration: which iteration it is for.
        number: its place in that iteration, from 0.
        kind: what it is, one of the constants above.
        parts: its bytes.
    """

    iteration: int
    number: int
    kind: int
    parts: list[Any]


class ParentEnd:
    """The parent's end of the socket.

    Args:
        sock: is made non-blocking.
        wait: returns when it may be worth reading again; raises to give up.
    """

    def __init__(self, sock: socket.socket, wait: Callable[[], None]) -> None:
        sock.setblocking(False)
        self.socket, self._wait = sock, wait
        self.unsent = b""
        self._staging = memoryview(bytearray(_STAGING))
        self._start = self._end = 0

    def ask(self, asked: Asked) -> None:
        """Send a request, now or with a later :meth:`flush`."""
        indices = np.ascontiguousarray(asked.request.indices, np.int64).tobytes()
        epoch, place = asked.request.epoch, asked.request.place
        self._send(_REQUEST.pack(asked.iteration, asked.number, epoch, place, len(indices) // 8) + indices)

    def cancel(self, iteration: int) -> None:
        """Let the worker leave out what it has not begun of an iteration."""
        self._send(_REQUEST.pack(iteration, 0, 0, 0, _CANCEL))

    def _send(self, data: bytes) -> None:
        self.unsent += data
        self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent = b""  # The worker is gone, which is noticed when its result is missed.

    def receive(self) -> Result:
        """Return the next result.

        Raises:
            EOFError: the worker has closed its end.
            OSError: it did so with requests unread.
        """
        iteration, number, kind, count = _RESULT.unpack(self._read(_RESULT.size))
        sizes = struct.unpack(f"<{count}q", self._read(8 * count))
        return Result(iteration, number, kind, [self._read_part(size) for size in sizes])

    def _read(self, size: int) -> bytes:
        if size > _STAGING:
            return self._read_part(size).tobytes()
        held = self._end - self._start
        if held < size:
            self._staging[:held] = self._staging[self._start : self._end]
            self._start, self._end = 0, held
            while self._end < size:
                self._end += self._receive(self._staging[self._end :])
        self._start += size
        return self._staging[self._start - size : self._start].tobytes()

    def _read_part(self, size: int) -> memoryview:
        """Return bytes with a memory of their own: an array that the user keeps must not keep the whole batch."""
        if size <= self._end - self._start:
            return memoryview(bytearray(self._read(size)))
        part: memoryview = np.empty(size, np.uint8).data  # not set to zero first
        taken = self._end - self._start
        part[:taken] = self._staging[self._start : self._end]
        self._start = self._end
        while taken < size:
            taken += self._receive(part[taken:])
        return part

    def _receive(self, space: memoryview) -> int:
        while True:
            try:
                count = self.socket.recv_into(space)
            except BlockingIOError:
                self._wait()
                continue
            if not count:
                raise EOFError
            return count

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class WorkerEnd:
    """The worker's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._unread = bytearray()
        self._asked: deque[Asked] = deque()
        self._queue: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        # Each is written by one thread only; if they agree, nobody is sending.
        self._num_queued = self._num_sent = 0

    def requests(self) -> Iterator[Asked]:
        """Yield what is asked for until the parent is gone; what is canceled in time is left out."""
        while self._read():
            if self._asked:
                yield self._asked.popleft()

    def _read(self) -> bool:
        """Take in what has come, waiting only if there is nothing else to do; return whether the parent is there."""
        try:
            data = self._socket.recv(_STAGING, socket.MSG_DONTWAIT if self._asked else 0)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._unread += data
        while (message := self._parse()) is not None:
            if message.number == _CANCEL:
                self._skip(message.iteration)
            else:
                self._asked.append(message)
        return bool(data)

    def _skip(self, iteration: int) -> None:
        for asked in self._asked:
            if asked.iteration == iteration:
                self.send(Result(iteration, asked.number, SKIPPED, []))
        self._asked = deque(asked for asked in self._asked if asked.iteration != iteration)

    def _parse(self) -> Asked | None:
        size = _REQUEST.size
        if len(self._unread) < size:
            return None
        iteration, number, epoch, place, count = _REQUEST.unpack_from(self._unread)
        if count == _CANCEL:
            number, count = _CANCEL, 0
        if len(self._unread) < size + 8 * count:
            return None
        indices = np.frombuffer(bytes(self._unread[size : size + 8 * count]), np.int64)
        del self._unread[: size + 8 * count]
        return Asked(iteration, number, FetchRequest(epoch, place, indices))

    def send(self, result: Result, *, is_fresh: bool = False) -> None:
        """Send a result, as far as possible now and the rest soon.

        Args:
            result: what to send.
            is_fresh: whether nothing will change the bytes of its parts.
        """
        views = [memoryview(part) for part in result.parts]
        sizes = [view.nbytes for view in views]
        head = _RESULT.pack(*result[:3], len(views)) + struct.pack(f"<{len(sizes)}q", *sizes)
        left: list[Any] = [memoryview(head), *views]
        if self._num_queued == self._num_sent:
            left = _send(self._socket, left, socket.MSG_DONTWAIT)
        if left:
            # A dataset may use its memory again for the next batch.
            self._queue.put(left if is_fresh else [bytes(part) for part in left])
            self._num_queued += 1
            if self._num_queued == 1:
                threading.Thread(target=self._send_queued, daemon=True).start()

    def send_all(self, result: Result) -> None:
        """Send a result and return when all are sent."""
        self.send(result)
        while self._num_queued != self._num_sent:
            time.sleep(0.001)

    def _send_queued(self) -> None:
        while True:
            _send(self._socket, self._queue.get(), 0)
            self._num_sent += 1


def _send(sock: socket.socket, parts: Iterable[Any], flags: int) -> list[memoryview]:
    """Return what the socket did not take; end this process if nobody will ever read it."""
    left = deque(part for part in parts if len(part))
    try:
        while left:
            sent = sock.sendmsg([*left][:_MANY], (), flags | socket.MSG_NOSIGNAL)
            while left and sent >= len(left[0]):
                sent -= len(left.popleft())
            if sent:
                left[0] = left[0][sent:]
    except BlockingIOError:
        pass
    except OSError:
        os._exit(1)  # The parent is gone.
    return [*left]
