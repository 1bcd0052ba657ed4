import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parhelion as ph
from parhelion import sampling
from parhelion.data import DataLoaderParams, Dataset, DatasetSplit, Loader, MapStream, StreamCursor
from parhelion.data import collate as core_collate
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import Position, Shard, Tail
from support import jax_child

jax = pytest.importorskip("jax")
pytest.importorskip("parhelion_jax")

from parhelion_jax import data as jax_data  # noqa: E402 - skipped before it could fail
from parhelion_jax.data import collate, loader_for  # noqa: E402
from parhelion_jax.data import create_dataloader as create  # noqa: E402
from parhelion_jax.samplers import ResumableDistributedSampler  # noqa: E402

SIZE = 23
SPLITS = list(DatasetSplit)


class Noisy:
    """Draws from every generator that the core knows."""

    def __init__(self, size=SIZE):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        others = np.float32(np.random.randn()), random.random()
        return {"index": index, "own": ph.sample_rng().random(), "others": others, "text": str(index)}


class Batched(Noisy):
    def __getitems__(self, indices):
        return [{"index": index, "own": ph.sample_rng(k).random()} for k, index in enumerate(indices)]


class Rows(Noisy):
    returns_batches = True

    def __getitems__(self, indices):
        return {"index": np.asarray(indices), "own": np.array([ph.sample_rng(k).random() for k in range(len(indices))])}


def flat(batch):
    if isinstance(batch, dict):
        return tuple((name, flat(value)) for name, value in batch.items())
    if isinstance(batch, (tuple, list)):
        return tuple(map(flat, batch))
    if isinstance(batch, str):
        return batch
    array = np.asarray(batch)
    return array.dtype.name, array.shape, array.tobytes()


def epoch(pair, position):
    loader, sampler = pair
    sampler.seek(position)
    return [flat(batch) for batch in loader]


def streams():
    return random.getstate(), np.random.get_state()[1].tolist()


def test_the_loader_is_the_cores_and_its_batches_are_numpys():
    loader, sampler = create(Noisy(), 5, 4, shuffle=True)
    assert type(loader) is Loader
    assert isinstance(sampler, sampling.ResumableRandomSampler)
    assert (len(loader), loader.batch_size, loader.num_workers) == (6, 4, 0)
    batch = next(iter(loader))
    assert [batch[name].dtype for name in ("index", "own")] == [np.int64, np.float32]
    assert type(batch["index"]) is np.ndarray
    assert collate is core_collate


def test_an_epoch_entered_at_any_batch_gives_the_rest_of_the_whole_and_moves_no_stream():
    before = streams()
    whole = epoch(create(Noisy(), 5, 4, shuffle=True), Position(2))
    for k in range(6):
        assert epoch(create(Noisy(), 5, 4, shuffle=True), Position(2, 4 * k)) == whole[k:]
    assert streams() == before


@given(
    size=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    split=st.sampled_from(SPLITS),
    number=st.integers(0, 3),
    offset=st.integers(0, 39),
    kind=st.sampled_from([Noisy, Batched, Rows]),
    mode=st.sampled_from(["batch", "off"]),
)
def test_the_same_params_give_the_batches_of_torchs_loader(
    size, seed, batch_size, shuffle, split, number, offset, kind, mode
):
    theirs = pytest.importorskip("parhelion_torch")
    params = {"random_seed": seed, "batch_size": batch_size, "shuffle": shuffle, "split": split}
    if mode == "off":
        kind = Rows  # draws from its own generators alone
    pairs = [make(kind(size), **params, global_rng=mode) for make in (create, theirs.create_dataloader)]
    ours, torchs = (epoch(pair, Position(number, min(offset, size - 1))) for pair in pairs)
    assert ours == torchs


@given(sizes=st.tuples(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4)), split=st.sampled_from(SPLITS))
def test_one_process_of_several_devices_gives_the_records_of_as_many_torch_ranks(sizes, split):
    theirs = pytest.importorskip("parhelion_torch")
    size, part, devices = sizes
    params = DataLoaderParams(3, part * devices, shuffle=True, options={"global_rng": "sample"})
    loader, sampler = loader_for(Noisy(size), split, params, num_shards=devices)
    sampler.seek(Position(1))
    ours = [index for batch in loader for index in zip(batch["index"].tolist(), batch["own"].tolist(), strict=True)]
    ranks = []
    for rank in range(devices):
        own = theirs.ResumableDistributedSampler(range(size), devices, rank, seed=3, batch_size=part)
        loader, own = theirs.create_dataloader(
            Noisy(size), 3, part, sampler=own, split=split, is_distributed=True, global_rng="sample"
        )
        own.seek(Position(1))
        ranks.append([list(zip(b["index"].tolist(), b["own"].tolist(), strict=True)) for b in loader])
    together = [
        row for number in range(len(ranks[0])) for rank in ranks for row in (rank[number] if number < len(rank) else ())
    ]
    assert ours == together


