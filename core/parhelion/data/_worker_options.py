"""What a user says about a loader's workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import attrs

from parhelion.errors import InvalidTypeError, InvalidValueError

__all__ = ["OPTION_NAMES", "WorkerOptions"]

OPTION_NAMES: Final = ("persistent_workers", "prefetch_factor", "timeout", "worker_init_fn", "worker_type")
"""The options of a loader that concern its workers."""

WORKER_TYPES: Final = ("process", "thread")


def _check_count(value: Any, name: str, least: int, way_out: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(f"{name} is {value!r}; expected an integer >= {least}. {way_out}")
    if value < least:
        raise InvalidValueError(f"{name} is {value}; expected an integer >= {least}. {way_out}")


@attrs.frozen
class WorkerOptions:
    """How many worker processes there are, and how they are used.

    Attributes:
        num_workers: how many; with 0 the consumer's thread does the work, and nothing else here matters.
        prefetch_factor: batches that each of them makes ahead, per iteration; None is 2, and more where worker
            processes make batches in a fraction of a millisecond.
        persistent_workers: whether they outlive an iteration, so that the next one has them at once.
        timeout: seconds to wait for a batch before giving up; 0 waits as long as it takes.
        worker_init_fn: called in each with its number, from 0, before its first batch.
        worker_type: "process", or "thread" for threads of this process.

    Raises:
        InvalidTypeError: one has a type that cannot work.
        InvalidValueError: one has a value that cannot work.
    """

    num_workers: int = 0
    prefetch_factor: int | None = None
    persistent_workers: bool = True
    timeout: float = 0.0
    worker_init_fn: Callable[[int], Any] | None = None
    worker_type: str = "process"

    def __attrs_post_init__(self) -> None:
        _check_count(self.num_workers, "num_workers", 0, "0 loads in this process.")
        if self.prefetch_factor is not None:
            _check_count(self.prefetch_factor, "prefetch_factor", 1, "It counts the batches a worker makes ahead.")
        keep: Any = self.persistent_workers
        if not isinstance(keep, bool):
            raise InvalidTypeError(
                f"persistent_workers is {keep!r}; expected True or False. True keeps the workers for the next epoch."
            )
        seconds: Any = self.timeout
        way_out = "0 waits as long as it takes."
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise InvalidTypeError(f"timeout is {seconds!r}; expected a number of seconds >= 0. {way_out}")
        if not 0 <= seconds < math.inf:
            raise InvalidValueError(f"timeout is {seconds!r}; expected a number of seconds >= 0. {way_out}")
        if self.worker_type not in WORKER_TYPES:
            raise InvalidValueError(
                f"worker_type is {self.worker_type!r}; expected 'process' or 'thread'. Threads suit datasets that wait "
                "for files or compute in C, and draw from sample_rng() only."
            )
        if self.worker_init_fn is not None and not callable(self.worker_init_fn):
            raise InvalidTypeError(
                f"worker_init_fn is {self.worker_init_fn!r}; expected a function of a worker's number. "
                "Leave it out if workers need no preparation."
            )

    @property
    def first_ahead(self) -> int:
        """Batches that each worker makes ahead at first."""
        return 2 if self.prefetch_factor is None else self.prefetch_factor

    @property
    def most_ahead(self) -> int:
        """Batches that each worker makes ahead at most."""
        return 8 if self.prefetch_factor is None else self.prefetch_factor
