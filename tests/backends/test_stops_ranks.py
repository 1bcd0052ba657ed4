"""A signal to any one of several ranks, on both backends: all stop behind the same update, save once, and go on.

What happens inside one life is shown by one set of processes, in which one run follows the other; what happens to the
processes themselves has processes of its own.
"""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parhelion.checkpoint import list_checkpoints
from support import launchers, whole_run
from support.whole_run import read_run

SCRIPT = Path(whole_run.__file__)
pytestmark = pytest.mark.processes
# Every life compiles the same programs.
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
STOPS: dict[str, dict[str, Any]] = {
    "SIGTERM in a step of the last": {"point": "step", "at": 5, "rank": 1, "act": "SIGTERM"},
    "SIGINT in a step of the first": {"point": "step", "at": 5, "rank": 0, "act": "SIGINT"},
    "SIGUSR1 in a step of the last": {"point": "step", "at": 5, "rank": 1, "act": "SIGUSR1"},
    "SIGTERM in the set-up": {"point": "set-up", "rank": 1, "act": "SIGTERM"},
    "SIGTERM in a validation": {"point": "validation", "at": 6, "rank": 1, "act": "SIGTERM"},
    "SIGTERM in a validation, and time is short": {"point": "validation", "at": 6, "rank": 1, "act": "SIGTERM"},
    "SIGUSR1 in a save behind": {"point": "save", "at": 4, "rank": 0, "act": "SIGUSR1"},
    "SIGTERM in a save at once": {"point": "save", "at": 4, "rank": 0, "act": "SIGTERM"},
    "SIGTERM while a state is taken": {"point": "state", "at": 4, "rank": 1, "act": "SIGTERM"},
    "SIGTERM while a record is made": {"point": "data", "at": 5, "rank": 1, "act": "SIGTERM"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "SIGTERM in a validation, and time is short": {"stop_deadline": 4.0},
    "SIGTERM in a save at once": {"chkpt_in_background": False},
}
# On jax, where a life takes longer, the rest is left to torch: it is the same code.
ON_JAX = [
    "SIGTERM in a step of the last",
    "SIGINT in a step of the first",
    "SIGTERM in a validation, and time is short",
    "SIGUSR1 in a save behind",
    "SIGTERM while a record is made",
]
SLOW = {"SIGTERM in a validation, and time is short": {"pace": 0.4}}


BOTH = [("torch", name) for name in STOPS] + [("jax", name) for name in ON_JAX]
ON_EACH = pytest.mark.parametrize("backend", ["torch", "jax"])


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return where two ranks have left an undisturbed run, and after it every stopped one with its second life."""

    @functools.cache
    def make(backend: str) -> Path:
        pytest.importorskip(f"parhelion_{backend}")
        folder = tmp_path_factory.mktemp(backend)
        settings: list[dict[str, Any]] = [{"root": str(folder / "oracle")}]
        for name in (name for each, name in BOTH if each == backend):
            setting = {"root": str(folder / name), **OPTIONS.get(name, {})}
            settings += [{**setting, "fault": {"seconds": 0.05, **STOPS[name], **SLOW.get(name, {})}}, setting]
        environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs"), **CACHE}
        with launchers.start("launch", 2, SCRIPT, backend, *map(json.dumps, settings), **environment) as group:
            assert group.end(200) == 0, group.text
        return folder

    return make


def results_of(folder: Path, life: int) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"result-{life}-*.json"))]


@pytest.mark.parametrize(("backend", "name"), BOTH)
def test_all_ranks_stop_behind_the_same_update_and_say_that_they_are_to_be_started_again(
    folder_of, backend, name
) -> None:
    folder = folder_of(backend)
    results = results_of(folder / name, 0)
    assert [(each["done"], each["reason"], each["code"]) for each in results] == [(False, "preempted", 75)] * 2
    assert results[0]["state"] == results[1]["state"]
    at = max(STOPS[name].get("at", 0), 0) if STOPS[name]["point"] != "data" else 0
    assert at <= results[0]["state"]["global_iteration"] <= 17
    saved = [info.iteration for info in list_checkpoints(folder / name / "net")]
    assert (results[0]["state"]["global_iteration"] in saved) == ("set-up" not in name)


@pytest.mark.parametrize(("backend", "name"), BOTH)
def test_the_second_life_makes_it_the_run_that_never_stopped(folder_of, backend, name) -> None:
    folder = folder_of(backend)
    oracle, told = read_run(folder / "oracle"), read_run(folder / name)
    assert told.steps == oracle.steps
    assert told.repeated == 0
    for mine, theirs in zip(told.results, oracle.results, strict=True):
        assert (mine["reason"], mine["weights"]) == ("finished", oracle.results[0]["weights"])
        assert (mine["rows"], mine["state"]) == (theirs["rows"], theirs["state"])


@ON_EACH
def test_a_validation_is_left_by_all_when_time_is_short_and_done_by_the_second_life(folder_of, backend) -> None:
    folder = folder_of(backend)
    for left in results_of(folder / "SIGTERM in a validation, and time is short", 0):
        assert (left["state"]["global_iteration"], left["state"]["validation_cycles"]) == (6, 0)
    for done in results_of(folder / "SIGTERM in a validation", 0):  # only on torch
        assert (done["state"]["global_iteration"], done["state"]["validation_cycles"]) == (6, 1)


# -- processes of their own -------------------------------------------------------------------------------------------


def begin(backend: str, root: Path, launcher: str = "launch", **setting: Any) -> Any:
    return launchers.start(launcher, 2, SCRIPT, backend, json.dumps({"root": str(root), **setting}))


def go_on(backend: str, root: Path, folder: Path, *, repeated: int) -> None:
    """Start a run again, and compare all its lives with the run that never stopped."""
    with begin(backend, root) as group:
        assert group.end() == 0, group.text
    told, oracle = read_run(root), read_run(folder / "oracle")
    assert told.steps == oracle.steps
    assert told.repeated <= repeated
    assert [each["weights"] for each in told.results] == [each["weights"] for each in oracle.results]
    assert [each["rows"] for each in told.results] == [each["rows"] for each in oracle.results]


@ON_EACH
def test_a_signal_from_outside_to_one_rank_ends_the_launcher_with_75(backend, folder_of, tmp_path) -> None:
    root = tmp_path / "run"
    with begin(backend, root, fault={"point": "step", "at": 8, "rank": 0, "seconds": 1.0}) as group:
        group.wait_for("at step")
        group.signal(signal.SIGUSR1, rank=1)
        assert group.end() == 75, group.text
    assert [each["code"] for each in results_of(root, 0)] == [75, 75]
    go_on(backend, root, folder_of(backend), repeated=0)


@ON_EACH
def test_a_rank_whose_data_hangs_ends_all_by_the_deadline_and_costs_what_came_behind_the_last_checkpoint(
    backend, folder_of, tmp_path
) -> None:
    root, fault = tmp_path / "run", {"point": "data", "at": 5, "rank": 1, "act": "hang"}
    with begin(backend, root, fault=fault, stop_deadline=3.0, chkpt_every_iterations=1, resume="auto") as group:
        group.wait_for("at data")
        start = time.monotonic()
        # On jax the other one waits where nothing can be raised, and has a deadline of its own.
        group.signal(signal.SIGTERM, rank=1 if backend == "torch" else None)
        assert group.end() == 75, group.text
        assert time.monotonic() - start < 20
        assert "has not come to the end of its step" in group.text
    go_on(backend, root, folder_of(backend), repeated=1)


@pytest.mark.parametrize("backend", ["torch"])
def test_a_second_signal_ends_the_rank_at_once_and_the_others_with_it(backend, tmp_path) -> None:
    pytest.importorskip(f"parhelion_{backend}")
    fault = {"point": "step", "at": 2, "rank": 0, "act": "hang"}
    with begin(backend, tmp_path, fault=fault, stop_deadline=None) as group:
        group.wait_for("at step")
        group.signal(signal.SIGTERM, rank=0)
        with pytest.raises(subprocess.TimeoutExpired):
            group.process.wait(1.5)
        start = time.monotonic()
        group.signal(signal.SIGTERM, rank=0)
        assert group.end() == 128 + signal.SIGTERM, group.text
        assert time.monotonic() - start < 20
    assert not (tmp_path / "result-0-0.json").exists()


def test_a_trainer_that_has_started_its_own_processes_passes_a_signal_on(tmp_path) -> None:
    pytest.importorskip("torch")
    script, fault = SCRIPT.with_name("whole_run_spawned.py"), {"point": "step", "at": 5, "rank": 1, "seconds": 1.0}
    setting = {"root": str(tmp_path), "total_steps": 2}
    with launchers.start("alone", 1, script, json.dumps({**setting, "fault": fault})) as group:
        group.wait_for("at step")
        group.signal(signal.SIGTERM)
        assert group.end() == 75, group.text
    assert [(each["done"], each["reason"]) for each in results_of(tmp_path, 0)] == [(False, "preempted")]
    with launchers.start("alone", 1, script, json.dumps(setting)) as group:
        assert group.end() == 0, group.text
    told = read_run(tmp_path)
    assert sorted(told.steps) == [*range(1, 13)]
    assert told.repeated == 0
