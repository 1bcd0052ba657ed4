"""What lies on disk: names, strict JSON, and a safetensors file that the library itself reads."""

import json
from pathlib import Path

import attrs
import numpy as np
import pytest
import safetensors.numpy

from parhelion.checkpoint import (
    Checkpoint,
    HostArray,
    _seals,
    checkpoint_name,
    flatten,
    load_checkpoint,
    load_newest,
    save_checkpoint,
    write_checkpoint,
)
from parhelion.checkpoint import _format as format_file
from parhelion.errors import (
    CheckpointError,
    CheckpointVersionError,
    InvalidTypeError,
    InvalidValueError,
    UnsavableValueError,
)

META = {"run_name": "r", "global_epoch": 2, "global_iteration": 10, "nan": float("nan"), "big": 2**200}
ORACLE_DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "float16",
    "uint32",
    "int32",
    "float32",
    "uint64",
    "int64",
    "float64",
]


def refuse(token):
    raise AssertionError(token)


def rewrite(folder, **changes):
    """Change a manifest and make its checksum right again, as another release would write it."""
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_bytes())
    del content["checksum"]
    body = json.dumps(content | changes)[1:].encode()
    manifest.write_bytes(_seals.seal(body))


def test_a_saved_state_comes_back_with_meta_and_path(tmp_path):
    tree = {"w": np.arange(6.0).reshape(2, 3), "epoch": 2, "empty": np.zeros((0, 2), "i4")}
    path = save_checkpoint(tmp_path / "deep" / "root", "r_epoch_2_iter_10", tree, META)
    assert path == tmp_path / "deep" / "root" / "r_epoch_2_iter_10"
    assert sorted(file.name for file in path.iterdir()) == ["arrays-00000.safetensors", "manifest.json"]
    loaded = load_checkpoint(str(path))
    assert isinstance(loaded, Checkpoint)
    assert loaded.path == path
    assert loaded.meta.pop("nan") != loaded.meta
    assert loaded.meta == {key: value for key, value in META.items() if key != "nan"}
    np.testing.assert_array_equal(loaded.tree["w"], tree["w"])
    assert loaded.tree["empty"].shape == (0, 2)


def test_a_checkpoint_is_a_frozen_value(tmp_path):
    loaded = load_checkpoint(save_checkpoint(tmp_path, "c", 1, META))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        loaded.tree = 2


def test_loaded_arrays_are_writable_aligned_and_own_their_memory(tmp_path):
    tree = {str(size): np.ones(size, np.uint8) for size in (1, 3, 64, 1000)}
    back = load_checkpoint(save_checkpoint(tmp_path, "c", tree, META)).tree
    for array in back.values():
        assert array.flags.writeable
        assert array.__array_interface__["data"][0] % 64 == 0
    assert not any(np.shares_memory(back["64"], back[key]) for key in ("1", "3", "1000"))


def test_arrays_larger_than_what_is_read_or_allocated_at_once_survive(tmp_path):
    rng = np.random.default_rng(0)
    tree = {f"w{size}": rng.integers(0, 256, size, dtype=np.uint8) for size in (5_000_001, 4_999_999, 9_000_003, 3)}
    back = load_checkpoint(save_checkpoint(tmp_path, "c", tree, META)).tree
    for name, array in tree.items():
        np.testing.assert_array_equal(back[name], array)


def test_the_library_reads_what_we_write(tmp_path):
    rng = np.random.default_rng(0)
    tree = {name: rng.integers(0, 2, (3, 5)).astype(name) for name in ORACLE_DTYPES}
    tree |= {
        "transposed": np.arange(12.0).reshape(3, 4).T,
        "strided": np.arange(10)[::3],
        "scalar": np.array(2, np.float32),
    }
    tree |= {"empty": np.zeros((2, 0)), "nul \N{SNOWMAN} \ud800": np.ones(2)}
    path = save_checkpoint(tmp_path, "c", tree, META)
    read = safetensors.numpy.load_file(path / "arrays-00000.safetensors")
    assert len(read) == len(tree)
    for name in tree:
        shown = name if name in read else f"[{name!r}]"
        assert read[shown].dtype == tree[name].dtype
        np.testing.assert_array_equal(read[shown], tree[name])


