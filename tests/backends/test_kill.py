"""Real processes, killed with SIGKILL at named points, then started again: the run that never stopped."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parhelion.testing import last_tree, rows_without_clocks, same

SCRIPT = Path(__file__).parent.parent / "support" / "killed_run.py"

# (killed where, at which iteration or record, accumulation, schedule, workers before and after, chunk)
TORCH = [
    ("before a step", 1, 1, "update", (0, 2), 1),
    ("before a step", 4, 1, "update", (2, 0), 1),
    ("before a step", 8, 3, "epoch", (0, 3), 1),
    ("after a step", 3, 1, "hook", (0, 2), 1),
    ("after a step", 7, 1, "update", (2, 0), 1),
    ("after a step", 7, 3, "epoch", (0, 0), 1),
    ("after a step", 15, 1, "hook", (2, 0), 1),
    ("after a step", 21, 1, "epoch", (0, 2), 1),
    ("in a validation", 7, 1, "update", (0, 2), 1),
    ("in a validation", 14, 3, "hook", (2, 0), 1),
    ("in a save", 4, 1, "update", (0, 0), 1),
    ("in a save", 14, 3, "epoch", (2, 2), 1),
    ("in a record", 20, 1, "update", (0, 2), 1),
    ("in a record", 9, 1, "hook", (2, 1), 1),
]
JAX = [
    ("before a step", 4, 1, "update", (2, 0), 1),
    ("before a step", 8, 3, "epoch", (0, 2), 1),
    ("after a step", 7, 1, "update", (2, 0), 1),
    ("after a step", 15, 1, "hook", (0, 2), 1),
    ("in a validation", 14, 3, "hook", (2, 0), 1),
    ("in a save", 4, 1, "update", (0, 0), 1),
    ("in a record", 20, 1, "update", (0, 2), 1),
    ("in a record", 9, 1, "hook", (2, 1), 1),
    # In the middle of three iterations that are one call, of which none has counted then.
    ("before a step", 18, 1, "update", (0, 0), 3),
    ("after a step", 18, 1, "update", (2, 0), 3),
    ("in a hook", 16, 3, "epoch", (0, 0), 3),
    ("in a record", 26, 1, "update", (0, 2), 3),
]
STREAM = [
    ("before a step", 8, 3, "epoch", (0, 2), 1),
    ("after a step", 9, 1, "update", (2, 0), 1),
    ("in a record", 34, 1, "update", (0, 2), 1),
]
CASES = [("torch", *case) for case in TORCH] + [("jax", *case) for case in JAX] + [("stream", *case) for case in STREAM]


def run(root: Path, *, point: str = "nowhere", iteration: int = 0, **setting: Any) -> None:
    paths = [str(SCRIPT.parent.parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONHASHSEED": "0"}
    if point != "nowhere":
        # Others compile into it, too, and a process that is killed may leave half a program.
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    setting |= {"point": point, "iteration": iteration}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(root), json.dumps(setting)],
        env=environment,
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
    expected = 0 if point == "nowhere" else -signal.SIGKILL
    assert process.returncode == expected, output


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
    made: dict[tuple[Any, ...], Path] = {}

    def get(**setting: Any) -> Path:
        name = tuple(setting.values())
        if name not in made:
            root = tmp_path_factory.mktemp("oracle")
            run(root, workers=0, **setting)
            made[name] = root
        return made[name]

    return get


@pytest.mark.processes
@pytest.mark.parametrize(("backend", "point", "iteration", "steps", "schedule", "workers", "chunk"), CASES)
def test_a_killed_run_started_again_is_the_run_that_never_stopped(
    oracle, tmp_path, backend, point, iteration, steps, schedule, workers, chunk
) -> None:
    pytest.importorskip("parhelion_jax" if backend == "jax" else "parhelion_torch")
    case = importlib.import_module(f"support.{backend}_case")
    setting = {"backend": backend, "steps": steps, "schedule": schedule, "chunk": chunk}
    run(tmp_path, workers=workers[0], point=point, iteration=iteration, **setting)
    assert not (tmp_path / "result.json").exists()
    run(tmp_path, workers=workers[1], **setting)
    whole = oracle(**setting)
    assert journal(tmp_path) == journal(whole)
    one, other = (json.loads((root / "result.json").read_text()) for root in (tmp_path, whole))
    assert one["weights"] == other["weights"]
    assert rows_without_clocks(one["history"]) == rows_without_clocks(other["history"])
    assert same(last_tree(tmp_path / "net", case.adapter), last_tree(whole / "net", case.adapter))