@pytest.mark.processes
@pytest.mark.parametrize("kind", [Noisy, Rows])
def test_with_workers_the_batches_are_those_of_torchs_loader(kind):
    theirs = pytest.importorskip("parhelion_torch")
    expected = epoch(theirs.create_dataloader(kind(), 5, 4, shuffle=True), Position(1, 4))
    loader, sampler = create(kind(), 5, 4, shuffle=True, num_workers=2, prefetch_factor=3)
    with loader:
        for _ in range(2):
            assert epoch((loader, sampler), Position(1, 4)) == expected


def torch_datasets():
    torch = pytest.importorskip("torch")

    class Tensors(torch.utils.data.Dataset):
        """A dataset as torch's users write them, drawing from torch's generator."""

        def __len__(self):
            return SIZE

        def __getitem__(self, index):
            return torch.full((2, 3), index) + torch.rand(3), torch.tensor(index), index % 2 == 0

    return torch, Tensors()


def test_a_torch_dataset_gives_numpy_batches_with_the_augmentation_that_it_has_under_torch():
    torch, dataset = torch_datasets()
    theirs = pytest.importorskip("parhelion_torch")
    before = torch.get_rng_state()
    ours = create(dataset, 5, 4, shuffle=True)
    assert {type(leaf) for leaf in next(iter(ours[0]))} == {np.ndarray}
    for position in (Position(0), Position(3, 8)):
        torchs = theirs.create_dataloader(dataset, 5, 4, shuffle=True)
        assert epoch(ours, position) == epoch(torchs, position)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.processes
def test_a_torch_dataset_draws_the_same_in_worker_processes():
    _, dataset = torch_datasets()
    expected = epoch(create(dataset, 5, 8, shuffle=True), Position(0))
    loader, sampler = create(dataset, 5, 8, shuffle=True, num_workers=2)
    with loader:
        assert epoch((loader, sampler), Position(0)) == expected


@pytest.mark.parametrize("kind", [Noisy, Batched, Rows])
def test_a_subset_of_torchs_is_asked_as_torchs_loader_asks_it(kind):
    data = pytest.importorskip("torch.utils.data")
    theirs = pytest.importorskip("parhelion_torch")
    subset = data.Subset(data.Subset(kind(), range(20)), [3, 1, 12, 0, 19])
    mode = "sample" if kind is Noisy else "batch"
    expected = epoch(theirs.create_dataloader(subset, 5, 2, shuffle=True, global_rng=mode), Position(1))
    loader, sampler = create(subset, 5, 2, shuffle=True, global_rng=mode)
    assert loader.dataset is subset
    assert epoch((loader, sampler), Position(1)) == expected


def test_a_dataset_and_its_params_can_be_passed_as_their_dict():
    pair = Dataset(Noisy(), DataLoaderParams(5, 4, shuffle=True, options={"global_rng": "sample"}))
    expected = epoch(create(Noisy(), 5, 4, shuffle=True, global_rng="sample"), Position(0))
    assert epoch(create(**pair.dict()), Position(0)) == expected


def test_a_batch_is_padded_to_the_devices_of_the_process():
    loader, sampler = create(range(10), batch_size=4, num_shards=4)
    assert sampler.shard == Shard(4, parts=4)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    loader, sampler = create(range(10), batch_size=4, num_shards=4, split=DatasetSplit.VALID)
    assert [batch.tolist() for batch in loader][-1] == [8, 9]


def test_a_batch_size_that_the_devices_do_not_divide_is_refused_with_both_numbers():
    message = (
        "batch_size is 6 and a batch is split over 4 devices of this process; expected a multiple of 4. "
        "Set batch_size=8, or train on fewer devices"
    )
    for split in SPLITS:
        with pytest.raises(InvalidValueError, match=re.escape(message)):
            loader_for(range(12), split, DataLoaderParams(batch_size=6), num_shards=4)


