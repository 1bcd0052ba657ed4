"""The experiment that the resume suite runs on jax: dropout, augmentation from every source, schedules, metrics."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import parhelion as ph
import parhelion_jax as backend
from parhelion_jax.arrays import Arrays
from support.points import Points

SIZE, BATCH_SIZE = 26, 4
NUM_BATCHES = -(-SIZE // BATCH_SIZE)


class Data(ph.DataModule):
    def __init__(self, workers: int) -> None:
        self.workers = workers

    def setup(self) -> None:
        train = {"batch_size": BATCH_SIZE, "shuffle": True, "num_workers": self.workers}
        self._train_dataset = self._create_dataset(Points(SIZE), train)
        self._valid_dataset = self._create_dataset(Points(SIZE), {"batch_size": 9})
        self._test_dataset = self._create_dataset(Points(SIZE), {"batch_size": 9})


def note(seen: list[tuple[list[int], bytes]], batch: Any) -> None:
    """Add what a step trains on to a journal, as index and data."""
    seen.append((np.asarray(batch["index"]).tolist(), np.asarray(batch["x"]).tobytes()))


def dense(key: jax.Array, rows: int, columns: int) -> dict[str, jax.Array]:
    return {"kernel": jax.random.normal(key, (rows, columns)) * 0.3, "bias": jnp.zeros(columns)}


def network(params: Any, x: jax.Array, key: jax.Array | None, stats: Any) -> tuple[jax.Array, Any]:
    """Return logits and new batch statistics: dense, batch norm, dropout, dense."""
    hidden = x @ params["in"]["kernel"] + params["in"]["bias"]
    if key is not None:
        mean, var = hidden.mean(0), hidden.var(0)
        stats = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
    else:
        mean, var = stats["mean"], stats["var"]
    hidden = jax.nn.relu((hidden - mean) * jax.lax.rsqrt(var + 1e-5))
    if key is not None:
        hidden = jnp.where(jax.random.bernoulli(key, 0.6, hidden.shape), hidden / 0.6, 0)
    return hidden @ params["out"]["kernel"] + params["out"]["bias"], stats


class Net(backend.LossModel):
    """The short way, with batch statistics."""

    def __init__(self, schedule: str = "update", **options: Any) -> None:
        super().__init__("net", **options)
        self.schedule = schedule
        self.seen: list[tuple[list[int], bytes]] = []

    def setup(self, fast_init: bool = False) -> None:
        first, second = jax.random.split(self.key("params"))
        self.params = {"in": dense(first, 6, 16), "out": dense(second, 16, 3)}
        self.variables = {"mean": jnp.zeros(16), "var": jnp.ones(16)}
        injected = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2)
        per_epoch = backend.per_epoch(ph.schedules.step(1e-2, every=1, factor=0.5))
        plateau = optax.contrib.reduce_on_plateau(patience=2, factor=0.5)
        self.optimizer, self.schedules = {
            "none": lambda: (optax.adamw(1e-2), None),
            "update": lambda: (injected, ph.schedules.cosine(1e-2, num_updates=3 * NUM_BATCHES)),
            "epoch": lambda: (injected, per_epoch),
            # Schedules of optax's own, inside the optimizer.
            "native update": lambda: (optax.adamw(optax.cosine_decay_schedule(1e-2, 3 * NUM_BATCHES)), None),
            "native epoch": lambda: (
                optax.adamw(optax.exponential_decay(1e-2, NUM_BATCHES, 0.5, staircase=True)),
                None,
            ),
            "metric": lambda: (optax.chain(optax.adamw(1e-2), plateau), None),
        }[self.schedule]()
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, params: Any, batch: Any, key: jax.Array | None, variables: Any = None) -> Any:
        logits, variables = network(params, batch["x"], key, variables)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, (logits, batch["label"]), variables

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        note(self.seen, batch)
        return super().train_step(batch, state)


class Together(Net):
    """The same, with several iterations in one call."""

    train_step = backend.LossModel.train_step

    def train_steps(self, batches: Sequence[Any], states: Sequence[ph.TrainingState]) -> Any:
        for batch in batches:
            note(self.seen, batch)
        return super().train_steps(batches, states)


class Explicit(backend.Model):
    """The explicit way, with a learning rate that is halved at the end of an epoch."""

    def __init__(self, schedule: str = "hook") -> None:
        super().__init__("net")
        self.seen: list[tuple[list[int], bytes]] = []

    def setup(self, fast_init: bool = False) -> None:
        first, second = jax.random.split(self.key("params"))
        self.params = {"in": dense(first, 6, 16), "out": dense(second, 16, 3)}
        self.gradient = jax.tree.map(jnp.zeros_like, self.params)
        self.optimizer = optax.sgd(1.0, momentum=0.9)
        self.opt_state = self.optimizer.init(self.params)
        self.stats = {"mean": jnp.zeros(16), "var": jnp.ones(16)}
        self.rate = 0.1
        self.gradients = jax.jit(jax.value_and_grad(self.loss_of, has_aux=True))
        self.evaluated = jax.jit(self.loss_of)

    def loss_of(self, params: Any, batch: Any, key: Any, stats: Any) -> Any:
        logits, stats = network(params, batch["x"], key, stats)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), stats

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        note(self.seen, batch)
        key = jax.random.fold_in(self.key("dropout"), state.global_iteration)
        (loss, self.stats), gradient = self.gradients(self.params, batch, key, self.stats)
        self.gradient = jax.tree.map(lambda sum_, part: sum_ + state.loss_weight * part, self.gradient, gradient)
        if state.is_update:
            changes, self.opt_state = self.optimizer.update(self.gradient, self.opt_state)
            self.params = jax.tree.map(lambda value, change: value + self.rate * change, self.params, changes)
            self.gradient = jax.tree.map(jnp.zeros_like, self.gradient)
        self.log("lr", self.rate, "last")
        return {"loss": loss}

    def valid_step(self, batch: Any, step: int) -> Any:
        return self.evaluated(self.params, batch, None, self.stats)[0]

    test_step = valid_step

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.rate *= 0.5


def make_model(schedule: str, **options: Any) -> Any:
    return Explicit() if schedule == "hook" else Net(schedule, **options)


def make_trainer(**options: Any) -> backend.Trainer:
    options.setdefault("print_banner", False)
    return backend.Trainer(use_cpu=True, **options)


def weights(model: Any) -> Any:
    """Return the trained numbers as JSON has them."""
    return jax.tree.map(lambda value: value.tolist(), model.params)


def poison() -> None:
    """Move the global generators: nothing of a run may depend on where they are."""
    random.seed(99)
    np.random.seed(99)


adapter = Arrays()
