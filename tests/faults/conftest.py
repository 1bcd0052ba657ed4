"""The lives of a module's tests come from one process; what they come to is said at the end."""

from __future__ import annotations

import collections
import os
import tempfile
from pathlib import Path

import pytest

from faults.lives import Nursery

_WORDS = ("kills", "points", "resumes", "lost", "wrong", "leftovers")


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def quick_path(tmp_path):
    """A folder in memory where there is one: a killed process loses what a dead machine would, and no more."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as path:
        yield Path(path)


def pytest_collection_modifyitems(config, items):
    """Leave the endurance tests out unless ``-m`` names them; an expression of one's own stays what it is."""
    if "endurance" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("endurance")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter):
    total: collections.Counter[str] = collections.Counter()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        total.update({word: count for word, count in report.user_properties if word in _WORDS})
    if total:
        terminalreporter.write_line("faults: " + ", ".join(f"{total[word]} {word}" for word in _WORDS))
