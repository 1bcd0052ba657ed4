"""Batches that threads of this process make ahead, in order."""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Self

from parhelion.errors import WorkerError
from parhelion.sampling import FetchRequest

from ._fetch import Fetch, Fetched
from ._stats import Tally
from ._worker_options import WorkerOptions

__all__ = ["ThreadBatches", "ThreadPool"]


class ThreadPool:
    """Threads that make batches for any number of iterations; they end with :meth:`close`, or with the pool.

    Args:
        options: how many threads, and how they are used.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self._process = os.getpid()
        self._preparation = _Preparation(options.worker_init_fn)
        self._executor = ThreadPoolExecutor(options.num_workers, "parhelion-loader", self._preparation)
        self._finalizer = weakref.finalize(self, _end, self._executor)

    def submit(self, fetch: Fetch, request: FetchRequest) -> Future[Fetched]:
        """Let a thread make a batch."""
        return self._executor.submit(fetch.timed, request)

    def is_usable(self) -> bool:
        """Return whether the pool takes requests."""
        return self._finalizer.alive and self._process == os.getpid()

    def has_failed(self) -> bool:
        """Return whether a thread could not begin."""
        return self._preparation.error is not None

    def describe_failure(self) -> WorkerError:
        """Return the error of threads that could not begin."""
        error = self._preparation.error
        what = f"{type(error).__name__}: {error}"
        failure = WorkerError(f"worker_init_fn failed in a thread of the loader ({what}); expected it to return.")
        failure.__cause__ = error
        return failure

    def close(self) -> None:
        """Make nothing more; what a thread has begun it ends."""
        self._finalizer()


class _Preparation:
    """What each thread calls first."""

    def __init__(self, init: Callable[[int], Any] | None) -> None:
        self._init = init
        self._numbers = itertools.count()
        self.error: BaseException | None = None

    def __call__(self) -> None:
        if self._init is None or self.error is not None:
            return
        try:
            self._init(next(self._numbers))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer raises it
            self.error = error


def _end(executor: ThreadPoolExecutor) -> None:
    executor.shutdown(wait=False, cancel_futures=True)


class ThreadBatches(Iterator[Any]):
    """One iteration: its batches in order, a few of them made ahead.

    Args:
        pool: makes them.
        fetch: how.
        requests: what to fetch, one for each batch.
        is_last: whether the pool is closed with this iteration.
        tally: counts what is done.
    """

    def __init__(
        self, pool: ThreadPool, fetch: Fetch, requests: Iterator[FetchRequest], *, is_last: bool, tally: Tally
    ) -> None:
        self._pool, self._fetch, self._is_last, self._tally = pool, fetch, is_last, tally
        self._requests = requests
        self._ahead: deque[tuple[FetchRequest, Future[Fetched]]] = deque()
        for _ in range(pool.options.first_ahead * pool.options.num_workers):
            self._ask()

    def _ask(self) -> None:
        for request in self._requests:
            self._ahead.append((request, self._pool.submit(self._fetch, request)))
            return

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if not self._ahead:
            self.close()
            raise StopIteration
        request, future = self._ahead.popleft()
        timeout = self._pool.options.timeout
        try:
            self._check_pool()
            fetched = future.result(timeout or None)
            self._check_pool()
            self._ask()
        except FutureTimeoutError as error:
            self.close()
            if future.done():  # the dataset raised it
                raise
            raise WorkerError(
                f"a thread of the loader gave no batch for {timeout:g} s while it made the one at place "
                f"{request.place} of epoch {request.epoch} (sample indices {request.indices.tolist()[:8]}); expected "
                "one within the timeout. Raise timeout, or load with num_workers=0 to see where it hangs."
            ) from error
        except StopIteration as error:
            self.close()
            raise WorkerError(f"the dataset or the collate function raised StopIteration ({error})") from error
        except BaseException:
            self.close()
            raise
        self._tally.add(fetched.records, fetched.collation)
        return fetched.batch

    def _check_pool(self) -> None:
        if self._pool.has_failed():
            self._pool.close()
            raise self._pool.describe_failure()
        if not self._pool.is_usable():
            raise WorkerError(
                "the loader's threads were ended while it was iterated over; expected them to live until then. "
                "Begin another iteration, which starts new ones."
            )

    def close(self) -> None:
        """Give no more batches, and make none."""
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._requests = iter(())
        if self._is_last:
            self._pool.close()

    def __del__(self) -> None:
        if hasattr(self, "_ahead"):
            self.close()
