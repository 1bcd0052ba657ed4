"""The backends that are installed, each with the experiment that the suites run on it."""

from __future__ import annotations

import importlib

import pytest

BACKENDS = ["torch"]


@pytest.fixture(params=BACKENDS)
def case(request):
    pytest.importorskip(f"parhelion_{request.param}")
    return importlib.import_module(f"support.{request.param}_case")
