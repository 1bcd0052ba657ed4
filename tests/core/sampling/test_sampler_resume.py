"""A run that was stopped anywhere, and started again, is given what it would have been given."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.sampling import (
    Position,
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSequentialSampler,
    Shard,
    Tail,
)

EPOCHS = 3

kinds = st.sampled_from(["sequential", "random", "distributed"])
shapes = st.tuples(st.integers(1, 7), st.integers(1, 5))  # batch size, world


class Run:
    """What a trainer does with the samplers of all ranks: epochs, batches, and a stop in between."""

    def __init__(self, kind, size, shape=(4, 1)):
        self.size, (batch_size, world) = size, shape
        dataset = range(size)
        if kind == "sequential":
            self.samplers = [ResumableSequentialSampler(dataset, batch_size) for _ in range(world)]
        elif kind == "random":
            self.samplers = [ResumableRandomSampler(dataset, 3, batch_size) for _ in range(world)]
        else:
            make = ResumableDistributedSampler
            self.samplers = [make(dataset, world, r, seed=3, batch_size=batch_size) for r in range(world)]
        for rank, sampler in enumerate(self.samplers):
            sampler.reshard(Shard(batch_size, rank, world, Tail.MASK))
        self.shard = self.samplers[0].shard

    def batches(self, position=None, last=EPOCHS):
        """Yield (position after the batch, epoch, what all ranks got) to the end of the last epoch."""
        position = position or Position()
        for sampler in self.samplers:
            sampler.seek(position)
        for epoch in range(position.epoch, last):
            for sampler in self.samplers:
                sampler.set_epoch(epoch)
            for batch in zip(*(sampler.requests() for sampler in self.samplers), strict=True):
                position = self.shard.after(self.size, position)
                yield position, epoch, [i for request in batch for i in request.indices.tolist()]

    def stop_after(self, count, position=None):
        """Return what ``count`` batches gave and the position that a checkpoint would hold."""
        given = []
        for after, epoch, batch in self.batches(position):
            given.append((epoch, batch))
            position = after
            if len(given) == count:
                break
        return given, position


def in_order(given):
    return [(epoch, index) for epoch, batch in given for index in batch]


@given(kind=kinds, size=st.integers(1, 60), shape=shapes, data=st.data())
@settings(deadline=None)
def test_stopped_anywhere_a_run_gives_the_rest_of_the_one_never_stopped(kind, size, shape, data):
    whole, _ = Run(kind, size, shape).stop_after(10**6)
    stop = data.draw(st.integers(1, len(whole)))
    before, position = Run(kind, size, shape).stop_after(stop)
    after, _ = Run(kind, size, shape).stop_after(10**6, position)
    assert before + after == whole


@given(kind=kinds, size=st.integers(1, 60), shape=shapes, data=st.data())
@settings(deadline=None)
def test_stopped_again_and_again_a_run_still_gives_every_later_epoch(kind, size, shape, data):
    whole, _ = Run(kind, size, shape).stop_after(10**6)
    given, position = [], Position()
    for _ in range(4):
        stop = data.draw(st.integers(1, max(1, len(whole) // 3)))
        part, position = Run(kind, size, shape).stop_after(stop, position)
        given += part
    rest, _ = Run(kind, size, shape).stop_after(10**6, position)
    assert given + rest == whole


@given(kind=kinds, size=st.integers(1, 80), changes=st.lists(shapes, min_size=2, max_size=6), data=st.data())
@settings(deadline=None)
def test_other_ranks_and_batch_sizes_after_each_stop_deliver_each_record_once_in_order(kind, size, changes, data):
    whole, _ = Run(kind, size).stop_after(10**6)
    given, position = [], Position()
    for shape in changes:
        part, position = Run(kind, size, shape).stop_after(data.draw(st.integers(1, 6)), position)
        given += part
    rest, _ = Run(kind, size, (5, 2)).stop_after(10**6, position)
    assert in_order(given + rest) == in_order(whole)


def test_a_resume_in_mid_epoch_goes_on_in_that_epoch_s_order():
    order = ResumableRandomSampler(range(20), 3).indices(1, 0, 20).tolist()
    given, position = Run("random", 20).stop_after(7)
    assert position == Position(1, 8)
    after, _ = Run("random", 20).stop_after(1, position)
    assert given[-1] == (1, order[4:8])
    assert after == [(1, order[8:12])]


def test_a_resume_leaves_nothing_out_of_the_epochs_after_it():
    sampler = ResumableRandomSampler(range(20), 3, batch_size=4)
    sampler.start_iter = 3
    lengths = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        lengths.append(len(list(sampler)))
    assert lengths == [8, 20, 20, 20]


def test_a_resumed_rank_leaves_out_whole_batches_not_single_samples():
    sampler = ResumableDistributedSampler(range(100), 2, 1, seed=3, batch_size=8)
    whole = list(sampler)
    sampler.start_iter = 3
    assert list(sampler) == whole[3 * 8 :]


@pytest.mark.parametrize("kind", ["sequential", "random", "distributed"])
def test_a_stop_on_an_epoch_s_last_batch_leads_to_the_start_of_the_next(kind):
    given, position = Run(kind, 18).stop_after(5)
    assert [len(batch) for _, batch in given] == [4, 4, 4, 4, 2]
    assert position == Position(1, 0)
    after, end = Run(kind, 18).stop_after(10**6, position)
    assert [epoch for epoch, _ in after] == [1] * 5 + [2] * 5
    assert end == Position(3, 0)


def test_two_resumes_in_one_epoch_leave_the_epochs_after_whole():
    _, first = Run("random", 20).stop_after(2)
    _, second = Run("random", 20).stop_after(1, first)
    assert (first, second) == (Position(0, 8), Position(0, 12))
    after, _ = Run("random", 20).stop_after(10**6, second)
    sampler = ResumableRandomSampler(range(20), 3)
    expected = [(e, i) for e in range(3) for i in sampler.indices(e, 0, 20).tolist()]
    assert in_order(after) == expected[12:]
