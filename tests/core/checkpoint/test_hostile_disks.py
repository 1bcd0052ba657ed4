"""Full disks, folders that may not be written or read, and other file systems."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import parhelion
from parhelion.checkpoint import find_last_checkpoint, list_checkpoints, load_newest, save_checkpoint
from parhelion.errors import CheckpointError

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(parhelion.__file__).parents[1])}
PRELUDE = """
import os, resource, sys
import numpy as np
from parhelion.checkpoint import *
from parhelion.errors import CheckpointError, DamagedCheckpointError

def meta(iteration):
    return {"run_name": "r", "global_epoch": 1, "global_iteration": iteration}

def tell(function, *arguments):
    try:
        print(function(*arguments))
    except CheckpointError as error:
        print(type(error).__name__, error)
"""


def run(code, *arguments, **named):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        env=ENVIRONMENT | named.pop("env", {}),
        capture_output=True,
        text=True,
        check=False,
        **named,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def meta(iteration):
    return {"run_name": "r", "global_epoch": 1, "global_iteration": iteration}


def names(root):
    return sorted(path.name for path in root.iterdir())


@pytest.mark.processes
@pytest.mark.parametrize("share", [0.1, 0.9, 0.999])
@pytest.mark.parametrize("name", ["r_epoch_1_iter_1", "r_epoch_1_iter_2"])
def test_a_disk_that_is_full_after_a_share_of_a_save_keeps_the_previous_one(tmp_path, share, name):
    save_checkpoint(tmp_path, "r_epoch_1_iter_1", {"w": np.ones(3)}, meta(1))
    (told,) = run(
        """
limit = int(float(sys.argv[2]) * 800_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
tell(save_checkpoint, sys.argv[1], sys.argv[3], {"w": np.ones(100_000)}, meta(2))
""",
        *(tmp_path, share, name),
    )
    assert f"{name} could not be written (File too large); expected a writable folder with room" in told
    assert load_newest(tmp_path).meta["global_iteration"] == 1
    assert names(tmp_path) == ["last.json", "r_epoch_1_iter_1"]
    assert len(names(tmp_path / "r_epoch_1_iter_1")) == 2


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)],  # noqa: S607 - wherever it is
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)  # noqa: S607 - as above


@pytest.mark.processes
@pytest.mark.parametrize("share", [0.1, 0.9, 0.999])
def test_a_small_disk_that_is_full_keeps_the_previous_one_and_takes_the_next_when_there_is_room(small_disk, share):
    save_checkpoint(small_disk, "r_epoch_1_iter_1", {"w": np.ones(3)}, meta(1))
    free = os.statvfs(small_disk).f_bavail * 4096
    with pytest.raises(CheckpointError, match=r"iter_2 could not be written \(No space left on device\)") as caught:
        save_checkpoint(small_disk, "r_epoch_1_iter_2", {"w": np.ones(int(free / share), np.uint8)}, meta(2))
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert names(small_disk) == ["last.json", "r_epoch_1_iter_1"]
    save_checkpoint(small_disk, "r_epoch_1_iter_2", {"w": np.ones(free // 2, np.uint8)}, meta(2))
    assert load_newest(small_disk).meta["global_iteration"] == 2


@pytest.mark.processes
def test_a_place_for_temporary_files_that_cannot_be_written_does_not_matter(tmp_path):
    (told,) = run(
        "print(save_checkpoint(sys.argv[1], 'c', {'w': np.ones(3)}, meta(1)))",
        tmp_path / "root",
        env={"TMPDIR": "/proc", "TEMP": "/proc", "TMP": "/proc"},
        cwd="/proc",
    )
    assert told == str(tmp_path / "root" / "c")
    assert find_last_checkpoint(tmp_path / "root") == tmp_path / "root" / "c"


@pytest.mark.processes
def test_a_root_on_another_file_system_than_the_temporary_files_is_written(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert tmp_path.stat().st_dev != small_disk.stat().st_dev
    save_checkpoint(small_disk, "c", {"w": np.ones(3)}, meta(1))
    assert names(small_disk) == ["c", "last.json"]
    assert names(tmp_path) == ["disk"]


@contextlib.contextmanager
def forbidden(path, mode):
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


# Nothing is forbidden to root, so the child becomes nobody; it stays in its folder, to which others have no way.
AS_NOBODY = """
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


@pytest.mark.processes
def test_a_folder_that_may_not_be_written_is_told_and_may_still_be_read(tmp_path):
    save_checkpoint(tmp_path, "r_epoch_1_iter_1", {"w": np.ones(3)}, meta(1))
    before = names(tmp_path)
    code = """
tell(save_checkpoint, ".", "r_epoch_1_iter_2", 1, meta(2))
tell(save_checkpoint, ".", "r_epoch_1_iter_1", 1, meta(1))
tell(save_checkpoint, "new/folder", "c", 1, meta(1))
tell(delete_checkpoint, "r_epoch_1_iter_1")
print(load_newest(".").path, remove_leftovers("."))
"""
    with forbidden(tmp_path, 0o555):
        told = run(AS_NOBODY + code, cwd=tmp_path)
    assert "r_epoch_1_iter_2 could not be written (Permission denied); expected a writable" in told[0]
    assert "r_epoch_1_iter_1 could not be written (Permission denied)" in told[1]
    assert "new/folder/c could not be written (Permission denied)" in told[2]
    assert "r_epoch_1_iter_1 could not be deleted (Permission denied); expected a writable" in told[3]
    assert told[4] == "r_epoch_1_iter_1 []"
    assert names(tmp_path) == before


@pytest.mark.processes
@pytest.mark.parametrize("file", ["manifest.json", "arrays-00000.safetensors", ""])
def test_one_that_may_not_be_read_is_an_error_and_no_damage(tmp_path, file):
    save_checkpoint(tmp_path, "r_epoch_1_iter_1", {"w": np.ones(3)}, meta(1))
    path = save_checkpoint(tmp_path, "r_epoch_1_iter_2", {"w": np.ones(3)}, meta(2))
    before = names(tmp_path)
    with forbidden(path / file, 0o000), forbidden(tmp_path, 0o755):
        told = run(AS_NOBODY + "tell(load_newest, '.'); tell(load_checkpoint, 'r_epoch_1_iter_2')", cwd=tmp_path)
    for line in told:
        assert line.startswith("CheckpointError checkpoint r_epoch_1_iter_2 cannot be read (")
        assert "Permission denied); expected readable files. Check its permissions." in line
    assert names(tmp_path) == before


def test_what_names_the_last_one_may_fail_and_the_checkpoint_counts(tmp_path, caplog):
    (tmp_path / "last.json").mkdir()
    path = save_checkpoint(tmp_path, "r_epoch_1_iter_1", {"w": np.ones(3)}, meta(1))
    assert [info.path for info in list_checkpoints(tmp_path)] == [path]
    assert "is there, and last.json that should say so could not be written (" in caplog.text
    assert names(tmp_path) == ["last.json", path.name]


def test_the_root_names_the_last_one(tmp_path):
    for iteration in (1, 2):
        save_checkpoint(tmp_path, f"r_epoch_1_iter_{iteration}", 1, meta(iteration))
    assert json.loads((tmp_path / "last.json").read_bytes()) == {"name": "r_epoch_1_iter_2", "iteration": 2, "epoch": 1}
