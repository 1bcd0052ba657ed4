"""Runs on jax that stop in the middle of an epoch and go on with another number of processes, and other batch sizes.

Every process notes what it is given; put together it is what one process that never stopped is given.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("parhelion_jax")

from support import elastic_jax, jax_child

SCRIPT, SIZE = Path(elastic_jax.__file__), elastic_jax.SIZE
pytestmark = pytest.mark.processes

# By number of processes: the runs of a stage, each with the batch size of a process and the update it is left after.
STAGES = [
    (1, ["whole:12:0", "one-two:8:3", "same:12:2"]),
    (3, ["three-two-one:4:2"]),
    (2, ["one-two:5:0", "three-two-one:5:4", "two-one:4:3", "same:6:0"]),
    (1, ["two-one:7:0", "three-two-one:6:0"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where all stages have left what their processes noted."""
    folder = tmp_path_factory.mktemp("elastic")
    for stage, (processes, runs) in enumerate(STAGES):
        command = ["-m", "parhelion.launch", "-n", processes, "--no-prefix", SCRIPT, folder, stage, *runs]
        programs = str(folder / "programs")
        jax_child.run_children([command], seconds=120, JAX_COMPILATION_CACHE_DIR=programs)
    return folder


def read(folder: Path, name: str) -> list[Any]:
    """Return the global batches of a run: the epoch, and the rows of all processes by their ranks."""
    batches = []
    for stage, (processes, _) in enumerate(STAGES):
        paths = [folder / f"{name}-{stage}-{rank}.json" for rank in range(processes)]
        if paths[0].exists():
            for pages in zip(*(json.loads(path.read_text()) for path in paths), strict=True):
                assert len({page["epoch"] for page in pages}) == 1
                batches.append((pages[0]["epoch"], [*chain.from_iterable(page["rows"] for page in pages)]))
    return batches


def rows_of(batches: list[Any], epoch: int) -> list[Any]:
    return [*chain.from_iterable(rows for each, rows in batches if each == epoch)]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("one-two", [8, 8, 8, 10, 10, 10, 6]),
        ("two-one", [8, 8, 8, 7, 7, 7, 7, 7, 1]),
        ("three-two-one", [12, 12, 10, 10, 6, 6, 4]),
    ],
)
def test_every_record_comes_once_and_in_the_order_of_one_process_that_never_stopped(folder, name, sizes) -> None:
    whole, batches = read(folder, "whole"), read(folder, name)
    assert [len(rows) for epoch, rows in batches if epoch == 1] == sizes
    for epoch in (1, 2):
        wanted, found = rows_of(whole, epoch), rows_of(batches, epoch)
        assert len(wanted) == SIZE
        assert sorted(index for index, _ in wanted) == [*range(SIZE)]
        assert found == wanted


def test_with_the_same_global_batch_the_same_records_are_in_the_same_batches(folder) -> None:
    assert read(folder, "same") == read(folder, "whole")
