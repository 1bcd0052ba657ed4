"""Importing the core is light and does nothing."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import sys, logging, os, random
environment, handlers = dict(os.environ), list(logging.getLogger().handlers)
state = random.getstate()
import parhelion
assert dict(os.environ) == environment
assert logging.getLogger().handlers == handlers and not logging.getLogger("parhelion").handlers
assert random.getstate() == state
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def imported() -> set[str]:
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


def test_no_framework_and_no_heavy_library_is_loaded() -> None:
    heavy = {"torch", "jax", "tqdm", "safetensors", "tensorboardX", "matplotlib", "hypothesis", "multiprocessing"}
    assert imported() & heavy == set()
