import pickle

import numpy as np
import pytest

from parhelion.data import ArrowDataset, HuggingFaceDataset, Loader, as_batched, collate
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import ResumableRandomSampler
from parhelion.testing import check_loader_resumes

datasets = pytest.importorskip("datasets")

SIZE = 29


def make(**more):
    columns = {
        "x": [[float(k), k + 0.5] for k in range(SIZE)],
        "y": list(range(SIZE)),
        "ok": [k % 2 == 0 for k in range(SIZE)],
        "name": [f"record {k}" for k in range(SIZE)],
        "ragged": [[*range(k % 4)] for k in range(SIZE)],
    }
    return datasets.Dataset.from_dict(columns | more)


WAYS = {
    "as it is": lambda data: data,
    "selected": lambda data: data.select([5, 3, 28, 3, 0, 9]),
    "a slice": lambda data: data.select(range(7, 20)),
    "shuffled": lambda data: data.shuffle(seed=3),
    "shuffled, then selected": lambda data: data.shuffle(seed=3).select([4, 0, 11, 7, 5]),
    "filtered": lambda data: data.filter(lambda record: record["y"] % 3 == 1),
    "in parts": lambda data: datasets.concatenate_datasets([data, data.select(range(5))]),
    "numpy": lambda data: data.with_format("numpy"),
    "chosen columns": lambda data: data.with_format("numpy", columns=["y", "ragged"]),
    "chosen columns and the rest": lambda data: data.with_format(None, columns=["y"], output_all_columns=True),
}


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_has_the_records_that_the_dataset_gives(way):
    data = WAYS[way](make())
    source = HuggingFaceDataset(data)
    assert source.returns_batches
    assert len(source) == len(data)
    indices = [4, 0, 2, 2, 3]
    batch = source.__getitems__(np.array(indices))
    expected = data.with_format(None, columns=[*data.format["columns"]])
    if data.format["output_all_columns"]:
        expected = data.with_format(None)
    for name, column in expected[indices].items():
        values = [getattr(value, "tolist", lambda v=value: v)() for value in batch.pop(name)]
        assert values == list(column), name
    assert batch == {}
    records = source.get_records(indices)
    for record, index in zip(records, indices, strict=True):
        assert str(record) == str(source[index])


def test_dtypes_are_those_of_collation_and_of_the_numpy_format():
    features = datasets.Features({
        "i": datasets.Value("int8"),
        "d": datasets.Value("float64"),
        "b": datasets.Value("bool"),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "grid": datasets.Array2D((2, 3), "uint8"),
        "pair": datasets.List(datasets.Value("float64"), length=2),
        "inner": {"n": datasets.Value("int16"), "t": datasets.Value("string")},
    })  # fmt: skip
    row = {"i": 3, "d": 0.5, "b": True, "label": 1, "grid": [[1, 2, 3], [4, 5, 6]], "pair": [1.0, 2.0]}
    data = datasets.Dataset.from_list([row | {"inner": {"n": 7, "t": "a"}}] * 4, features=features)
    for given, one in ((data, np.float32), (data.with_format("numpy", dtype=np.float64), np.float64)):
        batch = HuggingFaceDataset(given).__getitems__([1, 3])
        whole = np.int64 if one is np.float32 else one
        assert {name: batch[name].dtype for name in ("i", "d", "label", "pair", "grid")} == {
            "i": whole, "d": one, "label": whole, "pair": one, "grid": whole
        }  # fmt: skip
        assert batch["b"].dtype == np.bool_
        assert (batch["grid"].shape, batch["grid"][0].tolist()) == ((2, 2, 3), row["grid"])
        assert (batch["inner"]["n"].tolist(), batch["inner"]["t"]) == ([7, 7], ["a", "a"])
    theirs, ours = data.with_format("numpy")[[1, 3]], HuggingFaceDataset(data).__getitems__([1, 3])
    for name in ("d", "label", "pair", "grid"):
        np.testing.assert_array_equal(theirs[name], ours[name])
        assert theirs[name].dtype == ours[name].dtype
    assert ArrowDataset(data.select_columns(["i", "d"]).data.table).__getitems__([0])["d"].dtype == np.float64


