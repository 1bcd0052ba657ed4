"""What goes into a tree comes out of it: the same types, the same bits, the same sharing."""

import datetime as dt
import json
import math
import struct
import zoneinfo
from collections import OrderedDict
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parhelion.checkpoint import HostArray, dense_strides, flatten, unflatten
from parhelion.errors import CheckpointError, CheckpointMismatchError, InvalidValueError, UnsavableValueError


def there_and_back(tree, adapter=None):
    skeleton, arrays = flatten(tree, adapter)
    text = json.dumps(skeleton, allow_nan=False)
    copies = {name: HostArray(each.dtype, each.shape, each.data.copy(), each.strides) for name, each in arrays.items()}
    return unflatten(json.loads(text), copies, adapter)


def same(one, other):  # noqa: PLR0911 - one line per kind reads best
    """Equal in type and in every bit, order included."""
    if type(one) is not type(other):
        return False
    match one:
        case dict():
            return len(one) == len(other) and all(
                same(k1, k2) and same(one[k1], other[k2]) for k1, k2 in zip(one, other, strict=True)
            )
        case list() | tuple():
            return len(one) == len(other) and all(map(same, one, other))
        case set() | frozenset():
            return sorted(map(repr, one)) == sorted(map(repr, other))
        case float():
            return struct.pack(">d", one) == struct.pack(">d", other)
        case complex():
            return same((one.real, one.imag), (other.real, other.imag))
        case np.ndarray() | np.generic():
            return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        case dt.datetime():
            return repr(one) == repr(other) and one == other
        case _:
            return one == other


