"""Looking into checkpoints: what is there, what is damaged, what differs; and taking the weights out."""

import math
from collections import OrderedDict

import attrs
import numpy as np
import pytest

from parhelion.checkpoint import (
    HostArray,
    Part,
    ShardedArray,
    diff,
    export_weights,
    flatten,
    pin,
    read_weights,
    register_value_type,
    save_checkpoint,
    show,
    verify,
    write_checkpoint,
)
from parhelion.errors import CheckpointError, CheckpointMismatchError, DamagedCheckpointError, InvalidValueError

META = {"run_name": "run", "global_epoch": 2, "global_iteration": 7}


def save(root, tree, name="run_epoch_2_iter_7", **meta):
    return save_checkpoint(root, name, tree, META | meta)


def raw(array, dtype):
    return HostArray(dtype, array.shape, array.reshape(-1).view(np.uint8))


def in_parts(array):
    """Return an array in two parts, cut along its first axis."""
    half = len(array) // 2
    parts = [Part((start,) + (0,) * (array.ndim - 1), raw(piece, str(array.dtype)))
             for start, piece in ((0, array[:half].copy()), (half, array[half:].copy()))]  # fmt: skip
    return ShardedArray(str(array.dtype), array.shape, tuple(parts))


def save_in_parts(root, array, name="run_epoch_2_iter_7", count=0):
    skeleton = {"w": ["array", "w"], "count": count}
    return write_checkpoint(root, name, skeleton, {"w": in_parts(array)}, META)


# -- show -------------------------------------------------------------------------------------------------------------


def test_a_summary_says_what_is_in_a_checkpoint(tmp_path):
    tree = {"model": {"w": np.zeros((3, 4), np.float32), "b": np.zeros(5)}, "scale": np.array(1.0), "n": 3}
    path = save(tmp_path, tree, metrics={"loss": 0.5})
    summary = show(path)
    assert (summary.path, summary.iteration, summary.epoch, summary.is_pinned) == (str(path), 7, 2, False)
    assert [(a.name, a.dtype, a.shape, a.size, a.parts) for a in summary.arrays] == [
        ("model.b", "float64", (5,), 40, 1),
        ("model.w", "float32", (3, 4), 48, 1),
        ("scale", "float64", (), 8, 1),
    ]
    assert summary.size == 96
    pin(path)
    assert str(show(path)).splitlines() == [
        f"checkpoint {path} (pinned)",
        "  run 'run', epoch 2, iteration 7",
        "  3 arrays, 96 B, in 1 file(s)",
        "  metrics: {'loss': 0.5}",
        "  array    dtype    shape   size",
        "  model.b  float64  5       40 B",
        "  model.w  float32  3x4     48 B",
        "  scale    float64  scalar  8 B",
    ]


def test_a_summary_reads_no_array(tmp_path):
    path = save(tmp_path, {"w": np.ones(3)})
    (path / "arrays-00000.safetensors").unlink()
    assert show(path).arrays[0].name == "w"


def test_a_summary_of_an_array_in_parts_counts_them(tmp_path):
    summary = show(save_in_parts(tmp_path, np.ones((4, 250_000))))
    assert (summary.arrays[0].parts, summary.arrays[0].size) == (2, 8_000_000)
    assert "8.00 MB  in 2 parts" in str(summary)


def test_showing_nothing_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        show(tmp_path)


# -- verify -----------------------------------------------------------------------------------------------------------


def flip(path, marker):
    file = path / "arrays-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[content.index(marker)] ^= 1
    file.write_bytes(content)


def test_what_is_sound_has_no_problem(tmp_path):
    one = save(tmp_path, {"w": np.ones(3)})
    save_in_parts(tmp_path, np.ones((4, 2)), "other")
    assert verify(one) == []
    assert verify(str(tmp_path)) == []


def test_every_damaged_array_is_named_and_not_the_first_alone(tmp_path):
    arrays = {name: np.full(40, ord(name), np.uint8) for name in "abcd"}
    path = save(tmp_path, arrays)
    for name in "bd":
        flip(path, name.encode() * 40)
    texts = [str(problem) for problem in verify(path)]
    assert len(texts) == 2
    assert "the array b in arrays-00000.safetensors is not what was written (its hash differs)" in texts[0]
    assert "the array d in" in texts[1]


def test_a_damaged_part_is_named_by_its_box(tmp_path):
    path = save_in_parts(tmp_path, np.arange(8.0).reshape(4, 2))
    flip(path, np.arange(4.0, 8.0).tobytes())
    (problem,) = verify(path)
    assert "the array w[2:4, 0:2] in" in str(problem)
    assert problem.path == str(path)


def test_a_short_file_and_a_missing_one_are_problems(tmp_path):
    path = save(tmp_path, {"a": np.ones(100), "b": np.ones(100)})
    file = path / "arrays-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    texts = [str(problem) for problem in verify(path)]
    assert len(texts) == 2
    assert "bytes instead of" in texts[0]
    assert "ends within the array b" in texts[1]
    file.unlink()
    assert "arrays-00000.safetensors is missing" in str(verify(path)[0])