def test_what_safetensors_cannot_name_is_stored_as_raw_bytes(tmp_path):
    tree = {
        "c": np.array([[1j, 2]]),
        "big": np.arange(3, dtype=">i4"),
        "when": np.array(["2024-01-01"], "M8[D]"),
    }
    path = save_checkpoint(tmp_path, "c", tree, META)
    read = safetensors.numpy.load_file(path / "arrays-00000.safetensors")
    for name, array in tree.items():
        assert read[name].dtype == np.uint8
        assert read[name].tobytes() == array.tobytes()
    back = load_checkpoint(path).tree
    assert all(back[name].dtype == array.dtype for name, array in tree.items())


def test_bfloat16_and_float8_carry_their_safetensors_names(tmp_path):
    arrays = {
        "b": HostArray("bfloat16", (3,), np.arange(6, dtype=np.uint8)),
        "e4": HostArray("float8_e4m3fn", (2,), np.arange(2, dtype=np.uint8)),
        "odd": HostArray("float8_e5m2fnuz", (2,), np.arange(2, dtype=np.uint8)),
    }
    skeleton = {name: ["array", name] for name in arrays}
    path = write_checkpoint(tmp_path, "c", skeleton, arrays, META)
    with safetensors.safe_open(path / "arrays-00000.safetensors", "numpy") as file:
        assert {name: file.get_slice(name).get_dtype() for name in file.keys()} == {  # noqa: SIM118 - no mapping
            "b": "BF16",
            "e4": "F8_E4M3",
            "odd": "U8",
        }
    assert load_checkpoint(path).tree == arrays


def test_every_element_in_the_file_is_aligned_to_its_width(tmp_path):
    tree = {
        "a": np.ones(3, np.uint8),
        "b": np.ones(1, np.float64),
        "c": np.ones(3, np.float16),
        "d": np.ones(1, np.int32),
    }
    path = save_checkpoint(tmp_path, "c", tree, META)
    rows = json.loads((path / "manifest.json").read_bytes())["arrays"]
    assert all(row["offset"] % tree[name].itemsize == 0 for name, row in rows.items())


def test_the_manifest_is_strict_json_and_says_what_it_is(tmp_path):
    path = save_checkpoint(tmp_path, "c", {"x": [float("inf")], "w": np.ones(2, np.float32)}, META)
    content = json.loads((path / "manifest.json").read_text(encoding="utf-8"), parse_constant=refuse)
    size = (path / "arrays-00000.safetensors").stat().st_size
    assert (content["format"], content["version"], content["hash"]) == ("parhelion-checkpoint", 1, "xxh3_128")
    assert content["meta"]["global_iteration"] == 10
    assert content["files"]["arrays-00000.safetensors"]["size"] == size
    assert content["arrays"]["w"] | {"hash": "", "offset": 0} == {
        "file": "arrays-00000.safetensors",
        "offset": 0,
        "size": 8,
        "dtype": "float32",
        "shape": [2],
        "hash": "",
    }
    assert content["tree"] == {"x": ["list", ["float", "7ff0000000000000"]], "w": ["ndarray", "w"]}