@pytest.mark.parametrize("split", SPLITS)
def test_processes_share_the_data_and_get_the_last_batch_of_an_evaluation_whole(monkeypatch, split):
    batches = []
    for rank in range(2):
        monkeypatch.setattr(jax_data, "get_group", lambda rank=rank: (2, rank))
        loader, sampler = loader_for(range(21), split, DataLoaderParams(batch_size=8), num_shards=2)
        assert isinstance(sampler, ResumableDistributedSampler)
        batches.append([batch.tolist() for batch in loader])
        assert len(loader) == 2
    assert [each[0] for each in batches] == [list(range(8)), list(range(8, 16))]
    if split is DatasetSplit.TRAIN:
        assert [each[1] for each in batches] == [[16, 17, 18, 19], [20, 0, 1, 2]]
    else:
        assert [each[1] for each in batches] == [[16, 17, 18, 19, 20]] * 2
        assert sampler.shard.tail is Tail.WHOLE


def test_processes_share_the_data_only_where_they_are_asked_to(monkeypatch):
    monkeypatch.setattr(jax_data, "get_group", lambda: (2, 1))
    assert create(range(8), batch_size=2)[1].shard.world == 1
    assert create(range(8), batch_size=2, is_distributed=None)[1].shard.world == 2
    assert create(range(8), batch_size=2, is_distributed=True)[1].shard.rank == 1


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ({}, sampling.ResumableSequentialSampler),
        ({"shuffle": True}, sampling.ResumableRandomSampler),
        ({"is_distributed": True}, ResumableDistributedSampler),
        ({"sampler": "ResumableDistributedSampler"}, ResumableDistributedSampler),
    ],
)
def test_the_flags_choose_jaxs_sampler(flags, kind):
    assert type(create(Noisy(), **flags)[1]) is kind


def test_pin_memory_is_silently_nothing_and_debug_mode_loads_here():
    loader, _ = create(Noisy(), pin_memory=True, debug_mode=True, num_workers=3, prefetch_factor=4)
    assert loader.num_workers == 0
    assert len(next(iter(loader))["index"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefetch_facto": 2}, "option of the loader is 'prefetch_facto'.* Did you mean 'prefetch_factor'"),
        ({"generator": None}, "option of the loader is 'generator'; expected one of global_rng"),
        ({"global_rng": "never"}, "global_rng is 'never'; expected 'batch'"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer >= 1"),
        ({"num_workers": -1}, "num_workers is -1; expected an integer >= 0"),
        ({"random_seed": -1}, "random_seed is -1; expected"),
        ({"batch_size": 24, "drop_last": True}, "no batch is left"),
        ({"num_shards": 0}, "num_shards is 0; expected an integer >= 1"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(options, message):
    with pytest.raises(InvalidValueError, match=message):
        create(Noisy(), **options)


class Endless:
    def __iter__(self):
        return iter(range(3))

    def __len__(self):
        return 3


@pytest.mark.parametrize("make", [Endless, lambda: iter(range(3)), lambda: MapStream(range(3), num_lanes=1)])
def test_a_stream_gives_its_records_in_order_and_a_cursor(make):
    loader, cursor = create(make(), batch_size=2)
    assert isinstance(cursor, StreamCursor)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2]]


@pytest.mark.parametrize("sized", [False, True])
def test_a_stream_of_torchs_is_one_although_it_has_a_getitem(sized):
    torch = pytest.importorskip("torch")
    methods = {"__iter__": lambda self: iter(range(3)), **({"__len__": lambda self: 3} if sized else {})}
    kind = type("Stream", (torch.utils.data.IterableDataset,), methods)
    assert [batch.tolist() for batch in create(kind(), batch_size=2)[0]] == [[0, 1], [2]]


def test_a_dataset_that_is_neither_is_refused_by_the_core():
    with pytest.raises(InvalidTypeError, match="is a int; expected a dataset with a length"):
        create(3)


def test_without_torch_in_the_process_everything_works(monkeypatch):
    expected = epoch(create(Noisy(), 5, 4), Position(0))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert epoch(create(Noisy(), 5, 4), Position(0)) == expected


@pytest.mark.processes
def test_a_worker_does_not_load_jax(monkeypatch):
    class Loaded:  # by value: the worker does not import this file
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return "jax" in sys.modules

    monkeypatch.setitem(sys.modules, "torch", None)
    loader, _ = create(Loaded(), batch_size=2, num_workers=1)
    with loader:
        assert [batch.tolist() for batch in loader] == [[False, False]]


FACTS = Path(jax_child.__file__).with_name("shared_data_facts.py")


@pytest.mark.processes
@pytest.mark.parametrize("fact", jax_child.list_facts(FACTS), ids=jax_child.words)
def test_in_both_of_two_processes(fact):
    results = jax_child.run_facts(FACTS, devices=2, processes=2)
    assert not any(each[fact] for each in results), "\n".join(filter(None, (each[fact] for each in results)))