def test_a_folder_of_checkpoints_is_verified_as_a_whole(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path, {"w": np.full(40, 65, np.uint8)}, f"run_epoch_1_iter_{number}")
    flip(tmp_path / "run_epoch_1_iter_1", b"A" * 40)
    (tmp_path / "run_epoch_1_iter_3" / "manifest.json").write_text("{}")
    (tmp_path / "something else").mkdir()
    assert [problem.path.rpartition("/")[2] for problem in verify(tmp_path)] == [
        "run_epoch_1_iter_1",
        "run_epoch_1_iter_3",
    ]


def test_verifying_nothing_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=r"is no checkpoint and holds none; expected a checkpoint, or a"):
            verify(path)


# -- diff -------------------------------------------------------------------------------------------------------------


def differ(tmp_path, a, b):
    return diff(save(tmp_path, a, "a"), save(tmp_path, b, "b"))


def test_equal_checkpoints_have_no_difference_whatever_nan_they_hold(tmp_path):
    tree = {"w": np.array([1.0, math.nan, -0.0]), "n": math.nan, "t": (1, None)}
    found = differ(tmp_path, tree, {"w": tree["w"].copy(), "n": math.nan, "t": (1, None)})
    assert not found
    assert str(found) == "no difference"


def test_a_difference_says_which_elements_and_by_how_much(tmp_path):
    a = np.array([1.0, 2.0, math.nan, 4.0, math.inf])
    b = np.array([1.0, 2.5, 3.0, 3.0, math.inf])
    (found,) = differ(tmp_path, {"w": a, "same": a}, {"w": b, "same": a.copy()}).arrays
    assert (found.name, found.what, found.a, found.b) == ("w", "elements", "float64[5]", "float64[5]")
    assert (found.count, found.max_abs, found.max_rel, found.nan_count) == (3, 1.0, 0.25, 1)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (np.array([0.0]), np.array([-0.0]), (1, 0.0, 0.0)),
        (np.array([5, 5], np.uint8), np.array([5, 250], np.uint8), (1, 245.0, 0.98)),
        (np.array([2**63 - 1]), np.array([-(2**63)]), (1, 2.0**64, 2.0)),
        (np.array([1 + 1j]), np.array([1 + 4j]), (1, 3.0, 3 / abs(1 + 4j))),
        (np.array([True, False]), np.array([True, True]), (1, 1.0, 1.0)),
        (np.array([np.float16(1)]), np.array([np.float16("inf")]), (1, math.inf, math.nan)),
        (np.array(["a", "b"]), np.array(["a", "c"]), (1, None, None)),
    ],
)
def test_numbers_of_every_kind_are_compared(tmp_path, a, b, expected):
    (found,) = differ(tmp_path, {"w": a}, {"w": b}).arrays
    assert (found.count, found.max_abs) == expected[:2]
    assert found.max_rel == pytest.approx(expected[2], nan_ok=True)


def test_bfloat16_is_compared_as_numbers_and_float8_by_its_bits(tmp_path):
    one, two = (np.array([value], np.float32).view(np.uint16)[1:] for value in (1.0, 2.0))
    (found,) = differ(tmp_path, {"w": raw(one, "bfloat16")}, {"w": raw(two, "bfloat16")}).arrays
    assert (found.count, found.max_abs, found.max_rel) == (1, 1.0, 0.5)
    eights = (raw(np.array([byte], np.uint8), "float8_e4m3fn") for byte in (1, 2))
    (found,) = diff(*(save(tmp_path, {"w": each}, f"e{index}") for index, each in enumerate(eights))).arrays
    assert (found.count, found.max_abs) == (1, None)


