"""Arrays that are spread over processes: each writes its own shards, and reads of a saved array what it needs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

jax = pytest.importorskip("jax")
pytest.importorskip("parhelion_jax")

import jax.numpy as jnp  # noqa: E402 - skipped before it could fail
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from parhelion.checkpoint import HostArray, ShardedArray  # noqa: E402
from parhelion.errors import CheckpointMismatchError, UnsavableValueError  # noqa: E402
from parhelion.testing import first_difference  # noqa: E402
from parhelion.training import OnDevice  # noqa: E402
from parhelion_jax import arrays  # noqa: E402
from parhelion_jax.arrays import Arrays, LazyArray  # noqa: E402
from parhelion_jax.model import Model  # noqa: E402
from parhelion_jax.stateful import check_tree, give_tree  # noqa: E402
from support import jax_child  # noqa: E402

SCRIPT = Path(jax_child.__file__).with_name("sharded_jax.py")
WHOLE = np.arange(48, dtype=np.float32).reshape(8, 6)


class Bare(Model):
    def setup(self, fast_init: bool = False) -> None: ...
    def train_step(self, batch: Any, state: Any) -> None: ...


class Stored:
    """A saved array that notes which boxes of it are read."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.dtype, self.shape = array.dtype.name, array.shape
        self.boxes: list[Any] = []

    def read(self, start: tuple[int, ...], shape: tuple[int, ...]) -> HostArray:
        self.boxes.append((start, shape))
        index = tuple(slice(begin, begin + size) for begin, size in zip(start, shape, strict=True))
        return HostArray(self.dtype, shape, np.array(self.array[index], order="C").reshape(-1).view(np.uint8))

    def read_all(self) -> HostArray:
        return self.read((0,) * len(self.shape), self.shape)


def spread(shards: Any, *, replicated: bool = False) -> Any:
    """Return what an array over several processes looks like in one of them."""
    return SimpleNamespace(
        dtype=np.dtype("float32"),
        shape=WHOLE.shape,
        is_deleted=lambda: False,
        is_fully_addressable=False,
        is_fully_replicated=replicated,
        addressable_shards=[
            SimpleNamespace(index=index, replica_id=replica, data=jnp.asarray(WHOLE[index]))
            for index, replica in shards
        ],
    )


def test_a_process_writes_the_shards_here_that_nobody_else_counts_as_its_own() -> None:
    index = (slice(4, 8), slice(None)), (slice(0, 4), slice(3, None))
    found = Arrays().encode(spread([(index[0], 0), (index[0], 1), (index[1], 0)]), "w")
    assert isinstance(found, ShardedArray)
    assert (found.dtype, found.shape) == ("float32", (8, 6))
    assert [part.start for part in found.parts] == [(4, 0), (0, 3)]
    assert [part.array.shape for part in found.parts] == [(4, 6), (4, 3)]
    for part, each in zip(found.parts, index, strict=True):
        np.testing.assert_array_equal(part.array.data.view(np.float32), WHOLE[each].reshape(-1))


def test_a_process_without_a_shard_of_its_own_writes_nothing() -> None:
    for shards in ([((slice(None), slice(None)), 1)], []):
        found = Arrays().encode(spread(shards), "w")
        assert isinstance(found, ShardedArray)
        assert found.parts == ()
    assert Arrays().encode(spread([], replicated=True), "w").parts == ()


def test_what_cannot_be_saved_is_refused_in_parts_too() -> None:
    array = spread([])
    array.is_deleted = lambda: True
    with pytest.raises(UnsavableValueError, match=r"^model\.w is an array that was donated"):
        Arrays().encode(array, "model.w")


def test_a_view_of_a_live_buffer_has_to_be_copied() -> None:
    array = jnp.arange(12.0).reshape(3, 4)
    held = Arrays().encode(array, "w")
    assert not held.is_fresh
    assert np.shares_memory(held.data, np.asarray(array))


@pytest.fixture
def among_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_count_processes", lambda: 2)


def test_a_process_alone_gets_the_whole_array() -> None:
    found = Arrays().decode_stored(stored := Stored(WHOLE))
    assert isinstance(found, jax.Array)
    np.testing.assert_array_equal(found, WHOLE)
    assert len(stored.boxes) == 1


@pytest.mark.usefixtures("among_two")
def test_several_processes_read_nothing_before_they_know_which_part_they_need() -> None:
    found = Arrays().decode_stored(stored := Stored(WHOLE))
    assert isinstance(found, LazyArray)
    assert (found.shape, found.ndim, found.size, found.dtype) == ((8, 6), 2, 48, np.float32)
    check_tree("self.params", {"w": jnp.zeros((8, 6))}, {"w": found})
    assert stored.boxes == []
    with pytest.raises(CheckpointMismatchError, match=r"'w' is \(6, 8\) of float32 here and \(8, 6\) of float32 in"):
        check_tree("self.params", {"w": jnp.zeros((6, 8))}, {"w": found})


