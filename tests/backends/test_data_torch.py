import collections
import random
import re

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate

import parhelion as ph
from parhelion import sampling
from parhelion.data import DataLoaderParams, Dataset, DatasetSplit, MapStream, create_loader
from parhelion.errors import CollateError, InvalidValueError, RecordError
from parhelion.sampling import Position, Tail
from parhelion_torch import (
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSequentialSampler,
    collate,
)
from parhelion_torch import create_dataloader as create
from parhelion_torch.randomness import Randomness

SIZE = 23


class Noisy:
    """Draws from every generator there is."""

    title = "noise"

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        others = torch.rand(2), np.float32(np.random.randn()), random.random()
        return {"index": index, "own": ph.sample_rng().random(), "others": others}


def flat(batch):
    if isinstance(batch, dict):
        return tuple((name, flat(value)) for name, value in batch.items())
    return tuple(map(flat, batch)) if isinstance(batch, tuple) else batch.tolist()


def make(**options):
    return create(Noisy(), **{"random_seed": 5, "batch_size": 4, "shuffle": True, **options})


def epoch(pair, position):
    pair[1].seek(position)
    return list(map(flat, pair[0]))


def streams():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("number", [0, 3])
def test_an_epoch_entered_at_any_batch_gives_the_rest_of_the_whole(number):
    whole = epoch(make(), Position(number))
    assert len(whole) == 6
    for k in range(6):
        assert epoch(make(), Position(number, 4 * k)) == whole[k:]


@given(offset=st.integers(0, SIZE - 1), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_with_keys_per_sample_records_are_the_same_whatever_the_batch_size(offset, sizes):
    def rows(batch_size):
        loader, sampler = make(batch_size=batch_size, global_rng="sample")
        sampler.seek(Position(1, offset))
        return [
            (index, own, tuple(map(float, row)))
            for batch in loader
            for index, own, *row in zip(
                batch["index"].tolist(),
                batch["own"].tolist(),
                *batch["others"][0].T,
                *batch["others"][1:],
                strict=True,
            )
        ]

    assert rows(sizes[0]) == rows(sizes[1])


def test_the_batches_are_those_of_the_cores_own_loader():
    class Calm(Noisy):
        def __getitem__(self, index):
            return index, ph.sample_rng().random(), np.full(3, random.random() + np.random.rand())

    ours, _ = create(Calm(), 5, 4, shuffle=True)
    core, _ = create_loader(Calm(), DatasetSplit.TRAIN, DataLoaderParams(5, 4, shuffle=True))
    assert list(map(flat, ours)) == list(map(flat, core))


def test_two_resumes_in_a_row_and_the_epochs_after_are_those_of_the_run_that_never_stopped():
    pair = make()
    whole = [epoch(pair, Position(number)) for number in range(3)]
    first, second = make(), make()
    assert epoch(first, Position(0, 8)) == whole[0][2:]
    assert epoch(second, Position(0, 16)) == whole[0][4:]
    for number in (1, 2):
        for pair in (first, second):
            pair[1].set_epoch(number)
            assert list(map(flat, pair[0])) == whole[number]


def test_the_distributed_loader_resumes_at_batches_of_all_ranks():
    ranks = [
        create(range(26), 5, 4, sampler=ResumableDistributedSampler(range(26), 2, rank, seed=5, batch_size=4))
        for rank in range(2)
    ]
    whole = [[batch.tolist() for batch in loader] for loader, _ in ranks]
    for rank, (loader, sampler) in enumerate(ranks):
        sampler.start_iter = 2
        assert [batch.tolist() for batch in loader] == whole[rank][2:]
    assert sorted(i for batches in whole for batch in batches for i in batch) == list(range(26))


def test_leaving_an_epoch_early_leaves_nothing_behind():
    pair = make()
    next(iter(pair[0]))
    assert epoch(pair, Position(1)) == epoch(make(), Position(1))


def test_two_iterations_at_once_do_not_disturb_each_other():
    loader, sampler = make()
    sampler.seek(Position(2, 4))
    one = iter(loader)
    first = flat(next(one))
    sampler.seek(Position(0))
    pairs = [(flat(a), flat(b)) for a, b in zip(one, loader, strict=False)]
    assert [first, *(a for a, _ in pairs)] == epoch(make(), Position(2, 4))
    assert [b for _, b in pairs] == epoch(make(), Position(0))[: len(pairs)]


@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_loading_never_moves_the_training_streams(mode):
    loader, _ = make(global_rng=mode)
    np.random.randn()
    torch.randn(3)
    before = streams()
    list(loader)
    assert streams() == before


def test_a_failing_record_leaves_the_training_streams_where_they_were():
    class Fails(Noisy):
        def __getitem__(self, index):
            torch.rand(1)
            raise OSError("gone")

    before = streams()
    with pytest.raises(RecordError, match=r"record with sample index 0 of Fails failed .OSError: gone"):
        list(create(Fails())[0])
    assert streams() == before


def test_a_collate_function_that_draws_is_exact_and_moves_no_stream():
    def mix(records):
        return (
            torch.rand(2),
            random.random(),
            ph.sample_rng(0).random(),
            [record["own"] for record in records],
        )

    before = streams()
    once, again = list(make(collate_fn=mix)[0]), list(make(collate_fn=mix)[0])
    assert [repr(batch) for batch in once] == [repr(batch) for batch in again]
    assert streams() == before


def test_off_lets_records_draw_from_the_training_streams():
    loader, _ = make(global_rng="off")
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    assert next(iter(loader))["others"][0][0].tolist() == expected


def test_the_loader_is_torchs_and_says_what_it_was_made_of():
    data, sampler = Noisy(), ResumableRandomSampler(range(SIZE), seed=3, batch_size=4)
    loader, given = create(data, 5, 4, drop_last=True, sampler=sampler, collate_fn=len)
    assert isinstance(loader, DataLoader)
    assert given is sampler
    assert (loader.dataset, loader.sampler, loader.batch_size) == (data, sampler, 4)
    assert (loader.drop_last, loader.collate_fn, loader.num_workers) == (True, len, 0)
    assert loader.dataset.title == "noise"
    assert len(loader) == 5
    assert list(loader) == [4] * 5
    assert [len(batch) for batch in loader.batch_sampler] == [4] * 5


def test_the_length_is_that_of_a_whole_epoch():
    loader, sampler = make()
    sampler.seek(Position(0, 8))
    assert len(loader) == 6
    assert len(list(loader)) == 4


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ({"shuffle": False}, ResumableSequentialSampler),
        ({"shuffle": True}, ResumableRandomSampler),
        ({"is_distributed": True}, ResumableDistributedSampler),
        ({"sampler": "ResumableSequentialSampler"}, ResumableSequentialSampler),
    ],
)
def test_the_flags_choose_torchs_sampler(flags, kind):
    assert type(make(**flags)[1]) is kind


