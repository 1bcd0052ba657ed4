"""A backend of NumPy alone, and a model on it: what the core's own tests train with."""

from __future__ import annotations

from typing import Any

import numpy as np

import parhelion as ph
from parhelion.data import create_loader
from parhelion.generators import PythonGenerators
from parhelion.processes import LocalMeeting
from parhelion.training import BackendParts, Model, Trainer, TrainerOptions


class Here:
    """Batches stay where they are."""

    def place(self, batch: Any, *, shared: bool = False) -> Any:
        return batch

    def hold(self, value: Any) -> Any:
        return value

    def to_host(self, values: Any) -> list[float]:
        return [float(value) for value in values]


class Streams(PythonGenerators):
    """Python's and NumPy's generators."""


class Alone:
    """One process."""

    rank = 0
    local_rank = 0
    size = 1

    def __init__(self) -> None:
        self.meeting = LocalMeeting()

    def barrier(self) -> None: ...

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def gather_to_first(self, value: Any) -> list[Any]:
        return self.gather(value) if self.rank == 0 else []


def parts(**changes: Any) -> BackendParts:
    return BackendParts(
        **{
            "name": "plain",
            "device": "cpu",
            "gpu_ids": [],
            "placement": Here(),
            "randomness": Streams(),
            "world": Alone(),
            "arrays": None,
            "create_dataloader": create_loader,
            "describe": lambda: {"backend": "plain"},
            **changes,
        }
    )


def make_trainer(**options: Any) -> Trainer:
    options.setdefault("print_banner", False)
    return Trainer(TrainerOptions(**options), parts())


class Records:
    """``size`` records, each with its index and a number that is drawn anew in every epoch."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = ph.sample_rng().standard_normal(3, np.float32)
        return {"index": index, "x": noise + np.float32(index), "legacy": np.float32(np.random.rand())}


class Data(ph.DataModule):
    """Training, validation and test records."""

    def __init__(self, size: int = 20, valid: int | None = 7, **params: Any) -> None:
        self.sizes = (size, valid)
        self.params = {"batch_size": 4, "shuffle": True, **params}
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self) -> None:
        self.calls.append("setup")
        size, valid = self.sizes
        self._train_dataset = self._create_dataset(Records(size), self.params)
        if valid is not None:
            self._valid_dataset = self._create_dataset(Records(valid), {"batch_size": 4})
            self._test_dataset = self._create_dataset(Records(valid), {"batch_size": 4})

    def teardown(self) -> None:
        self.calls.append("teardown")


class Descent(Model):
    """Follows its batches with a little noise of its own; keeps a journal of what it saw."""

    def __init__(self, save_name: str = "descent") -> None:
        super().__init__(save_name)
        self.journal: list[Any] = []

    def setup(self, fast_init: bool = False) -> None:
        self.weights = np.random.standard_normal(3)
        self.gradient = np.zeros(3)
        self.rate = 0.1

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        self.gradient += state.loss_weight * (self.weights - batch["x"].mean(0) + np.random.standard_normal(3))
        self.journal.append((state.global_epoch, batch["index"].tolist()))
        loss = float(np.square(self.gradient).sum()) + float(batch["legacy"].sum())
        if state.is_update:
            self.weights = self.weights - self.rate * self.gradient
            self.gradient = np.zeros(3)
        return loss

    def valid_step(self, batch: Any, step: int) -> Any:
        return {"loss": float(np.square(batch["x"] - self.weights).mean()), "draw": float(np.random.rand())}

    test_step = valid_step

    def predict_step(self, batch: Any, step: int) -> Any:
        return batch["index"].tolist()

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.rate *= 0.5

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "gradient": self.gradient, "rate": self.rate}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        self.weights, self.gradient, self.rate = (
            state_dict["weights"],
            state_dict["gradient"],
            state_dict["rate"],
        )
