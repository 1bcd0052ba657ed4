"""Handwritten digits: the data, the model, and how they are trained.

Run it, stop it with Ctrl-C or ``kill -9``, run it again: it goes on where it was, and ends with the same weights.

    python examples/digits/experiment.py --out runs/digits
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import parhelion as ph
import parhelion_torch as backend

NUM_EPOCHS, BATCH_SIZE, NUM_TRAIN, LEARNING_RATE = 15, 32, 1437, 3e-3


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


class DigitModel(backend.LossModel):
    """A small convolutional network with dropout."""

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 10),
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=LEARNING_RATE)
        self.schedules = ph.schedules.cosine(LEARNING_RATE, num_updates=NUM_EPOCHS * -(-NUM_TRAIN // BATCH_SIZE))
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, batch: Any) -> Any:
        logits = self.module(batch["image"])
        return nn.functional.cross_entropy(logits, batch["label"]), (logits, batch["label"])


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


def main() -> int:
    """Train, test, and write the test's values beside the checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder of checkpoints and history")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small for more
    trainer = backend.Trainer(
        run_name="digits",
        total_steps=NUM_EPOCHS,
        valid_frequency=5,
        print_frequency=5,
        chkpt_every_iterations=10,
        chkpt_keep_last=2,
        chkpt_root=arguments.out,
        use_cpu=True,
        print_banner=False,
    )
    trainer.register_plugin(OrderLog(arguments.out / "order.jsonl"))
    model, data = DigitModel("cnn"), Digits()
    if trainer.fit(model, data) and trainer.test(model, data):
        (arguments.out / "test.json").write_text(json.dumps(trainer.test_results))
    return trainer.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
