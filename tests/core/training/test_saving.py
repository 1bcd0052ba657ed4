"""Checkpoints of runs: written behind, kept by rules, brought up to date, in a folder that is locked."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parhelion as ph
from parhelion.checkpoint import (
    RunLock,
    is_pinned,
    list_checkpoints,
    load_checkpoint,
    pin,
    register_upgrade,
    save_checkpoint,
)
from parhelion.errors import CheckpointError, CheckpointMismatchError, CheckpointVersionError, WorldError
from parhelion.training import Trainer, TrainerOptions
from support.plain import Data, Descent, Records, make_trainer
from support.threads import in_all, rank_parts


def iterations(root: Any) -> list[int]:
    return [info.iteration for info in list_checkpoints(root / "descent")][::-1]


class Large(Descent):
    """Changes what it saves in place, right behind a save."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.large = np.zeros(1_000_000)

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        self.large += 1.0
        return super().train_step(batch, state)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"large": self.large}


def test_what_a_step_changes_in_place_does_not_reach_the_checkpoint_before(tmp_path) -> None:
    assert make_trainer(total_steps=2, chkpt_every_iterations=1, chkpt_root=tmp_path).fit(Large(), Data())
    for info in list_checkpoints(tmp_path / "descent"):
        assert set(load_checkpoint(info.path).tree["model"]["large"]) == {float(info.iteration)}


