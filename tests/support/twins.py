"""One small experiment, written once, and its network on either backend, which is imported when it is asked for."""

from __future__ import annotations

import functools
from typing import Any

import parhelion as ph
from support.points import Points

SIZE, BATCH_SIZE = 26, 4
NUM_BATCHES = -(-SIZE // BATCH_SIZE)
WEIGHT_MAP = ph.weights.WeightMap({"body": ph.weights.dense("0"), "head": ph.weights.dense("3")})


class Data(ph.DataModule):
    """Augmented points of three classes, the same for the two; counts how often it was set up."""

    def __init__(self, **options: Any) -> None:
        self.options, self.num_setups = options, 0

    def setup(self) -> None:
        self.num_setups += 1
        train = {"batch_size": BATCH_SIZE, "shuffle": True, **self.options}
        self._train_dataset = self._create_dataset(Points(SIZE), train)
        self._valid_dataset = self._create_dataset(Points(SIZE), {"batch_size": 9})
        self._test_dataset = self._create_dataset(Points(SIZE), {"batch_size": 9})

    def state_dict(self) -> dict[str, Any]:
        return {"num_setups": self.num_setups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_setups += state_dict["num_setups"]


def make_model(side: str, **options: Any) -> Any:
    """Return a model of the backend called ``side``: dense, dropout, dense; Adam, a schedule and a metric."""
    return {"torch": _torch_net, "jax": _jax_net}[side]()(**options)


def make_trainer(side: str, **options: Any) -> Any:
    """Return a trainer of the backend called ``side``, on the CPU."""
    return ph.load_backend(side).Trainer(**{"use_cpu": True, "print_banner": False, **options})


@functools.cache
def _torch_net() -> type:
    import torch

    import parhelion_torch

    class Net(parhelion_torch.LossModel):
        def __init__(self, *, dropout: float = 0.0, weight_map: Any = WEIGHT_MAP, **options: Any) -> None:
            super().__init__("net", **options)
            self.dropout, self.weight_map, self.num_seen = dropout, weight_map, 0

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            self.num_seen += 1

        def setup(self, fast_init: bool = False) -> None:
            nn = torch.nn
            self.module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(self.dropout), nn.Linear(16, 3))
            self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-2, weight_decay=0.01)
            self.schedules = ph.schedules.cosine(1e-2, num_updates=6 * NUM_BATCHES)
            self.metrics = {"accuracy": ph.metrics.Accuracy()}

        def loss(self, batch: Any) -> Any:
            logits = self.module(batch["x"])
            return torch.nn.functional.cross_entropy(logits, batch["label"]), (logits, batch["label"])

    return Net


@functools.cache
def _jax_net() -> type:
    import jax
    import jax.numpy as jnp
    import optax

    import parhelion_jax

    class Net(parhelion_jax.LossModel):
        def __init__(self, *, dropout: float = 0.0, weight_map: Any = WEIGHT_MAP, **options: Any) -> None:
            super().__init__("net", **options)
            self.dropout, self.weight_map, self.num_seen = dropout, weight_map, 0

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            self.num_seen += 1

        def setup(self, fast_init: bool = False) -> None:
            make = jax.nn.initializers.glorot_uniform()
            self.params = {
                name: {"kernel": make(self.key("params", name), shape), "bias": jnp.zeros(shape[1])}
                for name, shape in (("body", (6, 16)), ("head", (16, 3)))
            }
            self.optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2, weight_decay=0.01)
            self.schedules = ph.schedules.cosine(1e-2, num_updates=6 * NUM_BATCHES)
            self.metrics = {"accuracy": ph.metrics.Accuracy()}

        def loss(self, params: Any, batch: Any, key: Any) -> Any:
            hidden = jnp.tanh(batch["x"] @ params["body"]["kernel"] + params["body"]["bias"])
            if key is not None and self.dropout:
                kept = jax.random.bernoulli(key, 1 - self.dropout, hidden.shape)
                hidden = jnp.where(kept, hidden / (1 - self.dropout), 0)
            logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return loss, (logits, batch["label"])

    return Net
