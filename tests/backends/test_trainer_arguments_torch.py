"""Every argument of the torch trainer: what it does, and what is refused."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
backend = pytest.importorskip("parhelion_torch")

from parhelion.checkpoint import list_checkpoints  # noqa: E402
from parhelion.tracking import read_history  # noqa: E402
from support import torch_case as case  # noqa: E402


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 2.5}, r"total_steps is 2.5; expected an integer >= 0, or math.inf"),
        ({"total_steps": -1}, r"total_steps is -1"),
        ({"train_unit": "batch"}, r"train_unit is 'batch'; expected 'iteration' or 'epoch'"),
        ({"valid_frequency": 0}, r"valid_frequency is 0; expected an integer >= 1"),
        ({"chkpt_frequency": 0}, r"chkpt_frequency is 0"),
        ({"print_frequency": -1}, r"print_frequency is -1"),
        ({"accumulation_steps": 0}, r"accumulation_steps is 0"),
        ({"enable_deterministic": True, "enable_cudnn_benchmark": True}, r"are both True; expected one at most"),
        ({"use_cpu": True, "gpus": [0]}, r"use_cpu is True and gpus is \[0\]; expected one of them"),
        ({"use_cpu": False, "gpus": []}, r"gpus is \[\]; expected ids of GPUs"),
        ({"gpus": [99]}, r"gpus has \[99\]; expected"),
        ({"total_steps": math.inf, "early_stop_cycles": 0}, r"total_steps is inf and early_stop_cycles is 0"),
        ({"early_stop_cycles": 3}, r"early_stop_cycles is 3 and valid_frequency is None"),
        ({"random_seed": -5}, r"random_seed is -5"),
        ({"enable_tensorboard": True}, r"enable_tensorboard is True and run_path is None"),
        ({"enable_file_logging": True}, r"enable_file_logging is True and log_path is None"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_at_construction(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        backend.Trainer(**options)


@pytest.mark.parametrize("number", [0, True, "2"])
def test_a_number_of_processes_that_is_none_is_refused_at_construction(number) -> None:
    with pytest.raises((ValueError, TypeError), match=r"num_processes is .*; expected"):
        backend.Trainer(use_cpu=True, num_processes=number)


def test_a_trainer_on_the_cpu_says_so() -> None:
    trainer = backend.Trainer(use_cpu=True)
    assert (trainer.gpu_ids, trainer.queue, trainer.rank, trainer.local_rank) == ([], None, 0, 0)
    assert trainer.device == torch.device("cpu")
    assert trainer.is_distributed is False


def test_flags_of_torch_hold_during_the_run_and_are_put_back() -> None:
    seen: list[Any] = []

    class Look(case.Net):
        def on_training_start(self) -> None:
            seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic))

    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    trainer = backend.Trainer(total_steps=1, use_cpu=True, enable_deterministic=True, print_banner=False)
    assert trainer.fit(Look("none"), case.Data(0))
    assert seen == [(True, True)]
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic) == before

    class Quick(case.Net):
        def on_training_start(self) -> None:
            seen.append(torch.backends.cudnn.benchmark)

    assert backend.Trainer(total_steps=1, use_cpu=True, enable_cudnn_benchmark=True, print_banner=False).fit(
        Quick("none"), case.Data(0)
    )
    assert seen[-1] is True
    assert torch.backends.cudnn.benchmark is False


def test_everything_that_is_written_goes_where_it_was_told(tmp_path, capsys) -> None:
    pytest.importorskip("tensorboardX")
    trainer = backend.Trainer(
        "trial",
        total_steps=2,
        print_frequency=3,
        valid_frequency=1,
        chkpt_frequency=1,
        use_cpu=True,
        enable_tensorboard=True,
        enable_file_logging=True,
        enable_progress_bar=True,
        chkpt_root=tmp_path / "checkpoints",
        log_path=tmp_path / "logs",
        run_path=tmp_path / "runs",
    )
    assert trainer.fit(case.make_model("update"), case.Data(0))
    names = [each.path.name for each in list_checkpoints(tmp_path / "checkpoints" / "net")]
    assert names == ["trial_epoch_2_iter_14", "trial_epoch_1_iter_7"]
    text = (tmp_path / "logs" / "trial.log").read_text()
    assert "iteration 3" in text
    assert list((tmp_path / "runs" / "trial").glob("events*"))
    rows = read_history(tmp_path / "checkpoints" / "net" / "history.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 7, 9, 12, 14]
    assert rows == trainer.history
    shown = capsys.readouterr().out
    assert "Parhelion" in shown  # the banner
    assert "parameters" in shown
    assert "epoch 2/2" in shown


def test_without_a_banner_one_line_says_what_runs(caplog) -> None:
    with caplog.at_level(logging.INFO, "parhelion"):
        assert case.make_trainer(total_steps=1).fit(case.make_model("none"), case.Data(0))
    first = caplog.records[0].getMessage()
    assert "\n" not in first
    for part in ("torch", "device cpu", "seed 6691", "parameters"):
        assert part in first


def test_validation_and_workers_leave_the_steps_randomness_alone() -> None:
    def weights(workers: int, **options: Any) -> Any:
        model = case.make_model("none")
        assert case.make_trainer(total_steps=2, **options).fit(model, case.Data(workers))
        return model.trained_state_dict()

    plain = weights(0)
    for other in (weights(2), weights(0, valid_frequency=1), weights(2, valid_frequency=1)):
        assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_a_test_after_a_fit_uses_its_weights_and_reports_its_metrics() -> None:
    trainer, model = case.make_trainer(total_steps=2), case.make_model("none")
    assert trainer.fit(model, case.Data(0))
    before = {name: value.clone() for name, value in model.trained_state_dict().items()}
    assert trainer.test(model, case.Data(0))
    assert set(trainer.test_results) == {"test_loss", "test_accuracy"}
    assert all(torch.equal(before[name], value) for name, value in model.trained_state_dict().items())
    outputs = trainer.predict(Predicting("none"), case.Data(0))
    assert sum(len(each) for each in outputs) == case.SIZE


class Predicting(case.Net):
    def predict_step(self, batch: Any, step: int) -> Any:
        return self.module(batch["x"])
