import pickle
import random
import re

import numpy as np
import pytest

from parhelion.data import DatasetSplit, Fetch, Records, collate
from parhelion.errors import InvalidTypeError, InvalidValueError, RecordError, SampleScopeError
from parhelion.generators import PythonGenerators
from parhelion.sampling import FetchRequest
from parhelion.seeds import sample_rng, sample_scope

TRAIN, VALID, TEST = DatasetSplit


class Draws:
    """Each record is its index and what every generator gives."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        assert type(index) is int
        return {"index": index, "own": sample_rng().random(), "others": (random.random(), np.random.randn())}


class Together(Draws):
    def __getitems__(self, indices):
        assert all(type(index) is int for index in indices)
        return [{"index": index, "own": sample_rng(k).random()} for k, index in enumerate(indices)]


class Batches:
    returns_batches = True

    def __init__(self, change=lambda batch: batch):
        self.change = change

    def __len__(self):
        return 50

    def __getitems__(self, indices):
        assert indices.dtype == np.int64
        return self.change({"x": indices * 2, "own": np.array([sample_rng(k).random() for k in range(len(indices))])})


class Fails(Draws):
    def __getitem__(self, index):
        if index == 17:
            raise KeyError("no such file")
        return index


def fetch(dataset=None, split=TRAIN, seed=1, collate_fn=list, **options):
    return Fetch(
        Draws() if dataset is None else dataset,
        split=split,
        seed=seed,
        collate_fn=collate_fn,
        default_collate=collate,
        generators=PythonGenerators(),
        **options,
    )


def request(*indices, epoch=0, place=0):
    return FetchRequest(epoch, place, np.array(indices, np.int64))


def test_a_record_draws_by_its_place_whatever_batch_it_is_in():
    whole = fetch(global_rng="sample")(request(5, 6, 7, 8, place=10))
    parts = [fetch(global_rng="sample")(request(5 + k, place=10 + k))[0] for k in (3, 0, 2, 1)]
    assert whole == [parts[k] for k in (1, 3, 2, 0)]


def test_the_own_stream_of_a_record_does_not_depend_on_the_batch_in_any_mode():
    whole = [record["own"] for record in fetch()(request(5, 6, 7, place=10))]
    assert fetch(global_rng="off")(request(7, place=12))[0]["own"] == whole[2]
    assert fetch(Together())(request(7, place=12))[0]["own"] == whole[2]
    batch = fetch(Batches(), collate_fn=None)(request(5, 6, 7, place=10))
    assert batch["own"].tolist() == whole


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"split": VALID}, {"split": TEST}, {"request": {"place": 4}}, {"request": {"epoch": 1}}],
)
def test_split_seed_epoch_and_place_each_change_what_is_drawn(other):
    where = other.pop("request", {})
    one, another = fetch()(request(3, place=3))[0], fetch(**other)(request(3, **{"place": 3, **where}))[0]
    assert one["own"] != another["own"]
    assert all(a != b for a, b in zip(one["others"], another["others"], strict=True))


@pytest.mark.parametrize("split", [VALID, TEST])
def test_evaluation_draws_the_same_in_every_epoch(split):
    asked = fetch(split=split)
    assert asked(request(3, epoch=0)) == asked(request(3, epoch=7))


def test_a_sample_scope_by_hand_draws_what_the_fetch_drew():
    with sample_scope(1, epoch=2, place=9, split=1):
        by_hand = sample_rng().random()
    assert fetch(split=VALID)(request(3, epoch=5, place=9))[0]["own"] != by_hand
    assert fetch(split=TRAIN)(request(3, epoch=2, place=9))[0]["own"] != by_hand
    with sample_scope(1, epoch=2, place=9):
        by_hand = sample_rng().random()
    assert fetch()(request(3, epoch=2, place=9))[0]["own"] == by_hand


def test_by_batch_the_global_streams_are_keyed_by_the_first_place():
    batch = fetch()(request(5, 6, place=10))
    assert batch[0]["others"] == fetch(global_rng="sample")(request(5, place=10))[0]["others"]
    assert batch == fetch()(request(5, 6, place=10))
    assert batch[1]["others"] != fetch()(request(6, place=11))[0]["others"]


def test_off_leaves_the_global_streams_to_whoever_draws():
    random.seed(3)
    expected = random.random()
    random.seed(3)
    assert fetch(global_rng="off")(request(5))[0]["others"][0] == expected


@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_a_fetch_leaves_the_training_streams_where_they_were_also_when_it_fails(mode):
    random.seed(3)
    np.random.seed(3)
    np.random.randn()
    expected = (random.getstate(), repr(np.random.get_state()))
    fetch(global_rng=mode)(request(5, 6))
    with pytest.raises(RecordError):
        fetch(Fails(), global_rng=mode)(request(17))
    assert (random.getstate(), repr(np.random.get_state())) == expected


def test_in_a_worker_the_streams_are_keyed_and_not_put_back():
    batch = fetch()(request(5, 6, place=10))
    random.seed(3)
    assert fetch()(request(5, 6, place=10), in_worker=True) == batch
    after = random.random()
    random.seed(4)
    fetch()(request(5, 6, place=10), in_worker=True)
    assert random.random() == after


def test_a_dataset_may_say_itself_how_the_global_streams_are_keyed():
    class Calm(Draws):
        global_rng = "off"

    assert fetch(Calm()).global_rng == "off"
    assert fetch(Calm(), global_rng="sample").global_rng == "sample"
    assert fetch(Draws()).global_rng == "batch"


def test_a_collate_function_draws_from_keyed_streams_of_its_own():
    def mix(records):
        return (
            [record["own"] for record in records],
            sample_rng(0).random(),
            sample_rng(1).random(),
            random.random(),
        )

    own, first, second, other = fetch(collate_fn=mix)(request(5, 6, place=10))
    assert (own, first, second, other) == fetch(collate_fn=mix)(request(5, 6, place=10))
    assert len({*own, first, second}) == 4
    assert other != fetch(collate_fn=mix)(request(5, 6, place=12))[3]


def test_a_collate_function_must_name_the_record_that_it_draws_for():
    with pytest.raises(SampleScopeError, match=r"sample_rng\(\) was called without k inside .* a collate function"):
        fetch(collate_fn=lambda records: sample_rng())(request(5))


def test_a_collate_function_gets_a_list_of_records_that_knows_its_indices():
    records = fetch(Fails(), collate_fn=lambda records: records)(request(4, 2))
    assert records == [4, 2]
    assert isinstance(records, list)
    assert records.indices == [4, 2]
    again = pickle.loads(pickle.dumps(records))  # noqa: S301 - our own bytes
    assert (type(again), again, again.indices) == (Records, [4, 2], [4, 2])


def test_without_a_collate_function_records_are_stacked_and_ready_batches_are_not():
    assert fetch(Together(), collate_fn=None)(request(4, 2))["index"].tolist() == [4, 2]
    assert fetch(Batches(), collate_fn=None)(request(4, 2))["x"].tolist() == [8, 4]
    assert fetch(Batches(), collate_fn=lambda batch: batch["x"].sum())(request(4, 2)) == 12


def test_a_failing_record_is_named_and_its_error_chained():
    with pytest.raises(
        RecordError, match=r"record with sample index 17 of Fails failed .KeyError: 'no such file'"
    ) as caught:
        fetch(Fails())(request(4, 17, 2))
    assert isinstance(caught.value.__cause__, KeyError)


def test_records_that_fail_together_are_all_named():
    class FailsTogether(Draws):
        def __getitems__(self, indices):
            raise OSError

    with pytest.raises(
        RecordError, match=r"sample indices 4, 17 of FailsTogether failed together \(OSError\)"
    ) as caught:
        fetch(FailsTogether())(request(4, 17))
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(RecordError, match=re.escape("indices 0, 1, 2, 3, 4, 5, 6, 7, ... (64 in all) of")):
        fetch(FailsTogether())(request(*range(64)))


def test_drawing_for_several_records_without_saying_which_names_the_way_out():
    class Forgets(Draws):
        def __getitems__(self, indices):
            return [sample_rng().random() for _ in indices]

    with pytest.raises(RecordError, match=r"call sample_rng\(k\)"):
        fetch(Forgets())(request(1, 2))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([1], "returned 1 records for sample indices 4, 17; expected one for each index"),
        ({"x": np.zeros(2)}, "returned a dict for sample indices 4, 17; expected a list of records"),
        ((1, 2), "returned a tuple for sample indices 4, 17; expected a list of records"),
    ],
)
def test_the_wrong_number_or_kind_of_records_is_an_error(made, message):
    class Wrong(Draws):
        def __getitems__(self, indices):
            return made

    with pytest.raises(RecordError, match=message) as caught:
        fetch(Wrong())(request(4, 17))
    assert "returns_batches = True" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda batch: batch["x"][:1], "(1,)"),
        (lambda batch: {"a": [batch["x"], batch["x"], (np.zeros((3, 2)),)]}, "(3, 2)"),
        (lambda batch: np.float32(1), "()"),
    ],
)
def test_a_ready_batch_with_the_wrong_number_of_rows_is_an_error(change, found):
    message = f"of Batches returned an array of shape {found} for sample indices 4, 17; expected 2 rows"
    with pytest.raises(RecordError, match=re.escape(message)):
        fetch(Batches(change))(request(4, 17))


def test_a_dataset_that_cannot_be_indexed_is_refused():
    with pytest.raises(InvalidTypeError, match="dataset is set, which has neither __getitem__ nor __getitems__"):
        fetch({1, 2})


def test_an_unknown_global_rng_is_refused():
    with pytest.raises(InvalidValueError, match="global_rng is 'epoch'; expected 'batch'"):
        fetch(global_rng="epoch")


def test_global_streams_cannot_be_keyed_per_sample_where_records_are_fetched_together():
    with pytest.raises(InvalidValueError, match=r"global_rng is 'sample' and Together fetches .* sample_rng\(k\)"):
        fetch(Together(), global_rng="sample")


def test_a_fetch_can_be_pickled():
    again = pickle.loads(pickle.dumps(fetch()))  # noqa: S301 - our own bytes
    assert again(request(5, 6)) == fetch()(request(5, 6))
