"""Train a flax nnx module: convolution, batch norm and dropout, on handwritten digits.

``nnx.split`` takes the module apart: parameters are trained, and everything else that a step changes (batch statistics,
the state of dropout's generator) are variables. The loss puts it together again.

    python examples/jax_models/flax_nnx.py --out runs/flax_nnx
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import optax
from dict_mlp import Digits
from flax import nnx

import parhelion as ph
from parhelion_jax import LossModel, Trainer


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(8 * 16, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.norm(self.conv(x.reshape(-1, 8, 8, 1))))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.out(self.dropout(x.reshape(len(x), -1)))


class Model(LossModel):
    def setup(self, fast_init: bool = False):
        network = Network(nnx.Rngs(self.key("params")))
        self.graph, self.params, self.variables = nnx.split(network, nnx.Param, ...)
        self.optimizer = optax.adam(3e-3)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, params: Any, batch: Any, key: Any, variables: Any):
        network = nnx.merge(self.graph, params, variables)
        network.eval() if key is None else network.train()
        logits = network(batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (logits, batch["label"]), nnx.state(network, nnx.Not(nnx.Param))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/flax_nnx"), help="folder of checkpoints")
    trainer = Trainer(
        total_steps=6, valid_frequency=1, chkpt_frequency=1, chkpt_root=parser.parse_args().out, print_banner=False
    )
    model, data = Model("nnx"), Digits()
    if trainer.fit(model, data) and trainer.test(model, data):
        print(trainer.test_results)
    return trainer.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
