"""What every backend's trainer does, as a test class to derive from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from parhelion.checkpoint import list_checkpoints
from parhelion.errors import NonFiniteLossError
from parhelion.training import TrainingState

from ._case import BackendCase, fit
from ._claims import claim
from ._compare import first_difference, rows_without_clocks

__all__ = ["TrainerContract"]

_MOMENTS = (
    *("on_training_start", "on_training_end", "on_training_epoch_start", "on_training_epoch_end"),
    *("on_training_batch_start", "train_step", "on_training_batch_end"),
    *("on_validation_start", "on_validation_batch_start", "valid_step", "on_validation_batch_end", "on_validation_end"),
)
_OF_A_STEP = ("on_training_batch_start", "train_step", "on_training_batch_end")
_OF_A_VALIDATION = ("on_validation_batch_start", "valid_step", "on_validation_batch_end")


class TrainerContract:
    """What a trainer does with a model and its data. Derive a ``TestTrainer`` and give its ``case``.

    Attributes:
        case: the experiment.
        schedules: the kinds of models that it makes. Models of the first kind log the loss and ``Accuracy`` as
            "accuracy" in evaluation.
    """

    case: ClassVar[BackendCase]
    schedules: ClassVar[tuple[str, ...]] = ("update", "epoch", "hook")

    def test_every_moment_comes_once_and_in_its_order(self) -> None:
        """The hooks stand around the steps; the epoch ends before its validation."""
        for schedule in self.schedules:
            told = self._moments(schedule)
            expected = [
                *("on_training_start", "on_training_epoch_start"),
                *(_OF_A_STEP * self.case.NUM_BATCHES),
                *("on_training_epoch_end", "on_validation_start"),
                *(_OF_A_VALIDATION * max(1, told.count("valid_step"))),
                *("on_validation_end", "on_training_end"),
            ]
            difference = first_difference(expected, told, f"the moments of an epoch of {schedule!r}: moments")
            claim(difference is None, f"{difference}; they were {told}")

    def _moments(self, schedule: str) -> list[str]:
        """Return what a model is told in an epoch with a validation."""
        model, told = self.case.make_model(schedule), list[str]()
        _watch(model, _MOMENTS, lambda name, _: told.append(name))
        self._fit(model, total_steps=1, valid_frequency=1)
        return told

    def test_a_state_is_committed_once_its_step_is_over(self) -> None:
        """Steps and hooks get the next state while the trainer still has the last one."""
        for schedule in self.schedules:
            expected = [(name, number + 1, number) for number in range(self.case.NUM_BATCHES) for name in _OF_A_STEP]
            found = self._commitments(schedule)
            difference = first_difference(expected, found, "(moment, iteration handed, iteration committed)")
            claim(difference is None, str(difference))

    def _commitments(self, schedule: str) -> list[tuple[str, int, int]]:
        """Return, for each moment of each step, the iterations of the state that it gets and of the trainer's."""
        model, found = self.case.make_model(schedule), list[tuple[str, int, int]]()
        trainer = self.case.make_trainer(total_steps=1)

        def note(name: str, arguments: tuple[Any, ...]) -> None:
            handed = next(each for each in arguments if isinstance(each, TrainingState))
            found.append((name, handed.global_iteration, trainer.state.global_iteration))

        _watch(model, _OF_A_STEP, note)
        claim(trainer.fit(model, self.case.Data(0)), f"fit should come to its end: {trainer.error!r}")
        return found

    def test_steps_hands_back_every_committed_state(self) -> None:
        """One for each batch, equal to the trainer's."""
        trainer, model = self.case.make_trainer(total_steps=1), self.case.make_model(self.schedules[0])
        counts: list[int] = []
        for state in trainer.steps(model, self.case.Data(0)):
            claim(state == trainer.state, f"steps should yield {trainer.state} and yielded {state}")
            counts.append(state.global_iteration)
        expected = list(range(1, self.case.NUM_BATCHES + 1))
        claim(counts == expected, f"steps should yield the iterations {expected} and yielded {counts}")

    def test_an_evaluation_sees_every_record_once_and_counts_it_once(self) -> None:
        """In the dataset's order, none repeated to fill the last batch."""
        model, seen = self.case.make_model(self.schedules[0]), list[int]()
        _watch(model, ["valid_step"], lambda _, arguments: seen.extend(np.asarray(arguments[0]["index"]).tolist()))
        trainer = self._fit(model, total_steps=1, valid_frequency=1)
        expected = list(range(self.case.SIZE))
        claim(seen == expected, f"a validation should see the records {expected} and saw {seen}")
        row = trainer.history[-1]
        claim("valid_accuracy" in row, f"the row of a validation should have valid_accuracy and has {sorted(row)}")
        correct = row["valid_accuracy"] * self.case.SIZE
        claim(
            abs(correct - round(correct)) < 1e-6,
            f"valid_accuracy should be a share of {self.case.SIZE} records and is {correct} of them; a mean of "
            "the batches' means would be",
        )

    def test_a_validation_moves_nothing_of_the_training(self) -> None:
        """Weights are the same bits with validations and without; so is what steps draw."""
        for schedule in self.schedules:
            one, other = (
                fit(self.case, None, schedule, valid_frequency=frequency, print_frequency=None)[1]
                for frequency in (None, 1)
            )
            claim(one.seen == other.seen, f"a validation should not change the batches of {schedule!r}, and does")
            difference = first_difference(one.trained_state_dict(), other.trained_state_dict(), "trained weights")
            claim(difference is None, f"with validations, {difference}")

    def test_a_run_is_a_function_of_its_seeds(self) -> None:
        """Twice the same bits; with another seed, other weights on the same batches."""
        for schedule in self.schedules:
            (first, one), (second, other), (_, another) = (
                fit(self.case, None, schedule, random_seed=seed) for seed in (1, 1, 2)
            )
            claim(one.seen == other.seen == another.seen, "the trainer's seed should not change the data, and does")
            rows = rows_without_clocks(first.history), rows_without_clocks(second.history)
            for name, expected, found in (
                ("history", *rows),
                ("trained weights", one.trained_state_dict(), other.trained_state_dict()),
            ):
                difference = first_difference(expected, found, name)
                claim(difference is None, f"with the same seed again, {difference}")
            difference = first_difference(one.trained_state_dict(), another.trained_state_dict())
            claim(difference is not None, "another random_seed should give other weights and gives the same")

    def test_a_test_is_the_same_from_memory_and_from_the_checkpoint(self, tmp_path: Path) -> None:
        """The newest checkpoint holds what was just trained."""
        trainer, model = fit(self.case, tmp_path, self.schedules[0])
        fresh = self.case.make_trainer(chkpt_root=tmp_path)
        for each, tested in ((trainer, model), (fresh, self.case.make_model(self.schedules[0]))):
            claim(each.test(tested, self.case.Data(0)), f"test should come to its end: {each.error!r}")
        claim("test_loss" in trainer.test_results, f"a test should give test_loss and gives {trainer.test_results}")
        difference = first_difference(trainer.test_results, fresh.test_results, "test_results")
        claim(difference is None, f"from the checkpoint, {difference}")

    def test_an_exception_leaves_only_if_it_is_listed(self) -> None:
        """Any other is kept in ``error``, and fit returns False."""
        for listed in (False, True):
            trainer, model = self.case.make_trainer(total_steps=1), self.case.make_model(self.schedules[0])
            model.train_step = _failing
            trainer.train_exceptions.extend([LookupError] if listed else [])
            outcome = _outcome(trainer.fit, model, self.case.Data(0))
            expected = "raise LookupError" if listed else "return False"
            claim(outcome == expected, f"fit, with a step that fails, should {expected} and did {outcome}")
            claim(isinstance(trainer.error, LookupError), f"trainer.error should be the step's, not {trainer.error!r}")
            claim(trainer.stop_reason == "error", f"stop_reason should be 'error' and is {trainer.stop_reason!r}")

    def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(self, tmp_path: Path) -> None:
        """The error names the first bad iteration, and the newest checkpoint is older."""
        model = self.case.make_model(self.schedules[0])
        step = model.train_step

        def train_step(batch: Any, state: TrainingState) -> Any:
            outcome = step(batch, state)
            return {"loss": math.nan} if state.global_iteration == 3 else outcome

        model.train_step = train_step
        trainer = self.case.make_trainer(total_steps=1, chkpt_root=tmp_path, chkpt_every_iterations=1)
        claim(not trainer.fit(model, self.case.Data(0)), "fit should return False after a loss that is NaN")
        error = trainer.error
        claim(isinstance(error, NonFiniteLossError), f"trainer.error should be a NonFiniteLossError and is {error!r}")
        claim("iteration 3" in str(error), f"the error should name iteration 3 and says: {error}")
        newest = list_checkpoints(tmp_path / "net")[0].iteration
        claim(newest == 2, f"the newest checkpoint should be of iteration 2 and is of {newest}")

    def _fit(self, model: Any, **options: Any) -> Any:
        trainer = self.case.make_trainer(**options)
        claim(trainer.fit(model, self.case.Data(0)), f"fit should come to its end: {trainer.error!r}")
        return trainer


def _outcome(function: Callable[..., object], *arguments: Any) -> str:
    """Return what a call comes to."""
    try:
        return f"return {function(*arguments)}"
    except LookupError as error:
        return f"raise {type(error).__name__}"


def _failing(*_: Any) -> Any:
    raise LookupError("this step fails")


def _watch(model: Any, names: Iterable[str], note: Callable[[str, tuple[Any, ...]], object]) -> None:
    """Have ``note`` called with the name and the arguments of some of the model's methods, before they run."""

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(model, name)

        def noted(*arguments: Any) -> Any:
            note(name, arguments)
            return method(*arguments)

        return noted

    for name in names:
        setattr(model, name, watched(name))
