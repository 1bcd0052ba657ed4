"""When a schedule sets the learning rate: per update or per epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import attrs
import jax
import jax.numpy as jnp

from parhelion.errors import InvalidTypeError

__all__ = ["Scheduled", "as_scheduled", "per_epoch", "per_update"]

_jnp: Any = jnp  # it leaves some of it untyped


@attrs.frozen
class Scheduled:
    """A schedule and what it counts.

    It is asked for its value at the update (or epoch) that is about to be made, inside the compiled step, so it has no
    state. An optax schedule inside the optimizer needs no such wrapper: optax counts updates by itself.

    Attributes:
        schedule: a pure function from a count to a learning rate, from ``parhelion.schedules`` or optax.
        every: what it counts.
    """

    schedule: Callable[[Any], Any]
    every: Literal["update", "epoch"]

    def apply(self, opt_state: Any, update: jax.Array, epoch: jax.Array) -> Any:
        """Return the optimizer's state with the learning rate of an update.

        Args:
            opt_state: of an optimizer made by ``optax.inject_hyperparams``.
            update: 0-based, int32.
            epoch: 0-based, int32.
        """
        rate = self.schedule(update if self.every == "update" else epoch)
        rates = {**opt_state.hyperparams}
        rates["learning_rate"] = _jnp.asarray(rate, rates["learning_rate"].dtype)
        return opt_state._replace(hyperparams=rates)


def per_update(schedule: Callable[[Any], Any]) -> Scheduled:
    """Return a schedule that counts updates; what a plain one does."""
    return Scheduled(schedule, "update")


def per_epoch(schedule: Callable[[Any], Any]) -> Scheduled:
    """Return a schedule that counts epochs, from 0."""
    return Scheduled(schedule, "epoch")


def as_scheduled(schedules: Any, opt_state: Any) -> Scheduled | None:
    """Return what a model gave as its schedule, with what it counts.

    Raises:
        InvalidTypeError: it is no function, or the optimizer's learning rate cannot be set.
    """
    if schedules is None:
        return None
    scheduled = schedules if isinstance(schedules, Scheduled) else per_update(schedules)
    if not callable(scheduled.schedule):
        raise InvalidTypeError(
            f"self.schedules is {schedules!r}; expected a function from a count to a learning rate, such as "
            "parhelion.schedules.cosine(...), or per_epoch of one."
        )
    if "learning_rate" not in getattr(opt_state, "hyperparams", {}):
        raise InvalidTypeError(
            "self.schedules is set and the learning rate of self.optimizer cannot be; expected an optimizer made by "
            "optax.inject_hyperparams(optax.adam)(learning_rate=0.1), or the schedule inside it: optax.adam(schedule)."
        )
    return scheduled
