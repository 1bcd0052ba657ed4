"""Runs of one process or of several, whose results a test compares.

    python process_training.py ADDRESS PROCESSES RANK FOLDER BATCH_SIZE TASK...

The batch size is a process's own. Each task leaves ``FOLDER/TASK-RANK.pickle``:

    fit           a whole run, its test and predictions; checkpoints in FOLDER/fit
    resume        the same run, left in the middle of an epoch, and gone on with; in FOLDER/resume
    leave         left there only; in FOLDER/leave
    continue:DIR  goes on from a copy of the checkpoints in DIR
"""

from __future__ import annotations

import pickle
import shutil
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np

import parhelion_jax as backend
from parhelion.testing import rows_without_clocks
from support.spread_models import Classifier, Data, Journal, host, make_trainer

SIZE, STOP = 42, 4
OPTIONS = {"total_steps": 2, "valid_frequency": 1, "chkpt_every_iterations": 1}


def prepare(root: Path, batch_size: int) -> Any:
    """Return trainer, model, data and journal of one run; the last batch of its epochs is padded."""
    trainer = make_trainer(chkpt_root=root, log_path=root / "logs", enable_file_logging=True, **OPTIONS)
    journal = Journal()
    trainer.register_plugin(journal)
    return trainer, Classifier(dropout=True, monitor="valid_loss"), Data(batch_size, SIZE), journal


def leave(root: Path, batch_size: int) -> Journal:
    trainer, model, data, journal = prepare(root, batch_size)
    for state in trainer.steps(model, data):
        if state.current_iteration == STOP:
            break
    return journal


def finish(root: Path, batch_size: int, before: Journal | None = None) -> dict[str, Any]:
    trainer, model, data, journal = prepare(root, batch_size)
    assert trainer.fit(model, data), trainer.error
    rows, draws = rows_without_clocks(trainer.history), float(np.random.rand())
    assert trainer.test(model, data), trainer.error
    outputs = trainer.predict(model, data)
    notes = [*([] if before is None else [before.notes]), journal.notes]
    return {
        "rows": rows,
        "order": [*chain.from_iterable(each.order for each in notes)],
        "draws": [*chain.from_iterable(each.draws for each in notes), draws],
        "weights": host(model.params),
        "state": trainer.state.dict() | {"average_iter_time": 0},
        "test": trainer.test_results,
        "outputs": host(outputs),
        "best": trainer.best_checkpoint and trainer.best_checkpoint.name,
    }


def run(task: str, folder: Path, batch_size: int) -> dict[str, Any]:
    world = backend.world.discover_world()
    if task == "fit":
        return finish(folder / task, batch_size)
    if task == "leave":
        return {"order": leave(folder / task, batch_size).notes.order}
    if task == "resume":
        before = leave(folder / task, batch_size)
        world.barrier()
        return finish(folder / task, batch_size, before)
    origin = Path(task.removeprefix("continue:"))
    root = folder / f"continue-{world.size}"
    if world.rank == 0:
        shutil.copytree(origin, root)
    return finish(root, batch_size)


def main(address: str, processes: str, rank: str, folder: str, batch_size: str, *tasks: str) -> None:
    if int(processes) > 1:
        backend.connect(address, int(processes), int(rank), timeout=60)
    for task in tasks:
        result = run(task, Path(folder), int(batch_size)) | {"devices": jax.device_count()}
        name = f"{task.partition(':')[0]}-{rank}.pickle"
        (Path(folder) / name).write_bytes(pickle.dumps(result))
    if int(processes) > 1:
        backend.world.disconnect()


if __name__ == "__main__":
    main(*sys.argv[1:])
