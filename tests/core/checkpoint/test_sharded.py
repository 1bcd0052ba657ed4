"""Several processes write one checkpoint, and any number of them read it again, box by box."""

import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.checkpoint import (
    HostArray,
    Part,
    ShardedArray,
    StoredArray,
    begin_shared,
    commit_shared,
    flatten,
    load_checkpoint,
    load_newest,
    unflatten,
    write_shard,
)
from parhelion.errors import CheckpointError, CheckpointMismatchError, InvalidValueError

META = {"run_name": "run", "global_epoch": 1, "global_iteration": 1}


def host(array):
    return HostArray(array.dtype.name, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def part(whole, *axes):
    """Return the part of an array between these (begin, stop)."""
    return Part(tuple(begin for begin, _ in axes), host(whole[tuple(slice(*axis) for axis in axes)]))


def sharded(whole, *boxes):
    return ShardedArray(whole.dtype.name, whole.shape, tuple(part(whole, *box) for box in boxes))


def save_shared(root, name, skeleton, by_rank, meta=META):
    """Write what every rank has, one after the other, and commit."""
    scratch = begin_shared(root, name)
    for rank, arrays in enumerate(by_rank[1:], 1):
        write_shard(str(scratch), rank, arrays)
    return commit_shared(scratch, name, skeleton, by_rank[0], meta, len(by_rank))


WHOLE = np.arange(48, dtype=np.float32).reshape(6, 8)
SKELETON = {"w": ["array", "w"], "b": ["ndarray", "b"], "note": "text"}


def two_ranks(scale=1):
    rest = {"b": host(np.arange(5, dtype=np.int64) * scale)}
    whole = WHOLE * scale
    return [
        {"w": sharded(whole, ((0, 3), (0, 8)))} | rest,
        {"w": sharded(whole, ((3, 6), (0, 2)), ((3, 6), (2, 8)))} | rest,
    ]


class Boxes:
    """An adapter that takes arrays in parts as they are."""

    def identity(self, leaf):
        return id(leaf) if isinstance(leaf, ShardedArray | StoredArray) else None

    def encode(self, leaf, path):
        return leaf

    def decode(self, array):
        return array.data.view(array.dtype).reshape(array.shape)

    def decode_stored(self, stored):
        return stored


def test_what_two_processes_wrote_comes_back_whole_without_an_adapter(tmp_path):
    path = save_shared(tmp_path, "c", SKELETON, two_ranks())
    assert path == tmp_path / "c"
    assert sorted(file.name for file in path.iterdir()) == [
        "arrays-00000.safetensors",
        "arrays-00001.safetensors",
        "manifest.json",
    ]
    tree = load_checkpoint(path).tree
    np.testing.assert_array_equal(tree["w"], WHOLE)
    np.testing.assert_array_equal(tree["b"], np.arange(5))
    assert tree["note"] == "text"
    assert tree["w"].flags.writeable


def test_an_adapter_that_can_is_given_the_array_unread(tmp_path):
    path = save_shared(tmp_path, "c", SKELETON, two_ranks())
    stored = load_checkpoint(path, Boxes()).tree["w"]
    assert repr(stored) == "StoredArray(dtype='float32', shape=(6, 8))"
    box = stored.read((2, 1), (3, 4))
    assert (box.dtype, box.shape, box.is_fresh) == ("float32", (3, 4), True)
    np.testing.assert_array_equal(box.data.view(np.float32).reshape(3, 4), WHOLE[2:5, 1:5])
    np.testing.assert_array_equal(stored.read_all().data.view(np.float32), WHOLE.reshape(-1))
    assert stored.read((6, 8), (0, 0)).data.size == 0


def test_only_the_parts_that_overlap_are_read(tmp_path):
    path = save_shared(tmp_path, "c", SKELETON, two_ranks())
    stored = load_checkpoint(path, Boxes()).tree["w"]
    (path / "arrays-00001.safetensors").unlink()
    assert stored.read((0, 0), (3, 8)).data.size == 96
    with pytest.raises(CheckpointError, match=r"is damaged: arrays-00001\.safetensors is missing"):
        stored.read((2, 0), (2, 8))


@pytest.mark.parametrize(("start", "shape"), [((0,), (6,)), ((0, 0), (7, 8)), ((-1, 0), (2, 2)), ((0, 7), (1, 2))])
def test_a_box_outside_of_the_array_is_refused(tmp_path, start, shape):
    stored = load_checkpoint(save_shared(tmp_path, "c", SKELETON, two_ranks()), Boxes()).tree["w"]
    with pytest.raises(InvalidValueError, match=r"^box begins at .*; expected one within the array's shape \(6, 8\)"):
        stored.read(start, shape)


def test_the_manifest_is_of_version_2_and_lists_the_parts(tmp_path):
    path = save_shared(tmp_path, "c", SKELETON, two_ranks())
    content = json.loads((path / "manifest.json").read_bytes())
    assert content["version"] == 2
    row = content["arrays"]["w"]
    assert (row["dtype"], row["shape"]) == ("float32", [6, 8])
    assert [(each["file"], each["start"], each["shape"], each["size"]) for each in row["parts"]] == [
        ("arrays-00000.safetensors", [0, 0], [3, 8], 96),
        ("arrays-00001.safetensors", [3, 0], [3, 2], 24),
        ("arrays-00001.safetensors", [3, 2], [3, 6], 72),
    ]
    assert all(len(each["hash"]) == 32 for each in row["parts"])
    assert set(content["files"]) == {"arrays-00000.safetensors", "arrays-00001.safetensors"}


def test_whole_arrays_by_several_processes_are_of_version_1(tmp_path):
    arrays = {"b": host(np.arange(3))}
    path = save_shared(tmp_path, "c", {"b": ["ndarray", "b"]}, [arrays, arrays, arrays])
    assert json.loads((path / "manifest.json").read_bytes())["version"] == 1
    assert len(list(path.iterdir())) == 2


def test_the_library_reads_the_file_of_every_process(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    path = save_shared(tmp_path, "c", SKELETON, two_ranks())
    read = library.load_file(path / "arrays-00001.safetensors")
    assert sorted(read) == ["w[3:6, 0:2]", "w[3:6, 2:8]"]
    np.testing.assert_array_equal(read["w[3:6, 2:8]"], WHOLE[3:, 2:])


def test_processes_that_write_at_once_meet_in_the_folder(tmp_path):
    by_rank = two_ranks()
    scratch = begin_shared(tmp_path, "c")
    looks = []

    def look():
        looks.append(1)
        if len(looks) == 2:
            threading.Thread(target=write_shard, args=(scratch, 1, by_rank[1])).start()

    path = commit_shared(scratch, "c", SKELETON, by_rank[0], META, 2, check=look)
    assert len(looks) >= 2
    np.testing.assert_array_equal(load_checkpoint(path).tree["w"], WHOLE)


def test_the_root_names_the_checkpoint_that_was_committed_last(tmp_path):
    save_shared(tmp_path, "one", SKELETON, two_ranks())
    save_shared(tmp_path, "two", SKELETON, two_ranks(), META | {"global_iteration": 7})
    assert json.loads((tmp_path / "last.json").read_bytes()) == {"name": "two", "iteration": 7, "epoch": 1}


def test_what_the_root_says_of_the_last_one_is_not_believed(tmp_path):
    save_shared(tmp_path, "one", SKELETON, two_ranks())
    (tmp_path / "last.json").write_text('{"name": "gone"}')
    assert load_newest(tmp_path).path.name == "one"


def test_a_sharded_checkpoint_of_that_name_is_replaced_also_by_fewer_processes(tmp_path):
    for scale in (1, 2):
        path = save_shared(tmp_path, "c", SKELETON, two_ranks(scale))
        np.testing.assert_array_equal(load_checkpoint(path).tree["w"], WHOLE * scale)
        assert len(list(path.iterdir())) == 3
    save_shared(tmp_path, "c", {"b": ["ndarray", "b"]}, [{"b": host(np.ones(2))}])
    assert len(list(path.iterdir())) == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c", "last.json"]


def test_empty_arrays_and_parts_and_scalars_come_back(tmp_path):
    empty, scalar = np.zeros((0, 3), np.float32), np.array(7, np.int16)
    skeleton = {"e": ["array", "e"], "s": ["array", "s"], "w": ["array", "w"]}
    first = {
        "e": ShardedArray("float32", (0, 3), ()),
        "s": ShardedArray("int16", (), ()),
        "w": sharded(WHOLE, ((0, 6), (0, 8)), ((6, 6), (0, 8))),
    }
    second = {"e": sharded(empty, ((0, 0), (0, 3))), "s": sharded(scalar), "w": ShardedArray("float32", (6, 8), ())}
    second["s"] = ShardedArray("int16", (), (Part((), host(scalar)),))
    tree = load_checkpoint(save_shared(tmp_path, "c", skeleton, [first, second])).tree
    assert tree["e"].shape == (0, 3)
    assert tree["s"] == 7
    assert tree["s"].shape == ()
    np.testing.assert_array_equal(tree["w"], WHOLE)


def test_flattening_keeps_a_sharded_array_and_unflattening_puts_it_together():
    whole = {"w": sharded(WHOLE, ((0, 6), (0, 3)), ((0, 6), (3, 8)))}
    skeleton, arrays = flatten(whole, Boxes())
    assert arrays == whole
    np.testing.assert_array_equal(unflatten(skeleton, arrays)["w"], WHOLE)
    with pytest.raises(CheckpointError, match=r"^w is spread over processes, and .* \(no part has \[0:6, 3:8\]\)"):
        unflatten(skeleton, {"w": sharded(WHOLE, ((0, 6), (0, 3)))})


def test_an_adapter_that_refuses_a_stored_array_is_a_mismatch_with_its_path(tmp_path):
    class Refusing(Boxes):
        def decode_stored(self, stored):
            raise KeyError("no such mesh")

    path = save_shared(tmp_path, "c", SKELETON, two_ranks())
    with pytest.raises(CheckpointMismatchError, match=r"^w is an array of float32 and shape \(6, 8\); .*no such mesh"):
        load_checkpoint(path, Refusing())


# -- any tiling --------------------------------------------------------------------------------------------------------


@st.composite
def tilings(draw):
    """Draw an array and boxes that tile it, cut again and again at random."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=4)))
    boxes = [tuple((0, size) for size in shape)]
    for _ in range(draw(st.integers(0, 10)) if shape else 0):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        begin, stop = box[axis]
        cut = draw(st.integers(begin, stop))
        boxes += [(*box[:axis], edge, *box[axis + 1 :]) for edge in ((begin, cut), (cut, stop)) if edge[0] < edge[1]]
    dtype = draw(st.sampled_from(["uint8", "int16", "float32", "complex128"]))
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype), boxes


@given(tilings(), st.integers(1, 4), st.data())
def test_any_tiling_by_any_number_of_writers_reads_back_by_any_box(tmp_path_factory, tiling, ranks, data):
    whole, boxes = tiling
    owners = [data.draw(st.integers(0, ranks - 1)) for _ in boxes]
    by_rank = [
        {"w": sharded(whole, *(box for box, owner in zip(boxes, owners, strict=True) if owner == rank))}
        if whole.shape
        else {"w": ShardedArray(whole.dtype.name, (), (Part((), host(whole)),) if owners[0] == rank else ())}
        for rank in range(ranks)
    ]
    root = tmp_path_factory.mktemp("tiling")
    path = save_shared(root, "c", {"w": ["array", "w"]}, by_rank)
    np.testing.assert_array_equal(load_checkpoint(path).tree["w"], whole)
    stored = load_checkpoint(path, Boxes()).tree["w"]
    for _ in range(3):
        ends = [sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size)))) for size in whole.shape]
        start, shape = tuple(begin for begin, _ in ends), tuple(stop - begin for begin, stop in ends)
        read = stored.read(start, shape).data.view(whole.dtype).reshape(shape)
        np.testing.assert_array_equal(read, whole[tuple(slice(*end) for end in ends)])
