"""What the loop announces: a few frozen facts, in the order in which they happen."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from ._state import TrainingState

__all__ = [
    "BatchEnded",
    "BatchStarted",
    "EpochEnded",
    "EpochStarted",
    "Event",
    "StepCommitted",
    "TestBatchEnded",
    "TestBatchStarted",
    "TestEnded",
    "TestStarted",
    "TrainingEnded",
    "TrainingStarted",
    "ValidationBatchEnded",
    "ValidationBatchStarted",
    "ValidationEnded",
    "ValidationStarted",
]

# Named tuples: as immutable as frozen attrs classes and made in a third of the time, twice per batch.


class TrainingStarted(NamedTuple):
    """The loop is about to begin."""


class TrainingEnded(NamedTuple):
    """The loop has ended in order."""


class EpochStarted(NamedTuple):
    """An epoch begins at its first record; not announced again by a resume in mid-epoch."""

    epoch: int  # 1-based


class EpochEnded(NamedTuple):
    """The data of an epoch is exhausted."""

    epoch: int  # 1-based


class BatchStarted(NamedTuple):
    """A training step is about to run."""

    state: TrainingState  # the one that counts this batch; not committed yet


class BatchEnded(NamedTuple):
    """A training step has run."""

    state: TrainingState  # the one that counts this batch; not committed yet
    should_log: bool


class StepCommitted(NamedTuple):
    """The batch counts, and everything due at its step has been done."""

    state: TrainingState


class ValidationStarted(NamedTuple):
    """A validation begins."""

    cycle: int  # 1-based


class ValidationEnded(NamedTuple):
    """A validation has seen all its data."""

    cycle: int  # 1-based


class ValidationBatchStarted(NamedTuple):
    """A validation step is about to run."""

    step: int  # 0-based batch of the pass


class ValidationBatchEnded(NamedTuple):
    """A validation step has run."""

    step: int  # 0-based batch of the pass


class TestStarted(NamedTuple):
    """A test begins."""


class TestEnded(NamedTuple):
    """A test has seen all its data."""


class TestBatchStarted(NamedTuple):
    """A test step is about to run."""

    step: int  # 0-based batch of the pass


class TestBatchEnded(NamedTuple):
    """A test step has run."""

    step: int  # 0-based batch of the pass


Event: TypeAlias = (
    TrainingStarted
    | TrainingEnded
    | EpochStarted
    | EpochEnded
    | BatchStarted
    | BatchEnded
    | StepCommitted
    | ValidationStarted
    | ValidationEnded
    | ValidationBatchStarted
    | ValidationBatchEnded
    | TestStarted
    | TestEnded
    | TestBatchStarted
    | TestBatchEnded
)
