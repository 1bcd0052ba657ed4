"""Host batches to one device, and values back; several devices are in tests/support/*_facts.py."""

from __future__ import annotations

import collections
import dataclasses
import enum
import gc
import logging
import weakref
from typing import Any, ClassVar, NamedTuple

import attrs
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

pytest.importorskip("parhelion_jax")

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion_jax.mesh import choose_mesh
from parhelion_jax.narrowing import _tell_narrowing
from parhelion_jax.placement import Placement, move

PLACEMENT = Placement(choose_mesh(gpus=[0]))
DEVICE = jax.devices()[0]


class Pair(NamedTuple):
    x: Any
    y: Any


class Kind(enum.Enum):
    TRAIN = "train"


@attrs.frozen
class Frozen:
    x: Any
    name: str = "a"
    kind: Kind = Kind.TRAIN
    twice: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "twice", (self.x, self.x))


@dataclasses.dataclass(frozen=True)
class Record:
    x: Any
    seed: dataclasses.InitVar[int] = 0
    kind: ClassVar[str] = "record"
    note: str = dataclasses.field(default="b", init=False)


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any


class Named(dict):
    def names(self) -> list[str]:
        return list(self)


class Batch(list):
    def first(self) -> Any:
        return self[0]


class Triple(tuple):
    __slots__ = ()

    def __new__(cls, a, b, c):
        return super().__new__(cls, (a, b, c))


X = np.arange(6, dtype=np.float32).reshape(2, 3)
NESTED = {
    "dict": lambda: {"x": X, "deep": {"y": [X, (X, Pair(X, X))]}},
    "list": lambda: [X, 3, None],
    "tuple": lambda: (X, [X]),
    "named tuple": lambda: Pair(X, {"y": X}),
    "attrs": lambda: Frozen(X),
    "dataclass": lambda: Record(X),
    "slots": lambda: Slotted([X]),
    "ordered": lambda: collections.OrderedDict(b=X, a=X),
    "default": lambda: collections.defaultdict(list, x=X),
    "subclass": lambda: Named(x=X, a=X),
    "list subclass": lambda: Batch([X, X]),
    "tuple subclass": lambda: Triple(X, 1, X),
    "record in record": lambda: Slotted([Frozen(X), Named(x=Record(X))]),
}


def host_arrays(value: Any) -> int:
    leaves = jax.tree_util.tree_leaves(value)
    return sum(isinstance(leaf, np.ndarray) for leaf in leaves)


@pytest.mark.parametrize("kind", NESTED)
def test_every_array_in_nested_containers_is_placed_and_their_kinds_stay(kind) -> None:
    batch = NESTED[kind]()
    placed = PLACEMENT.place(batch)
    arrays = [leaf for leaf in jax.tree_util.tree_leaves(placed) if hasattr(leaf, "shape")]
    assert type(placed) is type(batch)
    assert len(arrays) == host_arrays(batch) >= 1  # the batch itself is not changed
    for array in arrays:
        assert isinstance(array, jax.Array)
        assert array.committed
        assert array.sharding == PLACEMENT.batch_sharding
        np.testing.assert_array_equal(array, X)
    if kind == "subclass":
        assert placed.names() == ["x", "a"]
    if kind == "list subclass":
        assert placed.first() is placed[0]
    if kind == "default":
        assert placed["new"] == []
    if kind == "dataclass":
        assert (placed.note, placed.kind) == ("b", "record")
        assert set(vars(placed)) == {"x", "note"}  # what belongs to the class stays there


@pytest.mark.parametrize("kind", NESTED)
def test_a_compiled_function_takes_what_was_placed_and_is_compiled_once(kind) -> None:
    double = jax.jit(lambda batch: jax.tree.map(lambda leaf: leaf * 2, batch))
    for _ in range(3):
        doubled = double(PLACEMENT.place(NESTED[kind]()))
    assert type(doubled) is type(NESTED[kind]())
    assert double._cache_size() == 1


