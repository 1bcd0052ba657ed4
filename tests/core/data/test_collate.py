import collections
import dataclasses
import enum
import re

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from parhelion.data import COLLATE_FN_REGISTRY, collate, stack_arrays
from parhelion.data._fetch import Records
from parhelion.data._memory import make_batches_in
from parhelion.errors import CollateError

Pair = collections.namedtuple("Pair", ["left", "right"])  # noqa: PYI024 - the untyped kind is what is tested


@attrs.frozen
class Digit:
    image: object
    label: int = attrs.field(validator=attrs.validators.instance_of(int))


@dataclasses.dataclass(frozen=True)
class Box:
    size: object
    name: object

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise TypeError("one box has one name")


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Arraylike:
    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        return np.array(self.value, dtype)


DTYPES = ["uint8", "int16", "int64", "float16", "float32", "float64", "complex64", "?", ">i4"]
KINDS = ["int", "float", "bool", "complex", "text", *DTYPES]
shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
leaves = st.tuples(st.just("leaf"), st.sampled_from(KINDS), shapes)


def branches(children):
    return (
        st.tuples(st.just("dict"), st.dictionaries(st.text(max_size=3), children, max_size=3))
        | st.tuples(st.sampled_from(["list", "tuple"]), st.lists(children, max_size=3))
        | st.tuples(st.sampled_from(["named", "attrs", "dataclass"]), st.lists(children, min_size=2, max_size=2))
    )


trees = st.recursive(leaves, branches, max_leaves=6)


def values(kind, shape):
    plain = {
        "int": st.integers(-(2**63), 2**63 - 1),
        "float": st.floats(width=32),
        "bool": st.booleans(),
        "complex": st.complex_numbers(width=64),
        "text": st.text(max_size=3),
    }
    return plain[kind] if kind in plain else npst.arrays(np.dtype(kind), shape)


def build(kind, parts):
    if kind in {"list", "tuple"}:
        return parts if kind == "list" else tuple(parts)
    if kind == "named":
        return Pair(*parts)
    cls = Digit if kind == "attrs" else Box
    record = object.__new__(cls)
    for field, part in zip(cls.__annotations__, parts, strict=True):
        object.__setattr__(record, field, part)
    return record


@st.composite
def records(draw, tree):
    if tree[0] == "leaf":
        return draw(values(tree[1], tree[2]))
    if tree[0] == "dict":
        return {key: draw(records(child)) for key, child in tree[1].items()}
    return build(tree[0], [draw(records(child)) for child in tree[1]])


def assert_row(batch, place, record, tree):
    if tree[0] == "leaf":
        row, expected = batch[place], record
        if tree[1] in DTYPES:
            assert batch.dtype == np.dtype(tree[1])
            assert batch[place : place + 1].tobytes() == expected.tobytes()
        else:
            assert row == expected or (row != row and expected != expected)  # noqa: PLR0124 - NaN
        return
    assert type(batch) is type(record)
    if tree[0] == "dict":
        assert list(batch) == list(record)
        for key, child in tree[1].items():
            assert_row(batch[key], place, record[key], child)
    elif tree[0] in {"list", "tuple", "named"}:
        assert len(batch) == len(record)
        for part, expected, child in zip(batch, record, tree[1], strict=True):
            assert_row(part, place, expected, child)
    else:
        for field, child in zip(type(record).__annotations__, tree[1], strict=True):
            assert_row(getattr(batch, field), place, getattr(record, field), child)


@given(st.data())
def test_row_k_of_a_batch_is_record_k_whatever_the_tree(data):
    tree = data.draw(trees)
    batch = data.draw(st.lists(records(tree), min_size=1, max_size=4))
    stacked = collate(batch)
    for place, record in enumerate(batch):
        assert_row(stacked, place, record, tree)


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        ([1, 2], "int64"),
        ([1.5, 2.5], "float32"),
        ([True, False], "bool"),
        ([1j, 2.0 + 0j], "complex64"),
        ([Level.LOW, Level.HIGH], "int64"),
        ([np.int16(1), np.int16(2)], "int16"),
        ([np.float64(1), np.float64(2)], "float64"),
        ([np.array(1, np.uint8), np.array(2, np.uint8)], "uint8"),
        ([1, np.int64(2)], "int64"),
        ([Arraylike([1, 2]), Arraylike([3, 4])], "int64"),
        ([np.datetime64("2020-01-01", "D")] * 2, "datetime64[D]"),
    ],
)
def test_numbers_and_arrays_get_the_promised_dtype(column, dtype):
    assert collate([{"x": value} for value in column])["x"].dtype == np.dtype(dtype)


def test_strings_and_bytes_become_a_list():
    batch = collate([{"name": "a", "raw": b"1"}, {"name": "bc", "raw": b"2"}])
    assert batch == {"name": ["a", "bc"], "raw": [b"1", b"2"]}


def test_a_batch_of_attrs_or_dataclass_records_is_made_without_their_constructors():
    digits = collate([Digit(np.zeros(2), 1), Digit(np.ones(2), 2)])
    assert isinstance(digits, Digit)
    assert digits.label.tolist() == [1, 2]
    boxes = collate([Box(1, "a"), Box(2, "b")])
    assert isinstance(boxes, Box)
    assert boxes.name == ["a", "b"]


