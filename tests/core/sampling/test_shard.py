from itertools import pairwise

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import Block, Position, Shard, Tail

tails = st.sampled_from(Tail)
shared_tails = tails.filter(lambda tail: tail is not Tail.WHOLE)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 9))  # batch size, world


def blocks(batch_size, world, tail, size, offset):
    return [Shard(batch_size, rank, world, tail).block(size, offset) for rank in range(world)]


def takes(block, size):
    return [place % size for place in range(block.start, block.stop)]


def walk(shard, size, position):
    """The positions of one epoch's global batches, then where the run stands."""
    epoch = position.epoch
    while shard.num_batches(size, position.offset) and position.epoch == epoch:
        yield position
        position = shard.after(size, position)
    yield position


def test_a_full_batch_gives_each_rank_its_own_contiguous_block():
    assert blocks(3, 2, Tail.PAD, 20, 6) == [Block(6, 9, 3), Block(9, 12, 3)]


def test_a_padded_tail_is_shared_equally_and_repeats_the_start_of_the_order():
    assert blocks(4, 3, Tail.PAD, 29, 24) == [Block(24, 26, 2), Block(26, 28, 2), Block(28, 30, 1)]
    assert takes(Block(28, 30, 1), 29) == [28, 0]


def test_a_tail_smaller_than_its_padding_repeats_the_order_again_and_again():
    assert blocks(2, 5, Tail.PAD, 2, 0) == [Block(i, i + 1, int(i < 2)) for i in range(5)]
    assert [takes(block, 2) for block in blocks(2, 5, Tail.PAD, 2, 0)] == [[0], [1], [0], [1], [0]]


def test_a_masked_tail_is_never_repeated_and_may_leave_ranks_empty():
    assert blocks(4, 4, Tail.MASK, 5, 0) == [Block(0, 2, 2), Block(2, 4, 2), Block(4, 5, 1), Block(5, 5, 0)]


def test_a_trimmed_tail_leaves_out_what_is_over_a_multiple_of_the_ranks():
    assert blocks(4, 3, Tail.TRIM, 29, 24) == [Block(24, 25, 1), Block(25, 26, 1), Block(26, 27, 1)]
    assert Shard(4, 0, 3, Tail.TRIM).span(29, 24) == 3


def test_a_dropped_tail_does_not_exist():
    shard = Shard(4, 0, 3, Tail.DROP)
    assert shard.num_batches(29) == 2
    assert shard.span(29, 24) == 0
    assert shard.is_last(29, 12)
    assert shard.after(29, Position(0, 12)) == Position(1, 0)


def test_a_whole_tail_goes_to_every_rank_and_counts_once():
    shard = Shard(4, 1, 2, Tail.WHOLE)
    assert blocks(4, 2, Tail.WHOLE, 15, 0) == [Block(0, 4, 4), Block(4, 8, 4)]
    assert blocks(4, 2, Tail.WHOLE, 15, 8) == [Block(8, 15, 7)] * 2  # more than a rank's batch
    assert (shard.span(15, 8), shard.num_batches(15), shard.num_samples(15)) == (7, 2, 4 + 7)
    assert shard.is_last(15, 8)
    assert shard.after(15, Position(0, 8)) == Position(1, 0)


def test_a_tail_is_padded_to_a_multiple_of_the_parts_of_all_ranks():
    ranks = [Shard(8, rank, 2, parts=4) for rank in range(2)]
    assert [shard.block(21, 16) for shard in ranks] == [Block(16, 20, 4), Block(20, 24, 1)]
    assert [shard.num_samples(21) for shard in ranks] == [12, 12]


def test_a_tail_is_trimmed_to_a_multiple_of_the_parts_of_all_ranks():
    shard = Shard(8, 1, 2, Tail.TRIM, parts=2)
    assert shard.block(23, 16) == Block(18, 20, 2)
    assert (shard.span(23, 16), shard.span(19, 16), shard.num_batches(19)) == (4, 0, 1)


def joined(ranks):
    """What the ranks take together: where it begins and ends, and how much of it is no padding."""
    starts, stops, valid = zip(*ranks, strict=True)
    assert all(stop == start for stop, start in zip(stops, starts[1:], strict=False))
    return starts[0], stops[-1], sum(valid)


