"""Loaders over many epochs, far into long ones, and when everything around them ends."""

import gc
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from parhelion.data import Loader, _fork_server
from parhelion.sampling import Position, ResumableRandomSampler
from support.worker_datasets import Noisy, count_descriptors, make, wait_until

pytestmark = pytest.mark.processes


def children(pid):
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def segments():
    """Return how many pieces of shared memory this process has mapped."""
    return sum("memfd:parhelion" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_200_epochs_abandoned_at_random_moments_leave_nothing(monkeypatch):
    rng = random.Random(3)
    with make(Noisy(), num_workers=1)[0] as loader:
        list(loader)  # the server is there, and stays for the next pools
    server = _fork_server._servers[0].process.pid
    wait_until(lambda: not children(server))
    gc.collect()
    before = count_descriptors(), threading.active_count(), segments(), children(os.getpid())
    kept = [make(Noisy(), num_workers=2)[0], make(Noisy(), num_workers=2, worker_type="thread", global_rng="off")[0]]
    for number in range(200):
        loader = kept[number % 2]
        if number % 10 == 0:
            loader = make(Noisy(), num_workers=2, persistent_workers=False)[0]
        batches = iter(loader)
        for _ in range(rng.randrange(7)):
            next(batches, None)
        if rng.random() < 0.5:
            batches.close()
    loader = batches = None
    for each in kept:
        each.close()
    gc.collect()
    wait_until(lambda: not children(server))
    wait_until(lambda: threading.active_count() <= before[1])
    assert (count_descriptors(), threading.active_count(), segments(), children(os.getpid())) == before


class Endless:
    """A billion records that note in a file when they are asked for."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        with self.path.open("ab") as file:
            file.write(index.to_bytes(8, "little"))
        return index


@pytest.mark.parametrize("workers", [0, 4])
def test_far_into_a_long_epoch_no_record_is_asked_for_that_came_before(tmp_path, workers):
    dataset = Endless(tmp_path / "asked")
    sampler = ResumableRandomSampler(dataset, 5, 64)
    sampler.start_iter = 1_000_000
    with Loader(dataset, sampler, num_workers=workers, prefetch_factor=2) as loader:
        first = next(iter(loader))
        assert first.tolist() == sampler.indices(0, 64_000_000, 64_000_064).tolist()
    asked = np.frombuffer(dataset.path.read_bytes(), np.int64)
    ahead = 64 * (1 + 2 * workers)
    assert 64 <= len(asked) <= ahead
    assert set(asked.tolist()) <= set(sampler.indices(0, 64_000_000, 64_000_000 + ahead).tolist())


def test_a_position_far_away_is_reached_again_and_again():
    sampler = ResumableRandomSampler(range(10**9), 5, 4)
    loader = Loader(range(10**9), sampler)
    for offset in (999_999_996, 0, 123_456_788):
        sampler.seek(Position(3, offset))
        assert next(iter(loader)).tolist() == sampler.indices(3, offset, offset + 4).tolist()
