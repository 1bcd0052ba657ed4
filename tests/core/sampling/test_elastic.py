"""Thousands of ranks, 1e12 records, and other numbers of ranks and batch sizes after every stop: arithmetic alone.

Blocks are contiguous, so what all ranks take is checked by the ends of intervals; no order is ever made whole.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.sampling import Position, ResumableRandomSampler, Shard, Tail

MOST_RECORDS = 10**12
MOST_RANKS = 5000

worlds = st.integers(1, 8) | st.integers(1, MOST_RANKS)
batch_sizes = st.integers(1, 64) | st.integers(1, 10**6)
sizes = st.integers(1, 1000) | st.integers(1, MOST_RECORDS)
exact_tails = st.sampled_from([Tail.PAD, Tail.MASK])


class Leg(NamedTuple):
    """Some global batches between two stops."""

    world: int
    batch_size: int
    share: float  # of the batches that are left in the epoch

    def shard(self, rank: int, tail: Tail) -> Shard:
        return Shard(self.batch_size, rank, self.world, tail)


legs = st.builds(Leg, worlds, batch_sizes, st.floats(0, 1))


def check_batch(leg: Leg, tail: Tail, size: int, offset: int, ranks: list[int]) -> int:
    """Check what the given ranks take of the global batch at ``offset``; return where it ends.

    Each takes an equal share, in rank order; neighbors touch; the last valid place is the last of the batch.
    """
    shard = leg.shard(0, tail)
    end = offset + shard.span(size, offset)
    share = leg.batch_size if end - offset == shard.global_batch else -(-(end - offset) // leg.world)
    found = {rank: leg.shard(rank, tail).block(size, offset) for rank in ranks}
    for rank, block in found.items():
        start = offset + rank * share
        assert block.start == (min(start, size) if tail is Tail.MASK else start)
        assert block.num_valid == min(max(end - start, 0), share) <= leg.batch_size
        if rank + 1 in found:
            assert block.stop == found[rank + 1].start
    if leg.world - 1 in found:
        assert end <= found[leg.world - 1].stop < end + leg.world  # at most a padded record for each rank
    return end


def drawn_ranks(data: Any, world: int) -> list[int]:
    """Return the first, the last, and a few pairs of neighbors between them."""
    some = data.draw(st.lists(st.integers(0, world - 1), max_size=6))
    return sorted({0, world - 1, *some, *(min(rank + 1, world - 1) for rank in some)})


@given(size=sizes, plan=st.lists(legs, max_size=8), tail=exact_tails, epochs=st.integers(1, 3), data=st.data())
@settings(deadline=None)
def test_ranks_and_batch_sizes_that_change_at_any_stop_deliver_every_place_once_in_order(
    size, plan, tail, epochs, data
) -> None:
    position, delivered = Position(), []  # [start, stop) of every leg
    for leg in [*plan, Leg(3, 7, 1.0)]:
        shard = leg.shard(0, tail)
        # A leg that runs through goes on in the next epoch; one that stops does so after any number of batches.
        for epoch in range(position.epoch, epochs):
            batches = shard.num_batches(size, position.offset)
            count = batches if leg.share == 1 else min(batches, max(1, int(leg.share * batches)))
            stride = shard.global_batch
            number = data.draw(st.integers(0, count - 1) | st.just(count - 1))
            ranks = drawn_ranks(data, leg.world)
            ends = [check_batch(leg, tail, size, position.offset + k * stride, ranks) for k in (0, number, count - 1)]
            last = Position(epoch, position.offset + (count - 1) * stride)
            delivered.append((epoch, position.offset, ends[-1]))
            assert shard.num_batches(size, last.offset) == batches - count + 1
            position = shard.after(size, last)
            assert position == (Position(epoch, ends[-1]) if ends[-1] < size else Position(epoch + 1, 0))
            if leg.share < 1:
                break
    assert position == Position(epochs, 0)
    for epoch in range(epochs):
        intervals = [(start, stop) for each, start, stop in delivered if each == epoch]
        assert intervals[0][0] == 0
        assert intervals[-1][1] == size
        assert all(before[1] == after[0] for before, after in pairwise(intervals))


@given(size=sizes, leg=legs, tail=exact_tails, data=st.data())
@settings(deadline=None)
def test_all_of_thousands_of_ranks_tile_a_global_batch_without_a_gap(size, leg, tail, data) -> None:
    offset = data.draw(st.integers(0, size - 1))
    blocks = [leg.shard(rank, tail).block(size, offset) for rank in range(leg.world)]
    end = check_batch(leg, tail, size, offset, list(range(leg.world)))
    assert sum(block.num_valid for block in blocks) == end - offset
    assert all(before.stop == after.start for before, after in pairwise(blocks))


@given(
    unit=st.integers(1, 1000),
    worlds=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    offset=st.integers(0, MOST_RECORDS - 1),
    size=st.integers(1, MOST_RECORDS),
    tail=exact_tails,
)
@settings(deadline=None)
def test_with_the_same_global_batch_the_same_records_are_in_the_same_global_batch(
    unit, worlds, offset, size, tail
) -> None:
    offset %= size
    whole = unit
    for world in set(worlds):
        whole *= world  # so that each of them divides it
    taken, following, left = set(), set(), set()
    for world in worlds:
        leg = Leg(world, whole // world, 1.0)
        shard = leg.shard(0, tail)
        assert shard.global_batch == whole
        taken.add((offset, check_batch(leg, tail, size, offset, [0, world - 1])))
        following.add(shard.after(size, Position(4, offset)))
        left.add(shard.num_batches(size, offset))
    assert len(taken) == len(following) == len(left) == 1


@given(size=sizes, before=legs, after=legs, data=st.data())
@settings(deadline=None)
def test_a_tail_that_is_dropped_is_what_the_present_ranks_leave_(size, before, after, data) -> None:
    first, second = before.shard(0, Tail.DROP), after.shard(0, Tail.DROP)
    batches = first.num_batches(size)
    stop = data.draw(st.integers(0, batches)) * first.global_batch
    left = second.num_batches(size, stop)
    assert left == (size - stop) // second.global_batch
    if left:
        last = stop + (left - 1) * second.global_batch
        assert check_batch(after, Tail.DROP, size, last, [0, after.world - 1]) == last + second.global_batch <= size
        assert second.after(size, Position(0, last)) == Position(1, 0)
        assert size - (last + second.global_batch) < second.global_batch


@given(
    size=st.integers(1, MOST_RECORDS),
    world=st.integers(1, MOST_RANKS),
    batch_size=st.integers(1, 32),
    epoch=st.integers(0, 10**6),
    data=st.data(),
)
@settings(deadline=None)
def test_the_first_batch_of_any_rank_after_a_stop_is_its_block_of_the_global_order(
    size, world, batch_size, epoch, data
) -> None:
    offset = data.draw(st.integers(0, size - 1) | st.integers(max(0, size - 3 * world * batch_size), size - 1))
    oracle = ResumableRandomSampler(range(size), 5)
    end = offset + Shard(batch_size, 0, world, Tail.MASK).span(size, offset)
    for rank in drawn_ranks(data, world):
        sampler = ResumableRandomSampler(range(size), 5, batch_size=batch_size)
        sampler.reshard(Shard(batch_size, rank, world, Tail.MASK))
        sampler.seek(Position(epoch, offset))
        request = next(sampler.requests())
        share = batch_size if end - offset == world * batch_size else -(-(end - offset) // world)
        start, stop = min(offset + rank * share, size), min(offset + (rank + 1) * share, end)
        assert (request.epoch, request.place) == (epoch, start)
        assert request.indices.tolist() == oracle.indices(epoch, start, max(start, stop)).tolist()
