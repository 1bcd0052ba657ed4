"""Bytes that are not those that were written are always found, and never handed out."""

import errno
import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from parhelion.checkpoint import (
    _format,
    _reader,
    _seals,
    find_last_checkpoint,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from parhelion.errors import CheckpointError, CheckpointVersionError, DamagedCheckpointError

SHARD = "arrays-00000.safetensors"


def meta(iteration=1):
    return {"run_name": "run", "global_epoch": 1, "global_iteration": iteration}


def save(root, iteration=1):
    tree = {
        "w": np.arange(40, dtype=np.float32) + iteration,
        "mask": np.array([True, False]),
        "raw": np.array([1j]),
        "note": "text",
        "rate": 0.5,
    }
    return save_checkpoint(root, f"run_epoch_1_iter_{iteration}", tree, meta(iteration))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("sound"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path, sound):
    folder = tmp_path / "run_epoch_1_iter_1"
    folder.mkdir()
    for name, content in sound.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("file", [SHARD, "manifest.json"])
def test_every_flipped_bit_is_found(folder, sound, file):
    content = bytearray(sound[file])
    rng = np.random.default_rng(7)
    for position in range(len(content)):
        bit = 1 << int(rng.integers(8))
        content[position] ^= bit
        (folder / file).write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=file):
            load_checkpoint(folder)
        content[position] ^= bit
    (folder / file).write_bytes(content)
    assert load_checkpoint(folder).tree["note"] == "text"


@pytest.mark.parametrize("file", [SHARD, "manifest.json"])
def test_every_truncation_is_found(folder, sound, file):
    for size in range(len(sound[file])):
        (folder / file).write_bytes(sound[file][:size])
        with pytest.raises(DamagedCheckpointError, match=file):
            load_checkpoint(folder)


@pytest.mark.parametrize("file", [SHARD, "manifest.json"])
def test_bytes_behind_the_end_are_found(folder, sound, file):
    (folder / file).write_bytes(sound[file] + b"\n")
    with pytest.raises(DamagedCheckpointError, match=file):
        load_checkpoint(folder)


@pytest.mark.parametrize("file", [SHARD, "manifest.json"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(DamagedCheckpointError, match=rf"is damaged: {file} is missing"):
        load_checkpoint(folder)


def test_arrays_of_another_checkpoint_are_found(tmp_path):
    one, two = save(tmp_path, 1), save(tmp_path, 2)
    (one / SHARD).write_bytes((two / SHARD).read_bytes())
    with pytest.raises(DamagedCheckpointError, match=r"the array w in .* is not what was written \(its hash differs\)"):
        load_checkpoint(one)


def test_the_message_says_what_is_wrong_and_a_way_out(folder, sound):
    (folder / SHARD).write_bytes(sound[SHARD][:100])
    size = len(sound[SHARD])
    with pytest.raises(DamagedCheckpointError, match=rf"{SHARD} has 100 bytes instead of {size}\. .*load_newest"):
        load_checkpoint(folder)
    (folder / SHARD).write_bytes(b"\x00" + sound[SHARD][1:])
    with pytest.raises(DamagedCheckpointError, match=rf"the header of {SHARD} is not what was written"):
        load_checkpoint(folder)
    (folder / "manifest.json").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json \(0 bytes\) is not what was written"):
        load_checkpoint(folder)


def test_a_disk_that_cannot_read_is_damage_and_a_missing_permission_is_not(folder, monkeypatch):
    def failing(number):
        def read_bytes(self):
            raise OSError(number, os.strerror(number))

        return read_bytes

    monkeypatch.setattr(Path, "read_bytes", failing(errno.EIO))
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json cannot be read \(Input/output error\)"):
        load_checkpoint(folder)
    monkeypatch.setattr(Path, "read_bytes", failing(errno.EACCES))
    with pytest.raises(CheckpointError, match=r"cannot be read \(manifest\.json: Permission denied\)") as caught:
        load_newest(folder.parent)
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize("count", [7, 0])
def test_reads_that_bring_less_than_asked_for_go_on_to_the_end(folder, monkeypatch, count):
    class Short(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:count])

    sound = load_checkpoint(folder).tree
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode, **named: Short(self) if named else real(self, mode))
    if count:
        np.testing.assert_array_equal(load_checkpoint(folder).tree["w"], sound["w"])
    else:
        with pytest.raises(DamagedCheckpointError, match=rf"{SHARD} ends within the array w"):
            load_checkpoint(folder)


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_the_newest_good_one_is_used_and_the_damaged_ones_are_set_aside_once(tmp_path, caplog):
    for iteration in (1, 2, 3):
        save(tmp_path, iteration)
    flip(tmp_path / "run_epoch_1_iter_3" / SHARD)
    flip(tmp_path / "run_epoch_1_iter_2" / "manifest.json")
    with caplog.at_level(logging.WARNING, logger="parhelion"):
        loaded = load_newest(tmp_path)
    assert loaded.meta["global_iteration"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last.json",
        "run_epoch_1_iter_1",
        "run_epoch_1_iter_2.damaged",
        "run_epoch_1_iter_3.damaged",
    ]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "its checksum differs" in messages[0]
    assert messages[0].endswith("(it is now run_epoch_1_iter_2.damaged)")
    assert f"in {SHARD} is not what was written" in messages[1]
    caplog.clear()
    assert load_newest(tmp_path).meta["global_iteration"] == 1
    assert caplog.records == []


