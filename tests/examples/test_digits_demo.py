"""The example that the README shows runs, and shows what it claims."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("jax")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

DEMO = Path(__file__).parents[2] / "examples" / "digits" / "demo.py"
WEIGHTS = 5  # the column of the table


@pytest.mark.processes
def test_the_demo_trains_kills_resumes_and_finds_the_same_run_on_both_backends(tmp_path) -> None:
    process = subprocess.run(
        [sys.executable, str(DEMO), "--out", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    lines = process.stdout.splitlines()
    table = [re.split(r" {2,}", line) for line in lines if re.search(r"never stopped|killed, resumed", line)]
    assert [row[0] for row in table] == ["torch", "torch", "jax", "jax", "torch, then jax"]
    weights = [row[WEIGHTS] for row in table]
    assert (weights[0], weights[2]) == (weights[1], weights[3])
    assert len(set(weights)) == 3
    facts = [line for line in lines if re.search(r" (yes|NO)$", line)]
    assert len(facts) == 7
    assert all(line.endswith(" yes") for line in facts)
    assert (tmp_path / "demo" / "loss.png").stat().st_size > 10_000
