"""The experiment that the resume suite runs on torch: dropout, augmentation from every source, schedules, metrics."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

import parhelion as ph
import parhelion_torch as backend

SIZE, BATCH_SIZE = 26, 4
NUM_BATCHES = -(-SIZE // BATCH_SIZE)


class Points:
    """Points of three classes; each is moved by the sample's own generator and by the three global ones."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        point = np.sin(np.arange(6, dtype=np.float32) * (index + 1))
        point += 0.1 * ph.sample_rng().standard_normal(6, np.float32)
        point += np.float32(0.1 * random.random() + 0.1 * np.random.rand())
        return {"x": torch.from_numpy(point) + 0.1 * torch.rand(6), "label": index % 3, "index": index}


class Data(ph.DataModule):
    def __init__(self, workers: int) -> None:
        self.workers = workers

    def setup(self) -> None:
        train = {"batch_size": BATCH_SIZE, "shuffle": True, "num_workers": self.workers}
        self._train_dataset = self._create_dataset(Points(), train)
        self._valid_dataset = self._create_dataset(Points(), {"batch_size": 9})
        self._test_dataset = self._create_dataset(Points(), {"batch_size": 9})


class Net(backend.LossModel):
    """The short way. Keeps the batches it saw, as index and data."""

    def __init__(self, schedule: str = "update", **options: Any) -> None:
        super().__init__("net", **options)
        self.schedule = schedule
        self.seen: list[tuple[list[int], bytes]] = []

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.4), nn.Linear(16, 3))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-2)
        optimizer = self.optimizer
        self.schedules = {
            "none": lambda: None,
            "update": lambda: ph.schedules.cosine(1e-2, num_updates=3 * NUM_BATCHES),
            "epoch": lambda: backend.per_epoch(ph.schedules.step(1e-2, every=1, factor=0.5)),
            "native update": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * NUM_BATCHES),
            "native epoch": lambda: backend.per_epoch(torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)),
            "metric": lambda: backend.on_metric(
                torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5), "valid_loss"
            ),
        }[self.schedule]()
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, batch: Any) -> Any:
        if self.module.training:
            self.seen.append((batch["index"].tolist(), batch["x"].numpy().tobytes()))
        logits = self.module(batch["x"])
        return nn.functional.cross_entropy(logits, batch["label"]), (logits, batch["label"])


class Explicit(backend.Model):
    """The explicit way, with a scheduler that is stepped at the end of an epoch."""

    def __init__(self, schedule: str = "hook") -> None:
        super().__init__("net")
        self.seen: list[tuple[list[int], bytes]] = []

    def setup(self, fast_init: bool = False) -> None:
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.4), nn.Linear(16, 3))
        self.optimizers = [torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)]
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizers[0], 1, 0.5)

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        self.seen.append((batch["index"].tolist(), batch["x"].numpy().tobytes()))
        loss = nn.functional.cross_entropy(self.net(batch["x"]), batch["label"])
        (loss * state.loss_weight).backward()
        if state.is_update:
            self.optimizers[0].step()
            self.optimizers[0].zero_grad()
        self.log("lr", self.optimizers[0].param_groups[0]["lr"], "last")
        return {"loss": loss}

    def valid_step(self, batch: Any, step: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["label"])

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.scheduler.step()


def make_model(schedule: str) -> Any:
    return Explicit() if schedule == "hook" else Net(schedule)


def make_trainer(**options: Any) -> backend.Trainer:
    options.setdefault("print_banner", False)
    return backend.Trainer(use_cpu=True, **options)


def weights(model: Any) -> dict[str, Any]:
    """Return the trained numbers as JSON has them."""
    net = model.net if isinstance(model, Explicit) else model.module
    return {name: value.tolist() for name, value in net.state_dict().items()}


def poison() -> None:
    """Leave every global generator somewhere else."""
    random.seed(99)
    np.random.seed(98)
    torch.manual_seed(97)


def equal_arrays(one: Any, other: Any) -> bool:
    return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)


Array = torch.Tensor
adapter = backend.Arrays()