def test_text_and_members_of_a_record_are_part_of_its_structure() -> None:
    one, other = (jax.tree_util.tree_structure(PLACEMENT.place(Frozen(X, name))) for name in "ab")
    assert one != other
    assert jax.tree.map(lambda leaf: leaf, PLACEMENT.place(Frozen(X))).kind is Kind.TRAIN


def test_what_is_placed_already_is_handed_through() -> None:
    batch = PLACEMENT.place({"x": X, "y": X})
    assert PLACEMENT.place(batch) is batch
    again = PLACEMENT.place([batch["x"], (batch["y"], X)])
    assert again[0] is batch["x"]
    assert again[1][0] is batch["y"]


def test_an_array_that_could_be_anywhere_is_bound_to_the_device() -> None:
    placed = PLACEMENT.place({"x": jnp.ones(3)})["x"]
    assert placed.committed
    assert type(placed.sharding) is SingleDeviceSharding


@pytest.mark.parametrize(
    "dtype", ["f4", "f2", "i4", "u1", "?", "c8", ">f4", ">i4", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn], ids=str
)
def test_arrays_keep_their_dtype_and_values(dtype) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    (placed,) = PLACEMENT.place([array])
    assert placed.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(np.asarray(placed), array)


@given(
    st_numpy.arrays(
        st.sampled_from([np.int8, np.uint16, np.int32, np.float32, np.bool_]), st_numpy.array_shapes(min_side=0)
    )
)
def test_any_array_comes_back_as_it_was(array) -> None:
    np.testing.assert_array_equal(np.asarray(PLACEMENT.place(array)), array)


@pytest.mark.parametrize(
    "view", [X[:, ::2], X[::-1], X.T, np.broadcast_to(np.float32(2), (3,))], ids=["step", "back", "T", "locked"]
)
def test_views_of_every_kind_are_taken(view) -> None:
    np.testing.assert_array_equal(PLACEMENT.place([view])[0], view)


@pytest.mark.parametrize(("wide", "narrow"), [("i8", "i4"), ("u8", "u4"), ("f8", "f4"), ("c16", "c8"), (">i8", "i4")])
def test_wide_numbers_are_narrowed_where_jax_has_none_and_it_is_said_once(caplog, wide, narrow) -> None:
    _tell_narrowing.cache_clear()
    with caplog.at_level(logging.INFO, "parhelion"):
        for _ in range(2):
            placed = PLACEMENT.place({"n": np.array([0, 1, 2], wide)})["n"]
    assert placed.dtype == narrow
    assert placed.tolist() == [0, 1, 2]
    assert caplog.text.count("64-bit arrays are placed as 32-bit ones") == 1


def test_wide_numbers_stay_where_jax_has_them() -> None:
    with jax.enable_x64(True):
        placed = PLACEMENT.place([np.array([2**40]), np.array([0.1])])
        assert [each.dtype for each in placed] == [np.int64, np.float64]
        assert placed[0].tolist() == [2**40]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_an_integer_that_would_not_fit_is_refused_with_its_field(value) -> None:
    message = rf"field 'deep/0/n' of a batch has {value}; expected what fits int32, .*jax_enable_x64"
    for act in (PLACEMENT.place, PLACEMENT.replicate, lambda batch: move(batch, DEVICE)):
        with pytest.raises(InvalidValueError, match=message):
            act({"deep": [{"n": np.array([1, value])}]})
    with pytest.raises(InvalidValueError, match=rf"field 'n' of a batch has {value}"):
        PLACEMENT.stack([{"n": np.array([1])}, {"n": np.array([value])}])
    assert PLACEMENT.place(np.array([2**31 - 1, -(2**31)])).tolist() == [2**31 - 1, -(2**31)]
    assert PLACEMENT.place(np.zeros((0, 2), np.int64)).shape == (0, 2)


