"""The worker processes of a loader: which of them makes which batch, in what order these come, and what ends all."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

from parhelion.errors import WorkerError
from parhelion.sampling import FetchRequest

from ._fork_server import start_server
from ._link import FAILED, Asked, Result
from ._shipment import read_error, read_value
from ._stats import Tally
from ._worker import Worker
from ._worker_options import WorkerOptions
from ._worker_process import Task, write_task

__all__ = ["Batches", "Pool"]

_QUICK: Final = 5e-4  # seconds that a batch takes of which more are made ahead
_SMALL: Final = 1 << 19  # bytes of such a one


class Pool:
    """Worker processes that make batches for any number of iterations.

    They end with :meth:`close`, when nothing refers to the pool any more, and with the interpreter.

    Args:
        fetch: makes the batches, as :class:`Fetch` does or by a call; each worker has a copy.
        options: how many workers, and how they are used.
        companions: modules that workers import along with a framework, by the framework's name.

    Raises:
        WorkerError: a worker cannot be started, or the fetch not be sent.
    """

    def __init__(self, fetch: Any, options: WorkerOptions, companions: Mapping[str, str] | None = None) -> None:
        self.options = options
        self.lock = threading.RLock()
        self.is_closed = False
        self._workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _end, self._workers)
        self._finalizer.atexit = False  # see _end_at_exit
        self._iterations = itertools.count(1)
        self._results: dict[int, dict[int, Result]] = {}
        self._canceled: deque[int] = deque()
        self._start(Task(fetch, options, companions or {}, sys.argv))
        _get_pools().add(self)

    def _start(self, task: Task) -> None:
        try:
            start_server()
        except OSError as error:
            raise self._refused(error) from error
        written = write_task(task)
        with written.file:
            try:
                for number in range(self.options.num_workers):
                    self._workers.append(Worker(number, written, self.options.timeout))
            except OSError as error:
                self.close()
                raise self._refused(error) from error

    def _refused(self, error: OSError) -> WorkerError:
        return WorkerError(
            f"worker process {len(self._workers)} cannot be started ({type(error).__name__}: {error}); expected that "
            f"{sys.executable!r} can be run. Load with num_workers=0."
        )

    def is_usable(self) -> bool:
        """Return whether all workers are there."""
        return not self.is_closed and all(worker.process.poll() is None for worker in self._workers)

    def begin(self) -> int:
        """Return the number of a new iteration."""
        iteration = next(self._iterations)
        self._results[iteration] = {}
        return iteration

    def cancel(self, iteration: int) -> None:
        """Make no more batches for an iteration; never waits, so a garbage collector may call it anywhere."""
        self._results.pop(iteration, None)
        self._canceled.append(iteration)

    def ask(self, asked: Asked) -> None:
        """Let a worker make a batch: batch k of an iteration is made by worker k modulo their number."""
        while self._canceled:
            iteration = self._canceled.popleft()
            for worker in self._workers:
                worker.cancel(iteration)
        self._workers[asked.number % len(self._workers)].ask(asked)

    def receive(self, iteration: int, number: int) -> Result:
        """Return the result for batch ``number`` of an iteration, which has been asked for.

        Raises:
            WorkerError: it does not come.
        """
        worker = self._workers[number % len(self._workers)]
        for other in self._workers:
            other.link.flush()
        results = self._results[iteration]
        while number not in results:
            result = worker.receive()
            self._results.get(result.iteration, {})[result.number] = result
        return results.pop(number)

    def close(self) -> None:
        """End the workers now, whatever they do; iterations that are not over fail."""
        self.is_closed = True
        for worker in self._workers:
            worker.kill()  # whoever waits for one in another thread gives up now
        with self.lock:
            self._finalizer()

    def forget(self) -> None:
        """Let go of workers that belong to the process that this one was forked from."""
        self.is_closed, self.lock = True, threading.RLock()
        self._finalizer.detach()
        for worker in self._workers:
            worker.forget()


class Batches(Iterator[Any]):
    """One iteration: its batches in order, a few of them made ahead.

    Args:
        pool: makes them.
        requests: what to fetch, one for each batch.
        is_last: whether the pool is closed with this iteration.
        tally: counts what is done; None for nobody.
    """

    def __init__(
        self, pool: Pool, requests: Iterator[FetchRequest], *, is_last: bool, tally: Tally | None = None
    ) -> None:
        self._pool, self._is_last = pool, is_last
        self._tally = Tally(0, "process") if tally is None else tally
        self._requests = enumerate(requests)
        self._given = self._asked = 0
        self._is_over = False
        self._iteration = pool.begin()
        with pool.lock:
            for _ in range(pool.options.first_ahead * pool.options.num_workers):
                self._ask()

    def _ask(self) -> None:
        for number, request in self._requests:
            self._pool.ask(Asked(self._iteration, number, request))
            self._asked += 1
            return

    def _ask_more(self, result: Result) -> None:
        """Look one batch further ahead, if batches come so quickly that waiting for each costs more than it does."""
        options = self._pool.options
        is_quick = 0 < sum(result.times) < _QUICK and sum(map(len, result.parts)) < _SMALL
        if is_quick and self._asked - self._given - 1 < options.most_ahead * options.num_workers:
            self._ask()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._is_over or self._given == self._asked:
            self.close()
            raise StopIteration
        result = self._take()
        self._given += 1
        if result.kind == FAILED:
            self.close()
            raise read_error(result.parts)
        return self._read(result)

    def _take(self) -> Result:
        try:
            with self._pool.lock:
                result = self._pool.receive(self._iteration, self._given)
                self._ask()
                self._ask_more(result)
        except BaseException as error:
            # Also after Ctrl-C: part of a message may be lost.
            was_closed = self._pool.is_closed
            if was_closed and _is_exiting.is_set() and threading.current_thread() is not threading.main_thread():
                threading.Event().wait()  # a daemon thread ends with the interpreter, and has nothing to say
            self._pool.close()
            self._is_over = True
            if was_closed and isinstance(error, (WorkerError, ValueError, OSError)):
                raise WorkerError(
                    "the loader's workers were ended while it was iterated over; expected them to live until then. "
                    "Begin another iteration, which starts new ones."
                ) from error
            raise
        return result

    def _read(self, result: Result) -> Any:
        began = time.perf_counter()
        try:
            value = read_value(result.parts)
        except Exception as error:
            self.close()
            raise WorkerError(
                f"a batch that came from a worker process cannot be rebuilt here ({type(error).__name__}: {error}); "
                "expected one whose classes this process can import. Load with num_workers=0."
            ) from error
        records, collation, sending = result.times
        self._tally.add(records, collation, sending + time.perf_counter() - began)
        return value

    def close(self) -> None:
        """Give no more batches."""
        if not self._is_over:
            self._is_over = True
            self._pool.cancel(self._iteration)
        if self._is_last:
            self._pool.close()

    def __del__(self) -> None:
        if hasattr(self, "_iteration"):
            self.close()


def _end(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.close()


_is_exiting = threading.Event()


@functools.cache
def _get_pools() -> weakref.WeakSet[Pool]:
    pools: weakref.WeakSet[Pool] = weakref.WeakSet()
    os.register_at_fork(after_in_child=functools.partial(_forget, pools))
    atexit.register(_end_at_exit, pools)
    return pools


def _forget(pools: weakref.WeakSet[Pool]) -> None:
    for pool in pools:
        pool.forget()


def _end_at_exit(pools: weakref.WeakSet[Pool]) -> None:
    _is_exiting.set()
    for pool in [*pools]:
        pool.close()
