"""The example that the README shows runs, and shows what it claims."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

DEMO = Path(__file__).parents[2] / "examples" / "digits" / "demo.py"


@pytest.mark.processes
def test_the_demo_trains_kills_resumes_and_finds_the_same_run(tmp_path) -> None:
    process = subprocess.run(
        [sys.executable, str(DEMO), "--out", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    table = [line.split() for line in process.stdout.splitlines() if line.endswith("yes")]
    assert [row[0] for row in table] == ["test", "steps", "hash"]
    assert "NO" not in process.stdout
    assert (tmp_path / "demo" / "loss.png").stat().st_size > 10_000
