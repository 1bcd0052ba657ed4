"""Several ranks of torch train what one trains, on the same samples, and open what any number of them have saved."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from support import torch_launch

SCRIPT = Path(torch_launch.__file__).with_name("torch_ranks.py")
TRAINED = [
    "fit:plain",
    "fit:parts",
    "fit:compiled",
    "fit:late",
    "options:clip",
    "accumulate:plain",
    "hand:",
    "spread:",
    "spread:clip",
]
OTHERS = ["fit:norm", "options:average"]
OPENED = [
    ("spread-2", "spread", 1),
    ("spread-2", "spread", 2),
    ("spread-2", "spread", 3),
    ("spread-2", "whole", 2),
    ("whole-2", "spread", 2),
    ("spread-3", "spread", 1),
]

pytestmark = pytest.mark.processes


class Runs:
    """What each rank of each task left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, size: int, batch_size: int, *tasks: str) -> None:
        torch_launch.run_ranks(size, SCRIPT, self.folder, batch_size, *tasks, seconds=240)

    def of(self, task: str, size: int) -> list[dict[str, Any]]:
        name = task.replace(":", "-")
        files = [self.folder / f"{name}-{size}-{rank}.pickle" for rank in range(size)]
        return [pickle.loads(file.read_bytes()) for file in files]  # noqa: S301 - from our own processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """Run all tasks, of 2, 3 and 1 ranks; to start a process takes longer than what it then does."""
    made = Runs(tmp_path_factory.mktemp("runs"))
    made.run(2, 4, *TRAINED, *OTHERS, "store:spread", "store:whole", *opening(2))
    made.run(3, 4, "store:spread", *opening(3))
    made.run(1, 8, *TRAINED, *OTHERS, *opening(1))
    return made


def opening(size: int) -> list[str]:
    return [f"reopen:{name}+{how}" for name, how, ranks in OPENED if ranks == size]


@pytest.mark.parametrize("task", TRAINED)
def test_two_ranks_train_what_one_trains_on_batches_of_twice_the_size(runs, task) -> None:
    (one,), both = runs.of(task, 1), runs.of(task, 2)
    for rank in both:
        assert list(rank["weights"]) == list(one["weights"])
        for name, weight in one["weights"].items():
            np.testing.assert_allclose(rank["weights"][name], weight, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("task", TRAINED + OTHERS)
def test_all_ranks_have_the_same_bits_in_the_end(runs, task) -> None:
    first, second = runs.of(task, 2)
    for name, weight in first["weights"].items():
        assert np.array_equal(weight, second["weights"][name]), name


def test_each_global_batch_has_the_samples_of_the_run_on_one_rank(runs) -> None:
    (one,), (first, second) = runs.of("fit:plain", 1), runs.of("fit:plain", 2)
    assert len(one["seen"]) == 18
    assert [mine + theirs for mine, theirs in zip(first["seen"], second["seen"], strict=True)] == one["seen"]


@pytest.mark.parametrize("task", TRAINED)
def test_rows_are_those_of_one_rank(runs, task) -> None:
    (one,), both = runs.of(task, 1), runs.of(task, 2)
    for theirs in (both[0]["rows"],):
        assert [row.keys() for row in theirs] == [row.keys() for row in one["rows"]]
        for mine, row in zip(one["rows"], theirs, strict=True):
            assert mine == pytest.approx(row, abs=1e-6)


@pytest.mark.parametrize("task", ["accumulate:plain", "hand:"])
def test_gradients_are_averaged_once_for_each_update(runs, task) -> None:
    for rank in runs.of(task, 2):
        assert rank["averages"] == rank["updates"] > 0


def test_an_update_without_accumulation_is_an_average(runs) -> None:
    assert [rank["averages"] for rank in runs.of("fit:plain", 2)] == [18, 18]


def test_running_statistics_are_those_of_the_first_rank(runs) -> None:
    first, second = runs.of("fit:norm", 2)
    assert np.array_equal(first["weights"][".module.1.running_mean"], second["weights"][".module.1.running_mean"])
    assert not np.array_equal(first["statistics"], second["statistics"])  # before they were shared


@pytest.mark.parametrize(("origin", "how", "size"), OPENED)
def test_a_checkpoint_of_some_ranks_opens_on_others_bit_for_bit(runs, origin, how, size) -> None:
    kind, writers = origin.split("-")
    saved = runs.of(f"store:{kind}", int(writers))[0]["weights"]
    moments = [name for name in saved if "exp_avg" in name]
    assert len(moments) == 12
    for rank in runs.of(f"reopen:{origin}+{how}", size):
        assert list(rank["weights"]) == list(saved)
        for name, value in saved.items():
            assert np.array_equal(rank["weights"][name], value), name


@pytest.mark.parametrize(("origin", "how", "size"), OPENED)
def test_weights_alone_open_too(runs, origin, how, size) -> None:
    kind, writers = origin.split("-")
    saved = runs.of(f"store:{kind}", int(writers))[0]["weights"]
    for rank in runs.of(f"reopen:{origin}+{how}", size):
        for name in (".module.0.weight", ".module.2.1.bias"):
            assert np.array_equal(rank["only weights"][name], saved[name]), name


def test_ranks_write_their_own_parts_and_tied_or_shared_ones_once(runs) -> None:
    first, second, third = (rank["parts"] for rank in runs.of("store:spread", 3))
    assert list(first) == list(second) == list(third)
    names = [name for name in first if name.startswith("model.module")]
    assert names == [f"model.module.{name}" for name in ("0.weight", "0.bias", "2.0.weight", "2.1.weight", "2.1.bias")]
    assert not any(name.startswith("portable") for name in first)
    weight = "model.module.0.weight"
    assert [each[weight] for each in (first, second, third)] == [[((0, 0), (2, 6))], [((2, 0), (2, 6))], []]


def test_of_a_checkpoint_in_parts_each_rank_reads_its_own(runs) -> None:
    for rank in runs.of("reopen:spread-2+spread", 2):
        assert rank["read"]["module.0.weight"] == ((2 * rank["rank"], 0), (2, 6))