def test_a_neutral_sampler_is_taken_too():
    sampler = sampling.ResumableRandomSampler(range(SIZE), 5, 4)
    assert [flat(batch) for batch in make(sampler=sampler)[0]] == epoch(make(), Position(0))


def test_a_sampler_of_torchs_own_is_refused():
    with pytest.raises(TypeError, match="sampler is a SequentialSampler; expected one derived from ResumableSampler"):
        create(range(3), sampler=torch.utils.data.SequentialSampler(range(3)))


def test_a_sampler_with_another_batch_size_is_refused():
    with pytest.raises(ValueError, match="batch_size of the sampler is 1 and that of the loader 4"):
        create(range(3), batch_size=4, sampler=ResumableRandomSampler(range(3)))


def test_a_rank_for_which_the_last_batch_has_no_record_ends_before_it():
    sampler = ResumableDistributedSampler(range(9), 2, 1, shuffle=False, batch_size=4)
    loader, _ = create(range(9), batch_size=4, sampler=sampler, split=DatasetSplit.VALID)
    assert [batch.tolist() for batch in loader] == [[4, 5, 6, 7]]
    assert len(loader) == 1


@pytest.mark.parametrize("split", [DatasetSplit.VALID, DatasetSplit.TEST])
def test_evaluation_is_sequential_and_repeats_nothing(split):
    loader, sampler = create(range(10), batch_size=4, split=split)
    assert sampler.shard.tail is Tail.MASK
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_split_is_part_of_the_key():
    def own(split):
        return tuple(next(iter(make(split=split)[0]))["own"].tolist())

    assert len({own(split) for split in DatasetSplit}) == 3


def test_a_dataset_and_its_params_can_be_passed_as_their_dict():
    pair = Dataset(Noisy(), DataLoaderParams(5, 4, shuffle=True, options={"global_rng": "sample"}))
    loader, _ = create(**pair.dict())
    assert list(map(flat, loader)) == epoch(make(global_rng="sample"), Position(0))


