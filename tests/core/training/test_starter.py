"""A trainer whose fits and tests run in processes of their own knows what they came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from parhelion.errors import InvalidValueError, ParhelionError, WorldError
from parhelion.training import Outcome, Trainer, TrainerOptions, TrainingState
from support import plain

DONE = Outcome(
    is_done=True,
    has_begun=True,
    error=None,
    stop_reason="finished",
    state=TrainingState(current_iteration=8),
    history=[{"loss": 1.0}],
    test_results={"test_loss": 2.0},
    best_checkpoint=Path("best"),
    trained=None,
)


class Elsewhere:
    """Answers with outcomes that were made before."""

    queue = "the queue"

    def __init__(self, *outcomes: Outcome | Exception) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def run(self, trainer: Any, task: str, model: Any, datamodule: Any, arguments: Any) -> Outcome:
        self.calls.append((task, dict(arguments)))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def make_trainer(*outcomes: Outcome | Exception) -> tuple[Trainer, Elsewhere]:
    starter = Elsewhere(*outcomes)
    options = TrainerOptions(total_steps=2, print_banner=False)
    return Trainer(options, attrs.evolve(plain.parts(), starter=starter)), starter


def test_a_fit_elsewhere_is_known_here() -> None:
    trainer, starter = make_trainer(DONE, attrs.evolve(DONE, history=[], test_results={"test_loss": 3.0}))
    model = plain.Descent()
    assert trainer.fit(model, plain.Data(), resume="never", allow_changes=["model"])
    assert starter.calls == [("fit", {"resume": "never", "init_from": None, "allow_changes": ["model"]})]
    assert (trainer.stop_reason, trainer.exit_code, trainer.error) == ("finished", 0, None)
    assert (trainer.state.current_iteration, trainer.history) == (8, [{"loss": 1.0}])
    assert trainer.best_checkpoint == Path("best")
    assert (trainer.model, trainer.queue) == (model, "the queue")
    assert trainer.test(model, plain.Data())
    assert starter.calls[1] == ("test", {})
    assert (trainer.test_results, trainer.history) == ({"test_loss": 3.0}, [{"loss": 1.0}])


def test_what_was_trained_elsewhere_predicts_here() -> None:
    here = plain.make_trainer(total_steps=2)
    model = plain.Descent()
    assert here.fit(model, plain.Data())
    trained = {
        "backend": "plain",
        "state": here.state,
        "model": model.state_dict(),
        "attributes": model.changed_attributes(),
    }
    trainer, _ = make_trainer(attrs.evolve(DONE, trained=trained))
    other = plain.Descent()
    assert trainer.fit(other, plain.Data())
    assert trainer.predict(other, plain.Data()) == here.predict(model, plain.Data())


def test_an_error_elsewhere_is_kept_and_a_listed_or_refused_one_leaves() -> None:
    unlucky = attrs.evolve(DONE, is_done=False, error=KeyError("x"), stop_reason="error")
    trainer, _ = make_trainer(unlucky, unlucky, attrs.evolve(unlucky, error=InvalidValueError("no"), has_begun=False))
    assert trainer.fit(plain.Descent(), plain.Data()) is False
    assert (repr(trainer.error), trainer.stop_reason, trainer.exit_code) == ("KeyError('x')", "error", 1)
    trainer.train_exceptions.append(KeyError)
    with pytest.raises(KeyError, match="x"):
        trainer.fit(plain.Descent(), plain.Data())
    with pytest.raises(InvalidValueError, match="no"):
        trainer.fit(plain.Descent(), plain.Data())


def test_a_process_that_is_lost_is_an_error_of_the_run() -> None:
    trainer, _ = make_trainer(WorldError("process 1 ended by SIGKILL"))
    assert trainer.fit(plain.Descent(), plain.Data()) is False
    assert isinstance(trainer.error, WorldError)
    assert trainer.state == TrainingState()


def test_what_needs_the_run_in_this_process_is_refused() -> None:
    trainer, _ = make_trainer()
    with pytest.raises(InvalidValueError, match=r"steps was called on a trainer that starts its own processes"):
        next(iter(trainer.steps(plain.Descent(), plain.Data())))
    with pytest.raises(ParhelionError, match=r"save_checkpoint was called outside of the processes that the trainer"):
        trainer.save_checkpoint()