any_text = st.text(st.characters(exclude_categories=()))
any_float = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack(">d", struct.pack(">Q", bits))[0]) | st.floats()
zones = st.none() | st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone)
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    any_float,
    st.builds(complex, any_float, any_float),
    any_text,
    st.binary(max_size=20),
    any_text.filter(lambda text: "\x00" not in text).map(Path),
    st.dates(),
    st.datetimes(timezones=zones),
    st.timedeltas(),
)
keys = st.recursive(
    st.one_of(any_text, st.integers(), any_float, st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
number_dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(endianness="?", min_len=1),
)
arrays = hnp.arrays(number_dtypes, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
laid_out_arrays = arrays.flatmap(
    lambda array: st.sampled_from(
        [array, array.T, array[..., ::-1] if array.ndim else array, array[::2] if array.ndim else array]
    )
)
trees = st.recursive(
    plain | laid_out_arrays | arrays.filter(lambda a: a.size).map(lambda a: a.reshape(-1)[0]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(any_text, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
    ),
    max_leaves=12,
)


@given(trees)
def test_every_tree_comes_back_with_its_types_and_bits(tree):
    assert same(there_and_back(tree), tree)


@given(trees)
def test_the_skeleton_is_strict_json(tree):
    def refuse(token):
        raise AssertionError(token)

    json.loads(json.dumps(flatten(tree)[0], allow_nan=False), parse_constant=refuse)


@given(laid_out_arrays)
def test_an_array_keeps_its_dense_layout(array):
    back = there_and_back(array)
    assert back.flags.writeable
    if array.flags.f_contiguous:
        assert back.flags.f_contiguous
    if array.flags.c_contiguous:
        assert back.flags.c_contiguous


def test_a_permuted_layout_keeps_its_strides():
    array = np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2)
    back = there_and_back(array)
    assert back.strides == array.strides
    assert same(back, array)


@pytest.mark.parametrize(
    "value",
    [
        2**53,
        2**53 + 1,
        -(2**20000),
        -0.0,
        math.inf,
        -math.inf,
        complex(-0.0, math.nan),
        "\ud800",
        "\ud83d\ude00",
        "\N{GRINNING FACE}",
        PurePosixPath("a/b"),
        PureWindowsPath("c:/x"),
        dt.datetime(2024, 10, 27, 2, 30, fold=1),  # noqa: DTZ001 - naive ones must survive too
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET")),
        dt.timedelta.min,
        np.float32("nan"),
        np.datetime64("NaT"),
        np.str_("x\x00"),
        np.bytes_(b"x\x00"),
        np.longdouble(1) / 3,
        np.array(["a\x00b", ""]),
        np.zeros((0, 3), np.complex64),
        np.array(7, ">i2"),
    ],
    ids=lambda value: repr(value) if not isinstance(value, int) else hex(value)[:8],
)
def test_a_delicate_value_survives(value):
    assert same(there_and_back({"value": value}), {"value": value})


def test_a_nan_keeps_its_payload_and_sign():
    (nan,) = struct.unpack(">d", bytes.fromhex("fff8000000000123"))
    assert struct.pack(">d", there_and_back(nan)).hex() == "fff8000000000123"


def test_optimizer_states_keep_their_integer_keys():
    tree = {"state": {0: {"step": 1}, 1: {"step": 2}}, (1, "a", None): 2, True: 3, 1.5: 4}
    assert same(there_and_back(tree), tree)


def test_an_ordered_dict_keeps_what_torch_hangs_on_it():
    state = OrderedDict([("b", 1), ("a", 2)])
    state._metadata = OrderedDict({"": {"version": 2}})
    back = there_and_back(state)
    assert same(back, state)
    assert same(back._metadata, state._metadata)


def test_one_array_at_two_places_comes_back_as_one():
    array = np.arange(6.0)
    tree = there_and_back({"a": array, "b": [array, array[:]], "c": array[1:], "d": array.reshape(2, 3)})
    assert tree["a"] is tree["b"][0]
    assert tree["a"] is tree["b"][1]
    assert not np.shares_memory(tree["a"], tree["c"])
    assert not np.shares_memory(tree["a"], tree["d"])


def test_empty_arrays_are_not_taken_for_one_another():
    # Memory of no size may lie at one address.
    one, other = (np.ndarray(0, float, b"") for _ in range(2))
    a, b, c = there_and_back([one, other, one])
    assert a is c
    assert a is not b


def test_a_set_is_written_in_an_order_of_its_own():
    members = {f"member {number}" for number in range(50)}
    assert flatten(members)[0] == ["set", *sorted(members)]


def test_equal_containers_come_back_apart():
    inner = [1]
    a, b = there_and_back([inner, inner])
    assert a == b
    assert a is not b


def test_contiguous_arrays_are_not_copied():
    array = np.arange(6.0)
    (host,) = flatten([array])[1].values()
    assert np.shares_memory(host.data, array)


def test_arrays_are_named_by_their_paths_and_stay_unique():
    a, b, c, d, e = (np.full(1, value) for value in range(5))
    tree = {"model": {"conv.weight": a, "conv": {"weight": b}}, 0: [c], "odd name": {"__metadata__": d}}
    _, arrays = flatten({**tree, "__metadata__": e})
    assert list(arrays) == [
        "model.conv.weight",
        "model.conv.weight~2",
        "[0][0]",
        "['odd name'].__metadata__",
        "__metadata__~2",
    ]
    assert list(flatten(a)[1]) == ["state"]


class FakeArray:
    """Stands for a framework's array."""

    def __init__(self, dtype, data):
        self.dtype, self.data = dtype, np.asarray(data)


class FakeAdapter:
    def identity(self, leaf):
        return id(leaf.data) if isinstance(leaf, FakeArray) else None

    def encode(self, leaf, path):
        if leaf.dtype == "packed":
            raise UnsavableValueError(f"{path} is packed; expected one that is not. Unpack it.")
        return HostArray(leaf.dtype, leaf.data.shape, leaf.data.reshape(-1).view(np.uint8))

    def decode(self, array):
        if array.dtype == "float8":
            raise RuntimeError("no such thing here")
        return FakeArray(array.dtype, array.data.view(np.float32).reshape(array.shape))


def test_framework_arrays_go_through_the_adapter_and_numpy_ones_do_not():
    leaf = FakeArray("float32", np.float32([[1, 2]]))
    tied = FakeArray("float32", leaf.data)
    back = there_and_back({"w": leaf, "tied": tied, "n": np.float32([3])}, FakeAdapter())
    assert isinstance(back["w"], FakeArray)
    assert back["w"] is back["tied"]
    assert same(back["w"].data, leaf.data)
    assert same(back["n"], np.float32([3]))


def test_without_an_adapter_a_framework_array_is_numpy_where_numpy_has_the_dtype():
    skeleton, arrays = flatten(
        [FakeArray("float32", np.float32([1])), FakeArray("bfloat16", np.uint16([1]))], FakeAdapter()
    )
    known, unknown = unflatten(skeleton, arrays)
    assert same(known, np.float32([1]))
    assert unknown == HostArray("bfloat16", (1,), np.array([1, 0], np.uint8))
    assert same(flatten([known, unknown])[0], [*flatten([known])[0], ["array", "[1]"]])


def test_an_adapter_that_cannot_take_an_array_is_told_by_path():
    skeleton, arrays = flatten({"w": FakeArray("float8", np.uint8([1]))}, FakeAdapter())
    with pytest.raises(CheckpointMismatchError, match=r"^w is an array of float8 and shape \(1,\); expected"):
        unflatten(skeleton, arrays, FakeAdapter())


def test_a_dtype_that_numpy_lacks_is_told_by_path():
    host = HostArray("<f99", (1,), np.zeros(8, np.uint8))
    with pytest.raises(CheckpointMismatchError, match=r"^x has the dtype '<f99'; expected one that NumPy knows"):
        unflatten({"x": ["ndarray", "x"]}, {"x": host})


@pytest.mark.parametrize("dtype", ["|O", "<f4,<f4", "object"])
def test_no_dtype_name_makes_an_array_of_objects(dtype):
    host = HostArray(dtype, (1,), np.zeros(8, np.uint8))
    with pytest.raises(CheckpointMismatchError):
        unflatten(["ndarray", "x"], {"x": host})


@pytest.mark.parametrize(
    "skeleton",
    [["no such tag"], ["array", "missing"], ["int"], ["bytes", "?"], [], ["dict", [[]]], [[]]],
)
def test_a_malformed_skeleton_is_an_error_that_names_the_place(skeleton):
    with pytest.raises(CheckpointError, match=r"the skeleton at a.b is malformed"):
        unflatten({"a": {"b": skeleton}}, {})


@given(hnp.array_shapes(max_dims=4, max_side=3), st.data())
def test_dense_strides_are_those_of_a_permutation(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    array = np.empty(shape).transpose(order)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    expected = None if array.flags.c_contiguous else strides
    found = dense_strides(array.shape, strides)
    assert found == expected or (expected is None and np.empty(array.shape).strides != array.strides)


def test_strides_with_gaps_overlaps_or_a_wrong_number_are_not_dense():
    assert dense_strides((2, 2), (4, 1)) is None
    assert dense_strides((2, 2), (0, 1)) is None
    assert dense_strides((2,), (-1,)) is None
    assert dense_strides((2, 3), (1, 2)) == (1, 2)


@pytest.mark.parametrize("strides", [(1000, 1), (0, 0), (3, 1), (-1, 2)])
def test_strides_that_would_leave_the_memory_are_refused(strides):
    with pytest.raises(InvalidValueError, match=r"strides of an array of shape \(2, 3\) are .*; expected a dense"):
        HostArray("float32", (2, 3), np.zeros(24, np.uint8), strides)


def test_a_zone_from_the_database_is_refused_with_a_way_out():
    moment = dt.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC"))
    with pytest.raises(UnsavableValueError, match=r"^when is a datetime in the time zone .*astimezone"):
        flatten({"when": moment})
