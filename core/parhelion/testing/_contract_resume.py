"""A run that is stopped and started again is the run that never stopped, as a test class to derive from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

from parhelion.checkpoint import CheckpointInfo, list_checkpoints
from parhelion.errors import ResumeError

from ._case import BackendCase, fit
from ._claims import claim
from ._compare import first_difference, last_tree, rows_without_clocks

__all__ = ["ResumeContract"]

_WHOLE = "whole"


class ResumeContract:
    """The promise of this package, for a backend. Derive a ``TestResume`` and give its ``case``.

    The oracle is always an uninterrupted run.

    Attributes:
        case: the experiment.
        schedules: the kinds of models that it makes; each is stopped and started again.
    """

    case: ClassVar[BackendCase]
    schedules: ClassVar[tuple[str, ...]] = ("update", "epoch", "hook")

    def test_a_run_resumed_at_any_checkpoint_is_the_run_that_never_stopped(self, tmp_path: Path) -> None:
        """Records, their data, the history, the state and every bit of the last checkpoint; for every update."""
        whole = self._run(tmp_path / _WHOLE, self.schedules[0])
        entries = self._checkpoints(tmp_path / _WHOLE, updates=2 * self.case.NUM_BATCHES)
        for entry in entries:
            self._resume(whole, entry, tmp_path, self.schedules[0])

    def test_every_kind_of_model_resumes_with_accumulation(self, tmp_path: Path) -> None:
        """Groups of three batches, at every other update."""
        for schedule in self.schedules:
            root = tmp_path / schedule
            whole = self._run(root / _WHOLE, schedule, accumulation_steps=3)
            for entry in self._checkpoints(root / _WHOLE, updates=2 * -(-self.case.NUM_BATCHES // 3))[::2]:
                self._resume(whole, entry, root, schedule, accumulation_steps=3)

    def test_the_number_of_workers_may_change(self, tmp_path: Path) -> None:
        """From none to two and back, in mid-epoch."""
        for before, after in ((0, 2), (2, 0)):
            root = tmp_path / f"{before}-{after}"
            whole = self._run(root / _WHOLE, self.schedules[0], workers=before)
            entry = self._checkpoints(root / _WHOLE)[self.case.NUM_BATCHES + 1]
            self._resume(whole, entry, root, self.schedules[0], workers=after)

    def test_two_resumes_in_a_row_keep_the_order(self, tmp_path: Path) -> None:
        """Also the second one in an epoch, and the epochs after."""
        whole = self._run(tmp_path / _WHOLE, self.schedules[0], total_steps=3)
        seen: list[Any] = []
        count = self.case.NUM_BATCHES
        for stop in (2, count - 1, count + 2, 3 * count):
            self.case.poison()
            trainer = self.case.make_trainer(
                total_steps=3,
                valid_frequency=1,
                print_frequency=2,
                chkpt_root=tmp_path / "parts",
                chkpt_every_iterations=1,
            )
            model = self.case.make_model(self.schedules[0])
            for state in trainer.steps(model, self.case.Data(0)):
                if state.global_iteration == stop < 3 * count:
                    break
            seen += model.seen
        self._compare(whole, (trainer, model), tmp_path / _WHOLE, tmp_path / "parts", seen, "after three stops")

    def test_another_batch_size_delivers_the_rest_of_the_epoch_once_and_in_order(
        self, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """The position counts records, not batches."""
        _, model = self._run(tmp_path / _WHOLE, self.schedules[0])
        done = 2 * self.case.BATCH_SIZE
        order = [index for indices, _ in model.seen for index in indices]
        entry = self._checkpoints(tmp_path / _WHOLE)[1]
        for batch_size in (self.case.BATCH_SIZE - 1, self.case.BATCH_SIZE + 2):
            root = self._only(entry, tmp_path / f"batches-of-{batch_size}")
            monkeypatch.setattr(self.case, "BATCH_SIZE", batch_size)
            _, twin = self._run(root, self.schedules[0])
            monkeypatch.undo()
            found = [index for indices, _ in twin.seen for index in indices]
            if found != order[done:]:
                raise ResumeError(
                    f"stopped after {done} records, started again with batch_size {batch_size}: the rest should be "
                    f"{order[done:]} and is {found}"
                )

    def test_a_finished_run_does_no_step(self, tmp_path: Path) -> None:
        """It says that it is done, and a larger total goes on from there."""
        longer = self._run(tmp_path / _WHOLE, self.schedules[0], total_steps=2)
        _, first = self._run(tmp_path / "parts", self.schedules[0], total_steps=1)
        trainer, again = self._run(tmp_path / "parts", self.schedules[0], total_steps=1)
        claim(again.seen == [], f"a finished run should do no step and trained on {len(again.seen)} batches")
        claim(trainer.stop_reason == "finished", f"its stop_reason should be 'finished' and is {trainer.stop_reason!r}")
        part = self._run(tmp_path / "parts", self.schedules[0], total_steps=2)
        seen = first.seen + part[1].seen
        self._compare(longer, part, tmp_path / _WHOLE, tmp_path / "parts", seen, "given a larger total")

    def test_a_step_that_fails_loses_nothing(self, tmp_path: Path) -> None:
        """The batch whose step raised was never counted, and comes again."""
        whole = self._run(tmp_path / _WHOLE, self.schedules[0])
        number = self.case.NUM_BATCHES + 3
        trainer, model = self._fail(tmp_path / "parts", number)
        claim(isinstance(trainer.error, LookupError), f"trainer.error should be the step's and is {trainer.error!r}")
        counted = trainer.state.global_iteration
        claim(
            counted == number - 1,
            f"the state should count {number - 1} batches after step {number} failed, not {counted}",
        )
        part = self._run(tmp_path / "parts", self.schedules[0])
        seen = model.seen[: number - 1] + part[1].seen
        self._compare(whole, part, tmp_path / _WHOLE, tmp_path / "parts", seen, f"after step {number} failed")

    # -- how -----------------------------------------------------------------------------------------------------------

    def _run(self, root: Path, schedule: str, **options: Any) -> tuple[Any, Any]:
        return fit(self.case, root, schedule, **options)

    def _fail(self, root: Path, number: int) -> tuple[Any, Any]:
        """Return a run whose step failed."""
        self.case.poison()
        model = self.case.make_model(self.schedules[0])
        trainer = self.case.make_trainer(
            total_steps=2, valid_frequency=1, print_frequency=2, chkpt_root=root, chkpt_every_iterations=1
        )
        step = model.train_step

        def train_step(batch: Any, state: Any) -> Any:
            if state.global_iteration == number:
                raise LookupError("this step fails")
            return step(batch, state)

        model.train_step = train_step
        claim(not trainer.fit(model, self.case.Data(0)), "fit should return False when a step fails")
        return trainer, model

    def _checkpoints(self, root: Path, updates: int | None = None) -> list[CheckpointInfo]:
        """Return the checkpoints of a run, the oldest first."""
        found = list_checkpoints(root / "net")[::-1]
        claim(
            updates in (None, len(found)),
            f"a run of {updates} updates should save as many checkpoints and saved {len(found)}",
        )
        return found

    def _only(self, entry: CheckpointInfo, root: Path) -> Path:
        """Return a root in which that checkpoint is the newest: as if the run had been killed just after it."""
        folder = Path(str(entry.path))
        shutil.copytree(folder, root / "net" / folder.name)
        shutil.copy(folder.parent / "history.jsonl", root / "net")
        return root

    def _resume(
        self, whole: tuple[Any, Any], entry: CheckpointInfo, folder: Path, schedule: str, **options: Any
    ) -> None:
        """Start the run again from one of its checkpoints and compare."""
        root = self._only(entry, folder / f"from-{entry.iteration}")
        part = self._run(root, schedule, **options)
        seen = whole[1].seen[: entry.iteration] + part[1].seen
        story = f"a run of {schedule!r}, stopped after iteration {entry.iteration} and started again"
        self._compare(whole, part, folder / _WHOLE, root, seen, story)
        shutil.rmtree(root)

    def _compare(
        self, whole: tuple[Any, Any], part: tuple[Any, Any], root: Path, other: Path, seen: list[Any], story: str
    ) -> None:
        (trainer, model), (again, _) = whole, part
        _claim_same_batches(model.seen, seen, story)
        for name, expected, found in (
            ("the state", trainer.state, again.state),
            ("the history", rows_without_clocks(trainer.history), rows_without_clocks(again.history)),
            (
                "the last checkpoint",
                last_tree(root / "net", self.case.adapter),
                last_tree(other / "net", self.case.adapter),
            ),
        ):
            difference = first_difference(expected, found, name)
            if difference is not None:
                raise ResumeError(f"{story}: {difference}")


def _claim_same_batches(expected: list[Any], found: list[Any], story: str) -> None:
    if len(expected) != len(found):
        raise ResumeError(f"{story}: {len(expected)} batches should be trained on and {len(found)} were")
    for number, (one, other) in enumerate(zip(expected, found, strict=True), start=1):
        if one[0] != other[0]:
            raise ResumeError(f"{story}: iteration {number} should train on {one[0]} and trained on {other[0]}")
        if one[1] != other[1]:
            raise ResumeError(f"{story}: iteration {number} has its records, {one[0]}, with other data in them")