@given(
    part=st.integers(1, 6),
    parts=st.integers(1, 8),
    world=st.integers(1, 5),
    tail=shared_tails,
    size=st.integers(1, 300),
)
def test_ranks_of_several_parts_take_what_as_many_ranks_of_one_part_would(part, parts, world, tail, size):
    merged = [Shard(part * parts, rank, world, tail, parts=parts) for rank in range(world)]
    single = [Shard(part, rank, world * parts, tail) for rank in range(world * parts)]
    assert merged[0].num_batches(size) == single[0].num_batches(size)
    for position in walk(merged[0], size, Position()):
        if position.epoch == 0 and merged[0].num_batches(size, position.offset):
            assert merged[0].span(size, position.offset) == single[0].span(size, position.offset)
            assert merged[0].after(size, position) == single[0].after(size, position)
            for rank, shard in enumerate(merged):
                ours = shard.block(size, position.offset)
                theirs = [each.block(size, position.offset) for each in single[rank * parts : (rank + 1) * parts]]
                assert tuple(ours) == joined(theirs)
                assert tail not in (Tail.PAD, Tail.TRIM) or (ours.stop - ours.start) % parts == 0


@given(shape=shapes, size=st.integers(1, 300))
def test_evaluated_whole_every_record_counts_once_whatever_the_ranks(shape, size):
    batch_size, world = shape
    shard = Shard(batch_size, world - 1, world, Tail.WHOLE)
    counted, taken = 0, 0
    for position in walk(shard, size, Position()):
        if position.epoch == 0:
            ranks = blocks(batch_size, world, Tail.WHOLE, size, position.offset)
            places = {place for block in ranks for place in range(block.start, block.stop)}
            assert places == set(range(counted, counted + shard.span(size, position.offset)))
            assert all(block.num_valid == block.stop - block.start for block in ranks)
            counted += len(places)
            taken += ranks[-1].stop - ranks[-1].start
    assert (counted, taken) == (size, shard.num_samples(size))


def test_dropping_looks_at_what_is_left_from_the_current_position():
    # 10 of 21 were consumed with another shape: 11 are left, a batch of 8 and a tail.
    shard = Shard(4, 0, 2, Tail.DROP)
    assert shard.num_batches(21, 10) == 1
    assert shard.after(21, Position(3, 10)) == Position(4, 0)
    assert shard.num_batches(21, 14) == 0
    assert shard.after(21, Position(3, 14)) == Position(4, 0)


@given(shape=shapes, tail=shared_tails, size=st.integers(1, 300))
@settings(deadline=None)
def test_an_epoch_delivers_every_record_exactly_once_in_order(shape, tail, size):
    batch_size, world = shape
    shard = Shard(batch_size, 0, world, tail)
    *positions, end = walk(shard, size, Position(5, 0))
    delivered, counts = [], [0] * world
    for position in positions:
        for rank, block in enumerate(blocks(batch_size, world, tail, size, position.offset)):
            delivered += range(block.start, block.start + block.num_valid)
            counts[rank] += block.stop - block.start
    left_out = {Tail.DROP: shard.global_batch, Tail.TRIM: world}.get(tail, 1) - 1
    assert delivered == list(range(len(delivered)))
    assert size - left_out <= len(delivered) <= size
    assert end == (Position(6, 0) if positions else Position(5, 0))
    assert len(positions) == shard.num_batches(size)
    assert counts == [Shard(batch_size, rank, world, tail).num_samples(size) for rank in range(world)]
    assert tail is Tail.MASK or len(set(counts)) == 1


@given(
    size=st.integers(1, 200),
    changes=st.lists(st.tuples(shapes, st.integers(1, 5)), min_size=1, max_size=6),
    tail=st.sampled_from([Tail.PAD, Tail.MASK]),
)
@settings(deadline=None)
def test_changing_ranks_and_batch_size_at_any_stop_keeps_the_global_order(size, changes, tail):
    position, delivered = Position(), []
    for (batch_size, world), steps in [*changes, ((7, 3), size)]:
        shard = Shard(batch_size, 0, world, tail)
        for _ in range(steps):
            if position.epoch:
                break
            for block in blocks(batch_size, world, tail, size, position.offset):
                delivered += range(block.start, block.start + block.num_valid)
            assert len(delivered) == position.offset + shard.span(size, position.offset)
            position = shard.after(size, position)
    assert delivered == list(range(size))
    assert position == Position(1, 0)


