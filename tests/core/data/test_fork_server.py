"""The process that workers are forked from."""

import os
import signal
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from parhelion.data import _fork_server
from parhelion.errors import WorkerError
from support.worker_datasets import Plain, is_alive, make, pids_of, wait_until

pytestmark = pytest.mark.processes


def server_pid():
    return _fork_server._servers[0].process.pid


def count_children(pid):
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_pools_share_one_server_and_workers_are_its_children():
    with make(Plain(), num_workers=2)[0] as one, make(Plain(), num_workers=1)[0] as two:
        next(iter(one)), next(iter(two))
        assert count_children(server_pid()) == 3
        stats = [Path(f"/proc/{pid}/stat").read_text() for pid in pids_of(one)]
        assert {stat.rpartition(")")[2].split()[1] for stat in stats} == {str(server_pid())}
    wait_until(lambda: count_children(server_pid()) == 0)


def test_a_server_that_was_killed_is_replaced_and_its_workers_are_told_of():
    with make(Plain(), num_workers=1)[0] as loader:
        batches = iter(loader)
        next(batches)
        worker = pids_of(loader)[0]
        old = server_pid()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: not is_alive(old))
        with make(Plain(), num_workers=1)[0] as other:
            assert len(list(other)) == 6
            assert server_pid() != old
        assert len(list(batches)) == 5  # the worker goes on
    wait_until(lambda: not is_alive(worker))


def test_a_server_without_workers_ends_after_a_while_and_the_next_worker_has_a_new_one(monkeypatch):
    _fork_server.close_server()
    early = BOOT.replace("serve({link})", "import parhelion.data._fork_server as s; s._LINGER = 0.3; serve({link})")
    assert early != BOOT
    monkeypatch.setattr(_fork_server, "_BOOT", early)
    with make(Plain(), num_workers=1)[0] as loader:
        list(loader)
        old = server_pid()
    wait_until(lambda: not is_alive(old))
    with make(Plain(), num_workers=1)[0] as loader:
        assert len(list(loader)) == 6
        assert server_pid() != old
    _fork_server.close_server()


BOOT = _fork_server._BOOT


class Surroundings(Plain):
    def __getitem__(self, index):
        return {"cwd": str(Path.cwd()), "variable": os.environ.get("PARHELION_TEST"), "path": sys.path[0]}


def test_a_worker_finds_the_surroundings_that_its_parent_has_when_it_starts(tmp_path, monkeypatch):
    with make(Plain(), num_workers=1)[0] as loader:
        list(loader)  # the server is there before
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARHELION_TEST", "\udcff ü")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    with make(Surroundings(), num_workers=1)[0] as loader:
        batch = next(iter(loader))
    assert batch["cwd"][0] == str(tmp_path)
    assert batch["variable"][0] == "\udcff ü"
    assert batch["path"][0] == str(tmp_path / "modules")


def test_classes_of_a_module_without_a_file_travel_by_value(monkeypatch):
    module = types.ModuleType("made_up")
    exec("class Made:\n    def __len__(self): return 5\n    def __getitem__(self, i): return i", vars(module))  # noqa: S102
    monkeypatch.setitem(sys.modules, "made_up", module)
    with make(module.Made(), num_workers=1, shuffle=False)[0] as loader:
        assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4]]


class Draws(Plain):
    def __getitem__(self, index):
        return np.random.randint(2**31)


def test_what_nothing_keys_is_not_the_same_in_all_workers():
    with make(Draws(), num_workers=2, shuffle=False, global_rng="off")[0] as loader:
        batches = [batch.tolist() for batch in loader]
    assert not {*batches[0]} & {*batches[1]}


def test_pools_started_in_many_threads_at_once_are_all_served():
    found = []

    def load():
        with make(Plain(), num_workers=2)[0] as loader:
            found.append(len(list(loader)))

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [6] * 6


class Exits(Plain):
    def __getitem__(self, index):
        raise SystemExit("no more")


def test_a_worker_that_exits_does_not_become_a_server():
    with make(Exits(), num_workers=1)[0] as loader, pytest.raises(WorkerError, match="ended with exit code 1"):
        list(loader)
    wait_until(lambda: count_children(server_pid()) == 0)


class AsksThePackage(Plain):
    def __getitem__(self, index):
        import parhelion as ph

        before = "parhelion.training" in sys.modules
        drawn = ph.sample_rng().random(), ph.Position(1, 2).offset
        after = "parhelion.training" in sys.modules
        assert ph.__version__
        return before, after, drawn, ph.TrainingState().global_epoch, "parhelion.training" in sys.modules


def test_a_worker_loads_the_rest_of_the_package_when_it_is_asked_for():
    _fork_server.close_server()
    with make(AsksThePackage(), num_workers=1)[0] as loader:
        before, after, drawn, epoch, at_last = next(iter(loader))
    assert (before[0], after[0], epoch[0], at_last[0]) == (False, False, 0, True)
    assert drawn[1].tolist() == [2] * 4
