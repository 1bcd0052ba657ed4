"""Ranks of a whole run die under a launcher: what restarts them gets the run that nobody disturbed, the others end."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from support import launchers, whole_run
from support.whole_run import read_run

pytestmark = pytest.mark.processes
SCRIPT = Path(whole_run.__file__)
BOTH = pytest.mark.parametrize("backend", ["torch", "jax"])


def start(launcher: str, backend: str, *settings: Any, options: tuple[Any, ...] = ()) -> Any:
    pytest.importorskip("torch" if launcher == "torchrun" else f"parhelion_{backend}")
    pytest.importorskip(f"parhelion_{backend}")
    return launchers.start(launcher, 2, SCRIPT, backend, *map(json.dumps, settings), options=options)


@BOTH
def test_ranks_that_end_under_torchrun_come_back_and_the_run_is_the_undisturbed_one(backend, tmp_path) -> None:
    killed = {"life": 0, "point": "step", "at": 7, "rank": 1, "act": "SIGKILL"}
    preempted = {"life": 1, "point": "step", "at": 11, "rank": 1, "act": "SIGTERM", "seconds": 0.05}
    faults = [killed, preempted][: 2 if backend == "torch" else 1]
    # In one program, as each start of it costs seconds; the first run is done when the program is started again.
    settings = {"root": str(tmp_path / "oracle")}, {"root": str(tmp_path / "run"), "faults": faults}
    with start("torchrun", backend, *settings, options=("--max-restarts", 3)) as group:
        assert group.end() == 0, group.text
    oracle, told = read_run(tmp_path / "oracle"), read_run(tmp_path / "run")
    assert len(whole_run.count_ranks(tmp_path / "run")) == 1 + len(faults)
    assert (len(oracle.steps), oracle.repeated) == (18, 0)
    assert told.steps == oracle.steps
    for mine, theirs in zip(told.results, oracle.results, strict=True):
        for name in ("done", "reason", "rows", "weights", "state"):
            assert mine[name] == theirs[name], name


@BOTH
@pytest.mark.parametrize("act", ["raise", "SIGKILL"])
def test_what_ends_one_rank_ends_all_and_they_say_what_it_was(backend, act, tmp_path) -> None:
    fault = {"point": "step", "at": 6, "rank": 1, "act": act}
    with start("launch", backend, {"root": str(tmp_path), "fault": fault}) as group:
        group.wait_for("at step")
        begin = time.monotonic()
        status = group.end(60)
        assert time.monotonic() - begin < 20
        assert status == (1 if act == "raise" else 128 + signal.SIGKILL), group.text
        assert not launchers.living(group)
        if act == "raise":
            assert "ArithmeticError: out of luck at step in process 1" in group.text
            assert 'raise ArithmeticError(f"out of luck' in group.text
        else:
            assert f"pid {group.pids()[1]}) is gone without a word" in group.text
        assert "ended 0" not in group.text
    # On jax it may have been ended where nothing can be raised.
    for path in tmp_path.glob("result-0-0.json"):
        assert json.loads(path.read_text())["code"] == 1
