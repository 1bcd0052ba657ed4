"""A training process that is killed with SIGKILL at a named point; run as a script by the kill tests.

python killed_run.py ROOT SETTING

SETTING is JSON: backend, workers, steps (batches per update), schedule, chunk (iterations per call), point, iteration.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def die(process: int | None = None) -> None:
    os.kill(process or os.getpid(), signal.SIGKILL)


class Deadly:
    """A dataset that kills the training while a record is being made, from wherever that is done."""

    def __init__(self, dataset: Any, number: int) -> None:
        self.dataset, self.left, self.process = dataset, number, os.getpid()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left == 0:
            die(self.process)
        return self.dataset[index]


def plant(model: Any, point: str, iteration: int, journal: Any) -> None:
    """Make the model write down what it trains on, and die at the point."""
    step, steps, valid, save = model.train_step, model.train_steps, model.valid_step, model.state_dict

    def pass_by(place: str, *, is_time: bool) -> None:
        if place == point and is_time:
            die()

    def train(states: Sequence[Any], call: Callable[[], Any]) -> Any:
        numbers = [state.global_iteration for state in states]
        pass_by("before a step", is_time=iteration in numbers)
        outcome = call()
        for number, (rows, content) in zip(numbers, model.seen[-len(numbers) :], strict=True):
            print(json.dumps([number, rows, hash(content)]), file=journal)
        pass_by("after a step", is_time=iteration in numbers)
        return outcome

    def batch_end(state: Any, should_log: bool = False) -> None:
        pass_by("in a hook", is_time=state.global_iteration == iteration)

    def valid_step(batch: Any, number: int) -> Any:
        pass_by("in a validation", is_time=model.trainer.state.global_iteration >= iteration)
        return valid(batch, number)

    def state_dict() -> Any:
        pass_by("in a save", is_time=model.trainer.state.global_iteration >= iteration)
        return save()

    model.train_step = lambda batch, state: train([state], lambda: step(batch, state))
    model.train_steps = lambda batches, states: train(states, lambda: steps(batches, states))
    model.on_training_batch_end, model.valid_step, model.state_dict = batch_end, valid_step, state_dict


def main(
    root: str, *, backend: str, workers: int, steps: int, schedule: str, chunk: int, point: str, iteration: int
) -> None:
    case: Any = importlib.import_module(f"support.{backend}_case")
    Path(root).mkdir(parents=True, exist_ok=True)
    model = case.make_model(schedule) if chunk == 1 else case.Together(schedule)
    # Prints and checkpoints fall apart, so that there are values to be kept where a run goes on.
    options = {"print_frequency": 2, "chkpt_every_iterations": 3}
    if chunk > 1:
        options = {"print_frequency": 5, "chkpt_every_iterations": 4, "steps_per_execution": chunk}
    with (Path(root) / "journal.jsonl").open("a", buffering=1) as journal:
        plant(model, point, iteration, journal)
        trainer = case.make_trainer(
            total_steps=3, valid_frequency=1, accumulation_steps=steps, chkpt_root=root, **options
        )
        if point == "in a record":
            points = case.Points
            case.Points = lambda *arguments: Deadly(points(*arguments), iteration)
        assert trainer.fit(model, case.Data(workers)), trainer.error
    result = {"weights": case.weights(model), "history": trainer.history}
    (Path(root) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
