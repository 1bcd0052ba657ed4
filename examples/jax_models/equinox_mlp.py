"""Train an equinox module on handwritten digits: it is a pytree, so it is the parameters as it is.

Its arrays of floats are trained; functions, numbers and all else in it stay what they are.

    python examples/jax_models/equinox_mlp.py --out runs/equinox_mlp
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import optax
from dict_mlp import Digits

import parhelion as ph
from parhelion_jax import LossModel, Trainer


class Model(LossModel):
    def setup(self, fast_init: bool = False):
        self.params = eqx.nn.MLP(64, 10, width_size=64, depth=2, key=self.key("params"))
        self.optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, decay_steps=6 * 30))
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, params: Any, batch: Any, key: Any):
        logits = jax.vmap(params)(batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (logits, batch["label"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/equinox_mlp"), help="folder of checkpoints")
    trainer = Trainer(
        total_steps=6, valid_frequency=2, chkpt_frequency=2, chkpt_root=parser.parse_args().out, print_banner=False
    )
    model, data = Model("equinox", precision="bfloat16"), Digits()
    if trainer.fit(model, data) and trainer.test(model, data):
        print(trainer.test_results)
    return trainer.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
