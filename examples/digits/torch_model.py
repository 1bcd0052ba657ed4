"""The network in PyTorch: a small convolutional one with dropout."""

from __future__ import annotations

from typing import Any

import torch
from digits import LEARNING_RATE, SCHEDULE, WEIGHT_DECAY, WEIGHT_MAP, make_metrics
from torch import nn

import parhelion_torch as backend

torch.set_num_threads(1)  # the network is too small for more


class DigitModel(backend.LossModel):
    """Modules and an optimizer that are changed in place."""

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 10),
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.module.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.schedules = SCHEDULE
        self.metrics = make_metrics()
        self.weight_map = WEIGHT_MAP

    def loss(self, batch: Any) -> Any:
        logits = self.module(batch["image"])
        return nn.functional.cross_entropy(logits, batch["label"]), (logits, batch["label"])
