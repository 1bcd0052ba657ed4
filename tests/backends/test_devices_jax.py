"""Training on several devices and in several processes is training on one."""

from __future__ import annotations

import atexit
import functools
import pickle
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("parhelion_jax")

from parhelion.testing import first_difference
from support import jax_child

SUPPORT = Path(jax_child.__file__).parent
EIGHT_DEVICES, TWO_PROCESSES = SUPPORT / "device_training_facts.py", SUPPORT / "process_training_facts.py"
RUNS = SUPPORT / "process_training.py"
GLOBAL_BATCH, SECONDS = 16, 120


@pytest.mark.processes
@pytest.mark.parametrize("fact", jax_child.list_facts(EIGHT_DEVICES), ids=jax_child.words)
def test_on_eight_devices(fact) -> None:
    failure = jax_child.run_facts(EIGHT_DEVICES, devices=8)[fact]
    assert failure is None, failure


@pytest.mark.processes
@pytest.mark.parametrize("fact", jax_child.list_facts(TWO_PROCESSES), ids=jax_child.words)
def test_in_two_processes(fact) -> None:
    results = jax_child.run_facts(TWO_PROCESSES, devices=2, processes=2)
    assert not any(each[fact] for each in results), "\n".join(filter(None, (each[fact] for each in results)))


# -- whole runs of one process and of two ---------------------------------------------------------------------------


@functools.cache
def get_root() -> Path:
    """Return a folder for as long as the process lives: tests of other files may come between those of this one."""
    root = tempfile.mkdtemp(prefix="parhelion-devices-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(root)


@functools.cache
def run(processes: int, devices: int, *tasks: str) -> dict[str, list[Any]]:
    """Return by task what each process has left."""
    name = f"{processes}x{devices}-{'-'.join(task.partition(':')[0] for task in tasks)}"
    (place := get_root() / name).mkdir()
    address = f"127.0.0.1:{jax_child.free_port()}"
    batch_size = GLOBAL_BATCH // processes
    arguments = [[RUNS, address, processes, rank, place, batch_size, *tasks] for rank in range(processes)]
    programs = str(get_root() / "programs")
    jax_child.run_children(arguments, devices=devices, seconds=SECONDS, JAX_COMPILATION_CACHE_DIR=programs)
    left = {}
    for task in tasks:
        names = [place / f"{task.partition(':')[0]}-{rank}.pickle" for rank in range(processes)]
        results = [pickle.loads(name.read_bytes()) for name in names]  # noqa: S301 - this test has just had it written
        assert all(each["devices"] == processes * devices for each in results)
        left[task.partition(":")[0]] = results
    return left | {"folder": place}


def run_one(devices: int) -> Any:
    return run(1, devices, "fit", "leave")


def run_two(devices: int) -> Any:
    if devices > 1:
        return run(2, devices, "fit", "resume")
    return run(2, 1, "fit", "resume", "leave", f"continue:{run_one(2)['folder']}/leave")


def assert_close(mine: Any, others: Any, rtol: float) -> None:
    """Assert that rows have the same names, counts that are equal, and values that are close."""
    for row, other in zip(mine, others, strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            assert value == pytest.approx(other[name], rel=rtol), name


@pytest.mark.processes
@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_train_as_one_does(devices) -> None:
    (one,), two = run_one(2 * devices)["fit"], run_two(devices)["fit"]
    assert len(one["rows"]) == 6
    for mine in two:
        assert mine["order"] == one["order"]
        assert mine["state"] == one["state"]
        assert_close(mine["rows"], one["rows"], 1e-5)
        for name, value in one["weights"].items():
            np.testing.assert_allclose(mine["weights"][name], value, rtol=1e-4, atol=1e-6)
    for name in ("rows", "weights", "test", "outputs", "best"):
        difference = first_difference(two[0][name], two[1][name])
        assert difference is None, f"{name}: {difference}"


@pytest.mark.processes
@pytest.mark.parametrize("devices", [1, 2])
def test_each_record_is_tested_and_predicted_once(devices) -> None:
    (one,), two = run_one(2 * devices)["fit"], run_two(devices)["fit"]
    for mine in two:
        assert_close([mine["test"]], [one["test"]], 1e-5)
        assert mine["test"]["test_accuracy"] == one["test"]["test_accuracy"]
        assert [len(logits) for logits, _ in mine["outputs"]] == [16, 5]
        labels = np.concatenate([label for _, label in mine["outputs"]])
        assert labels.tolist() == [k % 3 for k in range(21)]
        for (mine_logits, _), (logits, _) in zip(mine["outputs"], one["outputs"], strict=True):
            np.testing.assert_allclose(mine_logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.processes
def test_the_first_process_alone_writes_files() -> None:
    root, alone = run_two(1)["folder"] / "fit", run_one(2)["folder"] / "fit"
    files = [sorted(str(path.relative_to(each)) for path in each.rglob("*")) for each in (root, alone)]
    assert files[0] == files[1]
    assert len([name for name in files[0] if name.endswith("history.jsonl")]) == 1
    lines = (root / "classifier" / "history.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert (root / "logs" / "classifier.log").read_text().count("the run is finished") == 1


@pytest.mark.processes
@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_that_go_on_are_those_that_never_stopped(devices) -> None:
    runs = run_two(devices)
    for whole, resumed in zip(runs["fit"], runs["resume"], strict=True):
        difference = first_difference(whole, resumed)
        assert difference is None, difference
    # Each has streams of its own.
    assert runs["fit"][0]["draws"] != runs["fit"][1]["draws"]
    assert len(runs["fit"][0]["draws"]) == 7


@pytest.mark.processes
def test_two_processes_go_on_from_the_checkpoint_of_one() -> None:
    (whole,), before, two = run_one(2)["fit"], run_one(2)["leave"][0]["order"], run_two(1)["continue"]
    for mine in two:
        assert before + mine["order"] == whole["order"]
        assert_close(mine["rows"], whole["rows"], 1e-5)
        assert mine["state"] == whole["state"]


@pytest.mark.processes
def test_one_process_goes_on_from_the_checkpoint_of_two() -> None:
    (whole,), before = run_one(2)["fit"], run_two(1)["leave"][0]["order"]
    (mine,) = run(1, 2, f"continue:{run_two(1)['folder']}/leave")["continue"]
    assert before + mine["order"] == whole["order"]
    assert_close(mine["rows"], whole["rows"], 1e-5)
    assert mine["state"] == whole["state"]


# -- what a user reads -------------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_a_program_whose_coordinator_is_not_there_ends_in_time_with_its_address() -> None:
    address, begin = f"127.0.0.1:{jax_child.free_port()}", time.monotonic()
    script = f"import parhelion_jax\nparhelion_jax.connect({address!r}, 2, 1, timeout=1)"
    (output,) = jax_child.run_children([["-c", script]], seconds=30, check=False)
    last = output.splitlines()[-1]
    assert last.startswith(f"parhelion.errors.WorldError: the coordinator at {address} is not reached within 1 s")
    assert time.monotonic() - begin < 20


@pytest.mark.processes
def test_a_program_that_asks_for_more_devices_than_there_are_says_how_many() -> None:
    script = "import parhelion_jax\nparhelion_jax.Trainer(gpus=[0, 1, 2])"
    (output,) = jax_child.run_children([["-c", script]], devices=2, seconds=30, check=False)
    last = output.splitlines()[-1]
    assert last.startswith("parhelion.errors.InvalidValueError: gpus has [2]; expected ids from 0 to 1, since more")
    assert "jax finds 2 of platform 'cpu'" in last
