"""The trainer on torch: every argument does what its name says, and leaves nothing behind."""

from __future__ import annotations

import io
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import parhelion as ph
import parhelion_torch as backend
from parhelion.checkpoint import list_checkpoints
from parhelion.registry import Registry
from parhelion.testing import last_tree, same
from parhelion.tracking import read_history

SIZE, BATCHES = 10, 3
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Points:
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return torch.sin(torch.arange(3.0) * (index + 1)) + 0.1 * torch.rand(3), float(index % 2)


class Data(ph.DataModule):
    def __init__(self, workers: int = 0) -> None:
        self.workers = workers

    def setup(self) -> None:
        train = {"batch_size": 4, "shuffle": True, "num_workers": self.workers}
        self._train_dataset = self._create_dataset(Points(), train)
        self._valid_dataset = self._create_dataset(Points(), {"batch_size": 4, "num_workers": self.workers})
        self._test_dataset = self._create_dataset(Points(), {"batch_size": 4})


class Net(backend.LossModel):
    """Keeps the global flags that it saw."""

    def __init__(self, **options: Any) -> None:
        super().__init__("net", **options)
        self.flags: list[Any] = []

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)

    def loss(self, batch: Any) -> Any:
        cudnn = torch.backends.cudnn
        self.flags.append((torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark))
        return nn.functional.mse_loss(self.module(batch[0])[:, 0], batch[1])


def make_trainer(*args: Any, **options: Any) -> backend.Trainer:
    return backend.Trainer(*args, **{"use_cpu": True, "print_banner": False, **options})


def fit(model: Any = None, data: Any = None, **options: Any) -> backend.Trainer:
    trainer = make_trainer(**{"total_steps": 2, **options})
    assert trainer.fit(Net() if model is None else model, Data() if data is None else data), trainer.error
    return trainer


def weights(**options: Any) -> Any:
    model = Net()
    fit(model, **options)
    return model.module.state_dict()


# -- names, units, frequencies ----------------------------------------------------------------------------------------


def test_arguments_can_be_given_by_position_as_on_the_reference_page(tmp_path) -> None:
    trainer = backend.Trainer(
        "run", "iteration", 4, 2, 2, 1, 1, False, True, None, True, None, 5, False, False, False, tmp_path, None, None,
        None, "", False,
    )  # fmt: skip
    assert trainer.fit(Net(), Data()), trainer.error
    assert (trainer.state.current_iteration, trainer.state.validation_cycles, trainer.random_seed) == (4, 2, 5)
    assert [entry.path.name for entry in list_checkpoints(tmp_path / "net")] == [
        "run_epoch_2_iter_4",
        "run_epoch_1_iter_2",
    ]


def test_the_run_name_names_checkpoints_and_logs(tmp_path) -> None:
    fit(run_name="first", chkpt_root=tmp_path / "c", log_path=tmp_path / "l", enable_file_logging=True)
    assert (tmp_path / "c" / "net" / "first_epoch_2_iter_6").is_dir()
    assert (tmp_path / "l" / "first.log").is_file()
    fit(chkpt_root=tmp_path / "unnamed")
    assert (tmp_path / "unnamed" / "net" / "net_epoch_2_iter_6").is_dir()


@pytest.mark.parametrize("unit", ["epoch", ph.TrainingUnit.EPOCH])
def test_epochs_are_counted_in_epochs(unit, tmp_path) -> None:
    trainer = fit(train_unit=unit, total_steps=3, valid_frequency=2, chkpt_frequency=2, chkpt_root=tmp_path)
    assert (trainer.state.epoch, trainer.state.current_iteration, trainer.state.validation_cycles) == (3, 9, 1)
    assert [entry.epoch for entry in list_checkpoints(tmp_path / "net")] == [3, 2]


