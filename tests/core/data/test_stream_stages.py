"""Stages of a stream: what they do, and that each goes on where it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.data import IterableStream, Lane, MapStream, TarShards
from parhelion.errors import RecordError
from parhelion.generators import PythonGenerators
from parhelion.sampling import ResumableRandomSampler
from support.plain import Records
from support.streams import Pairs, Ranges, add_noise, is_wanted, through_checkpoint

LANE = Lane(1, 2, epoch=3, seed=5, generators=PythonGenerators())

chains = st.lists(
    st.one_of(
        st.just(lambda s: s.map(add_noise)),
        st.just(lambda s: s.filter(is_wanted)),
        st.just(lambda s: s.transform(Pairs)),
        st.integers(1, 9).map(lambda size: lambda s: s.shuffle(size)),
    ),
    max_size=4,
)


@given(size=st.integers(0, 23), chain=chains, data=st.data())
def test_any_chain_goes_on_from_any_record_also_twice(size, chain, data) -> None:
    stream = Ranges(0, size)
    for add in chain:
        stream = add(stream)
    whole = list(stream.open(LANE))
    found = []
    reader = stream.open(LANE)
    for _ in range(data.draw(st.integers(1, 3))):
        for _ in range(data.draw(st.integers(0, 5))):
            found += [next(reader, None)]
        state = through_checkpoint(reader.state_dict())
        assert through_checkpoint(reader.state_dict()) == state
        reader = stream.open(LANE)
        reader.load_state_dict(state)
    found = [record for record in found if record is not None]
    assert found + list(reader) == whole
    assert next(reader, None) is None


@given(size=st.integers(0, 40), window=st.integers(1, 50))
def test_a_shuffle_gives_every_record_once_and_none_leaves_its_window(size, window) -> None:
    found = [record["id"] - 1000 for record in Ranges(0, size).shuffle(window).open(LANE)]
    assert sorted(found) == list(range(size))
    assert all(k // window == number // window for k, number in enumerate(found))


def test_a_shuffle_is_another_one_for_each_seed_epoch_lane_window_and_stage() -> None:
    def order(stream, **lane):
        return [record["id"] % 1000 for record in stream.open(Lane(**lane))]

    stream = Ranges(40, 40).shuffle(20)
    first = order(stream)
    assert first == order(stream) != list(range(40))
    others = [order(stream, seed=1), order(stream, epoch=1), order(stream, number=1, count=2), order(stream, split=1)]
    assert all(other != first for other in others)
    assert [k - 20 for k in first[20:]] != first[:20]
    assert order(stream.shuffle(20)) not in (first, list(range(40)))


def test_at_most_one_window_is_read_again() -> None:
    source = Ranges(100)
    reader = source.shuffle(10).open(Lane())
    for _ in range(37):
        next(reader)
    assert reader.state_dict() == {"window": 3, "given": 7, "records": {"next": 30}}


def test_what_a_record_draws_depends_on_its_lane_and_number_alone() -> None:
    stream = Ranges(6, 6).map(add_noise)
    records = [record for number in range(2) for record in stream.open(Lane(number, 2, generators=PythonGenerators()))]
    assert len({record["noise"] for record in records}) == len({record["legacy"] for record in records}) == 12
    twice = stream.map(lambda record: {**record, "first": record["noise"]}).map(add_noise).open(Lane(0, 2))
    assert all(record["noise"] != record["first"] for record in twice)


def test_a_function_that_fails_is_named_with_the_record() -> None:
    def fail(record):
        raise StopIteration

    with pytest.raises(RecordError, match=r"record 0 of lane 1 of 2 in epoch 3 failed in map\(.*fail\) \(Stop"):
        list(Ranges(0, 3).map(fail).open(LANE))
    with pytest.raises(RecordError, match=r"record 0 of .* failed in filter\(is_wanted\) \(TypeError"):
        list(Ranges(0, 3).map(lambda _: 3).filter(is_wanted).open(LANE))


class Failing(Pairs):
    def __next__(self):
        super().__next__()
        raise OSError("no")


def test_a_transform_that_fails_is_named_with_the_record() -> None:
    with pytest.raises(RecordError, match=r"record 0 of lane 1 of 2 .* failed in transform 'Failing' \(OSError: no"):
        list(Ranges(0, 3).transform(Failing).open(LANE))


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda s: s.map(3), "the argument of map is 3; expected a function of a record"),
        (lambda s: s.filter(None), "the argument of filter is None"),
        (lambda s: s.shuffle(0), "buffer_size is 0; expected an integer >= 1"),
        (lambda s: s.shuffle(2.0), "buffer_size is 2.0; expected an integer >= 1"),
        (lambda s: s.transform(iter), r"transform 'iter' makes a .*iterator without state_dict, load_state_dict"),
    ],
)
def test_stages_that_cannot_work_are_refused_at_once(add, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        add(Ranges(3))


def test_the_name_says_what_the_order_and_the_state_depend_on() -> None:
    stream = TarShards(["a", "b"]).map(add_noise).shuffle(8).transform(Pairs).pack(16, split=False)
    assert stream.name == "TarShards(2 shards, 2 lanes) > map > shuffle(8) > Pairs > pack(16, open_rows=16)"


@given(size=st.integers(1, 30), lanes=st.integers(1, 5), shuffle=st.booleans(), epoch=st.integers(0, 2))
def test_a_map_dataset_comes_in_its_samplers_order_with_what_its_records_draw(size, lanes, shuffle, epoch) -> None:
    stream = MapStream(Records(size), num_lanes=min(lanes, size))
    count = stream.num_lanes
    found = [[*stream.open(Lane(k, count, epoch=epoch, seed=3, shuffle=shuffle))] for k in range(count)]
    order = ResumableRandomSampler(range(size), seed=3).indices(epoch, 0, size) if shuffle else range(size)
    assert [record["index"] for lane in found for record in lane] == [
        k for n in range(count) for k in [*order][n::count]
    ]


def test_a_map_dataset_as_a_stream_draws_what_its_own_loader_draws() -> None:
    from parhelion.data import Loader
    from support.streams import batches, make

    loader = Loader(Records(12), ResumableRandomSampler(range(12), seed=3, batch_size=12), seed=3)
    (expected,) = loader
    (found,) = batches(make(MapStream(Records(12), num_lanes=1), batch_size=12, shuffle=True, random_seed=3)[0])
    assert found["x"][1] == expected["x"].tolist()


@pytest.mark.parametrize("count", range(13))
def test_global_generators_are_keyed_for_each_record_of_a_map_dataset(count) -> None:
    lane = Lane(generators=PythonGenerators())
    stream = MapStream(Records(12), num_lanes=1).shuffle(5)
    whole = [record["legacy"] for record in stream.open(lane)]
    reader = stream.open(lane)
    for _ in range(count):
        next(reader)
    other = stream.open(lane)
    other.load_state_dict(reader.state_dict())
    assert [record["legacy"] for record in other] == whole[count:]


def test_what_is_no_map_dataset_or_no_sampler_is_refused() -> None:
    with pytest.raises(TypeError, match="dataset is a list_iterator; expected a map dataset"):
        MapStream(iter([1]))
    with pytest.raises(TypeError, match="sampler is 3; expected a ResumableSampler"):
        MapStream([1], 3)
    with pytest.raises(TypeError, match="source is 3; expected an iterable of records"):
        IterableStream(3)