def test_the_same_name_damaged_twice_is_set_aside_twice(tmp_path, caplog):
    for _ in range(3):
        flip(save(tmp_path) / SHARD)
        assert load_newest(tmp_path) is None
    assert sorted(path.name.partition(".")[2] for path in tmp_path.iterdir() if path.is_dir()) == [
        "damaged",
        "damaged-2",
        "damaged-3",
    ]
    assert find_last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["run_epoch_1_iter_1", "best"])
def test_a_folder_without_a_manifest_is_reported_if_it_looks_like_a_checkpoint(tmp_path, caplog, name):
    (save(tmp_path) / "manifest.json").unlink()
    (tmp_path / "run_epoch_1_iter_1").rename(tmp_path / name)
    assert load_newest(tmp_path) is None
    assert "manifest.json is missing" in caplog.text
    assert (tmp_path / f"{name}.damaged").is_dir()


def test_foreign_folders_are_left_alone(tmp_path, caplog):
    for name in ("logs", "webapp"):
        (tmp_path / name).mkdir()
    (tmp_path / "webapp" / "manifest.json").write_text("{}")
    assert load_newest(tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "webapp"]
    assert caplog.records == []


def test_one_that_cannot_be_renamed_is_passed_over_all_the_same(tmp_path, caplog, monkeypatch):
    save(tmp_path, 1)
    flip(save(tmp_path, 2) / SHARD)

    def rename(self, target):
        raise PermissionError

    monkeypatch.setattr(Path, "rename", rename)
    assert load_newest(tmp_path).meta["global_iteration"] == 1
    assert "(it could not be renamed)" in caplog.text


def test_one_that_is_replaced_while_it_is_read_is_not_taken_for_damaged(tmp_path, caplog, monkeypatch):
    path = save(tmp_path)
    manifests = [_format.read_manifest(path)]
    save(tmp_path)
    monkeypatch.setattr(
        _reader, "read_manifest", lambda _: manifests.pop() if manifests else _format.read_manifest(path)
    )
    assert load_newest(tmp_path).path == path
    assert manifests == []
    assert caplog.records == []


def test_one_that_another_process_takes_away_is_passed_over(tmp_path, caplog, monkeypatch):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    real = _reader.read_manifest

    def read(folder):
        if newest.is_dir():
            newest.rename(tmp_path / ".elsewhere")
        return real(folder)

    monkeypatch.setattr(_reader, "read_manifest", read)
    assert load_newest(tmp_path).meta["global_iteration"] == 1
    assert caplog.records == []


def test_a_newer_version_is_an_error_and_no_reason_to_go_back(tmp_path):
    save(tmp_path, 1)
    manifest = save(tmp_path, 2) / "manifest.json"
    body = manifest.read_bytes().partition(b"\n")[2].replace(b'"version": 1', b'"version": 3')
    manifest.write_bytes(_seals.seal(body))
    with pytest.raises(CheckpointVersionError, match="version 3; expected at most 2"):
        load_newest(tmp_path)
    assert find_last_checkpoint(tmp_path) == manifest.parent