@pytest.mark.parametrize("in_background", [True, False])
def test_training_goes_on_while_a_checkpoint_is_written_unless_told_not_to(
    tmp_path, monkeypatch, in_background
) -> None:
    threads, original = [], os.fsync

    def fsync(descriptor: int) -> None:
        threads.append(threading.current_thread().name)
        original(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    options = {"total_steps": 1, "chkpt_every_iterations": 2, "chkpt_in_background": in_background}
    assert make_trainer(chkpt_root=tmp_path, **options).fit(Descent(), Data())
    assert ("parhelion-save" in threads) is in_background


def test_a_save_that_fails_ends_the_run_at_the_next_step_with_its_cause_and_keeps_the_old_one(
    tmp_path, monkeypatch
) -> None:
    class Unlucky(Descent):
        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            if state.global_iteration == 3:
                while not iterations(tmp_path):
                    pass  # the one before is being written
                monkeypatch.setattr("os.fsync", full)
            if state.global_iteration > 4:
                failed.wait(10)
            return super().train_step(batch, state)

    def full(_: int) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    failed = threading.Event()
    trainer = make_trainer(total_steps=20, chkpt_every_iterations=2, chkpt_root=tmp_path, chkpt_keep_last=1)
    assert trainer.fit(Unlucky(), Data()) is False
    assert isinstance(trainer.error, CheckpointError)
    assert "No space left on device" in str(trainer.error.__cause__)
    assert trainer.state.global_iteration <= 7  # found at the step in which it failed, or at the save behind
    monkeypatch.undo()
    assert iterations(tmp_path) == [2]
    assert make_trainer(total_steps=20, chkpt_root=tmp_path).fit(Descent(), Data())


def test_a_save_that_fails_on_the_first_rank_ends_all(tmp_path, monkeypatch) -> None:
    def fit(world: Any) -> Any:
        options = TrainerOptions(total_steps=3, chkpt_every_iterations=1, chkpt_root=tmp_path, print_banner=False)
        trainer = Trainer(options, rank_parts(world))
        assert trainer.fit(Descent(), Data(size=24)) is False
        return trainer.error

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("parhelion.training._together._SOON", 0.1)
    first, second = in_all(fit, 2)
    assert isinstance(first, CheckpointError)
    assert isinstance(second, WorldError)


def test_rules_of_retention_are_combined_and_pinned_ones_stay(tmp_path) -> None:
    class Pinning(Descent):
        def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
            if state.global_iteration == 7:
                [info] = [each for each in list_checkpoints(tmp_path / "descent") if each.iteration == 5]
                pin(info.path)

    options = {"chkpt_keep_last": 2, "chkpt_keep_every": 6, "chkpt_every_iterations": 1, "chkpt_in_background": False}
    assert make_trainer(total_steps=3, chkpt_root=tmp_path, **options).fit(Pinning(), Data())
    assert iterations(tmp_path) == [5, 6, 12, 14, 15]


def test_the_best_by_the_monitored_value_stay(tmp_path) -> None:
    class Judged(Descent):
        def valid_step(self, batch: Any, step: int) -> Any:
            return {"score": [3.0, 1.0, 2.0, 5.0, 4.0][self.trainer.state.epoch - 1]}

    model = Judged()
    model.monitor, model.monitor_mode = "valid_score", "max"
    options = {"valid_frequency": 1, "chkpt_frequency": 1, "chkpt_keep_best": 2, "chkpt_keep_last": 1}
    assert make_trainer(total_steps=5, chkpt_root=tmp_path, **options).fit(model, Data())
    assert iterations(tmp_path) == [20, 25]
    assert list_checkpoints(tmp_path / "descent")[0].meta["metrics"] == {"valid_score": 4.0}
    assert not is_pinned(list_checkpoints(tmp_path / "descent")[0].path)


def test_the_best_cannot_be_kept_of_a_model_that_monitors_nothing(tmp_path) -> None:
    trainer = make_trainer(total_steps=1, chkpt_keep_best=2, chkpt_root=tmp_path)
    with pytest.raises(ValueError, match=r"chkpt_keep_best is 2 and the model monitors no value; expected one to tell"):
        trainer.fit(Descent(), Data())


def test_the_clock_may_be_a_timedelta(tmp_path) -> None:
    options = {"chkpt_every_seconds": dt.timedelta(microseconds=1), "total_steps": 1}
    assert make_trainer(chkpt_root=tmp_path, **options).fit(Descent(), Data())
    assert iterations(tmp_path) == [1, 2, 3, 4, 5]


def test_a_folder_that_another_run_holds_is_refused_by_host_and_process(tmp_path) -> None:
    with RunLock(tmp_path / "descent"), pytest.raises(CheckpointError, match=rf"in use by process {os.getpid()} on "):
        make_trainer(total_steps=1, chkpt_root=tmp_path).fit(Descent(), Data())
    assert make_trainer(total_steps=1, chkpt_root=tmp_path).fit(Descent(), Data())


class Marked(Records):
    def __init__(self, size: int, mark: str | None) -> None:
        super().__init__(size)
        self.fingerprint = mark


class MarkedData(Data):
    def __init__(self, mark: str | None) -> None:
        super().__init__()
        self.mark = mark

    def setup(self) -> None:
        super().setup()
        self._train_dataset = self._create_dataset(Marked(20, self.mark), self.params)


def test_data_whose_fingerprint_has_changed_is_refused_with_both_unless_allowed(tmp_path) -> None:
    def fit(mark: str | None, steps: int, **options: Any) -> bool:
        return make_trainer(total_steps=steps, chkpt_root=tmp_path).fit(Descent(), MarkedData(mark), **options)

    assert fit("a1", 1)
    with pytest.raises(CheckpointMismatchError, match=r"data_fingerprint is 'b2' and was 'a1' when it was saved"):
        fit("b2", 2)
    assert fit(None, 2)  # one that says nothing is taken at its length
    assert fit("b2", 3)
    assert fit("c3", 4, allow_changes=("data_fingerprint",))


class Renamed(Descent):
    """What was "weights" is "w" from version 2 on."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.state_versions = {"renamed": version}

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state if self.state_versions["renamed"] < 2 else {"w": state.pop("weights"), **state}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        if self.state_versions["renamed"] >= 2:
            state_dict = {"weights": state_dict["w"], **state_dict}
        super().load_state_dict(state_dict, fast_init)


def rename(tree: Any) -> Any:
    return {**tree, "model": {"w": tree["model"]["weights"], **tree["model"]}}


def test_state_in_an_old_form_is_brought_up_to_date_and_one_in_a_newer_is_refused_by_name(tmp_path) -> None:
    def fit(version: int, steps: int) -> Descent:
        model = Renamed(version)
        assert make_trainer(total_steps=steps, chkpt_root=tmp_path).fit(model, Data())
        return model

    fit(1, 1)
    with pytest.raises(CheckpointVersionError, match=r"has version 1 of 'renamed', now 2, and nothing leads from 1"):
        fit(2, 2)
    register_upgrade("renamed", 1, rename)
    resumed, oracle = fit(2, 2), Descent()
    assert make_trainer(total_steps=2).fit(oracle, Data())
    np.testing.assert_array_equal(resumed.weights, oracle.weights)
    with pytest.raises(CheckpointVersionError, match=r"has version 2 of 'renamed'; expected at most 1"):
        fit(1, 3)


def test_a_run_from_before_a_validation_could_be_left_goes_on(tmp_path) -> None:
    oracle = Descent()
    assert make_trainer(total_steps=2).fit(oracle, Data())
    assert make_trainer(total_steps=1, chkpt_root=tmp_path).fit(Descent(), Data())
    [info] = list_checkpoints(tmp_path / "descent")
    tree = load_checkpoint(info.path).tree
    del tree["pending"]
    meta = {name: value for name, value in info.meta.items() if name not in ("versions", "metrics")}
    save_checkpoint(tmp_path / "descent", info.path.name, tree, meta)
    model = Descent()
    assert make_trainer(total_steps=2, chkpt_root=tmp_path).fit(model, Data())
    np.testing.assert_array_equal(model.weights, oracle.weights)


def test_a_save_that_has_to_wait_long_for_the_one_before_is_mentioned_once(tmp_path, monkeypatch, caplog) -> None:
    def fsync(descriptor: int) -> None:
        time.sleep(0.02)
        original(descriptor)

    original = os.fsync
    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("parhelion.checkpoint._background._LONG_WAIT", 0.01)
    assert make_trainer(total_steps=1, chkpt_every_iterations=1, chkpt_root=tmp_path).fit(Descent(), Data())
    assert caplog.text.count("for the checkpoint before to be written; save less often") == 1


@pytest.mark.parametrize("in_background", [True, False])
def test_an_old_checkpoint_that_cannot_be_deleted_ends_no_run(tmp_path, monkeypatch, caplog, in_background) -> None:
    def rename(path: Path, target: Any) -> Path:
        if path.name.endswith("_iter_1") and "deleting" in str(target):
            raise PermissionError(13, "Permission denied")
        return original(path, target)

    original = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    options = {"chkpt_every_iterations": 1, "chkpt_keep_last": 1, "chkpt_in_background": in_background}
    trainer = make_trainer(total_steps=1, chkpt_root=tmp_path, **options)
    assert trainer.fit(Descent(), Data()), trainer.error
    assert iterations(tmp_path) == [1, 5]
    assert "descent_epoch_1_iter_2 is written, but an older one stays: checkpoint" in caplog.text
    assert "could not be deleted (Permission denied)" in caplog.text


def test_one_that_somebody_else_deletes_meanwhile_is_gone(tmp_path, monkeypatch, caplog) -> None:
    def rename(path: Path, target: Any) -> Path:
        if "deleting" in str(target):
            shutil.rmtree(path)
        return original(path, target)

    original = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    trainer = make_trainer(total_steps=1, chkpt_root=tmp_path, chkpt_every_iterations=1, chkpt_keep_last=1)
    assert trainer.fit(Descent(), Data()), trainer.error
    assert iterations(tmp_path) == [5]
    assert "stays" not in caplog.text


def test_a_save_after_the_run_is_refused_where_another_one_has_begun(tmp_path) -> None:
    trainer = make_trainer(total_steps=1, chkpt_root=tmp_path)
    assert trainer.fit(Descent(), Data())
    assert trainer.save_checkpoint() == tmp_path / "descent" / "descent_epoch_1_iter_5"
    with RunLock(tmp_path / "descent"), pytest.raises(CheckpointError, match=r"is in use by process"):
        trainer.save_checkpoint()
    with RunLock(tmp_path / "descent"):
        trainer.save_checkpoint(tmp_path / "elsewhere")
    for _ in trainer.steps(Descent(), Data(), resume="never"):
        trainer.save_checkpoint()
        break
    trainer.save_checkpoint()
    with RunLock(tmp_path / "descent"):
        pass


@pytest.mark.parametrize("reason", ["save", "leave", "failed", None, 7])
def test_a_reason_to_stop_that_means_something_else_is_refused(reason) -> None:
    class Stopping(Descent):
        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            self.trainer.request_stop(reason)

    trainer = make_trainer(total_steps=1)
    assert not trainer.fit(Stopping(), Data())
    assert isinstance(trainer.error, (ValueError, TypeError))
    assert str(trainer.error).startswith(f"reason is {reason!r}")


def test_the_deadline_may_be_a_timedelta() -> None:
    assert TrainerOptions(stop_deadline=dt.timedelta(minutes=1)).stop_deadline == 60.0
    with pytest.raises(ValueError, match=r"stop_deadline is 0.0; expected seconds > 0"):
        TrainerOptions(stop_deadline=dt.timedelta(0))
