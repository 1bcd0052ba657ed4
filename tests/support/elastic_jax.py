"""One of a launcher's processes in a stage of several runs that stop and go on with other numbers of processes.

    python -m parhelion.launch -n PROCESSES elastic_jax.py FOLDER STAGE RUN:BATCH_SIZE:STOP...

Each run goes on from FOLDER/RUN, if that is there, with a batch size of so many for each process, and is left after the
update STOP, 0 for never. What this process has been given to train on is left in FOLDER/RUN-STAGE-RANK.json: for
each batch the epoch, and of each record its index and what was drawn for it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import parhelion as ph
import parhelion_jax as backend
from support.spread_models import Classifier, Data, make_trainer

SIZE, EPOCHS = 60, 2


class Ledger(ph.Plugin):
    """Notes the records that this process has brought to every batch."""

    def __init__(self) -> None:
        super().__init__("ledger")
        self.unique_overrides.training_batch = True
        self.book = Book()

    def setup(self) -> None: ...

    def process_training_batch(self, batch: Any, step: Any) -> Any:
        indices, images = _own_rows(batch["index"]), _own_rows(batch["image"])
        # The noise of a record is in its image, which the same index alone would make the same otherwise.
        rows = [[int(index), image.tobytes().hex()[:16]] for index, image in zip(indices, images, strict=True)]
        self.book.pages.append({"epoch": step.global_epoch, "rows": rows})
        return batch


class Book:
    """Belongs to the process, and to no checkpoint."""

    def __init__(self) -> None:
        self.pages: list[Any] = []


def _own_rows(array: Any) -> Any:
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def run(folder: Path, name: str, batch_size: int, stop: int) -> list[Any]:
    trainer, ledger = make_trainer(chkpt_root=folder / name, chkpt_every_iterations=1, total_steps=EPOCHS), Ledger()
    trainer.register_plugin(ledger)
    for state in trainer.steps(Classifier("mlp"), Data(batch_size, SIZE)):
        if state.current_iteration == stop:
            break
    return ledger.book.pages


def main(folder: str, stage: str, *tasks: str) -> None:
    world = backend.connect()
    for task in tasks:
        name, batch_size, stop = task.split(":")
        pages = run(Path(folder), name, int(batch_size), int(stop))
        (Path(folder) / f"{name}-{stage}-{world.rank}.json").write_text(json.dumps(pages))
        world.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
