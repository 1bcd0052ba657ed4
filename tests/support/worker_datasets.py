"""Datasets that worker processes can import, and what tests of worker processes share."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from parhelion.data import Loader
from parhelion.sampling import Position, ResumableRandomSampler, ResumableSequentialSampler
from parhelion.seeds import sample_rng

SIZE = 23


class Plain:
    """Each record is its index."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return index


class Noisy(Plain):
    """Draws from every generator there is; small and large arrays, strings, structure."""

    def __getitem__(self, index: int) -> Any:
        others = random.random(), np.float32(np.random.randn())
        return {
            "index": index,
            "own": sample_rng().random(),
            "others": others,
            "image": sample_rng().standard_normal((3, 40, 9), np.float32),
            "name": f"record {index}",
            "nothing": np.zeros((2, 0)),
        }


class Together(Plain):
    """Returns batches, and uses its memory again for each."""

    returns_batches = True

    def __init__(self, width: int = 3) -> None:
        self.space = np.empty((4, width))

    def __getitems__(self, indices: Any) -> Any:
        rows = self.space[: len(indices)]
        rows[:] = indices[:, None]
        rows[:, 0] = [sample_rng(k).random() for k in range(len(indices))]
        return {"rows": rows, "other": np.random.rand(len(indices))}


class Marked(Plain):
    """Each record is its index and the process that made it."""

    def __getitem__(self, index: int) -> Any:
        return index, os.getpid()


class At(Plain):
    """Does something when it comes to record 6."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def __getitem__(self, index: int) -> Any:
        if index == 6:
            self.act()
        return index


def make(dataset: Any = None, *, shuffle: bool = True, batch_size: int = 4, **options: Any) -> Any:
    """Return a loader and its sampler."""
    dataset = Noisy() if dataset is None else dataset
    kind = ResumableRandomSampler if shuffle else ResumableSequentialSampler
    sampler = kind(dataset, batch_size=batch_size, **({"seed": 5} if shuffle else {}))
    return Loader(dataset, sampler, seed=7, **options), sampler


def flat(batch: Any) -> Any:
    """Return a batch as plain values, exactly."""
    if isinstance(batch, dict):
        return {name: flat(value) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch), [flat(value) for value in batch]
    return (batch.dtype, batch.shape, batch.tobytes()) if isinstance(batch, np.ndarray) else batch


def epoch(pair: Any, position: Position) -> list[Any]:
    """Return the batches from a position to the end of its epoch."""
    pair[1].seek(position)
    return [flat(batch) for batch in pair[0]]


def pids_of(loader: Any) -> list[int]:
    """Return the process ids of a loader's workers."""
    return [worker.process.pid for worker in loader._pool._workers]


def is_alive(pid: int) -> bool:
    """Return whether there is such a process, one that has ended and waits for its parent apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Any, seconds: float = 30.0) -> float:
    """Return how many seconds it took for something to become true; fail if it never does."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.002)
    return time.monotonic() - start


def count_descriptors() -> int:
    """Return how many file descriptors are open here."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextlib.contextmanager
def taking_less_than(seconds: float) -> Any:
    """Fail if the block takes longer."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds
