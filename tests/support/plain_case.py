"""The experiment that the contract suite runs on NumPy alone, as a third party would write it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

import parhelion as ph
from parhelion.training import Model, Trainer
from support.plain import make_trainer


class PlainCase:
    """An object, where torch's and jax's cases are modules."""

    SIZE, BATCH_SIZE, NUM_BATCHES = 11, 3, 4
    adapter = None

    def Data(self, workers: int) -> ph.DataModule:  # noqa: N802 - as BackendCase has it
        return Data(self, workers)

    def make_model(self, schedule: str) -> Any:
        return Net(schedule)

    def make_trainer(self, **options: Any) -> Trainer:
        return make_trainer(**options)

    def poison(self) -> None:
        random.seed(99)
        np.random.seed(98)


class Points:
    """Points of three classes; each is moved by the sample's own generator and by the global ones."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        point = np.sin(np.arange(6, dtype=np.float32) * (index + 1)) + ph.sample_rng().standard_normal(6, np.float32)
        return {"x": point + np.float32(random.random() + np.random.rand()), "label": index % 3, "index": index}


class Data(ph.DataModule):
    def __init__(self, case: Any, workers: int) -> None:
        self.case = case
        self.workers = workers

    def setup(self) -> None:
        train = {"batch_size": self.case.BATCH_SIZE, "shuffle": True, "num_workers": self.workers}
        self._train_dataset = self._create_dataset(Points(self.case.SIZE), train)
        self._valid_dataset = self._create_dataset(Points(self.case.SIZE), {"batch_size": 4})
        self._test_dataset = self._create_dataset(Points(self.case.SIZE), {"batch_size": 4})


class Net(Model):
    """A linear classifier with dropout, written out."""

    def __init__(self, schedule: str) -> None:
        super().__init__("net")
        self.schedule = schedule
        self.seen: list[tuple[list[int], bytes]] = []

    def setup(self, fast_init: bool = False) -> None:
        self.weights = np.random.standard_normal((6, 3))
        self.gradient = np.zeros((6, 3))
        self.rate = 0.1
        self.rates = ph.schedules.cosine(0.1, num_updates=24)
        self.accuracy = ph.metrics.Accuracy()

    def forward(self, x: Any, labels: Any) -> tuple[Any, Any, float]:
        """Return the scores, the loss's gradient by them, and the mean loss."""
        scores = x @ self.weights
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        right = np.eye(3)[labels]
        return scores, (shares - right) / len(x), float(-np.log(shares[right > 0]).mean())

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        self.seen.append((batch["index"].tolist(), batch["x"].tobytes()))
        x = batch["x"] * (np.random.rand(*batch["x"].shape) > 0.4)
        _, slope, loss = self.forward(x, batch["label"])
        self.gradient = self.gradient + state.loss_weight * (x.T @ slope)
        if state.is_update:
            rate = self.rates(state.current_iteration) if self.schedule == "update" else self.rate
            self.weights = self.weights - rate * self.gradient
            self.gradient = np.zeros((6, 3))
        return {"loss": loss}

    def valid_step(self, batch: Any, step: int) -> Any:
        scores, _, loss = self.forward(batch["x"], batch["label"])
        self.accuracy.update(scores, batch["label"])
        return {"loss": loss}

    test_step = valid_step

    def start_evaluation(self) -> None:
        self.accuracy.reset()

    def finish_evaluation(self) -> dict[str, float]:
        return {"accuracy": self.accuracy.compute()}

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.rate *= 0.5

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "gradient": self.gradient, "rate": self.rate}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        vars(self).update(state_dict)
