"""What cannot work says so: an error that names it, or a stated way on; never a silent wrong run, never a hang."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from torch import nn

import parhelion as ph
import parhelion_torch as backend
from parhelion.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from parhelion.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointVersionError,
    CollateError,
    DamagedCheckpointError,
    RecordError,
    UnknownNameError,
)
from parhelion.testing import same


@contextmanager
def deadline(seconds: int):
    """Fail after that long, also where the code under test would wait for ever."""

    def give_up(*_: Any) -> None:
        raise AssertionError(f"it hung for {seconds} s")

    former = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


class Points:
    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return {"x": torch.full((3,), float(index)), "y": float(index)}


class Data(ph.DataModule):
    def __init__(self, dataset: Any = None, **params: Any) -> None:
        self.dataset = Points() if dataset is None else dataset
        self.params = {"batch_size": 4, **params}

    def setup(self) -> None:
        self._train_dataset = self._create_dataset(self.dataset, self.params)
        self._valid_dataset = self._create_dataset(Points(), {"batch_size": 4})


class Net(backend.LossModel):
    def __init__(self, width: int = 3) -> None:
        super().__init__("net")
        self.width = width

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(nn.Linear(3, self.width), nn.Linear(self.width, 1))
        self.optimizer = torch.optim.Adam(self.module.parameters())

    def loss(self, batch: Any) -> Any:
        return nn.functional.mse_loss(self.module(batch["x"])[:, 0], batch["y"])


def make_trainer(**options: Any) -> backend.Trainer:
    return backend.Trainer(**{"use_cpu": True, "print_banner": False, "total_steps": 2, **options})


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, r"batch_size is 0; expected an integer >= 1"),
        ({"batch_size": -1}, ValueError, r"batch_size is -1; expected an integer >= 1"),
        ({"batch_size": 2.0}, TypeError, r"batch_size is 2.0; expected an integer"),
        ({"batch_size": "4"}, TypeError, r"batch_size is '4'; expected an integer"),
        ({"random_seed": -1}, ValueError, r"random_seed is -1; expected an integer from 0 to 2\*\*64 - 1"),
        ({"random_seed": 2**64}, ValueError, r"random_seed is 18446744073709551616; expected an integer from 0"),
        ({"random_seed": 1.5}, TypeError, r"random_seed is 1.5; expected an integer"),
        ({"num_workers": -1}, ValueError, r"num_workers is -1; expected an integer >= 0"),
        ({"num_workers": 1.0}, TypeError, r"num_workers is 1.0; expected an integer >= 0"),
        (
            {"sampler": "ResumableRandomSampeler"},
            UnknownNameError,
            r"'ResumableRandomSampeler'.*ResumableRandomSampler",
        ),
        (
            {"sampler": torch.utils.data.SequentialSampler(Points())},
            TypeError,
            r"sampler is a SequentialSampler; expected",
        ),
        ({"sampler": [3, 1, 2]}, TypeError, r"sampler is a list; expected one derived from ResumableSampler"),
        (
            {"sampler": backend.ResumableRandomSampler(Points(), batch_size=2)},
            ValueError,
            r"batch_size of the sampler is 2 and that of the loader 4",
        ),
        ({"collate_fn": "stak"}, UnknownNameError, r"'stak'"),
        ({"collate_fn": 3}, TypeError, r"collate_fn is 3; expected a function of a list of records"),
        ({"batch_sise": 4}, ValueError, r"'batch_sise'; expected one of .* Did you mean 'batch_size'"),
        (
            {"options": {"prefetch": 2}},
            ValueError,
            r"option of the loader is 'prefetch'; expected .* Did you mean 'prefetch",
        ),
        ({"options": {"global_rng": "never"}}, ValueError, r"global_rng is 'never'; expected 'batch'"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
def test_a_parameter_of_the_data_that_cannot_work_is_refused_before_training(params, error, message, tmp_path) -> None:
    trainer = make_trainer(chkpt_root=tmp_path)
    with deadline(20), pytest.raises(error, match=message):
        trainer.fit(Net(), Data(**params))
    assert not list(tmp_path.rglob("*epoch*"))


def test_a_dataset_without_records_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data_source is empty \(a Points of length 0\); expected 1 to .* records"):
        make_trainer().fit(Net(), Data(Points(0)))


def test_a_dataset_smaller_than_a_batch_says_that_no_batch_is_left() -> None:
    with pytest.raises(
        ValueError, match=r"the train data has 3 records, .* so no batch is left; .* set drop_last=False"
    ):
        make_trainer().fit(Net(), Data(Points(3), drop_last=True))
    small = make_trainer()
    assert small.fit(Net(), Data(Points(3)))
    assert small.state.global_iteration == 2


def test_a_dataset_without_a_length_is_refused() -> None:
    with pytest.raises(TypeError, match=r"data_source is a int; expected a dataset with a length"):
        make_trainer().fit(Net(), Data(3))


def test_an_unknown_registered_name_is_named_with_what_is_near() -> None:
    with pytest.raises(UnknownNameError, match=r"optimizer name is 'adamw'.*AdamW"):
        backend.create_optimizer("adamw", [torch.zeros(1)])
    with pytest.raises(UnknownNameError, match=r"dataset name is 'no-such-data'"):
        ph.create_dataset("no-such-data")
    with pytest.raises(UnknownNameError, match=r"plugin name is 'CUDAPlugn'.*CUDAPlugin"):
        ph.create_plugin("CUDAPlugn")


class Ragged(Points):
    def __init__(self, bad: Any) -> None:
        super().__init__()
        self.bad = bad

    def __getitem__(self, index: int) -> Any:
        return {"x": self.bad if index == 5 else torch.ones(3), "y": float(index)}


class Shouting(Points):
    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise ZeroDivisionError("planted in record five")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("bad", [torch.ones(4), torch.ones(3, dtype=torch.int64), None, object(), {"deep": 1}, "text"])
def test_a_record_that_does_not_fit_is_named_by_index_and_field(workers, bad) -> None:
    trainer = make_trainer()
    with deadline(60):
        assert trainer.fit(Net(), Data(Ragged(bad), num_workers=workers)) is False
    assert isinstance(trainer.error, CollateError)
    text = str(trainer.error)
    assert "sample index 5" in text
    assert "'x'" in text
    assert trainer.state.global_iteration == 1  # the batch before it


@pytest.mark.parametrize("workers", [0, 2])
def test_a_record_that_raises_is_named_and_ends_the_run_at_once(workers, caplog) -> None:
    trainer = make_trainer()
    with deadline(60), caplog.at_level(logging.ERROR, "parhelion"):
        assert trainer.fit(Net(), Data(Shouting(), num_workers=workers)) is False
    assert isinstance(trainer.error, RecordError)
    assert "sample index 5" in str(trainer.error)
    assert "planted in record five" in caplog.text
    assert "__getitem__" in caplog.text  # where it was, also if that was in a worker
    assert (trainer.stop_reason, trainer.exit_code) == ("error", 1)


def test_a_worker_that_dies_ends_the_run_and_not_the_patience() -> None:
    class Deadly(Points):
        def __getitem__(self, index: int) -> Any:
            if index == 5 and torch.utils.data.get_worker_info() is not None:
                import os

                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    trainer = make_trainer()
    with deadline(60):
        assert trainer.fit(Net(), Data(Deadly(), num_workers=1)) is False
    assert "worker" in str(trainer.error)


def test_a_plain_loader_of_torch_is_refused() -> None:
    class Plain(Data):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(self.dataset, batch_size=4)

    with pytest.raises(TypeError, match=r"the sampler of a loader is None; expected a ResumableSampler"):
        make_trainer().fit(Net(), Plain())


def test_a_data_set_that_was_assigned_bare_is_refused() -> None:
    class Bare(Data):
        def setup(self) -> None:
            self._train_dataset = self.dataset

    with pytest.raises(TypeError, match=r"_train_dataset of Bare is a Points; expected what self._create_dataset"):
        make_trainer().fit(Net(), Bare())


# -- the trainer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"run_name": 3}, TypeError, r"run_name is 3; expected a string"),
        ({"run_name": "a/b"}, ValueError, r"run_name is 'a/b'; expected a name that can begin a folder's"),
        ({"train_unit": "epochs"}, ValueError, r"train_unit is 'epochs'; expected 'iteration' or 'epoch'"),
        ({"train_unit": 3}, ValueError, r"train_unit is 3; expected 'iteration' or 'epoch'"),
        ({"train_unit": None}, ValueError, r"train_unit is None; expected 'iteration' or 'epoch'"),
        ({"total_steps": 1.5}, ValueError, r"total_steps is 1.5; expected an integer >= 0, or math.inf"),
        ({"total_steps": -1}, ValueError, r"total_steps is -1; expected an integer >= 0"),
        ({"total_steps": math.nan}, ValueError, r"total_steps is nan; expected an integer"),
        ({"total_steps": "3"}, ValueError, r"total_steps is '3'; expected an integer"),
        ({"total_steps": True}, ValueError, r"total_steps is True; expected an integer"),
        (
            {"total_steps": math.inf, "early_stop_cycles": 0},
            ValueError,
            r"total_steps is inf and early_stop_cycles is 0",
        ),
        (
            {"valid_frequency": 0},
            ValueError,
            r"valid_frequency is 0; expected an integer >= 1 or None. None means never",
        ),
        ({"valid_frequency": 1.0}, TypeError, r"valid_frequency is 1.0; expected an integer >= 1 or None"),
        ({"valid_frequency": True}, TypeError, r"valid_frequency is True; expected an integer"),
        ({"chkpt_frequency": -1}, ValueError, r"chkpt_frequency is -1; expected an integer >= 1"),
        ({"chkpt_frequency": "1"}, TypeError, r"chkpt_frequency is '1'; expected an integer"),
        ({"print_frequency": 0}, ValueError, r"print_frequency is 0; expected an integer >= 1"),
        ({"accumulation_steps": 0}, ValueError, r"accumulation_steps is 0; expected an integer >= 1"),
        ({"accumulation_steps": None}, TypeError, r"accumulation_steps is None; expected an integer >= 1"),
        ({"early_stop_cycles": -1}, ValueError, r"early_stop_cycles is -1; expected an integer >= 0"),
        ({"early_stop_cycles": 2}, ValueError, r"early_stop_cycles is 2 and valid_frequency is None"),
        ({"enable_cudnn_benchmark": 1}, TypeError, r"enable_cudnn_benchmark is 1; expected True or False"),
        ({"enable_deterministic": "yes"}, TypeError, r"enable_deterministic is 'yes'; expected True or False"),
        (
            {"enable_deterministic": True, "enable_cudnn_benchmark": True},
            ValueError,
            r"are both True; expected one at most",
        ),
        ({"gpus": [0]}, ValueError, r"use_cpu is True and gpus is \[0\]"),
        ({"random_seed": -1}, ValueError, r"random_seed is -1; expected an integer from 0"),
        ({"random_seed": 2**64}, ValueError, r"random_seed is 18446744073709551616; expected an integer from 0"),
        ({"random_seed": 0.5}, TypeError, r"random_seed is 0.5; expected an integer"),
        ({"enable_tensorboard": "yes"}, TypeError, r"enable_tensorboard is 'yes'; expected True or False"),
        ({"enable_tensorboard": True}, ValueError, r"enable_tensorboard is True and run_path is None"),
        ({"enable_file_logging": True}, ValueError, r"enable_file_logging is True and log_path is None"),
        ({"enable_file_logging": 1}, TypeError, r"enable_file_logging is 1; expected True or False"),
        ({"enable_progress_bar": None}, TypeError, r"enable_progress_bar is None; expected True or False"),
        ({"chkpt_root": 3}, TypeError, r"chkpt_root is 3; expected the path of a folder, or None"),
        ({"chkpt_root": __file__}, ValueError, r"chkpt_root is '.*', a file; expected a folder"),
        ({"log_path": __file__}, ValueError, r"log_path is '.*', a file; expected a folder"),
        ({"run_path": __file__}, ValueError, r"run_path is '.*', a file; expected a folder"),
        ({"log_path": []}, TypeError, r"log_path is \[\]; expected the path of a folder, or None"),
        ({"src_root": "/no/such/folder"}, ValueError, r"src_root is '/no/such/folder'; expected an existing folder"),
        ({"import_prefix": 3}, TypeError, r"import_prefix is 3; expected a string"),
        ({"print_banner": "no"}, TypeError, r"print_banner is 'no'; expected True or False"),
        ({"chkpt_every_iterations": 0}, ValueError, r"chkpt_every_iterations is 0; expected an integer >= 1"),
        ({"chkpt_every_seconds": 0}, ValueError, r"chkpt_every_seconds is 0; expected a number > 0 or None"),
        ({"chkpt_every_seconds": "9"}, ValueError, r"chkpt_every_seconds is '9'; expected a number > 0"),
        ({"chkpt_every_seconds": math.nan}, ValueError, r"chkpt_every_seconds is nan; expected a number > 0"),
        ({"chkpt_keep_last": 0}, ValueError, r"chkpt_keep_last is 0; expected an integer >= 1"),
        ({"limit_batches": 1.5}, ValueError, r"limit_batches is 1.5; expected an integer >= 1"),
        ({"dry_run": 1}, TypeError, r"dry_run is 1; expected True or False"),
        ({"nan_guard": 0}, TypeError, r"nan_guard is 0; expected True or False"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
def test_an_argument_of_the_trainer_that_cannot_work_is_refused_at_construction(options, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        make_trainer(**options)
    assert isinstance(caught.value, ph.ParhelionError)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resume": None}, TypeError, r"resume is None; expected 'auto', 'must', 'never' or the path of a checkpoint"),
        ({"resume": 3}, TypeError, r"resume is 3; expected 'auto'"),
        ({"resume": "latest"}, CheckpointError, r"checkpoint is 'latest'; expected an existing folder"),
        ({"resume": "must"}, ValueError, r"resume is 'must' and there is no good checkpoint in"),
        ({"init_from": 3}, TypeError, r"init_from is 3; expected the path of a checkpoint"),
        ({"init_from": "nowhere"}, CheckpointError, r"checkpoint is 'nowhere'; expected an existing folder"),
        (
            {"allow_changes": "random_seed"},
            TypeError,
            r"allow_changes is 'random_seed'; expected a collection of names",
        ),
        ({"allow_changes": ["seed"]}, ValueError, r"allow_changes has \['seed'\]; expected some of"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
def test_an_argument_of_fit_that_cannot_work_is_refused(arguments, error, message, tmp_path) -> None:
    with pytest.raises(error, match=message) as caught:
        make_trainer(chkpt_root=tmp_path).fit(Net(), Data(), **arguments)
    assert isinstance(caught.value, ph.ParhelionError)
    assert not list(tmp_path.rglob("*epoch*"))


def test_a_checkpoint_cannot_be_named_where_there_is_no_root() -> None:
    with pytest.raises(ValueError, match=r"resume is 'must' and there is no chkpt_root; expected one. Pass chkpt_root"):
        make_trainer().fit(Net(), Data(), resume="must")


@pytest.mark.parametrize(
    "value", ["loss", [1.0], (1.0,), torch.ones(3), {"a": torch.ones(2)}, {"a": "text"}, {"a": None}]
)
def test_a_step_that_returns_no_scalar_is_an_error(value) -> None:
    class Wrong(Net):
        def train_step(self, batch: Any, state: Any) -> Any:
            return value

    trainer = make_trainer()
    assert trainer.fit(Wrong(), Data()) is False
    assert isinstance(trainer.error, TypeError)
    assert "expected" in str(trainer.error)


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path) -> Any:
    """Return the folder of a run of two epochs with a checkpoint after each, and its weights after three."""
    whole = Net()
    assert make_trainer(total_steps=3, chkpt_frequency=1).fit(whole, Data())
    assert make_trainer(chkpt_root=tmp_path, chkpt_frequency=1).fit(Net(), Data())
    return tmp_path / "net", whole.module.state_dict()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    file.write_bytes(content)


def flip_early(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, flip, flip_early, Path.unlink])
@pytest.mark.parametrize("file", ["manifest.json", "arrays-00000.safetensors"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(trained, damage, file, caplog) -> None:
    folder, weights = trained
    newest = list_checkpoints(folder)[0].path
    damage(newest / file)
    model, trainer = Net(), make_trainer(total_steps=3, chkpt_root=folder.parent)
    with caplog.at_level(logging.INFO, "parhelion"):
        assert trainer.fit(model, Data())
    assert newest.with_name(newest.name + ".damaged").is_dir()
    assert "net_epoch_2_iter_6" in caplog.text
    assert "resumed from" in caplog.text
    assert "net_epoch_1_iter_3" in caplog.text
    assert same(model.module.state_dict(), weights)
    assert [row["epoch"] for row in trainer.history if "loss" in row] == []


@pytest.mark.parametrize("damage", [cut, empty, flip, flip_early, Path.unlink])
@pytest.mark.parametrize("file", ["manifest.json", "arrays-00000.safetensors"])
def test_a_damaged_checkpoint_that_was_named_is_an_error(trained, damage, file) -> None:
    folder, _ = trained
    newest = list_checkpoints(folder)[0].path
    damage(newest / file)
    for resume in (newest, str(newest)):
        with pytest.raises(DamagedCheckpointError, match=rf"net_epoch_2_iter_6 is damaged: .*{file}"):
            make_trainer(total_steps=3, chkpt_root=folder.parent).fit(Net(), Data(), resume=resume)
    assert newest.is_dir()


def test_where_every_checkpoint_is_damaged_a_fresh_run_says_so_and_must_refuses(trained, caplog) -> None:
    folder, weights = trained
    for entry in list_checkpoints(folder):
        flip(entry.path / "arrays-00000.safetensors")
    copy = shutil.copytree(folder.parent, folder.parent.parent / "copy")
    with pytest.raises(ValueError, match=r"resume is 'must' and there is no good checkpoint"):
        make_trainer(total_steps=3, chkpt_root=copy).fit(Net(), Data(), resume="must")
    model = Net()
    with caplog.at_level(logging.INFO, "parhelion"):
        assert make_trainer(total_steps=3, chkpt_root=folder.parent).fit(model, Data())
    assert caplog.text.count("is damaged") >= 2
    assert "a fresh run" in caplog.text
    assert same(model.module.state_dict(), weights)


def test_a_checkpoint_of_a_newer_format_is_refused_and_left_alone(trained) -> None:
    folder, _ = trained
    newest = list_checkpoints(folder)[0].path
    _, body = (newest / "manifest.json").read_bytes().split(b"\n", 1)
    body = body.replace(b'"version": 1', b'"version": 99', 1)
    line = b'{"checksum": "xxh3_128:%s",\n' % xxhash.xxh3_128_hexdigest(body).encode()
    (newest / "manifest.json").write_bytes(line + body)
    assert json.loads((newest / "manifest.json").read_text())["version"] == 99
    for resume in ("auto", newest):
        with pytest.raises(
            CheckpointVersionError, match=r"has format version 99; expected at most 2.* Upgrade parhelion"
        ):
            make_trainer(total_steps=3, chkpt_root=folder.parent).fit(Net(), Data(), resume=resume)
    assert newest.is_dir()


def test_a_checkpoint_of_another_model_is_refused_with_the_names_that_differ(trained) -> None:
    folder, _ = trained
    message = (
        r"module is of another model: 0.weight is \(5, 3\) of float32 here and \(3, 3\) of float32 there; .*1.weight"
    )
    with pytest.raises(CheckpointMismatchError, match=message):
        make_trainer(total_steps=3, chkpt_root=folder.parent).fit(Net(width=5), Data())
    with pytest.raises(CheckpointMismatchError, match=r"module is of another model"):
        make_trainer(total_steps=3).fit(Net(width=5), Data(), init_from=list_checkpoints(folder)[0].path)


def test_a_checkpoint_under_another_model_s_name_is_refused(trained) -> None:
    folder, _ = trained
    model = Net()
    model.save_name = "other"
    with pytest.raises(CheckpointMismatchError, match=r"model is 'other' and was 'net' when it was saved"):
        make_trainer(total_steps=3, chkpt_root=folder.parent).fit(
            model, Data(), resume=list_checkpoints(folder)[0].path
        )


def test_a_checkpoint_that_is_no_run_s_is_refused(tmp_path) -> None:
    meta = {"run_name": "mine", "global_epoch": 1, "global_iteration": 1}
    path = save_checkpoint(tmp_path / "net", "mine", {"weights": 3}, meta)
    for arguments in ({}, {"resume": path}, {"resume": "never", "init_from": path}):
        with pytest.raises(CheckpointError, match=r"holds no run; expected one that Trainer.fit has written"):
            make_trainer(chkpt_root=tmp_path).fit(Net(), Data(), **arguments)
    assert path.is_dir()


def test_a_file_where_the_checkpoints_should_go_is_refused_at_the_start(tmp_path) -> None:
    (tmp_path / "net").write_text("")
    with pytest.raises(ValueError, match=r"expected a folder, and '.*net' is a file"):
        make_trainer(chkpt_root=tmp_path).fit(Net(), Data())


def test_a_folder_that_can_no_longer_be_written_ends_the_run_with_the_reason(tmp_path) -> None:
    class Locking(Net):
        def on_training_epoch_end(self, current_epoch: int) -> None:
            if current_epoch == 1:
                shutil.rmtree(tmp_path / "net")
                (tmp_path / "net").write_text("a file where the folder should be")

    trainer = make_trainer(chkpt_root=tmp_path, chkpt_frequency=1)
    assert trainer.fit(Locking(), Data()) is False
    assert isinstance(trainer.error, CheckpointError)
    assert "net_epoch_1_iter_3 could not be written" in str(trainer.error)


def test_a_value_that_no_checkpoint_can_hold_is_refused_before_the_first_step(tmp_path) -> None:
    class Odd(Net):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "odd": {"deep": lambda: None}}

    trainer = make_trainer(chkpt_root=tmp_path)
    with pytest.raises(TypeError, match=r"model.odd.deep is a function; expected a plain value"):
        trainer.fit(Odd(), Data())
    assert trainer.state.global_iteration == 0
    assert make_trainer().fit(Odd(), Data())  # nothing is saved there


def test_a_value_that_cannot_be_saved_later_ends_the_run_and_the_checkpoint_before_stays(tmp_path) -> None:
    class Careless(Net):
        def state_dict(self) -> dict[str, Any]:
            later = self.trainer.state.global_iteration > 3
            return {**super().state_dict(), **({"history": [1, {"fn": print}]} if later else {})}

    trainer = make_trainer(chkpt_root=tmp_path, chkpt_frequency=1)
    assert trainer.fit(Careless(), Data()) is False
    assert "model.history[1].fn is a " in str(trainer.error)
    (kept,) = list_checkpoints(tmp_path / "net")
    assert kept.iteration == 3
    assert load_checkpoint(kept.path, backend.Arrays()).tree["state"].global_iteration == 3
