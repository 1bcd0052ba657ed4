"""The programs of docs/backends.md do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parhelion.checkpoint import list_checkpoints, load_checkpoint
from parhelion.tracking import read_history

pytest.importorskip("torch")
pytest.importorskip("jax")

DOCUMENT = Path(__file__).parents[2] / "docs" / "backends.md"
EPOCH = 8


@pytest.fixture
def programs(tmp_path) -> Path:
    """Return a folder with the document's programs."""
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        (tmp_path / name).write_text(code)
    return tmp_path


def train(folder: Path, backend: str, epochs: int) -> str:
    return run(folder, "train.py", backend, str(epochs))


def run(folder: Path, *arguments: str) -> str:
    path = os.pathsep.join(filter(None, [str(folder), *sys.path]))
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout + process.stderr


def test_the_document_has_the_programs_it_speaks_of(programs) -> None:
    names = {path.name for path in programs.glob("*.py")}
    together = {"train_together.py"}
    assert names == {"experiment.py", "net_torch.py", "net_jax.py", "train.py", "test_abacus.py"} | together


@pytest.mark.processes
def test_several_processes_of_jax_need_one_line(programs) -> None:
    said = run(programs, "-m", "parhelion.launch", "-n", "2", "--no-prefix", "train_together.py")
    assert [f"process {rank} of 2: finished" in said.splitlines() for rank in (0, 1)] == [True, True]


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_a_run_moves_from_one_backend_to_the_other_as_the_document_says(programs, first, second) -> None:
    train(programs, first, 1)
    said = train(programs, second, 3)
    assert "resumed from" in said
    newest = list_checkpoints(programs / "runs" / "net")[0]
    tree = load_checkpoint(newest.path).tree
    assert (newest.iteration, tree["backend"]) == (3 * EPOCH, second)
    losses = [row["valid_loss"] for row in read_history(programs / "runs" / "net" / "history.jsonl")]
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]
