"""Train a dictionary of arrays on handwritten digits, in plain JAX: two layers, dropout, twenty steps in one call.

Stop it and run it again: it goes on where it was.

    python examples/jax_models/dict_mlp.py --out runs/dict_mlp
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import parhelion as ph
from parhelion_jax import LossModel, Trainer


class Digits(ph.DataModule):
    def setup(self):
        images, labels = load_digits(return_X_y=True)
        records = [
            {"x": image, "label": label}
            for image, label in zip((images / 16).astype(np.float32), labels.astype(np.int32), strict=True)
        ]
        self._train_dataset = self._create_dataset(records[:1500], {"batch_size": 50, "shuffle": True})
        self._valid_dataset = self._create_dataset(records[1500:], {"batch_size": 100})
        self._test_dataset = self._create_dataset(records[1500:], {"batch_size": 100})


class Mlp(LossModel):
    def setup(self, fast_init: bool = False):
        first, second = jax.random.split(self.key("params"))
        init = jax.nn.initializers.he_normal()
        self.params = {
            "hidden": {"kernel": init(first, (64, 64)), "bias": jnp.zeros(64)},
            "out": {"kernel": init(second, (64, 10)), "bias": jnp.zeros(10)},
        }
        self.optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=3e-3)
        self.schedules = ph.schedules.cosine(3e-3, num_updates=8 * 30)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, params: Any, batch: Any, key: Any):
        hidden = jax.nn.relu(batch["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        if key is not None:  # training
            hidden = jnp.where(jax.random.bernoulli(key, 0.8, hidden.shape), hidden / 0.8, 0)
        logits = hidden @ params["out"]["kernel"] + params["out"]["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (logits, batch["label"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/dict_mlp"), help="folder of checkpoints")
    trainer = Trainer(
        total_steps=8,
        valid_frequency=2,
        chkpt_frequency=2,
        chkpt_root=parser.parse_args().out,
        steps_per_execution=20,
        print_banner=False,
    )
    model, data = Mlp("mlp", clip_norm=1.0, ema_decay=0.98), Digits()
    if trainer.fit(model, data) and trainer.test(model, data):
        print(trainer.test_results)
    return trainer.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
