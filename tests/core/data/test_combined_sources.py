import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.data import ArrayDataset, ConcatDataset, DatasetSplit, Fetch, Loader, Subset, collate
from parhelion.errors import CollateError, InvalidTypeError, InvalidValueError, RecordError
from parhelion.generators import PythonGenerators
from parhelion.sampling import FetchRequest, ResumableRandomSampler
from parhelion.seeds import sample_rng
from parhelion.testing import check_loader_resumes


class Alone:
    """Records one by one; each is a number and what it draws."""

    def __init__(self, size, first=0):
        self.size, self.first = size, first

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        return {"n": self.first + index, "own": sample_rng().random()}


class Together(Alone):
    def __getitems__(self, indices):
        assert type(indices) is list
        return [{"n": self.first + index, "own": sample_rng(k).random()} for k, index in enumerate(indices)]


class Batches(Alone):
    returns_batches = True

    def __getitems__(self, indices):
        assert indices.dtype == np.int64
        own = np.array([sample_rng(k).random() for k in range(len(indices))], np.float32)
        return {"n": self.first + indices, "own": own}


class OnlyBatches:
    returns_batches = True

    def __len__(self):
        return 3

    def __getitems__(self, indices):
        return indices


KINDS = st.sampled_from([Alone, Together, Batches])


def fetch(dataset, indices, place=7):
    fetched = Fetch(
        dataset,
        split=DatasetSplit.TRAIN,
        seed=1,
        collate_fn=None,
        default_collate=collate,
        generators=PythonGenerators(),
    )(FetchRequest(0, place, np.array(indices, np.int64)))
    return {name: column.tolist() for name, column in fetched.items()}


def build(kinds_and_sizes):
    first, parts = 0, []
    for kind, size in kinds_and_sizes:
        parts.append(kind(size, first))
        first += size
    return parts


@given(
    parts=st.lists(st.tuples(KINDS, st.integers(0, 6)), min_size=1, max_size=5).filter(lambda p: sum(n for _, n in p)),
    data=st.data(),
)
def test_records_of_several_datasets_and_what_they_draw_are_those_of_one(parts, data):
    size = sum(n for _, n in parts)
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=12))
    joined = ConcatDataset(build(parts))
    assert len(joined) == size
    expected = fetch(Alone(size), indices)
    assert fetch(joined, indices) == expected
    assert fetch(ConcatDataset([joined, *build(parts)]), indices) == expected
    nested = ConcatDataset([Subset(joined, range(size))])
    assert fetch(pickle.loads(pickle.dumps(nested)), indices) == expected  # noqa: S301 - our own bytes


@given(kind=KINDS, chosen=st.lists(st.integers(0, 8), min_size=1), data=st.data())
def test_a_subset_gives_the_chosen_records_in_the_dataset_s_own_way(kind, chosen, data):
    part = Subset(kind(9), chosen)
    indices = data.draw(st.lists(st.integers(0, len(chosen) - 1), min_size=1, max_size=12))
    assert len(part) == len(chosen)
    assert callable(part.__getitems__) == (kind is not Alone)
    assert part.returns_batches == (kind is Batches)
    found = fetch(Subset(part, range(len(chosen))), indices)
    assert found["n"] == [chosen[k] for k in indices]
    assert found["own"] == fetch(Alone(99), indices)["own"]


@pytest.mark.parametrize(
    ("kinds", "batched", "whole"),
    [
        ([Alone, Alone], False, False),
        ([Alone, Together], True, False),
        ([Together, Batches], True, False),
        ([Batches, Batches], True, True),
    ],
)
def test_datasets_are_asked_together_where_one_can_be_and_for_batches_where_all_can(kinds, batched, whole):
    joined = ConcatDataset([kind(3) for kind in kinds])
    assert (callable(joined.__getitems__), joined.returns_batches) == (batched, whole)


