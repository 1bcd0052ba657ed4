"""One update as a pure function: loss, gradient, accumulation, clipping, optimizer, average; scanned over a chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import attrs
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax  # pyright: ignore[reportMissingTypeStubs] - it ships no types

from parhelion.errors import InvalidTypeError
from parhelion.training import TrainingState

from .convolutions import with_channels_last
from .schedules import Scheduled
from .stateful import leaf_name

__all__ = ["Carry", "Objective", "Update", "as_control", "as_controls", "join", "split"]

_jax: Any = jax  # it leaves some of it untyped
_jnp: Any = jnp
_map: Callable[[Callable[[Any], Any], Any], Any] = _jax.tree.map
_map_two: Callable[[Callable[[Any, Any], Any], Any, Any], Any] = _jax.tree.map
# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance
_FLOAT32 = np.dtype(np.float32)
_LAST_COUNT = 2**31 - 1  # where optax's own counts stay, too


class Carry(NamedTuple):
    """What an update changes; its buffers are donated to the next one.

    Attributes:
        params: what is trained: a pytree of arrays, None where the model's has something else.
        opt_state: the optimizer's.
        variables: mutable collections, such as batch statistics; None for none.
        average: moving average of the parameters; None for none.
        gradient: of the accumulation group so far, and its loss; None without accumulation.
    """

    params: Any
    opt_state: Any
    variables: Any
    average: Any
    gradient: Any


# -- the numbers that a step gets from the host -----------------------------------------------------------------------


def as_control(state: TrainingState) -> npt.NDArray[np.uint32]:
    """Return what a compiled step is told about its iteration, as uint32 of shape ``(6,)``.

    That is: the iteration's high and low words, the 0-based update and epoch (at most 2**31 - 1), the bits of the
    loss's weight as float32, and whether the optimizer steps.
    """
    return np.array(_words(state), np.uint32)


def as_controls(states: Sequence[TrainingState]) -> npt.NDArray[np.uint32]:
    """Return the same for several iterations, one row each."""
    return np.array([_words(state) for state in states], np.uint32)


def _words(state: TrainingState) -> tuple[int, ...]:
    iteration = state.global_iteration
    weight = int(np.float32(state.loss_weight).view(np.uint32)) if state.loss_weight != 1.0 else 0x3F800000
    update = min(state.current_iteration - state.is_update, _LAST_COUNT)
    epoch = min(state.global_epoch - 1, _LAST_COUNT)
    return iteration >> 32, iteration & 0xFFFFFFFF, update, epoch, weight, state.is_update


# -- parameters among other things ------------------------------------------------------------------------------------


def split(tree: Any) -> tuple[Any, Any]:
    """Return the floating point arrays of a pytree, and the rest of it; each has None where the other has a leaf."""

    def is_trained(leaf: Any) -> bool:
        return _is(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.inexact)

    trained = _map(lambda leaf: leaf if is_trained(leaf) else None, tree)
    return trained, _map(lambda leaf: None if is_trained(leaf) else leaf, tree)


def join(trained: Any, rest: Any) -> Any:
    """Return the pytree that was split."""
    if rest is None:
        return trained

    def is_none(leaf: Any) -> bool:
        return leaf is None

    def either(one: Any, other: Any) -> Any:
        return other if one is None else one

    return _jax.tree.map(either, trained, rest, is_leaf=is_none)


# -- the loss ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class Objective:
    """A user's loss with the policy of precision around it.

    Attributes:
        loss: ``loss(params, batch, key)``, or with variables ``loss(params, batch, key, variables)``.
        rest: what is no parameter in the pytree of parameters.
        dtype: what parameters and batches are cast to; None for as they are.
    """

    loss: Callable[..., Any]
    rest: Any
    dtype: Any

    def __call__(self, params: Any, batch: Any, key: jax.Array | None, variables: Any) -> tuple[Any, tuple[Any, Any]]:
        """Return the loss as float32, the outputs, and the new variables.

        Raises:
            InvalidTypeError: the loss is no scalar, or does not return what it has to.
        """
        given = join(_cast(params, self.dtype), self.rest), _cast(batch, self.dtype), key
        # Rebuilt where they are used: variables of flax nnx can only be written to in the trace that made them.
        made = self.loss(*given) if variables is None else self.loss(*given, _map(lambda leaf: leaf, variables))
        loss, outputs, changed = _parts_of(made, has_variables=variables is not None)
        if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
            what = f"an array of shape {loss.shape} and {loss.dtype}" if hasattr(loss, "shape") else repr(loss)
            raise InvalidTypeError(
                f"loss(params, batch, key) returned {what}; expected a scalar of floats, or (scalar, outputs). "
                "Use .mean()."
            )
        if variables is not None:
            changed = _like(variables, changed)
        return loss.astype(_FLOAT32), (outputs, changed)


def _parts_of(made: Any, *, has_variables: bool) -> tuple[Any, Any, Any]:
    parts: tuple[Any, ...] = made if _is(made, tuple) else (made,)
    if has_variables:
        if len(parts) != 3:  # noqa: PLR2004 - loss, outputs, variables
            raise InvalidTypeError(
                f"loss(params, batch, key, variables) returned {len(parts)} values; expected (loss, outputs, "
                "variables) where self.variables is set. Outputs may be None."
            )
        return parts[0], parts[1], parts[2]
    if len(parts) > 2:  # noqa: PLR2004 - loss, outputs
        raise InvalidTypeError(
            f"loss(params, batch, key) returned {len(parts)} values; expected a scalar, or (scalar, outputs). Set "
            "self.variables in setup() to have variables."
        )
    loss, outputs = (*parts, None, None)[:2]  # none at all is no scalar, which is said later
    return loss, outputs, None


def _like(variables: Any, changed: Any) -> Any:
    """Return new variables in the structure and the dtypes of the old ones.

    Raises:
        InvalidTypeError: they are others.
    """
    here, there = (
        {leaf_name(path): leaf for path, leaf in _jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (variables, changed)
    )
    for name in [*here, *there]:
        mine, theirs = (str(np.shape(each[name])) if name in each else "not there" for each in (here, there))
        if mine != theirs:
            raise InvalidTypeError(
                f"loss(params, batch, key, variables) returned other variables: {name!r} is {mine} in self.variables "
                f"and {theirs} in what it returned; expected the same names and shapes. Return them all, changed or "
                "not."
            )
    leaves = [_jnp.asarray(there[name], leaf.dtype) for name, leaf in here.items()]
    return _jax.tree.unflatten(_jax.tree.structure(variables), leaves)


def _cast(tree: Any, dtype: Any) -> Any:
    if dtype is None:
        return tree
    return _map(lambda leaf: leaf.astype(dtype) if leaf.dtype == _FLOAT32 else leaf, tree)


# -- the update -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Update:
    """Everything that one iteration does, as a function of values alone.

    Attributes:
        objective: what is minimized.
        optimizer: takes extra arguments; ``value`` is the loss.
        key: of the run; each iteration's is folded into it.
        scheduled: sets the learning rate; None for nobody.
        clip_norm: the largest norm of the whole gradient; None for any.
        ema_decay: of the average; None for no average.
        on_cpu: whether it runs on the CPU, where convolutions in a loop need help to be fast.
    """

    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    key: jax.Array
    scheduled: Scheduled | None
    clip_norm: float | None
    ema_decay: float | None
    on_cpu: bool

    def one(self, carry: Carry, batch: Any, control: Any) -> tuple[Carry, jax.Array]:
        """Return the carry after one iteration, and its loss.

        It goes through the same scan as a chunk does, so weights do not depend on how iterations are grouped.
        """
        carry, losses = self.many(carry, *_map(lambda leaf: leaf[None], (batch, control)))
        return carry, losses[0]

    def many(self, carry: Carry, batches: Any, controls: Any) -> tuple[Carry, jax.Array]:
        """Return the carry after several iterations, and their losses; leaves have the iterations in front."""
        done: tuple[Carry, jax.Array] = _jax.lax.scan(self._iteration, carry, (batches, controls))
        return done

    def _iteration(self, carry: Carry, inputs: tuple[Any, Any]) -> tuple[Carry, jax.Array]:
        batch, control = inputs
        # Both words: fold_in takes 32 bits.
        key = _jax.random.fold_in(_jax.random.fold_in(self.key, control[0]), control[1])
        differentiate = _jax.value_and_grad(self.objective, has_aux=True)
        if self.on_cpu:
            differentiate = with_channels_last(differentiate)
        (loss, (_, variables)), gradient = differentiate(carry.params, batch, key, carry.variables)
        carry = carry._replace(variables=variables)
        if carry.gradient is None:
            return self._updated(carry, gradient, loss, control), loss
        weight = _jax.lax.bitcast_convert_type(control[4], jnp.float32)
        total = _map_two(lambda sum_, part: sum_ + part * weight.astype(part.dtype), carry.gradient, (gradient, loss))
        carry = carry._replace(gradient=total)
        return _jax.lax.cond(control[5] == 1, self._group_updated, _as_it_is, carry, control), loss

    def _group_updated(self, carry: Carry, control: Any) -> Carry:
        """Return the carry after an update on what the group has accumulated."""
        gradient, loss = carry.gradient
        return self._updated(carry, gradient, loss, control)._replace(
            gradient=_jax.tree.map(_jnp.zeros_like, carry.gradient)
        )

    def _updated(self, carry: Carry, gradient: Any, loss: jax.Array, control: Any) -> Carry:
        update, epoch = control[2].astype(jnp.int32), control[3].astype(jnp.int32)
        opt_state = carry.opt_state
        if self.scheduled is not None:
            opt_state = self.scheduled.apply(opt_state, update, epoch)
        if self.clip_norm is not None:
            # As torch clips: a little below the bound, never above it.
            scale = _jnp.minimum(1.0, self.clip_norm / (_norm(gradient) + 1e-6))
            gradient = _map(lambda leaf: leaf * scale.astype(leaf.dtype), gradient)
        changes, opt_state = self.optimizer.update(gradient, opt_state, carry.params, value=loss)
        params, average = optax.apply_updates(carry.params, changes), carry.average
        if self.ema_decay is not None:
            # An average begins with the first weights that it sees.
            share, is_first = 1.0 - self.ema_decay, update == 0
            average = _map_two(
                lambda mean, new: _jnp.where(is_first, new, mean + (new - mean) * share), average, params
            )
        return carry._replace(params=params, opt_state=opt_state, average=average)


def _as_it_is(carry: Carry, _: Any) -> Carry:
    return carry


def _norm(tree: Any) -> jax.Array:
    """Return the Euclidean norm over all elements of a pytree."""
    sizes = [_jnp.abs(leaf) for leaf in _jax.tree.leaves(tree)]
    # A sum of squares needs more than 8 or 11 bits.
    squares = [_jnp.square(size.astype(jnp.promote_types(size.dtype, jnp.float32))) for size in sizes]
    norm: jax.Array = _jnp.sqrt(sum((_jnp.sum(each) for each in squares), _jnp.float32(0)))
    return norm
