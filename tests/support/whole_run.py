"""Whole runs of the real Trainer on torch or jax, to which something happens; alone, or as one rank of several.

    python whole_run.py BACKEND SETTING...        each SETTING is JSON: the arguments of ``live``, one after the other

A run lives in a folder. Every life of it leaves there, for each rank, ``ledger-LIFE-RANK.jsonl``: a line for each
iteration, with the records that this rank has brought, what was drawn for them, and a digest of weights and moments
behind the step; and, if it comes to an end, ``result-LIFE-RANK.json``. Tests put lives together with ``read_run``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import parhelion as ph
from parhelion.data import MapStream
from parhelion.testing import rows_without_clocks

SIZE = 42
OPTIONS = {"total_steps": 3, "valid_frequency": 1, "print_frequency": 2, "chkpt_every_iterations": 4}
POINTS = ("set-up", "data", "step", "validation", "state", "save")


def say(*words: Any) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


@attrs.define
class Fault:
    """Something that happens once, to one rank.

    Attributes:
        point: where: one of ``POINTS``; "" for nowhere.
        at: the iteration from which on; in "data", the record.
        rank: to whom.
        act: the name of a signal that the process sends itself, "raise", "hang", or "wait" for a while.
        seconds: how long "wait" takes, and how long things take after a signal.
        pace: seconds that each pass by the point takes on every rank.
        life: in which of the run's lives, where there are several.
    """

    point: str = ""
    at: int = 0
    rank: int = 0
    act: str = "wait"
    seconds: float = 0.0
    pace: float = 0.0
    life: int = 0
    has_happened: bool = False

    def pass_by(self, point: str, at: int) -> None:
        if point != self.point:
            return
        time.sleep(self.pace)
        is_time = at == self.at if point == "data" else at >= self.at
        if self.has_happened or not is_time or os.environ.get("RANK", "0") != str(self.rank):
            return
        self.has_happened = True
        say("at", point, "pid", os.getpid())
        if self.act == "raise":
            raise ArithmeticError(f"out of luck at {point} in process {self.rank}")
        if self.act.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.act))
        if self.act == "hang":
            threading.Event().wait()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            time.sleep(0.01)


class Points:
    """Points of three classes, each moved by what is drawn for it."""

    def __init__(self, size: int, fault: Fault) -> None:
        self.size, self.fault = size, fault

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.fault.pass_by("data", index)
        noise = ph.sample_rng().standard_normal(6, np.float32)
        return {"x": np.sin(np.arange(6, dtype=np.float32) * (index + 1)) + noise / 10, "label": index % 3, "i": index}


class Data(ph.DataModule):
    def __init__(self, batch_size: int, size: int, fault: Fault, *, lanes: int = 0, **params: Any) -> None:
        self.params, self.size, self.fault = {"batch_size": batch_size, "shuffle": True, **params}, size, fault
        self.lanes = lanes

    def setup(self) -> None:
        records: Any = Points(self.size, self.fault)
        params = self.params
        if self.lanes:
            records, params = (
                MapStream(records, num_lanes=self.lanes),
                {**params, "options": {"records_per_epoch": self.size}},
            )
        self._train_dataset = self._create_dataset(records, params)
        self._valid_dataset = self._create_dataset(Points(45, Fault()), {"batch_size": self.params["batch_size"]})


class Ledger(ph.Plugin):
    """Writes down what this rank has trained on, and what came of it."""

    def __init__(self, path: Path, case: Any) -> None:
        super().__init__("ledger")
        self.unique_overrides.training_batch = True
        # None of it belongs to the run: a plugin's attributes are in its checkpoints.
        self.book = Book(path, case)

    def setup(self) -> None: ...

    def process_training_batch(self, batch: Any, step: Any) -> Any:
        indices, points = (self.book.case.own_rows(batch[name]) for name in ("i", "x"))
        self.book.rows = [[int(index), digest(point)] for index, point in zip(indices, points, strict=True)]
        if self.book.begin is None:
            self.book.begin = self.book.case.digest(self.book.model)
        return batch

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.book.write(state, self.book.model)


class Book:
    def __init__(self, path: Path, case: Any) -> None:
        self.path, self.case, self.rows, self.model, self.begin = path, case, [], None, None

    def write(self, state: Any, model: Any) -> None:
        line = [state.global_iteration, state.global_epoch, self.rows, self.case.digest(model)]
        with self.path.with_name(f"{self.path.name}-{model.rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        say("did", state.global_iteration)


def digest(*arrays: Any) -> str:
    """Return what two lots of arrays have in common if all their bits are the same."""
    return hashlib.sha1(b"".join(np.asarray(each).tobytes() for each in arrays)).hexdigest()[:12]  # noqa: S324


def plant(model: Any, fault: Fault) -> None:
    """Have a model pass by the points on its way."""
    setup, train, valid, save = model.setup, model.train_step, model.valid_step, model.state_dict

    def with_point(point: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def passed(*arguments: Any, **options: Any) -> Any:
            state = arguments[1] if point == "step" else None if point == "set-up" else model.trainer.state
            fault.pass_by(point, 0 if state is None else state.global_iteration)
            return call(*arguments, **options)

        return passed

    model.setup, model.train_step = with_point("set-up", setup), with_point("step", train)
    model.valid_step, model.state_dict = with_point("validation", valid), with_point("state", save)
    original = os.fsync

    def fsync(descriptor: int) -> None:
        trainer = getattr(model, "trainer", None)
        fault.pass_by("save", 0 if trainer is None else trainer.state.global_iteration)
        original(descriptor)

    if fault.point == "save":
        os.fsync = fsync


def live(
    backend: str,
    root: str,
    *,
    batch_size: int = 4,
    size: int = SIZE,
    kind: str = "plain",
    fault: dict[str, Any] | None = None,
    faults: Sequence[dict[str, Any]] = (),
    resume: str = "auto",
    leave_at: int = 0,
    params: dict[str, Any] | None = None,
    **options: Any,
) -> int:
    """Begin or go on with a run, and return the exit code that its trainer gives.

    Args:
        backend: "torch" or "jax".
        root: the run's folder.
        batch_size: of this rank.
        size: how many records there are.
        kind: "plain", or "spread" for parameters of which every rank has a part.
        fault: what happens; see :class:`Fault`.
        faults: the same for lives of the run by their numbers.
        resume: as for ``fit``.
        leave_at: the iteration with which this life has done enough, 0 for the whole run.
        params: of the training data; "lanes" makes them a stream.
        options: of the trainer.
    """
    case = importlib.import_module(f"support.whole_run_{backend}")
    folder = Path(root)
    if leave_at:
        options |= {"train_unit": "iteration", "total_steps": leave_at, "valid_frequency": leave_at}
    trainer = case.make_trainer(chkpt_root=root, print_banner=False, **{**OPTIONS, **options})
    rank = trainer.rank
    folder.mkdir(parents=True, exist_ok=True)
    number = len([*folder.glob("ledger-*-0.jsonl")])
    number = trainer._parts.world.gather(number)[0]  # the first rank's, before it begins its own
    own = [each for each in faults if each.get("life", 0) == number]
    trouble = Fault(**(fault or (own[0] if own else {})))
    ledger, model = Ledger(folder / f"ledger-{number}", case), case.make_model(kind)
    (folder / f"ledger-{number}-{rank}.jsonl").touch()
    ledger.book.model = model
    plant(model, trouble)
    trainer.register_plugin(ledger)
    fsync = os.fsync
    try:
        done = trainer.fit(model, Data(batch_size, size, trouble, **(params or {})), resume=resume)
    finally:
        os.fsync = fsync
    result = {
        "done": done,
        "reason": trainer.stop_reason,
        "code": trainer.exit_code,
        "error": repr(trainer.error),
        "state": trainer.state.dict() | {"average_iter_time": 0},
        "rows": rows_without_clocks(trainer.history),
        "begin": ledger.book.begin,
        "weights": case.digest(model),
    }
    partial = folder / f"partial-{number}-{rank}"
    partial.write_text(json.dumps(result))
    partial.rename(folder / f"result-{number}-{rank}.json")
    return trainer.exit_code


@attrs.frozen
class Told:
    """What the lives of a run have left.

    Attributes:
        steps: for each iteration its epoch, the records of all ranks by rank with what was drawn, and the weights.
        results: of the last life that came to an end, by rank.
        repeated: how many iterations were done more than once.
    """

    steps: dict[int, Any]
    results: list[Any]
    repeated: int


def read_run(root: Path) -> Told:
    """Put the lives of a run together; an iteration that was done twice must have been the same both times."""
    steps: dict[int, Any] = {}
    repeated = 0
    for number, count in sorted(count_ranks(root).items()):
        pages = [read_ledger(root / f"ledger-{number}-{rank}.jsonl") for rank in range(count)]
        for iteration in pages[0]:
            if not all(iteration in page for page in pages):  # a rank that was killed has not written its line
                continue
            lines = [page[iteration] for page in pages]
            assert len({(line[0], line[2]) for line in lines}) == 1, lines
            step = [lines[0][0], [row for line in lines for row in line[1]], lines[0][2]]
            repeated += iteration in steps
            assert steps.setdefault(iteration, step) == step
    ended = sorted(root.glob("result-*-0.json"), key=lambda path: int(path.name.split("-")[1]))
    last = ended[-1].name.split("-")[1] if ended else ""
    results = [json.loads(path.read_text()) for path in sorted(root.glob(f"result-{last}-*.json"))] if ended else []
    return Told(steps, results, repeated)


def read_ledger(path: Path) -> dict[int, Any]:
    lines = path.read_text().split("\n")[:-1]  # of a killed life the last one may be cut
    return {iteration: rest for iteration, *rest in map(json.loads, lines)}


def count_ranks(root: Path) -> dict[int, int]:
    """Return how many ranks each life had."""
    counts: dict[int, int] = {}
    for path in root.glob("ledger-*.jsonl"):
        number = int(path.name.split("-")[1])
        counts[number] = counts.get(number, 0) + 1
    return counts


def main(backend: str, *settings: str) -> int:
    if backend == "jax" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        importlib.import_module("parhelion_jax").connect()
    if backend == "torch":
        importlib.import_module("torch").set_num_threads(1)
    say("is", os.environ.get("RANK", "0"), "pid", os.getpid())
    code = 0
    for setting in settings:
        code = live(backend, **json.loads(setting))
        say("ended", code)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
