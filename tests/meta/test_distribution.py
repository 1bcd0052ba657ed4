"""What is shipped: tests run on the installed wheel where tox runs them, and it has polite names only."""

from __future__ import annotations

import importlib
import os
from importlib import metadata
from pathlib import Path

import pytest

INSTALLED = bool(os.environ.get("PARHELION_TESTS_INSTALLED"))
installed = pytest.mark.skipif(not INSTALLED, reason="needs the installed wheel; tox sets PARHELION_TESTS_INSTALLED")


@installed
@pytest.mark.parametrize("package", ["parhelion", "parhelion_torch", "parhelion_jax"])
def test_the_tests_import_the_wheel_and_not_the_checkout(package) -> None:
    assert "site-packages" in Path(str(importlib.import_module(package).__file__)).parts


@installed
def test_the_wheel_has_three_polite_top_level_names() -> None:
    files = metadata.files("parhelion")
    assert files is not None
    tops = {file.parts[0] for file in files if not file.parts[0].endswith(".dist-info")}
    packages = {"parhelion", "parhelion_torch", "parhelion_jax"}
    assert tops == packages
    assert {f"{package}/py.typed" for package in packages} <= {file.as_posix() for file in files}


@installed
def test_the_wheel_declares_both_backends() -> None:
    points = metadata.distribution("parhelion").entry_points.select(group="parhelion.backends")
    assert {point.name: point.value for point in points} == {"torch": "parhelion_torch", "jax": "parhelion_jax"}


@installed
def test_the_version_is_the_package_s() -> None:
    import parhelion

    assert metadata.version("parhelion") == parhelion.__version__