@given(
    batch_size=st.integers(1, 10**6),
    world=st.integers(1, 3000),
    tail=shared_tails,
    size=st.integers(1, 10**12),
    data=st.data(),
)
@settings(deadline=None, max_examples=50)
def test_thousands_of_ranks_tile_any_global_batch(batch_size, world, tail, size, data):
    shard = Shard(batch_size, 0, world, tail)
    last = size - size % shard.global_batch
    offset = data.draw(st.integers(0, size - 1) | st.just(min(last, size - 1)))
    if not shard.num_batches(size, offset):
        assert shard.span(size, offset) == 0
        return
    parts = blocks(batch_size, world, tail, size, offset)
    assert parts[0].start == offset
    assert all(a.stop == b.start for a, b in pairwise(parts))
    assert sum(part.num_valid for part in parts) == shard.span(size, offset)
    assert all(part.num_valid == min(part.stop, size) - min(part.start, size) for part in parts)
    if tail is Tail.PAD:
        assert {part.stop - part.start for part in parts} == {parts[0].stop - parts[0].start}
        assert parts[-1].stop - max(offset + shard.span(size, offset), 0) < world


@given(shape=shapes, tail=tails, size=st.integers(1, 10**12), data=st.data())
def test_counting_batches_agrees_with_asking_for_the_last(shape, tail, size, data):
    shard = Shard(shape[0], 0, shape[1], tail)
    offset = data.draw(st.integers(0, size - 1))
    position = Position(2, offset)
    assert shard.is_last(size, offset) == (shard.num_batches(size, offset) <= 1)
    assert shard.is_last(size, offset) == (shard.after(size, position) == Position(3, 0))
    if not shard.is_last(size, offset):
        following = shard.after(size, position).offset
        assert following == offset + shard.span(size, offset) < size
        assert shard.num_batches(size, following) == shard.num_batches(size, offset) - 1


def test_the_same_global_batch_holds_the_same_records_on_any_number_of_ranks():
    for world in (1, 2, 3, 4, 6, 12):
        parts = blocks(12 // world, world, Tail.PAD, 100, 36)
        assert (parts[0].start, parts[-1].stop) == (36, 48)


def test_a_shard_is_a_value():
    assert Shard(4, 1, 2) == Shard(4, 1, 2, Tail.PAD)
    assert attrs.evolve(Shard(4, 1, 2), batch_size=8).global_batch == 16
    assert repr(Shard(4, 1, 2)) == "Shard(batch_size=4, rank=1, world=2, tail=<Tail.PAD: 'pad'>, parts=1)"
    assert Shard(4, 1, 2, parts=2) == attrs.evolve(Shard(4, 1, 2), parts=2) != Shard(4, 1, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Shard(0),
            InvalidValueError,
            r"batch_size is 0; expected an integer >= 1\. It counts the records",
        ),
        (lambda: Shard(2.5), InvalidTypeError, r"batch_size is 2\.5; expected an integer >= 1"),
        (
            lambda: Shard(1, 0, 0),
            InvalidValueError,
            r"world is 0; expected an integer >= 1\. A run of one process",
        ),
        (
            lambda: Shard(1, -1, 2),
            InvalidValueError,
            r"rank is -1; expected an integer >= 0\. Ranks count from 0",
        ),
        (
            lambda: Shard(1, 2, 2),
            InvalidValueError,
            r"rank is 2; expected an integer from 0 to 1, the last of 2 ranks",
        ),
        (
            lambda: Shard(1, tail="pad"),
            InvalidTypeError,
            r"tail is 'pad'; expected one of Tail\.DROP, Tail\.PAD",
        ),
        (
            lambda: Shard(6, parts=4),
            InvalidValueError,
            r"batch_size is 6; expected a multiple of 4, the parts .* Pass batch_size=8, or fewer parts\.",
        ),
        (lambda: Shard(6, parts=0), InvalidValueError, r"parts is 0; expected an integer >= 1\. A rank of one device"),
        (
            lambda: Shard(4).block(10, 10),
            InvalidValueError,
            r"offset of a global batch is 10; expected one >= 0 with",
        ),
        (
            lambda: Shard(4).block(10, -1),
            InvalidValueError,
            r"offset of a global batch is -1; expected one >= 0 with",
        ),
        (
            lambda: Shard(4, tail=Tail.DROP).block(10, 8),
            InvalidValueError,
            r"offset of a global batch is 8; .* at least 4 of the epoch's 10 records left \(Tail\.DROP",
        ),
    ],
)
def test_what_cannot_be_a_shard_or_a_batch_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
