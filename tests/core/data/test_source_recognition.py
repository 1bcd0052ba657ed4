from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest

from parhelion.data import ArrayDataset, ArrowDataset, as_batched
from parhelion.errors import InvalidValueError


class Pair(NamedTuple):
    x: Any
    y: Any


@attrs.frozen
class Columns:
    x: Any
    y: Any


class Indexed:
    def __getitem__(self, index):
        return index

    def __len__(self):
        return 3


@attrs.frozen
class IndexedColumns(Indexed):
    x: Any


X, Y = np.zeros((5, 2)), np.arange(5)


@pytest.mark.parametrize(
    "source",
    [X, {"x": X, "y": {"z": Y}}, (X, Y), ({"x": X}, Y), Pair(X, Y), Columns(X, Y), np.array(["a", "b"])],
    ids=lambda source: type(source).__name__,
)
def test_arrays_in_any_tree_become_a_dataset_of_arrays(source):
    assert type(as_batched(source)) is ArrayDataset


def test_a_table_becomes_a_dataset_of_its_rows():
    pa = pytest.importorskip("pyarrow")
    assert type(as_batched(pa.table({"x": [1]}))) is ArrowDataset


@pytest.mark.parametrize(
    "dataset",
    [
        Indexed(),
        IndexedColumns(X),
        [X, X],
        [{"x": X}],
        range(4),
        {0: X, 1: X},
        {"x": [1, 2]},
        {"x": X, "how": "text"},
        {},
        (),
        (X,) * 5,
        (X, 5),
        np.ma.zeros(3),
        np.array([None]),
        np.float32(3),
        ArrayDataset(X),
        "text",
    ],
    ids=lambda dataset: f"{type(dataset).__name__}",
)
def test_what_is_a_dataset_already_or_none_that_is_known_stays_as_it_is(dataset):
    assert as_batched(dataset) is dataset


def test_arrays_that_do_not_fit_are_refused_here():
    with pytest.raises(InvalidValueError, match="have 5 and 4 rows"):
        as_batched({"x": X, "y": np.zeros(4)})
