"""A validation that was left because time was short is still to be done, whatever the resumed run looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import parhelion as ph
from parhelion.checkpoint import list_checkpoints, load_checkpoint
from support.plain import Data, Descent, make_trainer


class Hurried(Descent):
    """Is asked to end in a validation, and to leave it, as a signal's deadline has it."""

    def __init__(self, cycle: int | None = None) -> None:
        super().__init__()
        self.cycle = cycle
        self.cycles: list[int] = []

    def on_validation_start(self, validation_cycles: int) -> None:
        self.cycles.append(validation_cycles)

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        if state.current_iteration > 40:
            raise RuntimeError("the run does not end")
        return super().train_step(batch, state)

    def valid_step(self, batch: Any, step: int) -> Any:
        if self.cycles[-1:] == [self.cycle]:
            self.trainer._loop.calls.ask("preempted")
            self.trainer._loop.calls.ask("leave")
        return super().valid_step(batch, step)


OPTIONS: dict[str, Any] = {
    "total_steps": 4,
    "valid_frequency": 2,
    "print_frequency": 2,
    "chkpt_frequency": 1,
    "accumulation_steps": 2,
    "early_stop_cycles": 5,
}


def leave(root: Any, cycle: int, **options: Any) -> Hurried:
    model = Hurried(cycle)
    trainer = make_trainer(chkpt_root=root, **{**OPTIONS, **options})
    assert not trainer.fit(model, Data())
    assert trainer.stop_reason == "preempted"
    assert load_checkpoint(list_checkpoints(root / "descent")[0].path).tree["pending"] is True
    return model


def rows(trainer: Any) -> list[Any]:
    return [{name: value for name, value in row.items() if "per_second" not in name} for row in trainer.history]


@pytest.mark.parametrize("cycle", [1, 2])
@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_the_resumed_run_does_it_and_is_the_one_that_never_stopped(tmp_path, cycle, unit) -> None:
    options = {**OPTIONS, "train_unit": unit}
    if unit == "iteration":
        options |= {"total_steps": 8, "valid_frequency": 4, "chkpt_frequency": 4}
    oracle = make_trainer(**options)
    whole = Hurried()
    assert oracle.fit(whole, Data())
    before = leave(tmp_path, cycle, **options)
    model, trainer = Hurried(), make_trainer(chkpt_root=tmp_path, **options)
    assert trainer.fit(model, Data())
    assert before.journal + model.journal == whole.journal
    assert model.cycles[0] == cycle
    assert rows(trainer) == rows(oracle)
    assert trainer.state == oracle.state
    np.testing.assert_array_equal(model.weights, whole.weights)


@pytest.mark.parametrize("frequency", [None, 3])
@pytest.mark.parametrize("cycle", [1, 2])
def test_one_that_is_not_due_any_more_is_not_done_and_the_run_ends_where_it_should(tmp_path, cycle, frequency) -> None:
    leave(tmp_path, cycle)
    trainer = make_trainer(chkpt_root=tmp_path, **{**OPTIONS, "valid_frequency": frequency, "early_stop_cycles": None})
    model = Hurried()
    assert trainer.fit(model, Data())
    assert trainer.stop_reason == "finished"
    assert trainer.state.epoch == 4
    assert model.cycles == ([1] if frequency and cycle == 1 else [])
    assert load_checkpoint(list_checkpoints(tmp_path / "descent")[0].path).tree["pending"] is False
