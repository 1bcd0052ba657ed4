"""A checkpoint is there whole or not at all, whatever happens while it is written."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import parhelion
from parhelion.checkpoint import (
    find_last_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from parhelion.errors import CheckpointError

META = {"run_name": "r", "global_epoch": 1, "global_iteration": 1}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(parhelion.__file__).parents[1])}


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_files_are_synced_before_the_name_appears_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(path.name if path == tmp_path else path.suffix)
        real_sync(descriptor)

    def rename(self, target):
        events.append(f"rename to {target.name}")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    save_checkpoint(tmp_path, "c", {"w": np.ones(3)}, META)
    folder = events.pop(2)
    assert events[:4] == [".safetensors", ".json", "rename to c", tmp_path.name]
    assert folder not in (".safetensors", ".json", tmp_path.name)


def test_work_in_progress_is_hidden_and_names_its_process(tmp_path, monkeypatch):
    seen = []
    real = Path.rename

    def rename(self, target):
        seen.append(self.name)
        assert find_last_checkpoint(tmp_path) is None
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    save_checkpoint(tmp_path, "c", 1, META)
    assert seen[0].startswith(f".parhelion-saving-{os.getpid()}-")


@pytest.mark.parametrize("call", ["fsync", "posix_fallocate"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["old", "new"])
def test_a_failure_leaves_what_was_there_and_nothing_new(tmp_path, monkeypatch, call, failure, name):
    save_checkpoint(tmp_path, "old", {"w": np.ones(3)}, META)
    before = files(tmp_path)

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, call, fail)
    expected = CheckpointError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        save_checkpoint(tmp_path, name, {"w": np.zeros(3)}, META)
    if expected is CheckpointError:
        assert f"{name} could not be written (No space left on device); expected" in str(caught.value)
        assert caught.value.__cause__ is failure
    assert files(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.json", "old"]


def test_a_file_system_that_cannot_reserve_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    path = save_checkpoint(tmp_path, "c", {"w": np.arange(1000)}, META)
    np.testing.assert_array_equal(load_checkpoint(path).tree["w"], np.arange(1000))


@pytest.mark.processes
@pytest.mark.parametrize("reserve", [True, False])
def test_a_full_disk_is_an_error_that_keeps_the_previous_checkpoint(tmp_path, reserve):
    code = f"""
import os, resource, sys
import numpy as np
from parhelion.checkpoint import save_checkpoint, load_newest
from parhelion.errors import CheckpointError
root, meta = sys.argv[1], {META!r}
save_checkpoint(root, "r_epoch_1_iter_1", {{"w": np.ones(1000)}}, meta)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
if not {reserve}:
    def refuse(*_): raise OSError(95, "no")
    os.posix_fallocate = refuse
try:
    save_checkpoint(root, "r_epoch_1_iter_2", {{"w": np.ones(1_000_000)}}, meta)
except CheckpointError as error:
    print(error, "|", type(error.__cause__).__name__, error.__cause__.errno)
print(load_newest(root).path.name, *sorted(os.listdir(root)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert "r_epoch_1_iter_2 could not be written (File too large); expected a writable folder with room" in first
    assert first.endswith(f"| OSError {errno.EFBIG}")
    assert second == "r_epoch_1_iter_1 last.json r_epoch_1_iter_1"


def test_a_root_that_cannot_be_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/c could not be written \(.*\); expected a writable folder"):
        save_checkpoint(tmp_path / "file", "c", 1, META)
    with pytest.raises(CheckpointError, match=r"file could not be written \(Not a directory\)"):
        save_checkpoint(tmp_path, "file", 1, META)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_saving_the_same_name_again_replaces_it(tmp_path):
    for value in range(3):
        path = save_checkpoint(tmp_path, "c", {"w": np.full(4, value)}, META)
        assert load_checkpoint(path).tree["w"].tolist() == [value] * 4
        assert len(list(path.iterdir())) == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c", "last.json"]


def test_a_replaced_checkpoint_is_good_at_every_moment(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, "c", {"w": np.zeros(4)}, META)
    seen = []

    def looking(function):
        def look(*arguments, **named):
            seen.append(load_checkpoint(path).tree["w"][0])
            result = function(*arguments, **named)
            seen.append(load_checkpoint(path).tree["w"][0])
            return result

        return look

    monkeypatch.setattr(os, "fsync", looking(os.fsync))
    monkeypatch.setattr(Path, "replace", looking(Path.replace))
    monkeypatch.setattr(Path, "unlink", looking(Path.unlink))
    save_checkpoint(tmp_path, "c", {"w": np.ones(4)}, META)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 1)
    assert len(seen) >= 10


def test_a_damaged_checkpoint_of_that_name_is_replaced_too(tmp_path):
    path = save_checkpoint(tmp_path, "c", {"w": np.zeros(4)}, META)
    (path / "manifest.json").write_text("{")
    (path / "arrays-00007.safetensors").write_text("left by a kill")
    save_checkpoint(tmp_path, "c", {"w": np.ones(4)}, META)
    assert load_checkpoint(path).tree["w"][0] == 1
    assert len(list(path.iterdir())) == 2


WRITER = """
import sys
import numpy as np
from parhelion.checkpoint import prune, save_checkpoint
root, mode = sys.argv[1:]
iteration = 0
while True:
    iteration += 1
    tree = {f"w{k}": np.full(50_000, iteration, np.int64) for k in range(4)}
    meta = {"run_name": "r", "global_epoch": 1, "global_iteration": iteration}
    save_checkpoint(root, "same" if mode == "same" else f"r_epoch_1_iter_{iteration}", tree, meta)
    if mode == "prune":
        prune(root, 2)
    print(iteration, flush=True)
"""


@pytest.mark.processes
@pytest.mark.parametrize("mode", ["new", "prune", "same"])
@pytest.mark.parametrize("attempt", range(6))
def test_a_kill_at_any_moment_leaves_a_good_newest_checkpoint(tmp_path, caplog, mode, attempt):
    rng = np.random.default_rng([attempt, len(mode)])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), mode],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        acknowledged = [int(child.stdout.readline()) for _ in range(1 + attempt % 3)][-1]
        moment = time.perf_counter() + rng.uniform(0, 0.02)
        while time.perf_counter() < moment:
            pass
        child.kill()
        acknowledged = max([acknowledged, *map(int, child.stdout.read().split())])
    loaded = load_newest(tmp_path)
    iteration = loaded.meta["global_iteration"]
    assert iteration in (acknowledged, acknowledged + 1)
    assert len(loaded.tree) == 4
    for array in loaded.tree.values():
        np.testing.assert_array_equal(array, np.full(50_000, iteration))
    for info in list_checkpoints(tmp_path):
        load_checkpoint(info.path)
    assert caplog.records == []
