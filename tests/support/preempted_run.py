"""A run that says where it is, and waits there to be told to end.

    python preempted_run.py FOLDER PLACE [OPTION=JSON ...]

It prints "at PLACE" once it is there. At the end it prints one line of JSON with how the run went.
"""

from __future__ import annotations

import ctypes
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import parhelion as ph
from parhelion.training import Trainer, TrainerOptions
from support.plain import Data, Descent, Records, parts

STEP = 5  # where it waits, as an iteration


def say(text: str) -> None:
    print(text, flush=True)


def dally(seconds: float = 0.3) -> None:
    """Give the signal time to come, in a wait that one does not end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def hang_deaf() -> None:
    """Hang where no handler is run, as in a compilation or in a computation over all processes."""
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)


def with_stuck_log() -> None:
    """Hang in a log, as one on a disk that is gone does."""

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            threading.Event().wait()

    log = logging.getLogger("parhelion")
    log.addHandler(Stuck())
    log.warning("stuck")


def in_fork() -> int:
    """Return how a forked process ends that is told to."""
    there, here = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=wait_in_fork, args=(there,))
    process.start()
    here.recv()
    for number in (signal.SIGINT, signal.SIGUSR1):
        os.kill(process.pid or 0, number)
        time.sleep(0.05)  # as good as nothing, if one of them ends it
    process.terminate()
    process.join()
    return process.exitcode or 0


def wait_in_fork(pipe: Any) -> None:
    pipe.send("here")
    time.sleep(5)


class Slow(Descent):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.validated_batches = 0

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        if self.place == "set-up":
            say("at set-up")
            dally()

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        loss = super().train_step(batch, state)
        if state.global_iteration == STEP:
            if self.place == "step":
                say("at step")
                dally()
            if self.place == "endless step":
                say("at endless step")
                threading.Event().wait()
            if self.place == "deaf step":
                say("at deaf step")
                hang_deaf()
            if self.place == "step with a log":
                say("at step with a log")
                with_stuck_log()
            if self.place == "step with a fork":
                say(f"at step with a fork: {in_fork()}")
        return loss

    def valid_step(self, batch: Any, step: int) -> Any:
        if self.place == "validation" and step == 0:
            say("at validation")
            dally(1.0)
        if self.place == "validation":
            time.sleep(0.2)
        return super().valid_step(batch, step)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        # Large enough for a save that takes a while.
        return state | {"ballast": np.arange(2_000_000)} if self.place == "save" else state


class Hanging(Records):
    def __init__(self, size: int, place: str) -> None:
        super().__init__(size)
        self.place = place

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        if self.place == "data" and index == 7:
            say("at data")
            threading.Event().wait()
        return record


class HangingData(Data):
    def __init__(self, place: str, **params: Any) -> None:
        super().__init__(**params)
        self.place = place

    def setup(self) -> None:
        super().setup()
        self._train_dataset = self._create_dataset(Hanging(20, self.place), self.params)


class SlowDisk(ph.Plugin):
    """Says that a save is going on, and makes it take its time."""

    def __init__(self) -> None:
        super().__init__("slow-disk")
        original = os.fsync

        def fsync(descriptor: int) -> None:
            say("at save")
            time.sleep(0.3)
            original(descriptor)

        os.fsync = fsync

    def setup(self) -> None: ...


def main() -> None:
    folder, place = Path(sys.argv[1]), sys.argv[2]
    given = dict(text.split("=", 1) for text in sys.argv[3:])
    options = {name: json.loads(text) for name, text in given.items()}
    params = options.pop("params", {})
    trainer = Trainer(TrainerOptions(print_banner=False, chkpt_root=folder, **options), parts())
    if place == "save":
        trainer.register_plugin(SlowDisk())
    model = Slow(place)
    done = trainer.fit(model, HangingData(place, **params))
    facts = {
        "done": done,
        "reason": trainer.stop_reason,
        "code": trainer.exit_code,
        "error": repr(trainer.error),
        "state": trainer.state.dict() | {"average_iter_time": 0},
        "rows": [{name: value for name, value in row.items() if "per_second" not in name} for row in trainer.history],
        "weights": model.weights.tolist(),
        "order": [indices for _, indices in model.journal],
    }
    say(json.dumps(facts))
    sys.exit(trainer.exit_code)


if __name__ == "__main__":
    main()