@pytest.mark.usefixtures("among_two")
def test_a_placed_array_reads_its_own_boxes() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    like = jax.device_put(jnp.zeros((8, 6)), NamedSharding(mesh, PartitionSpec("data")))
    lazy = Arrays().decode_stored(stored := Stored(WHOLE))
    given_ = give_tree({"w": like, "free": jnp.zeros((8, 6))}, {"w": lazy, "free": lazy})
    assert given_["w"].sharding == like.sharding
    assert not given_["free"].committed
    for each in given_.values():
        np.testing.assert_array_equal(each, WHOLE)
        assert each.dtype == jnp.float32
    assert len(stored.boxes) == 2


@pytest.mark.usefixtures("among_two")
def test_asarray_of_it_is_the_whole_array_and_comparisons_look_into_it() -> None:
    lazy = Arrays().decode_stored(Stored(WHOLE))
    np.testing.assert_array_equal(np.asarray(lazy), WHOLE)
    assert np.asarray(lazy, np.float64).dtype == np.float64
    np.testing.assert_array_equal(jnp.asarray(lazy), WHOLE)
    assert first_difference(lazy, lazy) is None
    assert first_difference(lazy, Arrays().decode_stored(Stored(WHOLE + 1))) is not None


@pytest.mark.usefixtures("among_two")
def test_an_attribute_becomes_an_array() -> None:
    lazy = Arrays().decode_stored(Stored(WHOLE))
    for saved in (lazy, OnDevice(lazy)):
        found = Bare("m").put_value(None, saved)
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(found, WHOLE)


@pytest.mark.usefixtures("among_two")
def test_a_dtype_that_this_jax_lacks_is_told_before_anything_is_read() -> None:
    stored = Stored(WHOLE)
    stored.dtype = "float7_e4m2"
    with pytest.raises(CheckpointMismatchError, match=r"dtype is 'float7_e4m2'; expected one that jax .* has"):
        Arrays().decode_stored(stored)


@given(st.lists(st.integers(0, 5), max_size=4), st.data())
def test_any_box_is_the_slice_of_the_whole(shape: list[int], data: st.DataObject) -> None:
    whole = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    bounds = [sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2))) for size in shape]
    open_ended = [data.draw(st.booleans()) for _ in shape]
    index = tuple(
        slice(None if begin == 0 and is_open else begin, None if end == size and is_open else end)
        for (begin, end), size, is_open in zip(bounds, shape, open_ended, strict=True)
    )
    found = LazyArray(Stored(whole), whole.dtype).read(index)
    np.testing.assert_array_equal(found, whole[index])
    assert found.shape == whole[index].shape


# -- in real processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what two processes of two devices saved and opened, and what one of four opened; and the folder."""
    folder = tmp_path_factory.mktemp("shards")
    address = f"127.0.0.1:{jax_child.free_port()}"
    two = [[SCRIPT, address, 2, rank, folder, "save", "train", "open", "go_on"] for rank in range(2)]
    outputs = jax_child.run_children(two, devices=2, seconds=120)
    outputs += jax_child.run_children([[SCRIPT, address, 1, 0, folder, "open", "go_on"]], devices=4, seconds=120)
    return [json.loads(output.splitlines()[-1]) for output in outputs], folder


@pytest.mark.processes
def test_each_process_writes_its_own_elements_and_all_of_them_once(runs) -> None:
    (one, two, _), _ = runs
    sizes = {"rows": 4, "columns": 2, "both": 1, "all_in_rows": 4}
    for name, size in sizes.items():
        assert one["save"][f"state.{name}"] + two["save"][f"state.{name}"] == 24 * 12 * size
    for each in (one, two):
        assert each["save"]["state.rows"] == 24 * 12 * 4 // 2
        assert each["save"]["state.keys"] == 12 * 2 * 4 // 2
    # What is in the tree a second time, for another backend, is no second time in the file.
    assert not [name for name in one["save"] if name.startswith("portable")]
    assert not [name for name in one["train"] if name.startswith("portable")]
    assert one["train"] == two["train"] == dict.fromkeys(
        ["model.params.one", "model.optimizer['0/trace/one']"], 64 * 16 * 4 // 2
    )  # fmt: skip


@pytest.mark.processes
def test_the_files_have_no_element_twice(runs) -> None:
    path = runs[1] / "checkpoint"
    files = [*path.glob("*.safetensors")]
    assert len(files) == 2
    whole = 24 * 12 * (4 + 2 + 1 + 4 + 4) + 12 * 2 * 4
    assert whole < sum(each.stat().st_size for each in files) < whole + 8000


@pytest.mark.processes
def test_other_meshes_of_two_processes_read_what_they_need_and_get_the_same_bits(runs) -> None:
    for each in runs[0][:2]:
        assert each["open"] == {"4x1": 1.0, "2x2": 1.0, "1x4": 1.0}


@pytest.mark.processes
def test_one_process_of_one_three_or_four_devices_gets_the_same_bits(runs) -> None:
    assert set(runs[0][2]["open"]) == {"1x1", "3x1", "4x1", "2x2", "1x4"}


@pytest.mark.processes
def test_training_goes_on_with_a_spread_model_over_another_mesh(runs) -> None:
    assert [each["go_on"] for each in runs[0]] == [2, 2, 2]
