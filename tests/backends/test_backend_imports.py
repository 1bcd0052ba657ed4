"""Importing a backend loads its own framework and no other, starts nothing, and both live in one process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("jax")

# What the interpreter itself asks for while it imports is none of ours.
WATCHED = """
import sys, os
asked = []
class Environment(dict):
    def __getitem__(self, key):
        asked.append(key)
        return super().__getitem__(key)
    def get(self, key, default=None):
        asked.append(key)
        return super().get(key, default)
    def __contains__(self, key):
        asked.append(key)
        return super().__contains__(key)
os.environ = Environment(os.environ)
os.getenv = os.environ.get
"""


def loaded(code: str) -> set[str]:
    """Return the top-level names of what a new interpreter has loaded after ``code``."""
    closing = '\nimport sys; print("loaded", *{name.partition(".")[0] for name in sys.modules})'
    process = subprocess.run(
        [sys.executable, "-c", code + closing],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.returncode == 0, process.stderr
    return set(process.stdout.rpartition("loaded ")[2].split())


def test_the_core_loads_neither_framework_and_neither_backend() -> None:
    code = "import parhelion as ph; assert {'torch', 'jax'} <= set(ph.available_backends())"
    assert loaded(code) & {"torch", "jax", "jaxlib", "optax", "parhelion_torch", "parhelion_jax"} == set()


def test_jax_s_backend_loads_no_torch_and_no_library_of_modules() -> None:
    names = loaded("import parhelion_jax")
    assert names & {"torch", "flax", "equinox", "parhelion_torch"} == set()
    assert {"jax", "optax"} <= names


def test_torch_s_backend_loads_no_jax() -> None:
    names = loaded("import parhelion_torch")
    assert names & {"jax", "jaxlib", "optax", "flax", "parhelion_jax"} == set()
    assert "torch" in names


@pytest.mark.parametrize("order", [("torch", "jax"), ("jax", "torch")], ids="-".join)
def test_both_live_in_one_process(order) -> None:
    code = f"""
import parhelion as ph
one, other = (ph.load_backend(name) for name in {order!r})
assert one.Trainer is not other.Trainer
for backend in (one, other):
    trainer = backend.Trainer(use_cpu=True, print_banner=False)
    assert trainer.gpu_ids == []
"""
    assert {"torch", "jax", "parhelion_torch", "parhelion_jax"} <= loaded(code)


def test_importing_jax_s_backend_starts_no_device() -> None:
    loaded(
        "import parhelion_jax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
        "assert not xla_bridge.backends_are_initialized()"
    )


def test_importing_torch_s_backend_starts_no_device() -> None:
    loaded("import parhelion_torch, torch\nassert not torch.cuda.is_initialized()")


@pytest.mark.parametrize("package", ["parhelion", "parhelion_torch", "parhelion_jax"])
def test_importing_asks_no_variable_of_ours_and_sets_nothing_up(package) -> None:
    loaded(
        f"{WATCHED}\n"
        "import logging, random\n"
        "handlers, state = list(logging.getLogger().handlers), random.getstate()\n"
        f"import {package}\n"
        "names = [name for name in asked if str(name).startswith('PARHELION')]\n"
        "assert names == [], names\n"
        "assert (os.environ.get('PARHELION_BACKEND'), asked[-1])[1] == 'PARHELION_BACKEND', 'nothing was watched'\n"
        "assert logging.getLogger().handlers == handlers and not logging.getLogger('parhelion').handlers\n"
        "assert random.getstate() == state"
    )


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_backend_is_loaded_by_its_name(name, monkeypatch) -> None:
    import parhelion as ph

    assert ph.load_backend(name).__name__ == f"parhelion_{name}"
    monkeypatch.setenv("PARHELION_BACKEND", name)
    assert ph.load_backend().__name__ == f"parhelion_{name}"
