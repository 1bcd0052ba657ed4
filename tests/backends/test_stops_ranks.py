"""A signal to any one of several ranks, on both backends: all stop behind the same update, save once, and go on.

What happens inside one life is shown by one set of processes, in which one run follows the other; what happens to the
processes themselves has processes of its own.
"""

from __future__ import annotations

import json
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
SLOW = {"SIGTERM in a validation, and time is short": {"pace": 0.4}}


@pytest.fixture(scope="module", params=["torch", "jax"])
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(f"parhelion_{request.param}")
    return request.param


@pytest.fixture(scope="module")
def folder(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where two ranks have left an undisturbed run, and after it every stopped one with its second life."""
    folder = tmp_path_factory.mktemp(backend)
    settings: list[dict[str, Any]] = [{"root": str(folder / "oracle")}]
    for name, fault in STOPS.items():
        setting = {"root": str(folder / name), **OPTIONS.get(name, {})}
        settings += [{**setting, "fault": {"seconds": 0.05, **fault, **SLOW.get(name, {})}}, setting]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs"), **CACHE}
    with launchers.start("launch", 2, SCRIPT, backend, *map(json.dumps, settings), **environment) as group:
        assert group.end() == 0, group.text
    return folder


def results_of(folder: Path, life: int) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"result-{life}-*.json"))]


@pytest.mark.parametrize("name", STOPS)
def test_all_ranks_stop_behind_the_same_update_and_say_that_they_are_to_be_started_again(folder, name) -> None:
    results = results_of(folder / name, 0)
    assert [(each["done"], each["reason"], each["code"]) for each in results] == [(False, "preempted", 75)] * 2
    assert results[0]["state"] == results[1]["state"]
    at = max(STOPS[name].get("at", 0), 0) if STOPS[name]["point"] != "data" else 0
    assert at <= results[0]["state"]["global_iteration"] <= 17
    saved = [info.iteration for info in list_checkpoints(folder / name / "net")]
    assert (results[0]["state"]["global_iteration"] in saved) == ("set-up" not in name)


@pytest.mark.parametrize("name", STOPS)
def test_the_second_life_makes_it_the_run_that_never_stopped(folder, name) -> None:
    oracle, told = read_run(folder / "oracle"), read_run(folder / name)
    assert told.steps == oracle.steps
    assert told.repeated == 0
    for mine, theirs in zip(told.results, oracle.results, strict=True):
        assert (mine["reason"], mine["weights"]) == ("finished", oracle.results[0]["weights"])
        assert (mine["rows"], mine["state"]) == (theirs["rows"], theirs["state"])


def test_a_validation_is_left_by_all_when_time_is_short_and_done_by_the_second_life(folder) -> None:
    left, done = (results_of(folder / name, 0)[1]["state"] for name in list(STOPS)[5:3:-1])
    assert (left["global_iteration"], left["validation_cycles"]) == (6, 0)
    assert (done["global_iteration"], done["validation_cycles"]) == (6, 1)