def test_another_mapping_keeps_its_type():
    ordered = collate([collections.OrderedDict(a=1), collections.OrderedDict(a=2)])
    assert type(ordered) is collections.OrderedDict
    counted = collate([collections.defaultdict(int, a=1), collections.defaultdict(int, a=2)])
    assert counted.default_factory is int
    assert counted["a"].tolist() == [1, 2]


def test_a_batch_of_one_record_shares_no_memory_with_it():
    array = np.zeros(3)
    assert not np.shares_memory(collate([array]), array)


def test_strided_arrays_are_stacked_by_value():
    array = np.arange(12).reshape(3, 4)
    assert collate([array.T, array.T[::-1]])[1].tolist() == array.T[::-1].tolist()


def test_a_backend_may_stack_the_leaves_itself():
    assert collate([{"x": 1, "y": ("a", 2)}, {"x": 3, "y": ("b", 4)}], stack=sum) == {
        "x": 4,
        "y": (["a", "b"], 6),
    }


def test_stack_arrays_fills_memory_where_this_process_makes_its_batches():
    made = []

    def allocate(shape, dtype):
        made.append(np.empty(shape, dtype))
        return made[0]

    make_batches_in(allocate)
    try:
        assert stack_arrays([np.ones(40_000), np.zeros(40_000)]) is made[0]
    finally:
        make_batches_in(np.empty)
    assert made[0][:, -1].tolist() == [1, 0]


def test_the_default_collate_function_is_registered():
    assert COLLATE_FN_REGISTRY.get("default") is collate


ok = {"image": np.zeros(2, np.float32), "label": 1, "boxes": [{"name": "a"}]}


@pytest.mark.parametrize(
    ("record", "field", "message"),
    [
        ({**ok, "label": None}, "label", "None; expected an int as in the batch's first record"),
        ({**ok, "label": 0.5}, "label", "0.5 (float); expected an int"),
        ({**ok, "label": True}, "label", "True (bool); expected an int"),
        ({**ok, "label": 2**63}, "label", f"{2**63} (int); expected an integer that fits in 64 bits"),
        (
            {**ok, "image": np.zeros(3, "f4")},
            "image",
            "ndarray of shape (3,) and dtype float32; expected ndarray",
        ),
        ({**ok, "image": np.zeros(2)}, "image", "ndarray of shape (2,) and dtype float64; expected ndarray"),
        ({**ok, "image": [0.0, 0.0]}, "image", "list of length 2; expected ndarray of shape (2,)"),
        ({**ok, "boxes": []}, "boxes", "list of length 0; expected length 1"),
        (
            {**ok, "boxes": [{}]},
            "boxes[0].name",
            "missing; expected the keys of the batch's first record, 'name'",
        ),
        ({**ok, "boxes": [{"name": 1}]}, "boxes[0].name", "1 (int); expected a str"),
        ({**ok, "extra": 1}, "extra", "there; expected only the keys of the batch's first record, 'image',"),
        ([1, 2], None, "list of length 2; expected a dict"),
        (None, None, "None; expected a dict"),
    ],
)
def test_a_record_that_does_not_fit_is_named_with_its_sample_index_and_field(record, field, message):
    where = "sample index 17 (record 1 of the batch) is "
    where = f"records cannot be collated: {where if field is None else f'field {field!r} of {where}'}"
    with pytest.raises(CollateError, match=re.escape(where + message)):
        collate(Records([ok, record, ok], [4, 17, 9]))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "is None; expected a number, an array, a string, or a dict"),
        ({1, 2}, "is a set; expected a number"),
        (object(), "is an object; expected a number"),
        (np.array("text"), "an array of dtype <U4 has no place in a batch"),
        (np.array([None]), "an array of dtype object has no place in a batch"),
        (np.ma.masked_array([1, 2], [True, False]), "a masked array would lose its mask"),
    ],
)
def test_what_cannot_be_stacked_at_all_is_named(value, found):
    with pytest.raises(CollateError, match=re.escape(found)) as caught:
        collate([{"x": value}, {"x": value}])
    assert "field 'x' of record 0 of the batch" in str(caught.value)


def test_the_reason_is_chained():
    with pytest.raises(CollateError) as caught:
        collate([np.zeros(2), np.zeros(3)])
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_collate_error_is_a_type_error():
    with pytest.raises(TypeError, match="there are none; expected at least one record"):
        collate([])


def test_shapes_that_only_add_up_are_refused():
    # Four and two rows have the size of three and three.
    with pytest.raises(CollateError, match="shape"):
        collate([np.zeros((3, 2)), np.zeros((4, 2)), np.zeros((2, 2))])


def test_a_list_is_no_array_even_if_its_numbers_would_fit():
    with pytest.raises(CollateError, match="record 1 of the batch is list of length 2; expected ndarray"):
        collate([np.array([1, 2]), [1, 2]])


def test_datetimes_of_two_units_are_refused():
    with pytest.raises(CollateError, match="dtype datetime64"):
        collate([np.datetime64("2020-01-01", "D"), np.datetime64("2020-01-01T01", "h")])