@pytest.mark.parametrize("unit", ["iteration", ph.TrainingUnit.ITERATION])
def test_iterations_are_counted_in_updates(unit, tmp_path) -> None:
    trainer = fit(
        train_unit=unit, total_steps=5, valid_frequency=2, chkpt_frequency=3, chkpt_root=tmp_path, accumulation_steps=2
    )
    state = trainer.state
    assert (state.current_iteration, state.global_iteration, state.validation_cycles) == (5, 8, 2)
    assert [entry.iteration for entry in list_checkpoints(tmp_path / "net")] == [8, 5]


def test_epochs_are_the_unit_where_none_is_given() -> None:
    assert fit(total_steps=2).state.epoch == 2


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_prints_count_updates_in_both_units(unit) -> None:
    trainer = fit(train_unit=unit, total_steps=2 if unit == "epoch" else 6, print_frequency=2)
    assert [row["step"] for row in trainer.history] == [2, 4, 6]
    assert all({"loss", "lr", "epoch", "samples_per_second"} <= set(row) for row in trainer.history)


def test_an_endless_run_ends_by_early_stopping() -> None:
    class Flat(Net):
        def valid_step(self, batch: Any, step: int) -> Any:
            return {"flat": 1.0}

    trainer = fit(Flat(monitor="valid_flat"), total_steps=math.inf, valid_frequency=1, early_stop_cycles=3)
    assert (trainer.stop_reason, trainer.state.epoch) == ("early_stop", 4)


# -- devices and flags ------------------------------------------------------------------------------------------------


