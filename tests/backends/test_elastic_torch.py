"""Runs on torch that stop in the middle of an epoch and go on with another number of ranks, and other batch sizes.

Every rank writes down what it is given; put together it is what one process that never stopped is given.
"""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from support import launchers, whole_run
from support.whole_run import SIZE, read_run

pytestmark = pytest.mark.processes

STREAM = {"params": {"lanes": 4}, "size": 48, "batch_size": 4}
PADDED = {"size": 21, "batch_size": 4}
# By number of ranks: the runs of a stage, with the batch size of a rank and the iteration it ends with.
STAGES: list[tuple[int, dict[str, dict[str, Any]]]] = [
    (
        1,
        {
            "whole": {"batch_size": 8},
            "whole stream": {**STREAM},
            "whole padded": {**PADDED},
            "one-two": {"batch_size": 8, "leave_at": 3},
            "same": {"batch_size": 8, "leave_at": 2},
            "padded": {**PADDED, "leave_at": 2},
            "spread one": {"batch_size": 8, "leave_at": 2, "kind": "spread"},
        },
    ),
    (
        3,
        {
            "three-two-one": {"batch_size": 3, "leave_at": 2},
            "spread three": {"batch_size": 3, "leave_at": 2, "kind": "spread"},
        },
    ),
    (
        2,
        {
            "one-two": {"batch_size": 5},
            "same": {"batch_size": 4},
            "padded": {**PADDED},
            "three-two-one": {"batch_size": 5, "leave_at": 3},
            "two-one": {"batch_size": 4, "leave_at": 3},
            "stream": {**STREAM, "leave_at": 4},
            "spread one": {"batch_size": 4, "kind": "spread"},
            "spread three": {"batch_size": 5, "leave_at": 4, "kind": "spread"},
        },
    ),
    (
        1,
        {
            "two-one": {"batch_size": 7},
            "three-two-one": {"batch_size": 5},
            "stream": {**STREAM},
            "spread three": {"batch_size": 5, "kind": "spread"},
        },
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where all stages have left what their ranks wrote down."""
    folder = tmp_path_factory.mktemp("elastic")
    for size, runs in STAGES:
        settings = [json.dumps({"root": str(folder / name), "total_steps": 2, **run}) for name, run in runs.items()]
        with launchers.start("launch", size, Path(whole_run.__file__), "torch", *settings) as group:
            assert group.end() == 0, group.text
    return folder


def batches_of(folder: Path, name: str, epoch: int) -> list[Any]:
    """Return the records of the global batches of an epoch, with what was drawn for each."""
    return [rows for _, (each, rows, _) in sorted(read_run(folder / name).steps.items()) if each == epoch]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("one-two", [8, 8, 8, 10, 8]),
        ("two-one", [8, 8, 8, 7, 7, 4]),
        ("three-two-one", [9, 9, 10, 5, 5, 4]),
        ("spread three", [9, 9, 10, 10, 4]),
        ("same", [8, 8, 8, 8, 8, 2]),
    ],
)
def test_every_record_comes_once_and_in_the_order_of_one_process_that_never_stopped(folder, name, sizes) -> None:
    assert [len(batch) for batch in batches_of(folder, name, 1)] == sizes
    for epoch in (1, 2):
        found, wanted = ([*chain(*batches_of(folder, each, epoch))] for each in (name, "whole"))
        assert sorted(index for index, _ in wanted) == [*range(SIZE)]
        assert found == wanted
    assert read_run(folder / name).repeated == 0


def test_with_the_same_global_batch_the_same_records_are_in_the_same_batches(folder) -> None:
    for epoch in (1, 2):
        assert batches_of(folder, "same", epoch) == batches_of(folder, "whole", epoch)


def test_a_last_batch_that_ranks_cannot_share_is_filled_up_from_the_beginning(folder) -> None:
    for epoch in (1, 2):
        found, wanted = ([*chain(*batches_of(folder, each, epoch))] for each in ("padded", "whole padded"))
        assert len(wanted) == 21
        assert found[:-1] == wanted
        assert found[-1][0] == wanted[0][0]


def test_a_stream_goes_on_with_another_number_of_ranks_where_it_was(folder) -> None:
    assert [len(batch) for batch in batches_of(folder, "stream", 1)] == [8, 8, 8, 8, 4, 4, 4, 4]
    for epoch in (1, 2):
        found, wanted = ([*chain(*batches_of(folder, each, epoch))] for each in ("stream", "whole stream"))
        assert sorted(index for index, _ in wanted) == [*range(48)]
        assert found == wanted


@pytest.mark.parametrize("name", ["one-two", "two-one", "three-two-one", "spread one", "spread three"])
def test_each_part_of_a_run_begins_with_the_very_weights_that_the_one_before_it_saved(folder, name) -> None:
    lives = len(whole_run.count_ranks(folder / name))
    results = [
        [json.loads(path.read_text()) for path in sorted((folder / name).glob(f"result-{life}-*.json"))]
        for life in range(lives)
    ]
    assert lives == (3 if "three" in name else 2)
    for before, after in pairwise(results):
        assert len({each["weights"] for each in before}) == 1
        assert {each["begin"] for each in after} == {before[0]["weights"]}
    assert [each["done"] for each in results[-1]] == [True] * len(results[-1])


def test_parameters_that_are_spread_are_saved_in_parts_by_fit(folder) -> None:
    paths = sorted(
        (folder / "spread three" / "net").glob("net_epoch_*"), key=lambda path: int(path.name.split("_")[-1])
    )
    files = {path.name: len([*path.glob("arrays-*.safetensors")]) for path in paths}
    assert files["net_epoch_1_iter_2"] == 3
    assert files["net_epoch_1_iter_4"] == 2
    assert [*files.values()][-1] == 1
