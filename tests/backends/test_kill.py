"""Real processes, killed with SIGKILL at named points, then started again: the run that never stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parhelion.testing import last_tree, rows_without_clocks, same

pytest.importorskip("parhelion_torch")

SCRIPT = Path(__file__).parent.parent / "support" / "killed_run.py"

# (killed where, at which iteration, accumulation, schedule, workers before, workers after)
CASES = [
    ("before a step", 1, 1, "update", 0, 2),
    ("before a step", 4, 1, "update", 2, 0),
    ("before a step", 8, 3, "epoch", 0, 3),
    ("after a step", 3, 1, "hook", 0, 2),
    ("after a step", 7, 1, "update", 2, 0),
    ("after a step", 7, 3, "epoch", 0, 0),
    ("after a step", 15, 1, "hook", 2, 0),
    ("after a step", 21, 1, "epoch", 0, 2),
    ("in a validation", 7, 1, "update", 0, 2),
    ("in a validation", 14, 3, "hook", 2, 0),
    ("in a save", 4, 1, "update", 0, 0),
    ("in a save", 14, 3, "epoch", 2, 2),
    ("in a worker", 20, 1, "update", 0, 2),
    ("in a worker", 9, 1, "hook", 2, 1),
]


def run(root: Path, workers: int, steps: int, schedule: str, point: str = "nowhere", iteration: int = 0) -> int:
    paths = [str(SCRIPT.parent.parent), *sys.path]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(root), str(workers), str(steps), schedule, point, str(iteration)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        # Workers of a killed process, if any are left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if point == "nowhere":
        assert process.returncode == 0, output
    return process.returncode


def journal(root: Path) -> dict[int, Any]:
    """Return what each iteration trained on; for one that was done twice, the second time, which must agree."""
    seen: dict[int, Any] = {}
    for line in (root / "journal.jsonl").read_text().splitlines():
        iteration, *batch = json.loads(line)
        assert seen.setdefault(iteration, batch) == batch
    return seen


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """Return the folder of the uninterrupted run with the given settings, made once."""
    made: dict[tuple[int, str], Path] = {}

    def get(steps: int, schedule: str) -> Path:
        if (steps, schedule) not in made:
            root = tmp_path_factory.mktemp("oracle")
            run(root, 0, steps, schedule)
            made[steps, schedule] = root
        return made[steps, schedule]

    return get


@pytest.mark.processes
@pytest.mark.parametrize(("point", "iteration", "steps", "schedule", "before", "after"), CASES)
def test_a_killed_run_started_again_is_the_run_that_never_stopped(
    oracle, tmp_path, point, iteration, steps, schedule, before, after
) -> None:
    from support import torch_case as case

    assert run(tmp_path, before, steps, schedule, point, iteration) == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    run(tmp_path, after, steps, schedule)
    whole = oracle(steps, schedule)
    assert journal(tmp_path) == journal(whole)
    one, other = (json.loads((root / "result.json").read_text()) for root in (tmp_path, whole))
    assert one["weights"] == other["weights"]
    assert rows_without_clocks(one["history"]) == rows_without_clocks(other["history"])
    assert same(last_tree(tmp_path / "net", case.adapter), last_tree(whole / "net", case.adapter))