def test_on_the_cpu_there_are_no_gpu_ids_and_no_queue() -> None:
    model = Net()
    trainer = fit(model)
    assert (trainer.gpu_ids, trainer.queue, trainer.rank, trainer.local_rank) == ([], None, 0, 0)
    assert trainer.device == model.device == torch.device("cpu")
    assert (trainer.map_loc, trainer.is_distributed) == ("cpu", False)
    assert backend.Trainer(use_cpu=True, gpus=[]).gpu_ids == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_cpu": True, "gpus": [0]}, ValueError, r"use_cpu is True and gpus is \[0\]; expected one of them"),
        ({"gpus": []}, ValueError, r"gpus is \[\]; expected ids of GPUs, or use_cpu=True for the CPU"),
        ({"gpus": [0]}, ValueError, r"gpus has \[0\]; expected none, since torch finds no GPU. Pass use_cpu=True"),
        ({"gpus": [0, -1]}, ValueError, r"gpus has \[0, -1\]; expected none"),
        ({"gpus": 0}, TypeError, r"gpus is 0; expected a list of ids, such as \[0\], or None"),
        ({"gpus": "0"}, TypeError, r"gpus is '0'; expected a list of ids"),
        ({"use_cpu": "yes"}, TypeError, r"use_cpu is 'yes'; expected True, False or None"),
    ],
)
def test_devices_that_are_not_there_or_contradict_are_refused(options, error, message, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        backend.Trainer(**options)


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ([2], r"gpus has \[2\]; expected ids from 0 to 1"),
        ([True], r"gpus has \[True\]; expected ids from 0 to 1"),
        ([0, 0], r"gpus is \[0, 0\]; expected each id once"),
    ],
)
def test_ids_of_gpus_are_checked_against_those_there(gpus, message, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        backend.Trainer(gpus=gpus)
    assert backend.Trainer(gpus=[1]).gpu_ids == [1]
    assert backend.Trainer().gpu_ids == [0, 1]
    assert backend.Trainer(use_cpu=True).gpu_ids == []


def test_without_a_gpu_and_without_a_wish_the_cpu_is_used(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.Trainer().device == backend.Trainer(use_cpu=False).device == torch.device("cpu")


def test_half_of_what_a_launcher_says_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"RANK is not set; expected it"):
        make_trainer()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not make_trainer().is_distributed


def flags() -> Any:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, (False, False, False)),
        ({"enable_deterministic": True}, (True, True, False)),
        ({"enable_cudnn_benchmark": True}, (False, False, True)),
    ],
)
def test_global_flags_hold_during_a_run_and_are_put_back(options, seen, monkeypatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = flags()
    model = Net()
    trainer = fit(model, valid_frequency=1, **options)
    assert trainer.test(model, Data())
    assert set(model.flags) == {seen}
    assert flags() == before == (False, False, False)
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == bool(options.get("enable_deterministic"))

    class Failing(Net):
        def loss(self, batch: Any) -> Any:
            raise OSError("planted")

    assert not make_trainer(total_steps=1, **options).fit(Failing(), Data())
    assert flags() == before
    for _ in make_trainer(total_steps=1, **options).steps(Net(), Data()):
        assert flags() == seen
        break
    assert flags() == before


def test_flags_that_were_set_before_are_set_after() -> None:
    cudnn = torch.backends.cudnn
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    cudnn.benchmark = True
    try:
        fit(enable_deterministic=True)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(mode=False)
        cudnn.benchmark = False


def test_deterministic_kernels_and_the_benchmark_exclude_each_other() -> None:
    with pytest.raises(
        ValueError, match=r"enable_deterministic and enable_cudnn_benchmark are both True; expected one"
    ):
        make_trainer(enable_deterministic=True, enable_cudnn_benchmark=True)


# -- where things go --------------------------------------------------------------------------------------------------


def test_tensorboard_files_go_to_the_run_path(tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    fit(enable_tensorboard=True, run_path=tmp_path, print_frequency=1)
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    fit(run_path=tmp_path / "off", print_frequency=1)
    assert not (tmp_path / "off").exists()


def test_the_log_goes_to_the_log_path(tmp_path) -> None:
    fit(enable_file_logging=True, log_path=tmp_path, print_frequency=1)
    text = (tmp_path / "net.log").read_text()
    assert "iteration 6" in text
    assert len(read_history(tmp_path / "net.jsonl")) == 6
    fit(log_path=tmp_path / "off", print_frequency=1)
    assert not (tmp_path / "off" / "net.log").exists()


@pytest.mark.parametrize("enable", [True, False])
def test_a_progress_bar_is_shown_on_a_terminal_where_it_is_asked_for(enable, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(enable_progress_bar=enable)
    assert ("2/2" in terminal.getvalue()) == enable


def test_no_checkpoint_is_written_without_a_root(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(chkpt_frequency=1)
    assert not list(tmp_path.iterdir())
    fit(chkpt_frequency=1, chkpt_root="here")
    assert len(list_checkpoints(Path("here") / "net")) == 2


def test_a_checkpoint_is_due_when_its_seconds_are_over(tmp_path) -> None:
    fit(chkpt_every_seconds=1e-9, chkpt_root=tmp_path / "often")
    assert len(list_checkpoints(tmp_path / "often" / "net")) == 6
    fit(chkpt_every_seconds=1e9, chkpt_root=tmp_path / "never")
    assert len(list_checkpoints(tmp_path / "never" / "net")) == 1


def test_modules_below_the_source_root_are_imported_under_their_prefix(tmp_path, monkeypatch) -> None:
    package = tmp_path / "mine_for_torch"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(
        "import parhelion_torch as backend\n@backend.MODEL_REGISTRY.register(name='from-a-prefix')\nclass Found: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backend, "MODEL_REGISTRY", Registry("model"))  # what is registered here is for this test
    fit(src_root=package, import_prefix="mine_for_torch")
    assert "from-a-prefix" in backend.MODEL_REGISTRY
    assert "mine_for_torch.nets" in sys.modules


@pytest.mark.parametrize("banner", [True, False])
def test_the_start_is_told_at_length_or_in_a_line(banner, caplog) -> None:
    with caplog.at_level(logging.INFO, "parhelion"):
        trainer = backend.Trainer(total_steps=1, use_cpu=True, print_banner=banner)
        assert trainer.fit(Net(), Data())
    first = caplog.records[0].getMessage()
    assert all(word in first for word in (f"torch {torch.__version__}", "cpu", "6691", "21", "a fresh run"))
    assert ("\n" in first) == banner


# -- random numbers ---------------------------------------------------------------------------------------------------


def test_the_seed_decides_the_run() -> None:
    assert same(weights(), weights(random_seed=6691))
    assert not same(weights(), weights(random_seed=0))
    assert same(weights(random_seed=2**64 - 1), weights(random_seed=2**64 - 1))


def test_a_validation_moves_no_stream_whatever_it_draws() -> None:
    class Drawing(Net):
        def valid_step(self, batch: Any, step: int) -> Any:
            torch.rand(step + 3), np.random.rand()
            return super().valid_step(batch, step)

        def on_validation_end(self, validation_cycle: int) -> None:
            torch.rand(2)

    model = Drawing()
    fit(model, valid_frequency=1)
    assert same(model.module.state_dict(), weights())


def test_a_test_and_predictions_move_no_stream_and_draw_the_same_each_time() -> None:
    class Drawing(Net):
        def predict_step(self, batch: Any, step: int) -> Any:
            return torch.rand(1)

        def test_step(self, batch: Any, step: int) -> Any:
            return {"draw": torch.rand(())}

    model, fresh = Drawing(), Drawing()
    trainer = fit(model)
    for used in (model, fresh):
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        predicted = trainer.predict(used, Data())
        assert trainer.test(used, Data())
        results = trainer.test_results
        assert (torch.equal(torch.get_rng_state(), before[0]), np.random.get_state()[1].tolist()) == (True, before[1])
        assert same(trainer.predict(used, Data()), predicted)
        assert trainer.test(used, Data())
        assert trainer.test_results == results


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_move_no_stream(workers) -> None:
    model = Net()
    fit(model, Data(workers), valid_frequency=1)
    assert same(model.module.state_dict(), weights())


def test_what_was_drawn_before_a_fit_changes_nothing() -> None:
    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)
    torch.rand(3)
    assert same(first, weights())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dropout_goes_on_where_it_was(tmp_path, precision) -> None:
    whole = Net(precision=precision)
    fit(whole, total_steps=3)
    for stop in range(1, 9):
        model = Net(precision=precision)
        walker = make_trainer(total_steps=3, chkpt_root=tmp_path, chkpt_every_iterations=1)
        for state in walker.steps(model, Data(stop % 2)):
            if state.global_iteration == stop:
                break
        torch.manual_seed(stop)
    fit(last := Net(precision=precision), total_steps=3, chkpt_root=tmp_path)
    assert same(last.module.state_dict(), whole.module.state_dict())


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_plugins_process_what_is_tested_and_predicted() -> None:
    class Doubling(ph.Plugin):
        def __init__(self) -> None:
            super().__init__("doubling")
            self.unique_overrides = ph.UniquePluginOverrides(testing_batch=True)

        def setup(self) -> None: ...

        def process_testing_batch(self, batch: Any, step: int) -> Any:
            return [batch[0] * 2, batch[1]]

    class Echo(Net):
        def predict_step(self, batch: Any, step: int) -> Any:
            return batch[0]

        def test_step(self, batch: Any, step: int) -> Any:
            return {"sum": batch[0].sum()}

    model, plain, doubled = Echo(), make_trainer(), make_trainer()
    doubled.register_plugin(Doubling())
    one, other = (torch.cat(trainer.predict(model, Data())) for trainer in (plain, doubled))
    assert torch.equal(2 * one, other)
    assert plain.test(model, Data())
    assert doubled.test(model, Data())
    assert doubled.test_results["test_sum"] == 2 * plain.test_results["test_sum"]


def test_a_model_that_was_not_fitted_to_the_end_is_not_tested_with_what_it_has_in_memory(tmp_path) -> None:
    class Breaking(Net):
        broken = False

        def loss(self, batch: Any) -> Any:
            if self.broken and self.module.training:
                raise OSError("planted")
            return super().loss(batch)

    model = Breaking()
    trainer = fit(model, chkpt_root=tmp_path, total_steps=1)
    assert trainer.test(model, Data())
    results = trainer.test_results
    model.broken = True
    assert not make_trainer(total_steps=2).fit(model, Data())  # another trainer has set it up anew
    again = make_trainer(total_steps=2, chkpt_root=tmp_path)
    assert not again.fit(model, Data())
    assert again.test(model, Data())
    assert again.test_results == results


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_limit_a_dry_run_and_the_guard(tmp_path) -> None:
    trainer = fit(limit_batches=2, valid_frequency=1)
    assert (trainer.state.global_iteration, trainer.state.epoch) == (4, 2)
    trainer = fit(dry_run=True, chkpt_root=tmp_path, valid_frequency=1, accumulation_steps=2, total_steps=9)
    assert (trainer.state.global_iteration, trainer.state.current_iteration) == (2, 1)
    assert not list(tmp_path.iterdir())

    class Spoilt(Net):
        def loss(self, batch: Any) -> Any:
            return super().loss(batch) * math.nan

    guarded = make_trainer(total_steps=1)
    assert not guarded.fit(Spoilt(), Data())
    assert "loss is nan at iteration 1; expected a finite number" in str(guarded.error)
    fit(Spoilt(), total_steps=1, nan_guard=False)


def test_old_checkpoints_go(tmp_path) -> None:
    fit(chkpt_every_iterations=1, chkpt_keep_last=2, chkpt_root=tmp_path)
    assert [entry.iteration for entry in list_checkpoints(tmp_path / "net")] == [6, 5]


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_cuda
def test_the_first_gpu_is_used_and_is_the_current_device() -> None:
    class Looking(Net):
        def loss(self, batch: Any) -> Any:
            assert batch[0].device == next(self.module.parameters()).device == torch.device("cuda", 0)
            assert torch.zeros(1, device="cuda").device == self.device
            return super().loss(batch)

    trainer = backend.Trainer(total_steps=1, valid_frequency=1, print_banner=False)
    assert trainer.fit(Looking(), Data(2)), trainer.error
    assert (trainer.gpu_ids, trainer.device, trainer.map_loc) == ([0], torch.device("cuda", 0), "cuda:0")


@pytest.mark.gpu
@needs_cuda
def test_deterministic_kernels_are_demanded_on_the_gpu() -> None:
    class Unsteady(Net):
        def loss(self, batch: Any) -> Any:
            x = torch.ones(1, 1, 4, 4, device=self.device, requires_grad=True)
            return nn.functional.interpolate(x, scale_factor=2, mode="bicubic").sum() + super().loss(batch)

    trainer = backend.Trainer(total_steps=1, enable_deterministic=True, print_banner=False)
    assert not trainer.fit(Unsteady(), Data())
    assert "deterministic" in str(trainer.error)


@pytest.mark.gpu
@needs_cuda
def test_a_run_moves_from_the_gpu_to_the_cpu_and_back(tmp_path) -> None:
    """Bits are not promised then, but order and state are."""
    for device, total in (("gpu", 1), ("cpu", 2), ("gpu", 3)):
        model = Net(ema_decay=0.9)
        trainer = backend.Trainer(
            total_steps=total, use_cpu=device == "cpu", chkpt_root=tmp_path, print_banner=False, valid_frequency=1
        )
        assert trainer.fit(model, Data()), trainer.error
        assert trainer.state.epoch == total
        assert next(model.module.parameters()).is_cuda == (device == "gpu")
    assert [row["epoch"] for row in trainer.history] == [1, 2, 3]
    assert last_tree(tmp_path / "net", backend.Arrays())["randomness"]["0"].keys() >= {"cuda", "torch"}
