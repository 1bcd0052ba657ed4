"""Which checkpoint is the last, which are deleted, and what a dead process leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parhelion.checkpoint import (
    CheckpointInfo,
    _names,
    delete_checkpoint,
    find_last_checkpoint,
    list_checkpoints,
    load_newest,
    prune,
    remove_leftovers,
    save_checkpoint,
    supersede,
)
from parhelion.errors import CheckpointError, InvalidValueError


def save(root, iteration, epoch=1, name=None, run="run"):
    meta = {"run_name": run, "global_epoch": epoch, "global_iteration": iteration}
    return save_checkpoint(root, name or f"{run}_epoch_{epoch}_iter_{iteration}", {"w": np.ones(2)}, meta)


def names(root):
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("root", [None, "missing"])
def test_without_a_root_there_is_no_last_checkpoint(tmp_path, root):
    root = root and tmp_path / root
    assert find_last_checkpoint(root) is None
    assert list_checkpoints(root) == []
    assert load_newest(root) is None
    assert remove_leftovers(root) == []


def test_the_last_is_that_of_the_highest_iteration_then_epoch(tmp_path):
    save(tmp_path, 9, epoch=3)
    save(tmp_path, 100, epoch=2)
    last = save(tmp_path, 100, epoch=10)
    save(tmp_path, 20, epoch=11)
    assert find_last_checkpoint(tmp_path) == last
    assert [(info.iteration, info.epoch) for info in list_checkpoints(tmp_path)] == [
        (100, 10),
        (100, 2),
        (20, 11),
        (9, 3),
    ]


def test_a_run_name_that_contains_epoch_and_iter_is_harmless(tmp_path):
    run = "iter_999_epoch_77_x"
    save(tmp_path, 5, epoch=2, run=run)
    last = save(tmp_path, 12, epoch=1, run=run)
    assert find_last_checkpoint(tmp_path) == last


def test_the_manifest_decides_and_not_the_name(tmp_path):
    save(tmp_path, 1, name="run_epoch_9_iter_9000")
    last = save(tmp_path, 2, name="anything")
    assert find_last_checkpoint(str(tmp_path)) == last


@pytest.mark.parametrize("run", ["my_epoch_iter_model", "epoch_0", "iter_999_epoch_77_x", "r_epoch_1_iter_100"])
@pytest.mark.parametrize("seed", range(3))
def test_neither_names_nor_the_order_of_a_listing_decide_which_is_the_last(tmp_path, monkeypatch, run, seed):
    counters = [(1, 100), (2, 50), (2, 9), (0, 10), (10, 9), (9, 9), (0, 0)]
    for epoch, iteration in counters:
        save(tmp_path, iteration, epoch=epoch, run=run)
    real = Path.iterdir

    def iterdir(self):
        found = sorted(real(self))
        return iter([found[index] for index in np.random.default_rng(seed).permutation(len(found))])

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert find_last_checkpoint(tmp_path) == tmp_path / f"{run}_epoch_1_iter_100"
    assert [(info.epoch, info.iteration) for info in list_checkpoints(tmp_path)] == sorted(
        counters, key=lambda each: (each[1], each[0]), reverse=True
    )


def test_stray_files_and_loops_of_links_are_passed_over(tmp_path):
    good = save(tmp_path, 1)
    (tmp_path / "run_epoch_1_iter_9").symlink_to(tmp_path / "run_epoch_1_iter_9")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "run_epoch_2_iter_8").symlink_to(good)
    (tmp_path / "run_epoch_1_iter_7").write_text("a file")
    (tmp_path / "manifest.json").write_text("{}")
    (good / "notes.txt").write_text("mine")
    (good / "up").symlink_to(tmp_path)
    assert [info.path for info in list_checkpoints(tmp_path)] == [good]
    assert load_newest(tmp_path).path == good
    assert prune(tmp_path, 1) == []
    assert remove_leftovers(tmp_path) == []
    assert len(names(tmp_path)) == 9


def test_only_folders_with_a_readable_manifest_are_listed(tmp_path):
    good = save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text("{")
    (save(tmp_path, 3) / "manifest.json").unlink()
    save(tmp_path, 4).rename(tmp_path / "run_epoch_1_iter_4.damaged")
    save(tmp_path, 5).rename(tmp_path / ".hidden")
    (tmp_path / "run_epoch_1_iter_6").write_text("a file")
    (tmp_path / "latest").symlink_to(good)
    assert list_checkpoints(tmp_path) == [
        CheckpointInfo(good, 1, 1, {"run_name": "run", "global_epoch": 1, "global_iteration": 1})
    ]


def test_what_may_not_be_read_is_an_error_only_under_a_checkpoints_name(tmp_path, monkeypatch):
    good = save(tmp_path, 1)
    locked = tmp_path / "lost+found"
    locked.mkdir()
    real = Path.read_bytes

    def read_bytes(self):
        if self.parent in (locked, tmp_path / "run_epoch_1_iter_2"):
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert find_last_checkpoint(tmp_path) == good
    real_list = Path.iterdir

    def iterdir(self):
        if self == locked:
            raise PermissionError(13, "Permission denied")
        return real_list(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert find_last_checkpoint(tmp_path) == good
    save(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"iter_2 cannot be read \(manifest\.json: Permission denied\)"):
        find_last_checkpoint(tmp_path)


def test_listing_looks_at_no_array(tmp_path):
    path = save(tmp_path, 1)
    (path / "arrays-00000.safetensors").write_bytes(b"broken")
    assert find_last_checkpoint(tmp_path) == path


def test_pruning_keeps_the_newest_and_the_protected(tmp_path, monkeypatch):
    paths = {iteration: save(tmp_path, iteration) for iteration in (1, 2, 3, 10, 20)}
    monkeypatch.chdir(tmp_path)
    gone = prune(tmp_path, 2, protect=[Path(paths[2].name), str(tmp_path / "not there")])
    assert gone == [paths[1], paths[3]]
    assert [info.iteration for info in list_checkpoints(tmp_path)] == [20, 10, 2]
    assert len(names(tmp_path)) == 4
    assert prune(tmp_path, 3) == []


def test_pruning_to_nothing_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InvalidValueError, match="keep_last is 0; expected an integer >= 1"):
        prune(tmp_path, 0)
    assert len(list_checkpoints(tmp_path)) == 1


def test_a_checkpoint_has_left_its_name_before_its_first_file_goes(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)

    def stop(path):
        assert path.name.startswith(".parhelion-deleting-")
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1)
    assert [info.iteration for info in list_checkpoints(tmp_path)] == [2]


def test_one_that_cannot_be_deleted_is_an_error(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)

    def rename(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(
        CheckpointError, match=r"iter_1 could not be deleted \(Permission denied\); expected a writable"
    ):
        prune(tmp_path, 1)


@pytest.mark.processes
def test_leftovers_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path):
    code = (
        "import sys; from pathlib import Path; from parhelion.checkpoint import _names;"
        "(Path(sys.argv[1]) / _names.scratch_name('saving')).mkdir();"
        "(Path(sys.argv[1]) / _names.scratch_name('deleting')).mkdir();"
        "print('made', flush=True); sys.stdin.read()"
    )
    kept = save(tmp_path, 1)
    mine = tmp_path / _names.scratch_name("saving")
    mine.mkdir()
    core = str(Path(_names.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": core},
    ) as child:
        assert child.stdout.readline() == b"made\n"
        theirs = {path for path in tmp_path.iterdir() if path.name.startswith(".")} - {mine}
        assert len(theirs) == 2
        assert remove_leftovers(tmp_path) == []
        child.kill()
    assert set(remove_leftovers(tmp_path)) == theirs
    assert set(tmp_path.iterdir()) == {kept, mine, tmp_path / "last.json"}


def test_a_reused_process_number_does_not_keep_a_leftover(tmp_path):
    pid = os.getpid()
    leftover = tmp_path / f".parhelion-saving-{pid}-1-00000000@{_names._host()}"
    foreign = tmp_path / f".parhelion-saving-{pid}-1-00000000@another.1"
    unrelated = tmp_path / ".parhelion-notes"
    for path in (leftover, foreign, unrelated):
        path.mkdir()
    assert remove_leftovers(tmp_path) == [leftover]
    assert set(tmp_path.iterdir()) == {foreign, unrelated}


def test_what_other_hosts_left_goes_only_when_that_is_asked_for(tmp_path):
    foreign = tmp_path / ".parhelion-saving-1-1-00000000@another.1"
    mine = tmp_path / _names.scratch_name("saving")
    for path in (foreign, mine):
        path.mkdir()
    assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path, all_hosts=True) == [foreign]
    assert names(tmp_path) == [mine.name]


def test_a_small_file_that_a_dead_process_left_goes_too(tmp_path):
    leftover = tmp_path / f".parhelion-saving-{os.getpid()}-1-00000000@{_names._host()}"
    leftover.write_text("half of last.json")
    assert remove_leftovers(tmp_path) == [leftover]
    assert names(tmp_path) == []


@pytest.mark.processes
def test_files_that_a_killed_replacement_had_put_into_a_checkpoint_go_at_the_next_start(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; import numpy as np;"
        "from parhelion.checkpoint import save_checkpoint;"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        "meta = {'run_name': 'run', 'global_epoch': 1, 'global_iteration': 1};"
        "save_checkpoint(sys.argv[1], 'run_epoch_1_iter_1', {'w': np.zeros(3)}, meta)"
    )
    kept = save(tmp_path, 1)
    core = str(Path(_names.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env={**os.environ, "PYTHONPATH": core})
    assert names(kept) == ["arrays-00000.safetensors", "arrays-00001.safetensors", "manifest.json"]
    assert len(remove_leftovers(tmp_path)) == 1
    assert names(kept) == ["arrays-00000.safetensors", "manifest.json"]
    assert load_newest(tmp_path).tree["w"].tolist() == [1, 1]


def test_deleting_one_takes_also_a_damaged_one_and_nothing_that_is_none(tmp_path):
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text("{")
    delete_checkpoint(path)
    delete_checkpoint(str(save(tmp_path, 2)))
    folder = tmp_path / "thesis"
    folder.mkdir()
    link = tmp_path / "link"
    link.symlink_to(save(tmp_path, 3))
    for where, what in ((folder, "no checkpoint"), (tmp_path / "nowhere", "no checkpoint"), (link, "a link")):
        with pytest.raises(CheckpointError, match=rf"{where.name} is {what}; expected a folder with manifest\.json"):
            delete_checkpoint(where)
    assert names(tmp_path) == ["last.json", "link", "run_epoch_1_iter_3", "thesis"]


def test_one_that_is_superseded_is_kept_out_of_the_way(tmp_path):
    for _ in range(2):
        done = supersede(save(tmp_path, 2))
    assert done == f"it is now {tmp_path / 'superseded' / 'run_epoch_1_iter_2-2'}"
    assert names(tmp_path / "superseded") == ["run_epoch_1_iter_2", "run_epoch_1_iter_2-2"]
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match=r"nothing could not be put out of the way \(No such file"):
        supersede(tmp_path / "nothing")
