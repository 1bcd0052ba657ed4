"""Parameters that are spread over two processes of jax: ``fit`` saves them in parts, and goes on on two or on one."""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("parhelion_jax")

from support import launchers, whole_run
from support.whole_run import SIZE, count_ranks, read_run

pytestmark = pytest.mark.processes
# By number of processes: the runs of a stage, with the batch size of a process and the iteration it ends with.
STAGES: list[tuple[int, dict[str, dict[str, Any]]]] = [
    (2, {"whole": {}, "two-two": {"leave_at": 5}, "two-one": {"leave_at": 4}}),
    (1, {"two-one": {"batch_size": 7}}),
    (2, {"two-two": {}}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    for size, runs in STAGES:
        common = {"kind": "spread", "batch_size": 4, "total_steps": 2}
        settings = [json.dumps({"root": str(folder / name), **common, **run}) for name, run in runs.items()]
        with launchers.start("launch", size, Path(whole_run.__file__), "jax", *settings) as group:
            assert group.end() == 0, group.text
    return folder


def results_of(folder: Path) -> list[list[Any]]:
    """Return by life and rank how it ended."""
    return [
        [json.loads((folder / f"result-{life}-{rank}.json").read_text()) for rank in range(size)]
        for life, size in sorted(count_ranks(folder).items())
    ]


def test_each_process_writes_its_part(folder) -> None:
    checkpoint = folder / "two-one" / "net" / "net_epoch_1_iter_4"
    assert len([*checkpoint.glob("arrays-*.safetensors")]) == 2
    assert len([*(folder / "two-one" / "net" / "net_epoch_2_iter_8").glob("arrays-*.safetensors")]) == 1


@pytest.mark.parametrize("name", ["two-two", "two-one"])
def test_the_weights_and_moments_that_were_saved_are_those_that_training_goes_on_with(folder, name) -> None:
    lives = results_of(folder / name)
    assert len(lives) == name.count("-") + 1
    for before, after in pairwise(lives):
        assert len({each["weights"] for each in before}) == 1
        assert {each["begin"] for each in after} == {before[0]["weights"]}


def test_on_as_many_processes_it_is_the_run_that_never_stopped(folder) -> None:
    told, whole = read_run(folder / "two-two"), read_run(folder / "whole")
    assert told.steps == whole.steps
    assert [each["weights"] for each in told.results] == [each["weights"] for each in whole.results]


def test_on_another_number_of_processes_every_record_comes_once_and_in_order(folder) -> None:
    whole, told = (
        {epoch: [*chain(*(rows for each, rows, _ in steps if each == epoch))] for epoch in (1, 2)}
        for steps in ([*read_run(folder / each).steps.values()] for each in ("whole", "two-one"))
    )
    assert told == whole
    assert sorted(index for index, _ in told[1]) == [*range(SIZE)]
