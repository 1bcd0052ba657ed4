"""What trains on jax in a whole run."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parhelion as ph
import parhelion_jax as backend
from support import whole_run


class Net(backend.LossModel):
    def __init__(self, kind: str) -> None:
        super().__init__("net")
        self.kind = kind

    def setup(self, fast_init: bool = False) -> None:
        self.params = {
            "in": 0.3 * jax.random.normal(self.key("in"), (6, 12)),
            "out": 0.3 * jax.random.normal(self.key("out"), (12, 3)),
        }
        if self.kind == "spread":
            spread = NamedSharding(self.placement.mesh, P(("data", "model")))
            for name, value in self.params.items():
                self.params[name] = jax.make_array_from_callback(value.shape, spread, np.asarray(value).__getitem__)
        self.optimizer = optax.adam(1e-2)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        hidden = jnp.tanh(batch["x"] @ params["in"])
        if key is not None:
            hidden = jnp.where(jax.random.bernoulli(key, 0.7, hidden.shape), hidden / 0.7, 0)
        logits = hidden @ params["out"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, (logits, batch["label"])


make_model = Net


def make_trainer(**options: Any) -> backend.Trainer:
    mesh = Mesh(np.array(jax.devices()).reshape(-1, 1), ("data", "model"))
    return backend.Trainer(mesh=mesh, **options)


def own_rows(array: Any) -> Any:
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


@functools.cache
def gathering(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))


def digest(model: Any) -> str:
    """Return a digest of all weights and moments; every process must ask for it."""
    leaves = jax.tree.leaves((model.params, model._trained.opt_state))
    if not all(leaf.is_fully_replicated for leaf in leaves):
        leaves = gathering(model.placement.mesh)(leaves)
    return whole_run.digest(*leaves)
