"""Fits and tests in processes that a trainer starts itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from ._state import TrainingState

__all__ = ["Outcome", "Starter"]


@attrs.frozen(kw_only=True)
class Outcome:
    """What a fit or a test in processes of its own came to.

    Attributes:
        is_done: what the call returned.
        has_begun: whether everything had been checked and training had begun.
        error: the exception that ended it.
        stop_reason, state, history, test_results, best_checkpoint: the trainer's.
        trained: the model, as a checkpoint holds it; None after a test, and where an error ended the call.
    """

    is_done: bool
    has_begun: bool
    error: Exception | None
    stop_reason: str | None
    state: TrainingState
    history: list[dict[str, float]]
    test_results: dict[str, float]
    best_checkpoint: Path | None
    trained: Mapping[str, Any] | None

    def result(self) -> bool:
        """Return what the call returned.

        Raises:
            Exception: what ended it.
        """
        if self.error is not None:
            raise self.error
        return self.is_done


class Starter(Protocol):
    """Runs a trainer's calls in processes that it starts for each."""

    @property
    def queue(self) -> Any:
        """What those processes send things home with."""
        ...

    def run(self, trainer: Any, task: str, model: Any, datamodule: Any, arguments: Mapping[str, Any]) -> Outcome:
        """Call a method of the trainer with a model and its data in every process, and return what it came to.

        Args:
            trainer: whose plugins and exceptions the processes' trainers have.
            task: the method's name.
            model: travels there; what training makes of it comes back in the outcome.
            datamodule: travels there.
            arguments: the method's other arguments, by name.

        Raises:
            WorldError: a process was lost.
        """
        ...
