"""Where a loader's time goes: counted on the way, told in one line, with what to change."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import attrs

from ._params import DatasetSplit

__all__ = ["LoaderStats", "Tally", "tell_stats"]

_log = logging.getLogger("parhelion")

_clock = time.perf_counter
_LITTLE: Final = 0.05  # share of the time that is not worth a change
_QUICK: Final = 3e-4  # seconds for a batch that are not worth a worker
_IDLE: Final = 0.2  # share of the waiting in which workers made something; below they were not there yet
_BUSY: Final = 0.8  # share of the workers' time from which on more of them help


@attrs.frozen
class LoaderStats:
    """Where the time of one iteration of a loader went, in seconds.

    What workers do is the sum over all of them, so it may be more than the time that passed.

    Attributes:
        num_batches: batches given so far.
        records: waiting for the dataset.
        collation: making batches of records.
        transport: bringing batches from a worker process to this one.
        waiting: the consumer, such as the training loop, waiting for a batch.
        consumer: the consumer doing something else.
        num_workers: threads or processes that made the batches; 0 for the consumer's own.
        worker_type: "process" or "thread".
        num_cores: processors that this process may use.
    """

    num_batches: int = 0
    records: float = 0.0
    collation: float = 0.0
    transport: float = 0.0
    waiting: float = 0.0
    consumer: float = 0.0
    num_workers: int = 0
    worker_type: str = "process"
    num_cores: int = 1

    @property
    def share_waiting(self) -> float:
        """Share of the time that the consumer waited, from 0 to 1."""
        return _share(self.waiting, self.waiting + self.consumer)

    @property
    def bottleneck(self) -> str | None:
        """What the waiting was for: "records", "collation" or "transport"; None if hardly anybody waited."""
        if self.share_waiting < _LITTLE:
            return None
        work = {"records": self.records, "collation": self.collation, "transport": self.transport}
        return max(work, key=work.__getitem__)

    def advice(self) -> str:
        """Return what to change so that the consumer waits less, in a few words; "nothing to change" if it need not."""
        what = self.bottleneck
        if what is None:
            return "nothing to change"
        if self.num_workers:
            return self._advise_workers(what)
        if self.waiting < _QUICK * self.num_batches:
            return "nothing to change: a worker would take longer for a batch"
        return f"set num_workers={self.num_cores - 1}" if self.num_cores > 1 else _cheaper(what)

    def _advise_workers(self, what: str) -> str:
        work = self.records + self.collation + self.transport
        if work < _IDLE * self.waiting:
            return "the workers had hardly begun: see how a longer run does, and keep them (persistent_workers=True)"
        if what == "transport":
            return "let batches be a few large arrays, or load with num_workers=0"
        if work < _BUSY * self.num_workers * (self.waiting + self.consumer):
            return "raise prefetch_factor: batches take unequal times"
        if self.num_workers < self.num_cores:
            return f"raise num_workers from {self.num_workers}"
        return f"all {self.num_cores} cores are at work: {_cheaper(what)}"

    def __str__(self) -> str:
        waited = f"{self.share_waiting:.0%} waiting"
        if (what := self.bottleneck) is not None:
            waited += f" for {what}"
        return (
            f"{self.num_batches} batches in {self.waiting + self.consumer:.1f} s: {waited}: {self.advice()} "
            f"(records {self.records:.1f} s, collation {self.collation:.1f} s, transport {self.transport:.1f} s)"
        )


def tell_stats(split: DatasetSplit, dataset: str, stats: LoaderStats) -> None:
    """Log where the time of an iteration went: one line at the end of an epoch of training."""
    level = logging.INFO if split is DatasetSplit.TRAIN else logging.DEBUG
    _log.log(level, "%s of %s: %s", split.name.lower(), dataset, stats)


def _cheaper(what: str) -> str:
    if what == "collation":
        return "let the dataset return whole batches (__getitems__)"
    return "make records cheaper, or fetch them together (__getitems__)"


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


class Tally:
    """Counts for one iteration.

    Args:
        num_workers: threads or processes that make the batches.
        worker_type: which of the two.
    """

    __slots__ = ("_type", "_workers", "collation", "consumer", "num_batches", "records", "transport", "waiting")

    def __init__(self, num_workers: int, worker_type: str) -> None:
        self._workers, self._type = num_workers, worker_type
        self.num_batches = 0
        self.records = self.collation = self.transport = self.waiting = self.consumer = 0.0

    def add(self, records: float, collation: float, transport: float = 0.0) -> None:
        """Count the work on one batch, in seconds."""
        self.records += records
        self.collation += collation
        self.transport += transport

    def watch(self, batches: Iterable[Any], tell: Callable[[LoaderStats], None]) -> Iterator[Any]:
        """Yield the batches; count them, and who waits for whom; tell it after the last one."""
        began = _clock()
        for batch in batches:
            given = _clock()
            self.waiting += given - began
            self.num_batches += 1
            yield batch
            del batch  # it lives as long as its user wants it
            began = _clock()
            self.consumer += began - given
        self.waiting += _clock() - began
        tell(self.stats())

    def make(
        self,
        fetch: Callable[[Any], tuple[Any, float, float]],
        requests: Iterable[Any],
        finish: Callable[[Any], Any] | None,
        tell: Callable[[LoaderStats], None],
    ) -> Iterator[Any]:
        """Yield the batches of requests, made when they are asked for; otherwise as :meth:`watch`.

        Args:
            fetch: returns a batch, and the seconds that its records and its collation took.
            requests: what to fetch.
            finish: changes each batch; None for nothing.
            tell: is told the figures after the last batch.
        """
        began = _clock()
        for request in requests:
            batch, records, collation = fetch(request)
            if finish is not None:
                batch = finish(batch)
            given = _clock()
            self.records += records
            self.collation += collation
            self.waiting += given - began
            self.num_batches += 1
            yield batch
            del batch  # it lives as long as its user wants it
            began = _clock()
            self.consumer += began - given
        tell(self.stats())

    def gather(
        self,
        gather: Callable[[Any], Any],
        requests: Iterable[Any],
        finish: Callable[[Any], Any] | None,
        tell: Callable[[LoaderStats], None],
    ) -> Iterator[Any]:
        """Yield what :meth:`make` does, where a batch is all records and no collation: each microsecond counts here."""
        began = _clock()
        for request in requests:
            batch = gather(request)
            if finish is not None:
                batch = finish(batch)
            given = _clock()
            self.waiting += given - began
            self.num_batches += 1
            yield batch
            del batch  # it lives as long as its user wants it
            began = _clock()
            self.consumer += began - given
            self.records = self.waiting
        tell(self.stats())

    def stats(self) -> LoaderStats:
        """Return what has been counted so far."""
        return LoaderStats(
            self.num_batches, self.records, self.collation, self.transport, self.waiting, self.consumer,
            self._workers, self._type, _count_cores(),
        )  # fmt: skip


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
