"""Batches that a thread makes while the ones before are used."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

__all__ = ["take_ahead"]

_EXIT = 5.0  # seconds that the interpreter waits at its end for a batch that is being made


def take_ahead(
    source: Iterator[Any],
    put: Callable[[Any], Any] | None,
    size: int,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Any]:
    """Yield the batches of ``source``, in order, which a thread makes while the ones before are used.

    The thread ends with the iteration, also with one that is left early, which closes ``source``. An error is raised
    where its batch would have come.

    Args:
        source: gives the batches.
        put: is called with each in the thread; None for nothing.
        size: how many batches there may be, with the one that is in use.
        within: makes the context that the thread works in.
    """
    ahead = _Ahead(source, put, size, within)
    ahead.start()
    try:
        while ahead.wait():
            # In no variable: a batch lives as long as its user wants it.
            yield ahead.pop()
            ahead.go_on()
    finally:
        ahead.stop()


class _Ahead:
    """A thread and the batches that it has made.

    Its queues are ``SimpleQueue``, for :meth:`stop` may be called by the garbage collector at any point of any thread,
    where a lock may be held.

    Args:
        source: gives the batches.
        put: is called with each in the thread.
        size: how many batches there may be, with the one that is in use.
        within: makes the context that the thread works in.
    """

    def __init__(
        self,
        source: Iterator[Any],
        put: Callable[[Any], Any] | None,
        size: int,
        within: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._source, self._put, self._within = source, put, within
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._next: list[Any] = []
        self._is_stopped = False
        for _ in range(size):
            self.go_on()
        # The thread sees the context variables of its user, such as np.errstate.
        run = partial(contextvars.copy_context().run, self._run)
        self._thread = threading.Thread(target=run, name="parhelion-prefetch", daemon=True)

    def start(self) -> None:
        """Let the thread begin."""
        # A daemon is stopped anywhere at the interpreter's end; in the middle of a framework that may crash.
        atexit.register(self._finish)
        self._thread.start()

    def go_on(self) -> None:
        """Let the thread make one batch more."""
        self._room.put(None)

    def wait(self) -> bool:
        """Wait for the next batch; return False at the end.

        Raises:
            BaseException: what came instead of a batch.
        """
        batch, error = self._made.get()
        if error is None:
            self._next.append(batch)
            return True
        try:
            if isinstance(error, StopIteration):
                return False
            raise error
        finally:
            del error  # whose traceback has this frame

    def pop(self) -> Any:
        """Return the batch that was waited for, and keep nothing of it."""
        return self._next.pop()

    def stop(self) -> None:
        """Make the thread end after what it is doing."""
        if self._is_stopped:
            return  # also when a generator ends with the interpreter, which has taken the modules apart by then
        self._is_stopped = True
        self.go_on()
        with contextlib.suppress(queue.Empty):
            while True:
                self._made.get_nowait()

    def _finish(self) -> None:
        self.stop()
        self._thread.join(_EXIT)

    def _run(self) -> None:
        try:
            with self._within():
                self._fill()
        except StopIteration as end:
            self._made.put((None, end))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the loop raises it
            self._made.put((None, error))
            self._close()
        else:
            self._close()
        finally:
            atexit.unregister(self._finish)

    def _fill(self) -> None:
        while True:
            self._room.get()
            if self._is_stopped:
                return
            self._made.put((self._make(), None))

    def _make(self) -> Any:
        batch = next(self._source)
        return batch if self._put is None else self._put(batch)

    def _close(self) -> None:
        close = getattr(self._source, "close", None)
        if close is not None:
            close()
