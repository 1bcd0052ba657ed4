"""The loop hands steps to the device and goes on: it waits for none of them before a print asks for values.

A callback in the step could not tell: on the CPU, jax runs a program that has one to its end before it returns.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("parhelion_jax")

import jax
import jax.numpy as jnp
import numpy as np

import parhelion as ph
from support.small_jax import Data, Line, fit, make_trainer

AHEAD = 5  # steps that have been handed over when somebody looks at the first


class Slow(Line):
    """Its first step takes a second, the others nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Any] = []
        self.was_ready: list[bool] = []

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        if key is None:
            return super().loss(params, batch, key)
        start = jax.lax.stop_gradient(params["b"])
        turned = jax.lax.fori_loop(0, batch["turns"], lambda _, value: jnp.sin(value) + 0.1, start)
        # Beside the loop there is work that jax thinks is some: what is little runs where it was called.
        table = jnp.sin(jnp.arange(400.0)[:, None] * jnp.arange(400.0) + turned)
        return super().loss(params, batch, key) + 1e-9 * (table @ table).mean()

    def keep(self, losses: Any) -> Any:
        self.losses.append(losses)
        return losses

    def train_steps(self, batches: Any, states: Any) -> Any:
        return self.keep(super().train_steps(batches, states))

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if state.global_iteration == AHEAD:
            self.was_ready.append(self.losses[0].is_ready())


class Single(Slow):
    def train_step(self, batch: Any, state: Any) -> Any:
        return self.keep(super().train_step(batch, state))


class Reading(ph.Plugin):
    """Reads a loss after each step, which waits for it."""

    def __init__(self, model: Slow) -> None:
        super().__init__("reading")
        self.model = model

    def setup(self) -> None: ...

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        np.asarray(self.model.losses[-1])


class Turns(Data):
    def train_dataloader(self) -> Any:
        batches = super().train_dataloader()
        return [batch | {"turns": np.int32(0 if number else 5_000_000)} for number, batch in enumerate(batches)]


@pytest.mark.parametrize("k", [1, 2])
def test_later_steps_are_dispatched_while_the_first_one_runs(k) -> None:
    model = Single() if k == 1 else Slow()
    fit(model, Turns(4, 24), total_steps=1, steps_per_execution=k)
    assert model.was_ready == [False]
    assert len(model.losses) == 6 / k


def test_a_loop_that_reads_a_loss_would_be_noticed() -> None:
    model, trainer = Single(), make_trainer(total_steps=1)
    trainer.register_plugin(Reading(model))
    assert trainer.fit(model, Turns(4, 24))
    assert model.was_ready == [True]
