"""The experiment that a backend gives to the suites that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from parhelion.checkpoint import ArrayAdapter
from parhelion.data import DataModule
from parhelion.training import Trainer

from ._claims import claim

__all__ = ["BackendCase", "fit"]


class BackendCase(Protocol):
    """A small experiment on a backend, as a module or an object: what :class:`ResumeContract` trains.

    Attributes:
        SIZE: records of every split; at least three batches.
        BATCH_SIZE: records per training batch. It and ``SIZE`` are read when the data is set up, for tests change them.
        NUM_BATCHES: training batches per epoch.
        adapter: the backend's arrays in checkpoints.
    """

    SIZE: int
    BATCH_SIZE: int
    NUM_BATCHES: int

    @property
    def adapter(self) -> ArrayAdapter | None: ...

    def Data(self, workers: int) -> DataModule:  # noqa: N802 - a class, usually
        """Return the data: shuffled training, validation and test records, each a dict with its "index".

        Records should draw from ``sample_rng()`` and from every global generator, so that nothing goes unnoticed.
        """
        ...

    def make_model(self, schedule: str) -> Any:
        """Return a new model whose ``save_name`` is "net", with dropout or another draw in its step.

        Its list ``seen`` has an entry for each training batch, ``(indices, bytes of the data)``. ``schedule`` is one of
        the suite's ``schedules``: "update" and "epoch" for when the learning rate changes, "hook" for a model in the
        explicit way.
        """
        ...

    def make_trainer(self, **options: Any) -> Trainer:
        """Return a trainer on the CPU with those arguments."""
        ...

    def poison(self) -> None:
        """Seed every global generator with something else, as whatever ran before may have done."""
        ...


def fit(case: BackendCase, root: Path | None, schedule: str, *, workers: int = 0, **options: Any) -> tuple[Any, Any]:
    """Return the trainer and the model of a run of two epochs that came to its end.

    Args:
        case: the experiment.
        root: folder of its checkpoints, one after every update; None for none.
        schedule: which model.
        workers: processes that load.
        options: arguments of the trainer, over those of this function.
    """
    defaults = {"total_steps": 2, "valid_frequency": 1, "print_frequency": 2}
    if root is not None:
        defaults |= {"chkpt_root": root, "chkpt_every_iterations": 1}  # type: ignore[dict-item]
    case.poison()
    trainer, model = case.make_trainer(**{**defaults, **options}), case.make_model(schedule)
    claim(trainer.fit(model, case.Data(workers)), f"a run of {schedule!r} should come to its end: {trainer.error!r}")
    return trainer, model
