"""Loaders of streams: the same batches with any ranks and workers, from any batch, each record once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.data import DatasetSplit, IterableStream, TarShards, is_stream, stream_batches
from parhelion.errors import DataError
from parhelion.sampling import Position
from support.streams import (
    Counter,
    Pairs,
    Ranges,
    add_noise,
    batches,
    deliveries,
    ids,
    is_wanted,
    make,
    numbered,
    write_tar,
)

lane_sizes = st.lists(st.integers(0, 13), min_size=1, max_size=6)


def chained(*sizes: int):
    return Ranges(*sizes).filter(is_wanted).shuffle(5).map(add_noise)


@given(sizes=lane_sizes, batch_size=st.integers(1, 6))
def test_an_epoch_has_each_record_once_and_only_its_last_batch_is_short(sizes, batch_size) -> None:
    found = batches(make(Ranges(*sizes), batch_size=batch_size)[0])
    assert sorted(ids(found)) == [1000 * lane + k for lane, size in enumerate(sizes) for k in range(size)]
    assert all(len(ids([batch])) == batch_size for batch in found[:-1])


@given(sizes=lane_sizes, batch_size=st.integers(1, 5), epoch=st.integers(0, 2), data=st.data())
def test_from_every_batch_on_another_loader_gives_the_same_rest(sizes, batch_size, epoch, data) -> None:
    whole = deliveries(make(chained(*sizes), batch_size=batch_size)[0], Position(epoch))
    if not whole:
        return
    stop = data.draw(st.integers(1, len(whole)))
    offset = sum(count for _, count, _ in whole[:stop])
    rest = deliveries(make(chained(*sizes), batch_size=batch_size)[0], Position(epoch, offset), whole[stop - 1][2])
    assert rest == whole[stop:]


@given(sizes=lane_sizes, before=st.integers(1, 5), after=st.integers(1, 5), data=st.data())
def test_another_batch_size_from_any_batch_on_leaves_each_record_once(sizes, before, after, data) -> None:
    whole = deliveries(make(Ranges(*sizes), batch_size=before)[0])
    if not whole:
        return
    stop = data.draw(st.integers(1, len(whole)))
    offset = sum(count for _, count, _ in whole[:stop])
    rest = batches(make(Ranges(*sizes), batch_size=after)[0], Position(0, offset), whole[stop - 1][2])
    found = ids([batch for batch, _, _ in whole[:stop]] + rest)
    assert sorted(found) == [1000 * lane + k for lane, size in enumerate(sizes) for k in range(size)]


def ranks_epoch(world, batch_size, size, *, entry=None, offset=0, epoch=0):
    """Return the micro-batches of all ranks in order, and the merged state behind the last batch of each."""
    passes = []
    for rank in range(world):
        loader, cursor = make(
            chained(9, 5, 7, 8), rank=rank, world=world, batch_size=batch_size, options={"records_per_epoch": size}
        )
        cursor.seek(Position(epoch, offset), entry)
        passes.append([*loader.open_pass()])
    together = [*zip(*passes, strict=True)]
    merged = [
        {**row[0].entry, "lanes": {lane: state for each in row for lane, state in each.entry["lanes"].items()}}
        for row in together
    ]
    return [each.batch["noise"].tolist() for row in together for each in row], merged


@given(
    worlds=st.lists(st.sampled_from([1, 2, 4]), min_size=2, max_size=4),
    batch_size=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=20)
def test_micro_batches_are_the_same_on_any_ranks_also_when_their_number_changes(worlds, batch_size, data) -> None:
    size = 24 * batch_size  # several passes over the data
    whole, _ = ranks_epoch(1, batch_size, size)
    assert len(whole) == 24
    found, entry, offset = [], None, 0
    for world in worlds:
        here, states = ranks_epoch(world, batch_size, size, entry=entry, offset=offset)
        if not here:
            break
        steps = data.draw(st.integers(1, len(states)))
        found += here[: steps * world]
        entry, offset = states[steps - 1], offset + steps * world * batch_size
    assert found == whole[: len(found)]


def test_epochs_of_a_given_length_go_on_where_the_one_before_ended() -> None:
    loader, cursor = make(Ranges(7, 7), batch_size=2, options={"records_per_epoch": 6})
    found, entry = [], None
    for epoch in range(7):
        cursor.seek(Position(epoch), entry)
        made = loader.open_pass()
        found += [each.batch["id"].tolist() for each in made]
        entry = made.next_entry()
        loader.leave(entry if epoch % 2 else None)
    # Two batches of a lane and two of the other; each lane begins again when it is over.
    assert found[:8] == [[0, 1], [1000, 1001], [2, 3], [1002, 1003], [4, 5], [1004, 1005], [6, 0], [1006, 1000]]
    lane = [number for batch in found[::2] for number in batch]
    assert lane == [k % 7 for k in range(len(lane))]


def test_an_epoch_that_was_left_early_begins_again_where_it_began() -> None:
    loader, cursor = make(Ranges(7, 7), batch_size=2, options={"records_per_epoch": 8})
    made = loader.open_pass()
    list(made)
    entry = made.next_entry()
    loader.leave(entry)
    found = []
    for _ in range(2):
        cursor.seek(Position(1), entry)
        again = loader.open_pass()
        found.append([next(again).batch["id"].tolist() for _ in range(2)])
    assert found == [[[4, 5], [1004, 1005]]] * 2


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    root = tmp_path_factory.mktemp("tars")
    for shard in range(5):
        write_tar(root / f"{shard}.tar", numbered(6 + shard, 100 * shard))
    return root


def decoded(record):
    return add_noise({"id": record["json"]["id"]})


@pytest.mark.processes
def test_batches_are_the_same_with_any_number_of_workers_from_any_batch(tars) -> None:
    stream = TarShards(f"{tars}/*.tar", num_lanes=5).map(decoded).shuffle(4).transform(Pairs)
    options = {"batch_size": 3, "shuffle": True}
    expected = [deliveries(make(stream, **options)[0], Position(epoch)) for epoch in range(2)]
    for workers in (1, 2, 3):
        with make(stream, num_workers=workers, **options)[0] as loader:
            assert [deliveries(loader, Position(epoch)) for epoch in range(2)] == expected
            offset = sum(count for _, count, _ in expected[1][:4])
            assert deliveries(loader, Position(1, offset), expected[1][3][2]) == expected[1][4:]
            assert deliveries(loader, Position(1)) == expected[1]


@pytest.mark.processes
@pytest.mark.parametrize("persistent", [True, False])
def test_workers_read_on_over_epochs_of_a_given_length(persistent) -> None:
    def epochs(**params):
        options = {"records_per_epoch": 18, **params.pop("options", {})}
        loader, cursor = make(chained(9, 5, 7, 8), batch_size=3, options=options, **params)
        found, entry = [], None
        with loader:
            for epoch in range(3):
                cursor.seek(Position(epoch), entry)
                made = loader.open_pass()
                found += [each.batch["noise"].tolist() for each in made]
                entry = made.next_entry()
                loader.leave(entry)
        return found

    assert epochs(num_workers=3, options={"persistent_workers": persistent}) == epochs()


@pytest.mark.processes
def test_an_error_in_a_worker_comes_with_its_record() -> None:
    def fail(record):
        raise OSError("gone")

    with (
        make(Ranges(5, 5).map(fail), num_workers=2)[0] as loader,
        pytest.raises(DataError, match=r"record 0 of lane 0 of 2 in epoch 0 failed in map\(.*fail\) \(OSError: gone\)"),
    ):
        list(loader)


def test_a_tail_is_padded_for_the_parts_of_a_rank_in_training_and_never_in_evaluation() -> None:
    from parhelion.data import DataLoaderParams, create_stream_loader

    def last(split):
        loader, _ = create_stream_loader(Ranges(9), split, DataLoaderParams(batch_size=4), parts=4)
        return [*loader.open_pass()][-1]

    padded = last(DatasetSplit.TRAIN)
    assert (padded.batch["id"].tolist(), padded.num_records) == ([8, 8, 8, 8], 1)
    assert last(DatasetSplit.VALID).batch["id"].tolist() == [8]


def test_drop_last_leaves_out_the_one_batch_that_is_not_full() -> None:
    assert [len(ids([batch])) for batch in batches(make(Ranges(3, 3, 3), drop_last=True)[0])] == [4, 4]


def test_evaluation_needs_no_states_and_has_its_own_randomness() -> None:
    train, valid = (make(Ranges(4).map(add_noise), split)[0] for split in (DatasetSplit.TRAIN, DatasetSplit.VALID))
    ((one, _, entry),), ((other, _, none),) = deliveries(train), deliveries(valid)
    assert one["id"] == other["id"]
    assert one["noise"] != other["noise"]
    assert entry is not None
    assert none is None
    assert deliveries(valid) == deliveries(valid)


def test_loading_leaves_the_generators_where_they_were() -> None:
    import random

    import numpy as np

    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    list(make(chained(5, 5))[0])
    assert (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]) == before


def test_an_iteration_that_another_has_followed_says_so() -> None:
    loader, _ = make(Ranges(9))
    one = iter(loader)
    next(one)
    next(iter(loader))
    with pytest.raises(DataError, match=r"another iteration over this stream has begun, so this one cannot go on"):
        next(one)


def test_the_middle_of_an_epoch_cannot_be_entered_without_a_state() -> None:
    _, cursor = make(Ranges(9))
    with pytest.raises(ValueError, match=r"position is record 4 of epoch 2 and there is no state of the stream for it"):
        cursor.seek(Position(1, 4))


@pytest.mark.parametrize(
    ("stream", "settings", "message"),
    [
        (Ranges(4, 4), {"world": 2}, "records_per_epoch is None and 2 ranks read the stream; expected the number"),
        (Ranges(4), {"options": {"records_per_epoch": 3}}, r"records_per_epoch is 3 and a batch of all ranks takes 4"),
        (Ranges(4), {"options": {"records_per_epoch": 2.5}}, r"records_per_epoch is 2.5; expected an integer >= 1"),
        (Ranges(4), {"options": {"records_per_epoch": 0}}, r"records_per_epoch is 0; expected an integer >= 1"),
        (
            Ranges(4),
            {"split": DatasetSplit.TEST, "options": {"records_per_epoch": 9}},
            r"records_per_epoch is 9 for the test split .* expected a multiple of that, .* Pass 8",
        ),
        (
            Ranges(4, 4, 4),
            {"world": 2, "options": {"records_per_epoch": 8}},
            r"num_lanes of the stream is 3 and 2 ranks read it; expected a multiple of 2, .* Pass num_lanes=2",
        ),
        (
            IterableStream([1], num_lanes=2),
            {},
            r"num_lanes of list\(2 lanes\) is 2 and there are 1 ranks; expected one lane for each",
        ),
        (Ranges(4), {"sampler": "ResumableRandomSampler"}, r"sampler is .* and the dataset is a stream"),
        (Ranges(4), {"options": {"record_per_epoch": 9}}, r"option .* Did you mean 'records_per_epoch'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(stream, settings, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(stream, **settings)


def test_a_lane_that_gives_nothing_is_an_error_where_it_is_read_again_and_again() -> None:
    loader, _ = make(Ranges(5, 0), batch_size=2, options={"records_per_epoch": 4})
    with pytest.raises(DataError, match=r"lane 1 of 2 gave no record in pass 1 over the stream; expected one at least"):
        list(loader)


def test_more_workers_than_lanes_do_not_start_and_this_is_said(caplog) -> None:
    loader, _ = make(Ranges(4), num_workers=3)
    assert loader.num_workers == 1
    assert "num_workers is 3 and this rank reads 1 lanes of the stream" in caplog.text


def test_streams_are_told_from_map_datasets() -> None:
    class Torchlike:
        def __iter__(self): ...

        def __len__(self): ...

    assert all(is_stream(each) for each in (Ranges(1), Counter(1), iter([]), Torchlike(), {1}))
    assert not any(is_stream(each) for each in ([1], (1,), "ab", 3, range(3)))


def test_ready_batches_are_given_as_they_are() -> None:
    loader, cursor = stream_batches([[1, 2], [3]])
    assert [*loader] == [[1, 2], [3]]
    assert cursor.batch_size == 1
    with pytest.raises(ValueError, match="batches_per_epoch is 0; expected an integer >= 1"):
        stream_batches([[1]], batches_per_epoch=0)