def test_the_same_state_gives_the_same_bytes(tmp_path):
    tree = {"s": {"b", "a", "c"}, "w": np.ones(3)}
    one, two = (save_checkpoint(tmp_path, name, tree, META) for name in ("one", "two"))
    for file in ("manifest.json", "arrays-00000.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_no_pickle_is_written_or_read(tmp_path):
    path = save_checkpoint(tmp_path, "c", {"w": np.ones(3), "s": "text"}, META)
    for file in path.iterdir():
        assert not file.read_bytes().startswith((b"\x80", b"PK"))
    sources = Path(format_file.__file__).parent.glob("*.py")
    assert not any("import pickle" in source.read_text(encoding="utf-8") for source in sources)


def test_a_newer_version_is_named_with_both_numbers(tmp_path):
    path = save_checkpoint(tmp_path, "c", 1, META)
    rewrite(path, version=7)
    with pytest.raises(CheckpointVersionError, match=r"has format version 7; expected at most 2, .*Upgrade"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "one"},
        {"format": "another"},
        {"hash": "sha256"},
        {"arrays": {"w": {}}},
        {"arrays": []},
        {"files": {"../evil": {"size": 1, "header_size": 1, "header_hash": ""}}},
        {"files": {}},
        {"tree": {"w": ["ndarray", "nothing"]}},
        {"meta": ["no tag"]},
        {"meta": {}},
    ],
    ids=str,
)
def test_a_manifest_that_is_unchanged_but_malformed_is_an_error_and_no_damage(tmp_path, changes):
    path = save_checkpoint(tmp_path, "r_epoch_2_iter_10", {"w": np.ones(2)}, META)
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match="malformed") as caught:
        load_newest(tmp_path)
    assert type(caught.value) is CheckpointError
    assert path.is_dir()


@pytest.mark.parametrize(
    "change", [{"offset": 0}, {"size": 8}, {"size": -8}, {"strides": [99, 1]}, {"shape": [3]}], ids=str
)
def test_an_array_that_does_not_fit_its_file_is_an_error(tmp_path, change):
    path = save_checkpoint(tmp_path, "c", {"w": np.ones((2, 2))}, META)
    arrays = json.loads((path / "manifest.json").read_bytes())["arrays"]
    rewrite(path, arrays={"w": arrays["w"] | change})
    with pytest.raises(CheckpointError, match="malformed"):
        load_checkpoint(path)


def test_a_path_without_a_checkpoint_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(CheckpointError, match=rf"^checkpoint is '.*{name}'; expected an existing folder"):
            load_checkpoint(tmp_path / name)


def test_names_hold_run_epoch_and_iteration():
    assert checkpoint_name("my.run epoch", 3, 1200) == "my.run epoch_epoch_3_iter_1200"


@pytest.mark.parametrize("name", ["", " ", ".hidden", "a/b", "..", "a\\b", "a\0b", "a\nb"])
def test_a_run_name_that_no_folder_can_have_is_refused(tmp_path, name):
    with pytest.raises(InvalidValueError, match=r"^run name is .*; expected text without slashes .* Put '-'"):
        checkpoint_name(name, 1, 1)
    with pytest.raises(InvalidValueError, match=r"^checkpoint name is .*; expected text without slashes"):
        save_checkpoint(tmp_path, name, 1, META)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_or_means_damaged_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match=r"^run name is 300 bytes long; expected at most 240"):
        checkpoint_name("\N{SNOWMAN}" * 100, 1, 1)
    with pytest.raises(InvalidValueError, match=r"'x\.damaged-2'; expected one without the ending"):
        save_checkpoint(tmp_path, "x.damaged-2", 1, META)


@pytest.mark.parametrize("key", ["run_name", "global_epoch", "global_iteration"])
def test_meta_must_say_run_epoch_and_iteration(tmp_path, key):
    with pytest.raises(InvalidValueError, match=rf"meta has the entries .*; expected '{key}' among them"):
        save_checkpoint(tmp_path, "c", 1, {name: value for name, value in META.items() if name != key})
    with pytest.raises(InvalidTypeError, match=rf"meta\['{key}'\] is True; expected (int|str)"):
        save_checkpoint(tmp_path, "c", 1, META | {key: True})


def test_meta_holds_plain_values_only(tmp_path):
    with pytest.raises(InvalidTypeError, match=r"^meta holds the array x; expected plain values"):
        save_checkpoint(tmp_path, "c", 1, META | {"x": np.ones(1)})
    with pytest.raises(UnsavableValueError, match=r"^x is a function"):
        save_checkpoint(tmp_path, "c", 1, META | {"x": len})


def test_flatten_then_write_is_save(tmp_path):
    tree = {"w": np.arange(3)}
    one = save_checkpoint(tmp_path, "one", tree, META)
    two = write_checkpoint(tmp_path, "two", *flatten(tree), META)
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
