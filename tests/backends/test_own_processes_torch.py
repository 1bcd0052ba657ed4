"""A trainer that starts its own processes: what travels there, what comes home, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion_torch.devices import choose_gpus
from parhelion_torch.own_processes import count_processes
from parhelion_torch.trainer import Trainer
from support import torch_launch

SCRIPT = Path(torch_launch.__file__).with_name("torch_own_processes.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("own")
    torch_launch.run_alone(SCRIPT, folder, seconds=240)
    return json.loads((folder / "facts.json").read_text())


@pytest.mark.processes
def test_the_processes_share_the_data_of_a_script_without_a_guard(told) -> None:
    assert told["fit"] is True
    first, second = told["batches"]["0"], told["batches"]["1"]
    assert len(first) == len(second) == 8
    for epoch in (slice(0, 4), slice(4, 8)):
        assert sorted(itertools.chain(*first[epoch], *second[epoch])) == list(range(32))


@pytest.mark.processes
def test_plugins_and_own_attributes_of_the_trainer_travel(told) -> None:
    assert told["plugin"] == [[0, "mine"], [1, "mine"]]


@pytest.mark.processes
def test_the_trainer_knows_how_it_went(told) -> None:
    assert told["before"] == [False, 0, None]
    after = told["after"]
    assert (after["stop_reason"], after["exit_code"], after["error"], after["iteration"]) == ("finished", 0, None, 8)
    assert [row["epoch"] for row in after["rows"]] == [1, 2]
    assert after["best"] is True
    assert after["model"] is True


@pytest.mark.processes
def test_a_test_behind_it_has_the_trained_weights_and_keeps_what_is_known_of_the_fit(told) -> None:
    assert told["test"] is True
    assert told["kept"] == [8, 2]
    labels = [k % 3 for k in range(7)]
    loss = torch.nn.functional.cross_entropy(torch.tensor(told["outputs"]), torch.tensor(labels))
    assert told["results"]["test_loss"] == pytest.approx(float(loss), abs=1e-6)


@pytest.mark.processes
def test_a_prediction_in_this_process_has_the_trained_weights_and_attributes(told) -> None:
    x = torch.stack([torch.sin(torch.arange(6.0) * (k + 1)) for k in range(7)])
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)).eval()
    net.load_state_dict({name: torch.tensor(value) for name, value in told["weights"].items()})
    torch.testing.assert_close(net(x), torch.tensor(told["outputs"]))
    assert told["count"] == 8


@pytest.mark.processes
def test_what_needs_the_run_in_this_process_is_refused(told) -> None:
    assert told["steps"].startswith("InvalidValueError: steps was called on a trainer that starts its own processes")
    assert told["save"].startswith("ParhelionError: save_checkpoint was called outside of the processes that the train")


@pytest.mark.processes
def test_a_refusal_leaves_as_it_does_in_one_process(told) -> None:
    assert told["wrong"] == "InvalidTypeError: datamodule is None; expected a parhelion.DataModule."


@pytest.mark.processes
def test_an_error_on_one_rank_ends_all_with_its_traceback(told) -> None:
    message, story = told["listed"]
    assert message == "on rank 1"
    assert story.startswith("process 1 failed:\nTraceback")
    assert 'raise UnluckyError(f"on rank {self.rank}")' in story
    assert told["unlisted"] == [False, True, "error"]
    assert told["unlisted exit"] == 1


@pytest.mark.parametrize(
    ("asked", "gpus", "launched", "count"),
    [(None, [], 1, 1), (1, [], 1, 1), (3, [], 1, 3), (None, [0, 1], 1, 2), (2, [0, 1], 1, 2), (None, [1], 4, 1)],
)
def test_one_process_for_each_gpu_or_as_many_as_asked_for(asked, gpus, launched, count) -> None:
    assert count_processes(asked, gpus, launched) == count


@pytest.mark.parametrize(
    ("asked", "gpus", "launched", "error", "message"),
    [
        (0, [], 1, InvalidValueError, r"num_processes is 0; expected 1 or more, or None"),
        (True, [], 1, InvalidTypeError, r"num_processes is True; expected an integer >= 1"),
        (2.0, [], 1, InvalidTypeError, r"num_processes is 2.0; expected an integer >= 1"),
        (
            3,
            [0, 1],
            1,
            InvalidValueError,
            r"num_processes is 3 and the GPUs are \[0, 1\]; expected one process for",
        ),
        (3, [], 2, InvalidValueError, r"num_processes is 3 and 2 processes have been started already; expected None"),
    ],
)
def test_numbers_of_processes_that_cannot_be_are_refused(asked, gpus, launched, error, message) -> None:
    with pytest.raises(error, match=message):
        count_processes(asked, gpus, launched)


def test_a_trainer_of_several_processes_has_a_queue_and_no_group() -> None:
    trainer = Trainer(num_processes=2, use_cpu=True)
    assert not torch.distributed.is_initialized()
    trainer.queue.put("here")
    assert trainer.queue.get(timeout=10) == "here"
    assert Trainer(use_cpu=True).queue is None


@pytest.fixture
def launched(monkeypatch):
    """Return a function that makes this process look as if a launcher had started it, on a machine with GPUs."""

    def launch(local_rank: int, visible: int, **more: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        own = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}
        for name, value in (own | more).items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_a_launched_process_has_the_gpu_at_its_local_rank(launched) -> None:
    launched(2, 4)
    assert choose_gpus(None, None) == [2]
    assert choose_gpus(None, [3, 2, 1, 0]) == [1]
    assert choose_gpus(True, None) == []


def test_a_launched_process_without_a_gpu_of_its_own_is_refused(launched) -> None:
    launched(1, 1)
    with pytest.raises(InvalidValueError, match=r"local rank 1 and the GPUs here are \[0\]; expected one for each"):
        choose_gpus(None, None)


def test_a_task_of_slurm_that_sees_one_gpu_takes_it(launched, monkeypatch) -> None:
    launched(1, 1)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    slurm = {"PROCID": 1, "LOCALID": 1, "NTASKS": 2, "STEP_ID": 0, "JOB_ID": 7, "STEP_NODELIST": "node1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert choose_gpus(None, None) == [0]


def test_without_a_launcher_all_visible_gpus_are_used(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_gpus(None, None) == [0, 1]
    assert choose_gpus(None, [1]) == [1]
    with pytest.raises(InvalidValueError, match=r"gpus is \[1, 1\]; expected each id once"):
        choose_gpus(None, [1, 1])
