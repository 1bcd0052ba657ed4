"""Damage to a checkpoint that several processes wrote is always found; a save that fails anywhere leaves no trace."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import parhelion
from parhelion.checkpoint import (
    HostArray,
    Part,
    ShardedArray,
    _seals,
    begin_shared,
    commit_shared,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    write_shard,
)
from parhelion.errors import CheckpointError, DamagedCheckpointError

SKELETON = {"w": ["array", "w"], "b": ["ndarray", "b"]}
FILES = ["arrays-00000.safetensors", "arrays-00001.safetensors"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(parhelion.__file__).parents[1])}


def meta(iteration):
    return {"run_name": "run", "global_epoch": 1, "global_iteration": iteration}


def host(array):
    return HostArray(array.dtype.name, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def rows(whole, begin, stop):
    return ShardedArray("float32", whole.shape, (Part((begin, 0), host(whole[begin:stop])),))


def by_rank(iteration=1, bounds=((0, 2), (2, 4))):
    whole = np.arange(12, dtype=np.float32).reshape(4, 3) * iteration
    return [{"w": rows(whole, *each), "b": host(np.arange(3, dtype=np.int64))} for each in bounds]


def save(root, iteration=1, ranks=None, **named):
    ranks = by_rank(iteration) if ranks is None else ranks
    name = f"run_epoch_1_iter_{iteration}"
    scratch = begin_shared(root, name)
    for rank, arrays in enumerate(ranks[1:], 1):
        write_shard(scratch, rank, arrays)
    return commit_shared(scratch, name, SKELETON, ranks[0], meta(iteration), len(ranks), **named)


class Lazy:
    """An adapter that reads nothing of an array in parts."""

    def identity(self, leaf):
        return None

    def encode(self, leaf, path):
        raise NotImplementedError

    def decode(self, array):
        return array

    def decode_stored(self, stored):
        return stored


@pytest.fixture(params=[None, Lazy()], ids=["put together", "read later"])
def adapter(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_found(folder, adapter, file):
    content = bytearray((folder / file).read_bytes())
    rng = np.random.default_rng(3)
    for position in range(len(content)):
        bit = 1 << int(rng.integers(8))
        content[position] ^= bit
        (folder / file).write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=file):
            load_checkpoint(folder, adapter)
        content[position] ^= bit


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_shard_is_found(folder, adapter, file):
    content = (folder / file).read_bytes()
    for size in range(0, len(content), 7):
        (folder / file).write_bytes(content[:size])
        with pytest.raises(DamagedCheckpointError, match=file):
            load_checkpoint(folder, adapter)
    (folder / file).write_bytes(content + b"\n")
    with pytest.raises(DamagedCheckpointError, match=file):
        load_checkpoint(folder, adapter)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_shard_is_named(folder, adapter, file):
    (folder / file).unlink()
    with pytest.raises(DamagedCheckpointError, match=rf"is damaged: {file} is missing"):
        load_checkpoint(folder, adapter)


def test_a_shard_of_another_step_is_found_and_its_array_named(tmp_path, adapter):
    one, two = save(tmp_path, 1), save(tmp_path, 2)
    assert (one / FILES[1]).stat().st_size == (two / FILES[1]).stat().st_size
    shutil.copy(two / FILES[1], one / FILES[1])
    with pytest.raises(
        DamagedCheckpointError, match=rf"array w\[2:4, 0:3\] in {FILES[1]} is not what was written \(its hash differs\)"
    ):
        load_checkpoint(one, adapter)


def test_two_shards_of_one_checkpoint_that_change_places_are_found(folder, adapter):
    one, two = (folder / file for file in FILES)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(folder, adapter)


def test_the_newest_sound_one_is_used_and_one_with_a_bad_shard_set_aside(tmp_path, adapter, caplog):
    save(tmp_path, 1)
    (save(tmp_path, 2) / FILES[1]).unlink()
    with caplog.at_level(logging.WARNING, logger="parhelion"):
        assert load_newest(tmp_path, adapter).meta["global_iteration"] == 1
    assert (tmp_path / "run_epoch_1_iter_2.damaged").is_dir()
    assert len(caplog.records) == 1
    assert f"{FILES[1]} is missing" in caplog.text


def rewrite(folder, change):
    """Change what the manifest says, with the right checksum: a manifest is not trusted either."""
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_bytes())
    del content["checksum"]
    change(content["arrays"]["w"]["parts"])
    manifest.write_bytes(_seals.seal(json.dumps(content)[1:].encode()))


def overlapping(parts):
    parts[1]["start"] = [1, 0]


def outside(parts):
    parts[1]["start"] = [3, 0]


def doubled(parts):
    parts.append(dict(parts[1]))


def missing(parts):
    parts.pop()


def elsewhere(parts):
    parts[1]["file"] = "arrays-00007.safetensors"


def of_another_rank(parts):
    parts[1]["start"] = [2]


def of_another_width(parts):
    parts[1]["shape"] = [2, 3, 1]


def no_number(parts):
    parts[1]["offset"] = "0"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (overlapping, r"array w: two parts have \[1:2, 0:3\]"),
        (outside, r"array w: the part \[3:5, 0:3\] does not lie within \[0:4, 0:3\]"),
        (doubled, r"array w: two parts have \[2:4, 0:3\]"),
        (missing, r"array w: no part has \[2:4, 0:3\]"),
        (elsewhere, r"array w: a part is in a file that is not listed"),
        (of_another_rank, "malformed"),
        (of_another_width, "malformed"),
        (no_number, "malformed"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_parts_that_do_not_make_up_the_array_are_refused_at_load(folder, adapter, change, problem):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_checkpoint(folder, adapter)
    assert type(caught.value) is CheckpointError


# -- several readers ---------------------------------------------------------------------------------------------------


def test_readers_share_the_verifying_of_the_shards(folder):
    content = bytearray((folder / FILES[1]).read_bytes())
    content[-1] ^= 1
    (folder / FILES[1]).write_bytes(content)
    stored = load_checkpoint(folder, Lazy(), share=(0, 2)).tree["w"]
    stored.read((0, 0), (2, 3))
    with pytest.raises(DamagedCheckpointError, match=FILES[1]):
        stored.read((0, 0), (3, 3))
    with pytest.raises(DamagedCheckpointError, match=FILES[1]):
        load_checkpoint(folder, Lazy(), share=(1, 2))


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_a_share_that_is_none_is_refused(folder, share):
    with pytest.raises(ValueError, match=r"share is .*; expected \(rank, size\)"):
        load_checkpoint(folder, share=share)


class Reader:
    """One of several processes that load together, here a thread."""

    def __init__(self, rank, size, table, barrier):
        self.rank, self.size, self._table, self._barrier = rank, size, table, barrier

    def gather(self, value):
        self._table[self.rank] = value
        self._barrier.wait(20)
        values = list(self._table)
        self._barrier.wait(20)
        return values


def load_together(root, size):
    table, barrier, found = [None] * size, threading.Barrier(size), [None] * size

    def load(rank):
        try:
            found[rank] = load_newest(root, Lazy(), readers=Reader(rank, size, table, barrier))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=load, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_readers_go_back_together_from_damage_that_one_of_them_finds(tmp_path, caplog):
    save(tmp_path, 1)
    shard = save(tmp_path, 2) / FILES[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with caplog.at_level(logging.WARNING, logger="parhelion"):
        found = load_together(tmp_path, 3)
    assert [each.meta["global_iteration"] for each in found] == [1, 1, 1]
    assert len(caplog.records) == 1
    assert (tmp_path / "run_epoch_1_iter_2.damaged").is_dir()


def test_readers_raise_together_what_is_no_damage(tmp_path):
    path = save(tmp_path, 1)
    rewrite(path, missing)
    found = load_together(tmp_path, 2)
    assert all(type(each) is CheckpointError and "no part has" in str(each) for each in found)
    assert load_together(tmp_path / "nowhere", 2) == [None, None]


# -- saves that fail ---------------------------------------------------------------------------------------------------


def names(root):
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [
        (((0, 2), (1, 4)), r"two parts have \[1:2, 0:3\]"),
        (((0, 2), (3, 4)), r"no part has \[2:3, 0:3\]"),
        (((0, 1), (2, 4)), r"no part has \[1:2, 0:3\]"),
    ],
)
def test_parts_that_overlap_or_leave_a_hole_are_not_committed(tmp_path, bounds, problem):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=rf"^array w of shape \(4, 3\) is not made up by .*: {problem}; expected"):
        save(tmp_path, 2, by_rank(2, bounds))
    assert names(tmp_path) == ["last.json", "run_epoch_1_iter_1"]
    assert load_newest(tmp_path).meta["global_iteration"] == 1


def test_a_part_outside_of_its_array_is_not_committed(tmp_path):
    ranks = by_rank()
    ranks[1]["w"] = ShardedArray("float32", (4, 3), (Part((3, 0), host(np.ones((2, 3), np.float32))),))
    with pytest.raises(CheckpointError, match=r"the part \[3:5, 0:3\] does not lie within \[0:4, 0:3\]"):
        save(tmp_path, 1, ranks)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("there", "shown"),
    [
        ({"v": rows(np.ones((4, 3), np.float32), 2, 4)}, r"^array v is float32 of shape \(4, 3\), in parts on rank 1"),
        (
            {"w": rows(np.ones((5, 3), np.float32), 2, 5)},
            r"^array w is float32 of shape \(5, 3\), .* rank 1 and .*4, 3",
        ),
        (
            {"b": rows(np.ones((4, 3), np.float32), 2, 4)},
            r"and int64 of shape \(3,\), whole on rank 0; expected the same",
        ),
    ],
)
def test_ranks_with_other_arrays_are_not_committed(tmp_path, there, shown):
    with pytest.raises(CheckpointError, match=shown):
        save(tmp_path, 1, [by_rank()[0], there])
    assert names(tmp_path) == []


def test_the_reason_of_a_rank_that_failed_reaches_the_first_one(tmp_path, monkeypatch):
    save(tmp_path, 1)
    scratch = begin_shared(tmp_path, "run_epoch_1_iter_2")
    real = os.fsync
    failures = [OSError(errno.ENOSPC, "No space left on device")]

    def fsync(descriptor):
        if failures:
            raise failures.pop()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"^rank 1 could not write its part .* \(No space left on device\)"):
        write_shard(scratch, 1, by_rank(2)[1])
    with pytest.raises(CheckpointError, match=r"^rank 1 could not write its part of the checkpoint \(No space left on"):
        commit_shared(scratch, "run_epoch_1_iter_2", SKELETON, by_rank(2)[0], meta(2), 2)
    assert names(tmp_path) == ["last.json", "run_epoch_1_iter_1"]


def test_a_rank_that_cannot_even_say_why_is_heard(tmp_path, monkeypatch):
    scratch = begin_shared(tmp_path, "run_epoch_1_iter_2")
    real = Path.open

    def full(self, *arguments, **named):
        if "wb" in arguments and self.parent == scratch and not empty_only(self):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *arguments, **named)

    attempts = []

    def empty_only(path):
        attempts.append(path)
        return len(attempts) > 2  # the record, then the reason, then the mere name

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CheckpointError, match="rank 1 could not write"):
        write_shard(scratch, 1, by_rank(2)[1])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"^rank 1 could not write .* \(No space left|had no room to say why\)"):
        commit_shared(scratch, "run_epoch_1_iter_2", SKELETON, by_rank(2)[0], meta(2), 2)


def test_a_rank_that_is_gone_ends_the_wait(tmp_path):
    class GoneError(Exception):
        pass

    def check():
        raise GoneError

    scratch = begin_shared(tmp_path, "c")
    with pytest.raises(GoneError):
        commit_shared(scratch, "c", SKELETON, by_rank()[0], meta(1), 2, check=check)
    assert names(tmp_path) == []


def test_a_note_that_is_not_what_a_rank_wrote_is_not_believed(tmp_path):
    scratch = begin_shared(tmp_path, "c")
    write_shard(scratch, 1, by_rank()[1])
    record = scratch / "shard-00001.json"
    record.write_bytes(record.read_bytes().replace(b"float32", b"float16"))
    with pytest.raises(CheckpointError, match="what rank 1 has noted of its part of the checkpoint is not what it wr"):
        commit_shared(scratch, "c", SKELETON, by_rank()[0], meta(1), 2)
    assert names(tmp_path) == []


def test_a_rank_that_comes_when_the_first_one_has_given_up_fails_too(tmp_path):
    scratch = begin_shared(tmp_path, "c")
    with pytest.raises(ZeroDivisionError):
        commit_shared(scratch, "c", SKELETON, by_rank()[0], meta(1), 2, check=lambda: 1 / 0)
    with pytest.raises(CheckpointError, match=r"^rank 1 could not write its part .* \(No such file or directory\)"):
        write_shard(scratch, 1, by_rank()[1])
    assert names(tmp_path) == []


@pytest.mark.processes
@pytest.mark.parametrize("share", [0.1, 0.9, 0.999])
def test_a_disk_that_is_full_on_one_rank_keeps_the_previous_checkpoint(tmp_path, share):
    save(tmp_path, 1)
    code = """
import resource, sys
import numpy as np
from parhelion.checkpoint import HostArray, Part, ShardedArray, write_shard
from parhelion.errors import CheckpointError
scratch, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
part = HostArray("float32", (50_000, 3), np.ones(600_000, np.uint8))
try:
    write_shard(scratch, 1, {"w": ShardedArray("float32", (50_002, 3), (Part((2, 0), part),))})
except CheckpointError as error:
    print(error)
"""
    scratch = begin_shared(tmp_path, "run_epoch_1_iter_2")
    done = subprocess.run(
        [sys.executable, "-c", code, str(scratch), str(int(600_000 * share))],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "rank 1 could not write its part" in done.stdout
    assert "File too large" in done.stdout
    first = {"w": rows(np.ones((50_002, 3), np.float32), 0, 2), "b": host(np.ones(3))}
    with pytest.raises(CheckpointError, match=r"rank 1 could not write its part of the checkpoint \(File too large\)"):
        commit_shared(scratch, "run_epoch_1_iter_2", SKELETON, first, meta(2), 2)
    assert names(tmp_path) == ["last.json", "run_epoch_1_iter_1"]
    assert [info.iteration for info in list_checkpoints(tmp_path)] == [1]
