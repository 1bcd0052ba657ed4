"""Where a loader's time goes, and what it advises."""

import logging
import time

import attrs
import numpy as np
import pytest

from parhelion.data import LoaderStats
from support.worker_datasets import Plain, make

STATS = LoaderStats(num_batches=10, records=1.0, waiting=2.0, consumer=2.0, num_cores=4)


class Slow(Plain):
    def __getitem__(self, index):
        time.sleep(0.002)
        return np.full(1000, index)


def pause(records):
    time.sleep(0.01)
    return np.stack(records)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2, "worker_type": "thread", "global_rng": "off"},
        pytest.param({"num_workers": 2}, marks=pytest.mark.processes),
    ],
)
def test_what_is_waited_for_is_counted(options):
    with make(Slow(), collate_fn=pause, **options)[0] as loader:
        for _ in loader:
            time.sleep(0.003)
        stats = loader.stats()
    assert stats.num_batches == 6
    assert stats.num_workers == options.get("num_workers", 0)
    assert stats.records >= 23 * 0.002
    assert stats.collation >= 6 * 0.01
    assert stats.consumer >= 6 * 0.003
    assert (stats.transport > 0) is (options == {"num_workers": 2})
    assert stats.waiting > 0.01


def test_an_iteration_that_is_not_over_has_counted_so_far_and_the_next_begins_anew():
    loader, _ = make(Plain())
    assert loader.stats().num_batches == 0
    batches = iter(loader)
    next(batches), next(batches)
    assert loader.stats().num_batches == 2
    iter(loader)
    assert loader.stats().num_batches == 0


def test_one_line_at_the_end_of_an_epoch_says_where_the_time_went(caplog):
    caplog.set_level(logging.INFO, "parhelion")
    loader, _ = make(Slow())
    list(loader)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("train of Slow: 6 batches in 0.")
    assert "waiting for records: " in line
    caplog.clear()
    next(iter(loader))
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "bottleneck", "advice"),
    [
        ({}, "records", "set num_workers=3"),
        ({"num_cores": 1}, "records", "make records cheaper, or fetch them together (__getitems__)"),
        ({"num_cores": 1, "collation": 3.0}, "collation", "let the dataset return whole batches (__getitems__)"),
        ({"waiting": 0.01}, None, "nothing to change"),
        ({"num_workers": 2, "records": 7.0}, "records", "raise num_workers from 2"),
        ({"num_workers": 4, "records": 15.0}, "records", "all 4 cores are at work: make records cheaper"),
        ({"num_batches": 10**5}, "records", "nothing to change: a worker would take longer for a batch"),
        ({"num_workers": 2, "records": 0.1}, "records", "the workers had hardly begun: see how a longer run does"),
        ({"num_workers": 2}, "records", "raise prefetch_factor: batches take unequal times"),
        ({"num_workers": 2, "transport": 7.0}, "transport", "let batches be a few large arrays, or load with"),
    ],
)
def test_the_advice_follows_from_the_figures(change, bottleneck, advice):
    stats = attrs.evolve(STATS, **change)
    assert stats.bottleneck == bottleneck
    assert stats.advice().startswith(advice)
    assert stats.advice() in str(stats)


def test_the_line_reads_well():
    assert str(STATS) == (
        "10 batches in 4.0 s: 50% waiting for records: set num_workers=3 "
        "(records 1.0 s, collation 0.0 s, transport 0.0 s)"
    )