def test_rows_of_arrays_are_put_in_their_places():
    x, y = np.arange(24.0).reshape(12, 2), np.array([f"r{k}" for k in range(12)])
    joined = ConcatDataset([ArrayDataset({"x": x[a:b], "in": (y[a:b],)}) for a, b in ((0, 3), (3, 3), (3, 12))])
    rows = [11, 0, 4, 2, 2, 9]
    batch = joined.__getitems__(rows)
    np.testing.assert_array_equal(batch["x"], x[rows])
    assert batch["in"] == (y[rows].tolist(),)
    assert joined.__getitems__([])["x"].shape == (0, 2)
    assert joined.global_rng == "off"
    assert ConcatDataset([ArrayDataset(x), Alone(2)]).global_rng == "batch"


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"x": np.zeros(2)}, {"z": np.zeros(2)}, "that of dataset 1 has the fields 'z'; expected 'x' as in that of "),
        ({"x": np.zeros(2)}, {"x": np.zeros(2, "f4")}, "field 'x' of dataset 1 is float32 with rows of shape (); "),
        ((np.zeros(2),), (np.zeros(2, "f4"),), "; expected float64 with rows of shape () as in that of dataset 0"),
        (np.zeros((2, 3)), np.zeros((2, 4)), "the batch of dataset 1 is float64 with rows of shape (4,); expected"),
        (np.zeros(2), np.array(["a", "b"]), "the batch of dataset 1 is a list; expected float64"),
    ],
)
def test_batches_that_do_not_fit_together_are_refused(one, other, message):
    joined = ConcatDataset([ArrayDataset(one), ArrayDataset(other)])
    assert len(joined.__getitems__([0, 1])) > 0
    with pytest.raises(CollateError) as caught:
        joined.__getitems__([0, 3])
    assert message in str(caught.value)


def test_what_is_no_column_cannot_be_joined():
    class Odd(OnlyBatches):
        def __getitems__(self, indices):
            return {"x": 5}

    with pytest.raises(CollateError, match="field 'x' is a int; expected an array or a list"):
        ConcatDataset([Odd(), Odd()]).__getitems__([0, 4])


def test_batches_alone_can_be_joined_with_their_like_only():
    assert ConcatDataset([OnlyBatches(), OnlyBatches()]).__getitems__([0, 4]).tolist() == [0, 1]
    with pytest.raises(InvalidTypeError, match="dataset is a OnlyBatches, which returns batches and no records"):
        ConcatDataset([Together(2), OnlyBatches()])
    with pytest.raises(InvalidTypeError, match="which returns batches and no records"):
        Subset(OnlyBatches(), [0]).get_records([0])


def test_a_dataset_that_returns_too_few_records_is_named():
    class Few(Together):
        def __getitems__(self, indices):
            return []

    with pytest.raises(RecordError, match="__getitems__ of Few returned a list; expected a list of 2 records"):
        fetch(ConcatDataset([Few(3), Alone(3)]), [0, 4, 1])


@pytest.mark.parametrize("wrong", [9, -1])
def test_an_index_out_of_range_is_an_error(wrong):
    joined = ConcatDataset([Together(4), Alone(5)])
    for ask in (joined.__getitem__, lambda index: joined.get_records([0, index])):
        with pytest.raises(IndexError, match=f"index is {wrong}; expected one from 0 to 8"):
            ask(wrong)


def test_iterating_ends_after_the_last_record():
    assert [*ConcatDataset([range(3), range(5, 7)])] == [0, 1, 2, 5, 6]
    assert [*Subset(range(5, 9), [3, 0])] == [8, 5]


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 4], InvalidValueError, "indices of the subset have 4; expected integers from 0 to 3"),
        ([-1], InvalidValueError, "indices of the subset have -1"),
        (np.array([True, False]), InvalidTypeError, r"of dtype bool and shape \(2,\).*numpy.flatnonzero\(mask\)"),
        ([[0, 1]], InvalidTypeError, r"of dtype int64 and shape \(1, 2\)"),
        ([0.5], InvalidTypeError, "of dtype float64"),
    ],
)
def test_indices_that_are_none_are_refused(indices, error, message):
    with pytest.raises(error, match=message):
        Subset(Alone(4), indices)


def test_what_cannot_be_concatenated_is_refused():
    with pytest.raises(InvalidValueError, match="datasets are none; expected at least one"):
        ConcatDataset([])
    with pytest.raises(InvalidTypeError, match="dataset is a generator, which has no length"):
        ConcatDataset([iter(x for x in ())])


def make(kinds, **options):
    joined = ConcatDataset([*build([(kind, 7) for kind in kinds]), Subset(Together(9, 21), [5, 2, 8])])

    def make_loader():
        sampler = ResumableRandomSampler(joined, seed=3, batch_size=4)
        return Loader(joined, sampler, **options), sampler

    return make_loader


@pytest.mark.processes
@pytest.mark.parametrize("kinds", [[Alone, Alone], [Together, Batches]])
def test_a_loader_resumes_and_workers_give_the_same_batches(kinds):
    check_loader_resumes(make(kinds), max_examples=4)
    expected = [str(batch) for batch in make(kinds)()[0]]
    with make(kinds, num_workers=2)()[0] as loader:
        assert [str(batch) for batch in loader] == expected