def test_another_dtype_shape_or_layout_is_a_difference(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    a = {"dtype": array, "shape": array.copy(), "layout": array.copy()}
    b = {"dtype": array.astype(np.float32), "shape": array.reshape(3, 2).copy(), "layout": np.asfortranarray(array)}
    assert [(each.name, each.what, each.b) for each in differ(tmp_path, a, b).arrays] == [
        ("dtype", "dtype", "float32[2, 3]"),
        ("shape", "shape", "float64[3, 2]"),
        ("layout", "layout", "float64[2, 3]"),
    ]


def test_what_only_one_has_and_values_that_differ_are_listed(tmp_path):
    a = {"only": np.ones(2), "n": 1, "gone": "x", "list": [1, 2], "o": OrderedDict(k=1)}
    b = {"new": np.ones(2), "n": 2, "list": [1, 3, 4], "o": OrderedDict(k=2)}
    found = differ(tmp_path, a, b)
    assert (found.only_in_a, found.only_in_b) == (("only",), ("new",))
    values = {each.path: (each.a, each.b) for each in found.values}
    assert values.items() >= {
        "n": ("1", "2"), "gone": ("'x'", None), "list[1]": ("2", "3"), "list[2]": (None, "4"), "o.k": ("1", "2")
    }.items()  # fmt: skip
    assert "only in a: only" in str(found)
    assert "  gone     'x'  -" in str(found)


def test_classes_that_are_not_here_need_not_be_known(tmp_path):
    @attrs.frozen
    class Mine:
        x: int

    register_value_type(Mine, name="tests.Mine that goes")
    paths = [save(tmp_path, {"mine": Mine(number)}, str(number)) for number in (1, 2)]
    for path in paths:
        manifest = path / "manifest.json"
        assert "tests.Mine that goes" in manifest.read_text()
    (value,) = diff(*paths).values
    assert (value.path, value.a, value.b) == ("mine.x", "1", "2")


def test_an_array_in_parts_is_compared_with_a_whole_one(tmp_path):
    array = np.arange(8.0).reshape(4, 2)
    one = save_in_parts(tmp_path, array, "one")
    assert not diff(one, save_in_parts(tmp_path, array, "two"))
    skeleton, arrays = flatten({"w": raw(array, "float64"), "count": 0})
    assert not diff(one, write_checkpoint(tmp_path, "whole", skeleton, arrays, META))
    array[3, 1] += 1
    (found,) = diff(one, save_in_parts(tmp_path, array, "three")).arrays
    assert (found.count, found.max_abs) == (1, 1.0)


def test_damage_in_what_has_to_be_compared_is_an_error(tmp_path):
    paths = [save(tmp_path, {"w": np.full(40, byte, np.uint8)}, str(byte)) for byte in (65, 66)]
    flip(paths[0], b"A" * 40)
    with pytest.raises(DamagedCheckpointError, match="the array w in"):
        diff(*paths)


# -- weights ----------------------------------------------------------------------------------------------------------


def run_tree():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    named = {"net.weight": weight, "net.bias": np.ones(3), "head.weight": weight}
    average = {name: array + 1 for name, array in named.items()}
    return {
        "model": {"net": {"weight": weight}, "optimizer": {"state": {0: {"exp_avg": np.zeros(3)}}}},
        "portable": {"weights": named, "average": average, "moments": {"m": np.zeros(2)}},
        "window": [np.zeros(1)],
    }


def test_weights_are_written_to_plain_safetensors_by_their_names(tmp_path):
    numpy_reader = pytest.importorskip("safetensors.numpy")
    path, target = save(tmp_path, run_tree()), tmp_path / "weights.safetensors"
    target.write_text("something older")
    assert export_weights(path, target) == ["net.weight", "net.bias", "head.weight"]
    read = numpy_reader.load_file(target)
    named = run_tree()["portable"]["weights"]
    assert read.keys() == named.keys()
    for name, array in named.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["last.json", "weights.safetensors"]
    export_weights(str(path), str(target), which="average")
    assert numpy_reader.load_file(target)["net.bias"].tolist() == [2.0, 2.0, 2.0]


def test_tied_weights_are_one_array_and_a_part_of_the_tree_has_weights_too(tmp_path):
    path = save(tmp_path, run_tree())
    weights = read_weights(path)
    assert weights["net.weight"] is weights["head.weight"]
    assert list(read_weights(path, within=("model", "net"))) == ["weight"]
    assert list(read_weights(path, within=("model",))) == ["net.weight", "optimizer.state.0.exp_avg"]


def test_where_no_weights_are_the_error_says_where_arrays_are(tmp_path):
    path = save(tmp_path, {"model": {"net": {"w": np.ones(2)}}, "portable": None, "n": 1})
    with pytest.raises(CheckpointMismatchError, match=r"has no arrays at portable\.weights.*at model\.net\.$"):
        export_weights(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dtype_that_safetensors_cannot_name_is_refused_by_name(tmp_path):
    path = save(tmp_path, {"w": np.ones(2, np.complex128)})
    with pytest.raises(CheckpointMismatchError, match=r"w has the dtype 'complex128'; expected one that safetensors"):
        export_weights(path, tmp_path / "out", within=())


def test_weights_that_cannot_be_written_leave_what_was_there(tmp_path):
    path = save(tmp_path, run_tree())
    with pytest.raises(InvalidValueError, match="a folder; expected a file"):
        export_weights(path, tmp_path)
    with pytest.raises(CheckpointError, match=r"could not be written to .*expected a writable folder with room"):
        export_weights(path, tmp_path / "missing" / "out")


def test_damaged_weights_are_not_written(tmp_path):
    path = save(tmp_path, {"w": np.full(40, 65, np.uint8)})
    flip(path, b"A" * 40)
    with pytest.raises(DamagedCheckpointError):
        export_weights(path, tmp_path / "out", within=())
    assert not (tmp_path / "out").exists()
