"""The examples of models on jax run, learn, and go on when they are run again."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("parhelion_jax")
pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[2] / "examples" / "jax_models"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("script", "library"), [("dict_mlp", "optax"), ("flax_nnx", "flax"), ("equinox_mlp", "equinox")]
)
def test_an_example_runs_learns_and_has_nothing_left_to_do_when_run_again(script, library, tmp_path) -> None:
    pytest.importorskip(library)
    command = [sys.executable, "-W", "error", str(FOLDER / f"{script}.py"), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    results = []
    for _ in range(2):
        process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
        assert process.returncode == 0, process.stdout + process.stderr
        results.append(ast.literal_eval(process.stdout.splitlines()[-1]))
    assert results[0] == results[1]
    assert results[0]["test_accuracy"] > 0.85
    assert "nothing to do: the run is finished" in process.stderr + process.stdout