def test_debug_mode_loads_in_this_process_and_forgets_what_concerns_workers():
    loader, _ = make(
        num_workers=4,
        debug_mode=True,
        prefetch_factor=3,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (0, None, False)
    assert list(map(flat, loader)) == epoch(make(), Position(0))


def test_pin_memory_is_silently_nothing_without_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    loader, _ = make(pin_memory=True)
    assert loader.pin_memory is False
    next(iter(loader))


@pytest.mark.gpu
def test_pinned_batches_are_pinned_where_there_is_an_accelerator():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert next(iter(make(pin_memory=True)[0]))["own"].is_pinned()
    assert not next(iter(make(pin_memory=False)[0]))["own"].is_pinned()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefetch_facto": 2}, "option of the loader is 'prefetch_facto'.* Did you mean 'prefetch_factor'"),
        (
            {"generator": torch.Generator()},
            "option 'generator' of the loader is given; expected it left out. Pass random_seed=",
        ),
        (
            {"batch_sampler": []},
            "option 'batch_sampler' of the loader is given; expected it left out. Pass sampler=",
        ),
        (
            {"in_order": False},
            "option 'in_order' of the loader is given; expected it left out. Batches come in order",
        ),
        ({"global_rng": "never"}, "global_rng is 'never'; expected 'batch'"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer >= 1"),
        ({"num_workers": -1}, "num_workers is -1; expected an integer >= 0"),
        ({"random_seed": -1}, "random_seed is -1; expected"),
        ({"batch_size": 24, "drop_last": True}, "no batch is left"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(options, message):
    with pytest.raises(InvalidValueError, match=message):
        make(**options)


def test_torchs_own_defaults_are_taken():
    loader, _ = make(batch_sampler=None, generator=None, in_order=True, timeout=0, prefetch_factor=None)
    assert list(map(flat, loader)) == epoch(make(), Position(0))


def test_fields_of_packed_records_become_tensors():
    packed = np.zeros(4, [("a", "u1"), ("y", "<f4")])
    batch = next(iter(create(Rows(lambda i: packed["y"]), batch_size=4)[0]))
    assert batch.tolist() == [0, 0, 0, 0]


def test_an_empty_dataset_is_refused():
    with pytest.raises(InvalidValueError, match="is empty"):
        create([])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize("make", [Stream, lambda: MapStream(range(3), num_lanes=1)])
def test_a_stream_is_read_by_a_loader_of_torchs_with_a_cursor(make):
    stream = make()
    loader, cursor = create(stream, batch_size=2)
    assert isinstance(loader, torch.utils.data.DataLoader)
    assert (loader.dataset, loader.sampler, loader.batch_size) == (stream, cursor, 2)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2]]
    with pytest.raises(TypeError, match="known with options="):
        len(loader)
    sized, _ = create(stream, batch_size=2, records_per_epoch=8)
    assert len(sized) == 4
    assert all(isinstance(batch, torch.Tensor) for batch in loader)


def test_a_subset_of_plain_records_is_asked_record_by_record():
    loader, _ = create(Subset(Subset(Noisy(), range(10)), [3, 1]), batch_size=2, global_rng="sample")
    batch = next(iter(loader))
    assert batch["index"].tolist() == [3, 1]
    assert len(set(batch["own"].tolist())) == 2


class Rows:
    returns_batches = True

    def __init__(self, make_batch):
        self.make_batch = make_batch

    def __len__(self):
        return SIZE

    def __getitems__(self, indices):
        return self.make_batch(np.asarray(indices))


@attrs.frozen
class Point:
    x: object
    y: object


Named = collections.namedtuple("Named", ["x", "y"])  # noqa: PYI024 - the untyped kind is what is tested


@pytest.mark.parametrize(
    ("make_batch", "read"),
    [
        (lambda i: {"x": i, "y": [i, "ab"]}, lambda batch: (batch["x"], batch["y"][0])),
        (lambda i: (i, torch.as_tensor(i)), lambda batch: batch),
        (lambda i: Point(i, {"z": i}), lambda batch: (batch.x, batch.y["z"])),
        (lambda i: Named(i, i), lambda batch: (batch.x, batch.y)),
        (lambda i: [np.broadcast_to(i[:, None], (len(i), 2))[:, 0], i[::-1][::-1]], lambda batch: batch),
    ],
)
def test_finished_batches_become_tensors_without_collation(make_batch, read):
    loader, _ = create(Rows(make_batch), batch_size=4)
    for column in read(next(iter(loader))):
        assert isinstance(column, torch.Tensor)
        assert column.tolist() == [0, 1, 2, 3]
        column.add_(0)
    subset, _ = create(Subset(Rows(make_batch), [5, 7]), batch_size=2)
    assert read(next(iter(subset)))[0].tolist() == [5, 7]


def test_a_finished_batch_shares_the_memory_of_its_arrays():
    array = np.arange(4)
    assert np.shares_memory(next(iter(create(Rows(lambda i: array), batch_size=4)[0])).numpy(), array)


def test_a_given_collate_function_gets_the_list_of_records():
    got = []
    loader, _ = create(TensorDataset(torch.arange(6)), batch_size=3, collate_fn=got.append)
    list(loader)
    assert isinstance(got[0], list)
    assert [record[0].item() for record in got[0]] == [0, 1, 2]


def test_a_collate_error_names_the_sample_index():
    data = [{"x": torch.zeros(2)}] * 5 + [{"x": torch.zeros(3)}]
    with pytest.raises(
        CollateError, match=re.escape("field 'x' of sample index 5 (record 1 of the batch) is Tensor of")
    ):
        list(create(data, batch_size=2, drop_last=True, sampler=None)[0])


@pytest.mark.parametrize("size", [1, 3, 700, 20_000])
@pytest.mark.parametrize(
    "make_record",
    [
        lambda k, n: torch.arange(n) * k,
        lambda k, n: torch.full((n, 2), k / 3, dtype=torch.bfloat16),
        lambda k, n: torch.full((n,), k, dtype=torch.float16).unsqueeze(0).T,
        lambda k, n: np.full((2, n), k, np.float64),
        lambda k, n: np.full((n, 1), k, np.uint16).T,
        lambda k, n: {"a": np.float32(k), "b": (torch.tensor(k), [k, bool(k)]), "c": "text"},
        lambda k, n: torch.ones(n, requires_grad=True) * k,
    ],
)
def test_batches_equal_those_of_torchs_default_collate(make_record, size):
    records = [make_record(k, size) for k in range(64)]
    ours, theirs = collate(records), default_collate(records)

    def compare(one, other):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert one.requires_grad == other.requires_grad
            assert torch.equal(one, other)
        elif isinstance(one, dict):
            assert list(one) == list(other)
            for name in one:
                compare(one[name], other[name])
        elif isinstance(one, str):
            assert one == other
        else:
            # torch makes a list of a tuple.
            assert len(one) == len(other)
            for pair in zip(one, other, strict=True):
                compare(*pair)

    compare(ours, theirs)


@pytest.mark.parametrize("size", [1024, 8193, 20_000])
def test_stacking_here_gives_torch_nothing_to_start_threads_for(monkeypatch, size):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    stack, stacked = torch.stack, []
    monkeypatch.setattr(torch, "stack", lambda tensors, **out: stacked.append(len(tensors)) or stack(tensors, **out))
    records = [torch.full((size,), k) for k in range(80)]
    assert collate(records).tolist() == stack(records).tolist()
    assert all(count * size < 32768 for count in stacked)


def test_what_torch_has_no_dtype_for_stays_numpys():
    dates = [np.array(["2020-01-01", "2020-01-02"], "M8[D]")] * 2
    assert collate(dates).tolist() == np.stack(dates).tolist()


def test_python_floats_become_float32_where_torch_makes_float64():
    assert collate([0.5, 1.5]).dtype == torch.float32
    assert default_collate([0.5, 1.5]).dtype == torch.float64


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            [torch.zeros(2), torch.zeros(2, dtype=torch.int64)],
            "is Tensor of shape (2,) and dtype torch.int64; expected Tensor of shape (2,) and dtype",
        ),
        (
            [torch.zeros(2), torch.zeros(3)],
            "is Tensor of shape (3,) and dtype torch.float32; expected Tensor",
        ),
        ([torch.zeros(2), None], "is None; expected Tensor of shape (2,)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(column, message):
    with pytest.raises(CollateError, match=re.escape(message)):
        collate(column)


def test_the_torch_streams_are_captured_restored_seeded_and_set_aside_together():
    generators = Randomness(torch.device("cpu"))

    def draw():
        return random.random(), np.random.randn(), torch.randn(3).tolist()

    generators.seed(2**64 - 1)
    start = generators.capture()
    expected = [draw() for _ in range(3)]
    generators.seed(2**64 - 1)
    assert draw() == expected[0]
    aside = generators.set_aside()
    generators.seed(7)
    draw()
    generators.put_back(aside)
    assert draw() == expected[1]
    generators.restore(start)
    assert [draw() for _ in range(3)] == expected
