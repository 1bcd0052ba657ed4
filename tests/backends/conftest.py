"""The backends that are installed, each with the experiment that the suites run on it."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import tempfile

import pytest

BACKENDS = ["torch", "jax"]

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # The suites train one small model hundreds of times, and compiling it takes four times as long as training it.
    folder = tempfile.mkdtemp(prefix="parhelion-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(params=BACKENDS)
def case(request):
    pytest.importorskip(f"parhelion_{request.param}")
    return importlib.import_module(f"support.{request.param}_case")