@pytest.mark.parametrize(
    "value",
    ["text", 3, 2.5, None, True, b"x", np.array(["a"]), np.array([None, {}]), np.array("2024", "M8[s]"), np.str_("a"),
     np.longdouble(1), {1, 2}, object(), np.ndarray],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_has_no_array_is_left(value) -> None:
    assert PLACEMENT.place({"value": value})["value"] is value
    assert move((value,), DEVICE)[0] is value


def test_numpy_scalars_and_what_has_an_array_are_taken() -> None:
    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return X

    placed = PLACEMENT.place({"t": Tensor(), "s": np.float64(0.5)})
    np.testing.assert_array_equal(placed["t"], X)
    assert (placed["s"].shape, float(placed["s"])) == ((), 0.5)


@pytest.mark.parametrize("size", [4096, 1 << 18])
def test_what_the_host_writes_afterwards_changes_nothing(size) -> None:
    heavy = jax.jit(lambda m: jax.lax.fori_loop(0, 100, lambda _, m: jnp.tanh(m @ m), m))
    busy, host = jnp.ones((300, 300)), np.empty(size, np.float32)
    for place in (PLACEMENT.place, lambda batch: move(batch, DEVICE), PLACEMENT.replicate):
        waiting = heavy(busy)  # jax reads an array when it gets to it
        host[:] = 1
        placed = place({"x": host})
        host[:] = 7
        assert float(placed["x"].sum()) == host.size
        waiting.block_until_ready()


@pytest.mark.parametrize("size", [1000, 200_000])
def test_the_host_s_memory_is_let_go_at_once(size) -> None:
    array = np.ones(size, np.float32)
    gone = weakref.ref(array)
    placed = PLACEMENT.place({"x": array})
    del array
    assert gone() is None
    assert float(placed["x"].sum()) == size


def test_replicated_arrays_are_fresh_and_can_be_donated() -> None:
    aligned = np.frombuffer(bytearray(4096 + 64), np.uint8)
    aligned = aligned[(-aligned.ctypes.data) % 64 :][:4096].view(np.float32)
    given = {"a": jnp.ones(5), "b": aligned, "c": PLACEMENT.place(X), "t": 1.5, "key": jax.random.key(0), "name": "n"}
    made = PLACEMENT.replicate(given)
    assert made["name"] == "n"
    assert (made["t"].dtype, made["t"].weak_type, float(made["t"])) == (np.float32, False, 1.5)
    arrays = {name: made[name] for name in "abct"}
    pointers = {name: array.unsafe_buffer_pointer() for name, array in arrays.items()}
    assert given["a"].unsafe_buffer_pointer() != pointers["a"]
    assert given["c"].unsafe_buffer_pointer() != pointers["c"]
    assert aligned.ctypes.data != pointers["b"]
    donated = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(arrays)
    assert all(array.is_deleted() for array in arrays.values())
    assert {name: array.unsafe_buffer_pointer() for name, array in donated.items()} == pointers  # the memory is used
    assert not given["a"].is_deleted()
    assert jnp.all(given["key"] == made["key"])
    assert PLACEMENT.replicate({"name": "n", "nothing": None}) == {"name": "n", "nothing": None}


def test_a_weakly_typed_parameter_does_not_compile_a_step_twice() -> None:
    step = jax.jit(lambda w, batch: w - batch["x"].sum(), donate_argnums=0)
    w = PLACEMENT.replicate(jnp.asarray(1.0))
    for _ in range(3):
        w = step(w, PLACEMENT.place({"x": X}))
    assert step._cache_size() == 1


@pytest.mark.parametrize("placed", [False, True])
def test_stacked_batches_have_a_leading_axis(placed) -> None:
    batches = [{"x": X + k, "i": np.array([k, k]), "n": float(k), "flag": True} for k in range(3)]
    stacked = PLACEMENT.stack([PLACEMENT.place(batch) for batch in batches] if placed else batches)
    np.testing.assert_array_equal(stacked["x"], np.stack([X, X + 1, X + 2]))
    assert stacked["i"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert stacked["n"].tolist() == [0, 1, 2]
    assert stacked["flag"].tolist() == [True] * 3
    assert [stacked[name].dtype for name in ("x", "i", "n")] == [np.float32, np.int32, np.float32]
    assert all(leaf.committed for leaf in stacked.values())


def test_placed_and_host_batches_are_stacked_together() -> None:
    stacked = PLACEMENT.stack([Pair(X, jnp.ones(2)), PLACEMENT.place(Pair(X + 1, np.zeros(2, np.float32)))])
    assert type(stacked) is Pair
    assert stacked.y.tolist() == [[1, 1], [0, 0]]
    assert PLACEMENT.stack([Frozen(X), Frozen(X)]).twice[0].shape == (2, 2, 3)


@pytest.mark.parametrize("there", [np.asarray, PLACEMENT.place], ids=["host", "placed"])
def test_batches_that_cannot_be_stacked_are_refused(there) -> None:
    x = there(X)
    with pytest.raises(InvalidValueError, match=r"batches of one call have the fields .*; expected the same in all"):
        PLACEMENT.stack([{"x": x}, {"y": x}])
    with pytest.raises(
        InvalidValueError, match=r"field 'x' has the shapes \[\(1, 3\), \(2, 3\)\] in batches of one call"
    ):
        PLACEMENT.stack([{"x": x}, {"x": x[:1]}])
    with pytest.raises(InvalidTypeError, match=r"field 'name' of a batch is 'a'; expected arrays and numbers only"):
        PLACEMENT.stack([{"x": x, "name": "a"}] * 2)


def test_values_come_back_as_floats_whatever_their_dtype() -> None:
    values = [
        jnp.float32(0.1), jnp.array([0.25, 0.5]), jnp.int32(3), jnp.bool_(True), jnp.bfloat16(0.5), jnp.float16(0.25),
        jnp.float8_e4m3fn(2), 7, 0.1, True, np.float32(0.3), np.array([4]), np.bool_(True),
    ]  # fmt: skip
    host = PLACEMENT.to_host([PLACEMENT.hold(value) for value in values])
    assert host == [
        float(np.float32(0.1)), 0.25, 0.5, 3.0, 1.0, 0.5, 0.25, 2.0, 7.0, 0.1, 1.0, float(np.float32(0.3)), 4.0, 1.0,
    ]  # fmt: skip
    assert all(type(each) is float for each in host)
    assert PLACEMENT.to_host([]) == []


def test_a_held_array_stays_on_the_device_and_others_are_numbers() -> None:
    loss = jnp.float32(1)
    assert PLACEMENT.hold(loss) is loss
    assert [type(PLACEMENT.hold(each)) for each in (1, True, np.int8(1))] == [float] * 3


@pytest.mark.parametrize(
    "value",
    [jnp.ones((2, 2)), jnp.ones(0), jnp.array(1j), jax.random.key(0), np.ones(2), np.array(1j), "3.5", [1.0], None],
    ids=str,
)
def test_what_is_no_scalar_is_refused(value) -> None:
    with pytest.raises(InvalidTypeError, match=r"it is .*; expected a number, a jax scalar, or a vector"):
        PLACEMENT.hold(value)


def test_a_value_that_was_donated_is_refused_with_the_way_out() -> None:
    held = PLACEMENT.hold(PLACEMENT.replicate(jnp.float32(1)))
    jax.jit(lambda x: x + 1, donate_argnums=0)(held)
    with pytest.raises(
        InvalidTypeError, match=r"logged array of float32 and shape \(\) was donated .*: jnp.copy\(value\)"
    ):
        PLACEMENT.to_host([1.0, held])


def test_a_record_of_a_dropped_class_is_not_taken_for_another() -> None:
    for x in (X, X[:1]):
        made = attrs.make_class("Made", ["x"])
        assert type(PLACEMENT.place(made(x))) is made
        assert PLACEMENT.place(made(x)).x.shape == x.shape
    gc.collect()


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs an accelerator")
def test_batches_and_values_of_an_accelerator() -> None:
    placed = PLACEMENT.place({"x": X})
    assert placed["x"].devices() == {DEVICE}
    assert PLACEMENT.to_host([PLACEMENT.hold(placed["x"].sum())]) == [15.0]
