"""How requests reach a worker process and results come back: framed messages over a socket.

This is all that knows of the transport. The parent's end never blocks; where it must wait, its caller says how.
The worker's end blocks for requests only: what the socket does not take of a result at once, a thread sends
while the next batch is made. The arrays of a batch do not go through the socket, but through the slots of a ring.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from parhelion.sampling import FetchRequest

from ._ring import Placed, Reader, Writer

__all__ = ["BATCH", "FAILED", "NOTE", "READY", "SKIPPED", "UNUSABLE", "Asked", "ParentEnd", "Result", "WorkerEnd"]

READY, BATCH, FAILED, SKIPPED, UNUSABLE, NOTE = range(6)
"""Kinds of results: ready for work; a batch; an error instead of one; no batch, as it was canceled in time; an error
for which this process cannot work at all; something to tell the user."""

_REQUEST: Final = struct.Struct("<5q")  # iteration, number, epoch, place, count of indices
# Iteration, number, kind, parts here, slot, its size if it is new, parts there; times.
_RESULT: Final = struct.Struct("<7q3d")
_CANCEL, _RETURN, _DROP = -1, -2, -3  # in place of a count
_NO_SLOT: Final = -1
_STAGING: Final = 1 << 16
_MANY: Final = 512  # buffers in one call; the system allows 1024
_CLOEXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_MOST_HELD: Final = 8  # parts, two for a small batch
_PATIENCE: Final = 3e-4  # seconds
_RIGHTS: Final = socket.CMSG_SPACE(array("i").itemsize)


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
        times: seconds spent on records, on collation, and on what sending takes.
    """

    iteration: int
    number: int
    kind: int
    parts: list[Any]
    times: tuple[float, float, float] = (0.0, 0.0, 0.0)


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
        self._ring = Reader()
        self._descriptors: deque[int] = deque()
        self._staging = memoryview(bytearray(_STAGING))
        self._start = self._end = 0

    def ask(self, asked: Asked) -> None:
        """Send a request, now or with a later :meth:`flush`."""
        indices = np.ascontiguousarray(asked.request.indices, np.int64).tobytes()
        epoch, place = asked.request.epoch, asked.request.place
        message = b""
        for slot, is_usable in self._ring.take_returned():
            message += _REQUEST.pack(0, slot, 0, 0, _RETURN if is_usable else _DROP)
        self._send(message + _REQUEST.pack(asked.iteration, asked.number, epoch, place, len(indices) // 8) + indices)

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
            OSError: it did so with requests unread, or its memory cannot be mapped.
        """
        iteration, number, kind, here, slot, size, there, *times = _RESULT.unpack(self._read(_RESULT.size))
        lengths = struct.unpack(f"<{here + 2 * there}q", self._read(8 * (here + 2 * there)))
        if size:
            # The system leaves a descriptor out where there is no room for it.
            self._ring.add(slot, size, self._descriptors.popleft() if self._descriptors else -1)
        parts = [self._read_part(length) for length in lengths[:here]]
        if slot != _NO_SLOT:
            parts += self._ring.read(slot, [*zip(lengths[here::2], lengths[here + 1 :: 2], strict=True)])
        return Result(iteration, number, kind, parts, tuple(times))

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
        while (count := self._receive_now(space)) is None:
            self._wait()
        return count

    def _receive_now(self, space: memoryview) -> int | None:
        try:
            count, rights, _, _ = self.socket.recvmsg_into([space], _RIGHTS, _CLOEXEC)
        except BlockingIOError:
            return None
        for _, _, data in rights:
            self._descriptors.extend(array("i", data))
        if not count:
            raise EOFError
        return count

    def close(self) -> None:
        """Close the socket; batches that the user has stay as they are."""
        self.socket.close()
        self._ring.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())


class WorkerEnd:
    """The worker's end of the socket.

    Args:
        sock: the socket.
        ring: is told which slots come back.
    """

    def __init__(self, sock: socket.socket, ring: Writer) -> None:
        self._socket, self._ring = sock, ring
        self._unread = bytearray()
        self._asked: deque[Asked] = deque()
        self._queue: queue.SimpleQueue[tuple[list[Any], Placed | None]] = queue.SimpleQueue()
        # Each is written by one thread only; if they agree, nobody is sending.
        self._num_queued = self._num_sent = 0
        self._lock = threading.RLock()  # between the one who makes batches and the one who sees that none waits long
        self._held: list[memoryview] = []
        self._held_since = 0.0

    def requests(self) -> Iterator[Asked]:
        """Yield what is asked for until the parent is gone; what is canceled in time is left out."""
        while self._read():
            if self._asked:
                yield self._asked.popleft()

    def _read(self) -> bool:
        """Take in what has come, waiting only if there is nothing else to do; return whether the parent is there."""
        if not self._asked:
            self.send_held()
        try:
            data = self._socket.recv(_STAGING, socket.MSG_DONTWAIT if self._asked else 0)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._unread += data
        while self._parse():
            pass
        return bool(data)

    def _parse(self) -> bool:
        """Act on one message; return whether there was a whole one."""
        size = _REQUEST.size
        if len(self._unread) < size:
            return False
        iteration, number, epoch, place, count = _REQUEST.unpack_from(self._unread)
        end = size + 8 * max(0, count)
        if len(self._unread) < end:
            return False
        if count == _CANCEL:
            self._skip(iteration)
        elif count == _RETURN:
            self._ring.give_back(number)
        elif count == _DROP:
            self._ring.drop(number)
        else:
            indices = np.frombuffer(bytes(self._unread[size:end]), np.int64)
            self._asked.append(Asked(iteration, number, FetchRequest(epoch, place, indices)))
        del self._unread[:end]
        return True

    def _skip(self, iteration: int) -> None:
        for asked in self._asked:
            if asked.iteration == iteration:
                self.send(Result(iteration, asked.number, SKIPPED, []))
        self._asked = deque(asked for asked in self._asked if asked.iteration != iteration)

    def send(
        self, result: Result, placed: Placed | None = None, *, is_fresh: bool = False, may_wait: bool = False
    ) -> None:
        """Send a result, as far as possible now and the rest soon.

        Waking the parent costs more than making a small batch. One that may wait is sent with a few of those that come
        right after it, as long as these have been asked for already.

        Args:
            result: what to send.
            placed: where further parts of it are.
            is_fresh: whether nothing will change the bytes of its parts.
            may_wait: whether it may be sent a fraction of a millisecond later; it must be fresh.
        """
        views = [memoryview(part) for part in result.parts]
        slot, size, places = _NO_SLOT, 0, []
        if placed is not None:
            slot, places = placed.slot, placed.places
            size = placed.size if placed.descriptor >= 0 else 0
        head = _RESULT.pack(*result[:3], len(views), slot, size, len(places), *result.times)
        lengths = [view.nbytes for view in views] + [number for place in places for number in place]
        left: list[Any] = [memoryview(head + struct.pack(f"<{len(lengths)}q", *lengths)), *views]
        with self._lock:
            if may_wait and not size and self._is_to_wait():
                self._held += left
                return
            left, self._held = self._held + left, []
            if self._num_queued == self._num_sent:
                left, placed = self._send(left, placed, socket.MSG_DONTWAIT)
            if left:
                # A dataset may use its memory again for the next batch.
                self._put_in_queue(left if is_fresh else [bytes(part) for part in left], placed)

    def _put_in_queue(self, left: list[Any], placed: Placed | None) -> None:
        self._queue.put((left, placed))
        self._num_queued += 1
        if self._num_queued == 1:
            threading.Thread(target=self._send_queued, daemon=True).start()

    def _is_to_wait(self) -> bool:
        """Return whether a result is held back, for there will be another one soon."""
        now = time.perf_counter()
        if not self._held:
            self._held_since = now
        return bool(self._asked) and len(self._held) < _MOST_HELD and now - self._held_since < _PATIENCE

    def send_held(self, *, late: bool = False) -> None:
        """Send the results that are held back; those that have waited too long, if ``late``."""
        if not self._held or (late and time.perf_counter() - self._held_since < _PATIENCE):
            return
        with self._lock:
            left, self._held = self._held, []
            if left and self._num_queued == self._num_sent:
                left, _ = self._send(left, None, socket.MSG_DONTWAIT)
            if left:
                self._put_in_queue(left, None)

    def send_all(self, result: Result) -> None:
        """Send a result and return when all are sent."""
        self.send(result)
        while self._num_queued != self._num_sent:
            time.sleep(0.001)

    def _send_queued(self) -> None:
        while True:
            self._send(*self._queue.get(), 0)
            self._num_sent += 1

    def _send(self, parts: Iterable[Any], placed: Placed | None, flags: int) -> tuple[list[memoryview], Placed | None]:
        """Return what the socket did not take, and the slot whose descriptor it did not; end if nobody will read it."""
        left = deque(part for part in parts if len(part))
        try:
            while left:
                rights = [] if placed is None or placed.descriptor < 0 else [_right(placed.descriptor)]
                sent = self._socket.sendmsg([*left][:_MANY], rights, flags | socket.MSG_NOSIGNAL)
                if placed is not None and rights:
                    self._ring.forget_descriptor(placed.slot)
                placed = None
                while left and sent >= len(left[0]):
                    sent -= len(left.popleft())
                if sent:
                    left[0] = left[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            os._exit(1)  # The parent is gone.
        return [*left], placed


def _right(descriptor: int) -> tuple[int, int, array[int]]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor])