def test_lists_that_are_equally_long_everywhere_become_an_axis_and_others_stay_lists():
    nested = [[[k, 1], [2, 3]] for k in range(SIZE)]
    batch = HuggingFaceDataset(make(nested=nested)).__getitems__([1, 5])
    assert batch["x"].shape == (2, 2)
    assert batch["nested"].tolist() == [nested[1], nested[5]]
    assert [part.tolist() for part in batch["ragged"]] == [[0], [0]]
    assert all(part.dtype == np.int64 for part in batch["ragged"])


def test_a_batch_is_what_its_records_stack_to():
    data = make().remove_columns("ragged")
    batch = HuggingFaceDataset(data).__getitems__([3, 1])
    stacked = collate(HuggingFaceDataset(data).get_records([3, 1]))
    plain = collate([{"y": data[k]["y"], "ok": data[k]["ok"], "name": data[k]["name"]} for k in (3, 1)])
    assert str(stacked) == str(batch)
    assert {name: getattr(part, "dtype", list) for name, part in plain.items()} == {
        name: getattr(batch[name], "dtype", list) for name in plain
    }


def test_with_a_transform_of_its_own_records_are_asked_for_together():
    asked = []

    def double(batch):
        asked.append(len(batch["y"]))
        return {"twice": [2 * y for y in batch["y"]]}

    source = HuggingFaceDataset(make().with_transform(double))
    assert not source.returns_batches
    assert source.global_rng == "batch"
    assert source.__getitems__([3, 1, 4]) == [{"twice": 6}, {"twice": 2}, {"twice": 8}]
    assert source.get_records([5]) == [{"twice": 10}]
    assert source[7] == {"twice": 14}
    assert asked == [3, 1, 1]


def test_a_column_that_must_be_decoded_is_left_to_the_dataset():
    class Stamp:
        def decode_example(self, value):
            return value

    from parhelion.data import _huggingface as module

    assert module._decodes({"a": [{"b": Stamp()}]})
    assert module._decodes(datasets.Features({"i": datasets.List(datasets.Image())}))
    assert not module._decodes(make().features)


def test_nulls_are_named_or_filled():
    data = datasets.Dataset.from_dict({"y": [1, None, 3]})
    with pytest.raises(InvalidValueError, match="column 'y' has a null in row 1"):
        HuggingFaceDataset(data)
    assert HuggingFaceDataset(data, fill_null=-1).__getitems__([1, 2])["y"].tolist() == [-1, 3]


def test_it_can_be_pickled():
    source = HuggingFaceDataset(make().shuffle(seed=1))
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own bytes
    assert str(again.__getitems__([3, 1])) == str(source.__getitems__([3, 1]))


def test_what_is_no_dataset_of_theirs_is_refused():
    with pytest.raises(InvalidTypeError, match=r"dataset is a DatasetDict; .*pass one split"):
        HuggingFaceDataset(datasets.DatasetDict(train=make()))
    with pytest.raises(IndexError, match="index is 29; expected one from 0 to 28"):
        HuggingFaceDataset(make()).__getitems__([0, 29])


def test_it_is_recognized_unless_records_are_its_way():
    assert type(as_batched(make())) is HuggingFaceDataset
    custom = make().with_transform(lambda batch: batch)
    assert as_batched(custom) is custom


def make_loader(**options):
    data = make().remove_columns("ragged").shuffle(seed=2)

    def create():
        sampler = ResumableRandomSampler(data, seed=3, batch_size=4)
        return Loader(as_batched(data), sampler, seed=1, **options), sampler

    return create


@pytest.mark.processes
def test_a_loader_resumes_and_workers_give_the_same_batches():
    check_loader_resumes(make_loader(), max_examples=4)
    expected = [str(batch) for batch in make_loader()()[0]]
    with make_loader(num_workers=2)()[0] as loader:
        assert [str(batch) for batch in loader] == expected
