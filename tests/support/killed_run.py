"""A training process that is killed with SIGKILL at a named point; run as a script by the kill tests.

python killed_run.py ROOT WORKERS STEPS SCHEDULE POINT ITERATION
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from support import torch_case as case


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def plant(model: Any, point: str, iteration: int, journal: Any) -> None:
    """Make the model write down what it trains on, and die at the point."""
    step, valid, save = model.train_step, model.valid_step, model.state_dict

    def train_step(batch: Any, state: Any) -> Any:
        if point == "before a step" and state.global_iteration == iteration:
            die()
        outcome = step(batch, state)
        print(json.dumps([state.global_iteration, model.seen[-1][0], hash(model.seen[-1][1])]), file=journal)
        if point == "after a step" and state.global_iteration == iteration:
            die()
        return outcome

    def valid_step(batch: Any, number: int) -> Any:
        if point == "in a validation" and model.trainer.state.global_iteration >= iteration:
            die()
        return valid(batch, number)

    def state_dict() -> Any:
        if point == "in a save" and model.trainer.state.global_iteration >= iteration:
            die()
        return save()

    model.train_step, model.valid_step, model.state_dict = train_step, valid_step, state_dict


def main(root: str, workers: str, steps: str, schedule: str, point: str, iteration: str) -> None:
    Path(root).mkdir(parents=True, exist_ok=True)
    model = case.make_model(schedule)
    with (Path(root) / "journal.jsonl").open("a", buffering=1) as journal:
        plant(model, point, int(iteration), journal)
        trainer = case.make_trainer(
            total_steps=3,
            valid_frequency=1,
            print_frequency=2,
            accumulation_steps=int(steps),
            chkpt_root=root,
            chkpt_every_iterations=2,
        )
        if point == "in a worker" and int(iteration):
            # Seen from the data's side: the whole process dies while a batch is being made.
            case.Points.__getitem__ = dying_getitem(case.Points.__getitem__, int(iteration))
        assert trainer.fit(model, case.Data(int(workers))), trainer.error
    weights = (
        {name: value.tolist() for name, value in model.trained_state_dict().items()}
        if schedule != "hook"
        else {name: value.tolist() for name, value in model.net.state_dict().items()}
    )
    (Path(root) / "result.json").write_text(json.dumps({"weights": weights, "history": trainer.history}))


def dying_getitem(getitem: Any, number: int) -> Any:
    calls = []

    def wrapped(self: Any, index: int) -> Any:
        calls.append(index)
        if len(calls) == number:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        return getitem(self, index)

    return wrapped


if __name__ == "__main__":
    main(*sys.argv[1:])
