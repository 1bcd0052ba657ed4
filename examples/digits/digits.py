"""Handwritten digits: the data, the plan, the metrics. Written once, for every backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import parhelion as ph

NUM_EPOCHS, BATCH_SIZE, NUM_TRAIN, LEARNING_RATE, WEIGHT_DECAY = 15, 32, 1437, 3e-3, 0.01
SCHEDULE = ph.schedules.cosine(LEARNING_RATE, num_updates=NUM_EPOCHS * -(-NUM_TRAIN // BATCH_SIZE))

# Where a layer of the JAX model is found in the PyTorch model: a run may change from one to the other.
WEIGHT_MAP = ph.weights.WeightMap(
    {
        "conv1": ph.weights.conv("0"),
        "conv2": ph.weights.conv("2"),
        "head": ph.weights.dense("7", flattened=(64, 4, 4)),
    }
)


class DigitImages:
    """Images of 8 x 8 pixels; in training each one is moved a little, differently in every epoch."""

    def __init__(self, part: slice, *, augment: bool = False) -> None:
        digits = load_digits()
        # Neighbors in the file are of one writer; mixing them makes both parts alike.
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(digits.target))[part]
        self.images = (digits.images[order, None] / 16).astype(np.float32)
        self.labels = digits.target[order]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        if self.augment:
            down, right = ph.sample_rng().integers(-1, 2, size=2)
            image = np.roll(image, (down, right), axis=(1, 2))
        return {"image": image, "label": self.labels[index], "index": index}


class Digits(ph.DataModule):
    """The training and the test part."""

    def setup(self) -> None:
        train = ph.DataLoaderParams(batch_size=BATCH_SIZE, shuffle=True, num_workers=2)
        self._train_dataset = self._create_dataset(DigitImages(slice(NUM_TRAIN), augment=True), train)
        test = DigitImages(slice(NUM_TRAIN, None))
        self._valid_dataset = self._create_dataset(test, {"batch_size": 128})
        self._test_dataset = self._create_dataset(test, {"batch_size": 128})


def make_metrics() -> dict[str, Any]:
    """Return what a validation and a test measure."""
    return {"accuracy": ph.metrics.Accuracy()}


class OrderLog(ph.Plugin):
    """Writes down which records each step trained on, so that two runs can be compared."""

    def __init__(self, path: Path) -> None:
        super().__init__("order-log")
        self.unique_overrides = ph.UniquePluginOverrides(training_batch=True)
        self.path = path

    def setup(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a", buffering=1)

    def process_training_batch(self, batch: Any, state: Any) -> Any:
        print(json.dumps([state.global_iteration, batch["index"].tolist()]), file=self.file)
        return batch

    def on_training_end(self) -> None:
        self.file.close()
