"""LossModel: the short way to write a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax  # pyright: ignore[reportMissingTypeStubs] - it ships no types

from parhelion.errors import InvalidTypeError, InvalidValueError, ParhelionError
from parhelion.training import Scored, TrainingState

from .model import Model
from .narrowing import is_usual, to_array
from .portable import give_portable, take_portable
from .records import field_name, flatten
from .schedules import as_scheduled
from .stateful import check_tree, count_elements, give_tree, take_kinds, take_tree
from .update import Carry, Objective, Update, as_control, as_controls, join, split

__all__ = ["LossModel"]

_log = logging.getLogger("parhelion")

_jax: Any = jax  # it leaves some of it untyped
_jnp: Any = jnp
_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
# What this class saves by itself, or makes anew.
_OWN = frozenset(
    {"optimizer", "schedules", "metrics", "_given", "_given_variables", "_rest", "_carry", "_one", "_many"}
    | {"_examine", "_compiled", "_lengths", "_warned", "validated", "weight_map"}
)
_MOST_LENGTHS = 4


class LossModel(Scored, Model):
    """The short way: you give ``setup`` and a pure ``loss``; gradient, accumulation, precision, clipping, update,
    averaging and evaluation are compiled into one step whose buffers are donated.

    ``setup`` assigns ``self.params``, any pytree (a dict of arrays, an equinox module, a flax module's parameters), and
    ``self.optimizer``, of optax; it may assign ``self.variables``, ``self.schedules`` and ``self.metrics``. Its keys
    come from ``self.key("params")``.

    ``loss(params, batch, key)`` returns the batch's mean loss, or ``(loss, outputs)``: in evaluation each metric is
    updated with ``outputs`` (a tuple of arguments, or a mapping from a metric's name to its tuple). ``key`` is a fresh
    key in training and None in evaluation, where nothing is drawn: no dropout. The function is traced, so what it reads
    from ``self`` is fixed when it is compiled; what changes belongs into ``params``, ``batch`` or ``variables``.

    Mutable collections, such as batch statistics, are ``self.variables``, any pytree. Then the loss is
    ``loss(params, batch, key, variables)`` and returns ``(loss, outputs, variables)``; evaluation drops the new ones.

    Args:
        save_name: names the folder of this model's checkpoints.
        precision: "float32", or "bfloat16" to compute in it: parameters and batches are cast for the loss, and stay
            float32 for the update.
        clip_norm: the largest allowed norm of the whole gradient.
        ema_decay: decay in (0, 1) of an exponential moving average of the parameters, which evaluation then uses.
        monitor: the validation value that says whether a validation is an improvement ("valid_loss").
        mode: whether a "min" or a "max" of it is better.

    Attributes:
        params: what is trained: the arrays of floats in it; whatever else there is stays as it is. Its buffers are
            donated: after the next update an array taken from here is gone, so copy what is to be kept
            (``jax.tree.map(jnp.copy, self.params)``).
        variables: mutable collections; None for none.
        optimizer: a gradient transformation of optax.
        schedules: a schedule from ``parhelion.schedules`` or ``per_epoch`` of one, for an optimizer made by
            ``optax.inject_hyperparams``; None where the optimizer has its schedule inside.
        metrics: metrics by name.

    Raises:
        InvalidValueError: an argument is out of range.
    """  # noqa: D205 - one sentence that needs two lines

    def __init__(
        self,
        save_name: str,
        *,
        precision: Literal["float32", "bfloat16"] = "float32",
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        super().__init__(save_name, clip_norm=clip_norm, ema_decay=ema_decay, monitor=monitor, mode=mode)
        if precision not in _DTYPES:
            raise InvalidValueError(
                f"precision is {precision!r}; expected 'float32' or 'bfloat16'. float16 needs its losses scaled; "
                "bfloat16 does not."
            )
        self._carry: Carry | None = None
        self._rest: Any = None
        self.params = None
        self.variables = None
        self.optimizer: optax.GradientTransformation | None = None
        self.schedules: Any = None
        self._dtype = _DTYPES[precision]
        self._lengths: set[int] = set()
        self._warned: set[str] = set()

    # -- for the user -------------------------------------------------------------------------------------------------

    def loss(self, params: Any, batch: Any, key: jax.Array | None, *variables: Any) -> Any:
        """Return the mean loss of one batch, or ``(loss, outputs)``; with variables ``(loss, outputs, variables)``.

        Raises:
            InvalidTypeError: the model does not define it.
        """
        raise InvalidTypeError(f"{type(self).__name__} defines no loss(params, batch, key); a LossModel needs one.")

    @property
    def params(self) -> Any:
        """What is trained: a pytree."""
        return self._given if self._carry is None else join(self._carry.params, self._rest)

    @params.setter
    def params(self, params: Any) -> None:
        if self._carry is None:
            self._given = params
        else:
            _check_form("self.params", self.params, params)
            trained, rest = split(params)
            if not _are_same(rest, split(self.params)[1]):
                raise InvalidTypeError(
                    "self.params was assigned with other leaves than arrays of floats changed; expected only those to "
                    "change, since the rest is compiled into the step. Put what changes into self.variables."
                )
            self._carry = self._carry._replace(params=self.placement.replicate(trained))

    @property
    def variables(self) -> Any:
        """Mutable collections: a pytree, or None."""
        return self._given_variables if self._carry is None else self._carry.variables

    @variables.setter
    def variables(self, variables: Any) -> None:
        if self._carry is None:
            self._given_variables = variables
        else:
            _check_form("self.variables", self._carry.variables, variables)
            self._carry = self._carry._replace(variables=self.placement.replicate(variables))

    # -- set-up -------------------------------------------------------------------------------------------------------

    def start_setup(self) -> None:
        """Forget what an earlier set-up made."""
        if self._carry is not None:
            self._carry, self._rest = None, None
            self.params = self.variables = None
        self._best, self._lengths = None, set()

    def finish_setup(self, fast_init: bool = False) -> None:
        """Check what ``setup`` made, place it, and make the compiled steps.

        Raises:
            InvalidTypeError: the parameters, the optimizer or the schedule are none.
        """
        optimizer = self.optimizer
        if isinstance(optimizer, optax.MultiSteps):
            raise InvalidTypeError(
                "self.optimizer is optax.MultiSteps after setup(); expected what it wraps. Pass accumulation_steps to "
                "the Trainer, or assign its gradient_transformation()."
            )
        if not isinstance(optimizer, optax.GradientTransformation) and not (fast_init and optimizer is None):
            raise InvalidTypeError(
                f"self.optimizer is {_name(optimizer)} after setup(); expected one of optax, such as optax.adam(1e-3)."
            )
        params, rest = split(self._given)
        if not _jax.tree.leaves(params):
            raise InvalidTypeError(
                f"self.params is {_name(self._given)} after setup(), without an array of floats; expected a pytree "
                "with one. Assign it in setup(), such as self.params = {'weight': jnp.zeros((4, 3))}."
            )
        place = self.placement.replicate
        params = place(params)
        transform = optax.with_extra_args_support(optimizer or optax.identity())
        # Fresh buffers again: optimizers keep parameters in their state, and no buffer can be donated twice.
        opt_state = place(_jax.jit(transform.init)(params))
        scheduled = as_scheduled(self.schedules, opt_state) if optimizer is not None else None
        has_groups = self.trainer.accumulation_steps > 1
        self._carry = Carry(
            params,
            opt_state,
            place(self._given_variables),
            place(params) if self._ema_decay is not None else None,
            (place(_jax.tree.map(_jnp.zeros_like, params)), place(jnp.float32(0))) if has_groups else None,
        )
        self._rest = rest if _jax.tree.leaves(rest) else None
        self._given = self._given_variables = None  # the model has its own copies
        self._compiled = optimizer, self.schedules
        objective = Objective(self.loss, self._rest, self._dtype)
        on_cpu = self.device.platform == "cpu"
        update = Update(objective, transform, self.key("steps"), scheduled, self._clip_norm, self._ema_decay, on_cpu)
        self._one, self._many = (_jax.jit(step, donate_argnums=0) for step in (update.one, update.many))
        self._examine = self._compiled_evaluation(objective)
        super().finish_setup(fast_init)

    def _compiled_evaluation(self, objective: Objective) -> Callable[..., Any]:
        def examine(params: Any, variables: Any, batch: Any) -> Any:
            loss, (outputs, _) = objective(params, batch, None, variables)
            return loss, _jax.tree.map(_readable, outputs)

        # Where there are several processes each has to see all outputs, to count them.
        everywhere = self.placement.replicated if _jax.process_count() > 1 else None
        compiled: Callable[..., Any] = _jax.jit(examine, out_shardings=everywhere)
        return compiled

    def own_names(self) -> frozenset[str]:
        """Return the attributes that this class saves by itself, or that are no state."""
        return super().own_names() | _OWN

    @property
    def _trained(self) -> Carry:
        if self._carry is None:
            raise ParhelionError(f"model {self.save_name!r} is not set up; it is in Trainer.fit, test and predict.")
        return self._carry

    # -- steps --------------------------------------------------------------------------------------------------------

    def train_step(self, batch: Any, state: TrainingState) -> Any:
        """Train on one batch; the optimizer steps when the accumulation group is complete."""
        self._check_compiled()
        self._carry, loss = self._one(self._carry, _arrays(batch), as_control(state))
        return loss

    def _check_compiled(self) -> None:
        if self.optimizer is not self._compiled[0] or self.schedules is not self._compiled[1]:
            raise InvalidTypeError(
                "self.optimizer or self.schedules was assigned during training; expected them to stay, since they are "
                "compiled into the step. Let a schedule change the learning rate."
            )

    def can_train_together(self) -> bool:
        """Return whether several batches can be trained on in one call: unless ``train_step`` is the user's own."""
        return type(self).train_step is LossModel.train_step

    def train_steps(self, batches: Sequence[Any], states: Sequence[TrainingState]) -> Any:
        """Train on several batches in one compiled call, or in as many as there are shapes of batches."""
        self._check_compiled()
        losses: list[jax.Array] = []
        batches = [_arrays(batch) for batch in batches]
        for start, stop in self._runs(batches):
            stacked = self.placement.stack(batches[start:stop])
            self._carry, some = self._many(self._carry, stacked, as_controls(states[start:stop]))
            losses.append(some)
        return losses[0] if len(losses) == 1 else _jnp.concatenate(losses)

    def _runs(self, batches: Sequence[Any]) -> Iterator[tuple[int, int]]:
        """Yield from where to where batches are alike, in lengths of which only a few have to be compiled."""
        shapes = [_shapes(batch) for batch in batches]
        start = 0
        while start < len(batches):
            alike = next((k for k in range(start, len(batches)) if shapes[k] != shapes[start]), len(batches))
            stop = start + self._length(alike - start)
            yield start, stop
            start = stop

    def _length(self, wanted: int) -> int:
        """Return how many of so many batches the next call takes: all, or a power of two once much is compiled."""
        if wanted in self._lengths or len(self._lengths) < _MOST_LENGTHS:
            self._lengths.add(wanted)
            return wanted
        return 1 << (wanted.bit_length() - 1)

    def predict_step(self, batch: Any, step: int) -> Any:
        """Return the outputs that the loss returns for one batch."""
        return self.examine(batch)[1]

    def examine(self, batch: Any) -> tuple[Any, Any]:
        """Return the loss of one batch in evaluation, and its outputs."""
        carry = self._trained
        params = carry.params if carry.average is None else carry.average
        made: tuple[Any, Any] = self._examine(params, carry.variables, _arrays(batch))
        return made

    # -- whole passes -------------------------------------------------------------------------------------------------

    def row_values(self) -> Mapping[str, Any]:
        """Return the learning rate of the last update, where the optimizer tells it."""
        rates = getattr(self._trained.opt_state, "hyperparams", {})
        # A copy: the row is read later, when the buffer may have been donated.
        return {"lr": _jnp.copy(rates["learning_rate"])} if "learning_rate" in rates else {}

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and everything that training them goes on with."""
        carry = self._trained
        return {
            **{name: None if tree is None else take_tree(tree) for name, tree in _saved(carry).items()},
            "metrics": {name: metric.state_dict() for name, metric in self.metrics.items()},
            "own": super().state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Continue from what :meth:`state_dict` returned; with ``fast_init`` only the weights.

        Raises:
            CheckpointMismatchError: it is of another model. Nothing was changed.
        """
        if fast_init:
            self.load_weights(state_dict)
            if self._ema_decay is not None and state_dict["average"] is not None:
                self._give({"average": state_dict["average"]})
            return
        trees = {name: state_dict[name] for name in _saved(self._trained)}
        self._check(trees)
        super().load_state_dict(state_dict["own"])
        self._give(trees)
        for name, metric in self.metrics.items():
            if name in state_dict["metrics"]:
                metric.load_state_dict(state_dict["metrics"][name])

    def load_weights(self, state_dict: dict[str, Any]) -> None:
        """Take only the weights, from which an average then begins.

        Raises:
            CheckpointMismatchError: they are not those of this model; names the first that differs.
        """
        trees = {name: state_dict[name] for name in ("params", "variables")}
        if self._ema_decay is not None:
            trees["average"] = state_dict["params"]
        self._check(trees, dtypes=False)
        self._give(trees)

    def _check(self, trees: Mapping[str, Any], *, dtypes: bool = True) -> None:
        here = _saved(self._trained)
        for name, state in trees.items():
            if here[name] is not None or state is not None:
                check_tree(f"self.{name}", {} if here[name] is None else here[name], state or {}, dtypes=dtypes)

    def _give(self, trees: Mapping[str, Any]) -> None:
        here = _saved(self._trained)
        made = {name: give_tree(here[name], state) for name, state in trees.items() if state is not None}
        if "optimizer" in made:
            made["opt_state"] = made.pop("optimizer")
        self._carry = self._trained._replace(**made)

    def changed_attributes(self) -> dict[str, Any]:
        """Return the attributes that the run has changed, and warn of those that the compiled loss has read."""
        changed = super().changed_attributes()
        read = getattr(getattr(type(self).loss, "__code__", None), "co_names", ())
        for name in sorted(set(changed["own"].get("", {})) & set(read) - self._warned):
            _log.warning(
                "self.%s has changed and loss reads it, which was compiled with what it was, and in a resumed run is "
                "compiled with what it has become; put it into self.variables", name,
            )  # fmt: skip
            self._warned.add(name)
        return changed

    def portable_state(self) -> dict[str, Any]:
        """Return weights, average and moments by name, from which a model on another backend can go on."""
        carry = self._trained
        return take_portable(carry.params, carry.variables, carry.opt_state, carry.average)

    def load_portable(self, state: dict[str, Any] | None, backend: str, num_updates: int) -> None:
        """Continue from what a model on another backend was.

        Raises:
            CheckpointMismatchError: there is no ``weight_map``, or it does not fit. Nothing was changed.
        """
        if self.weight_map is None or not state:
            super().load_portable(state, backend, num_updates)
            return
        carry, place = self._trained, self.placement.replicate
        trees = {name: tree for name, tree in carry._asdict().items() if name != "gradient"}
        given = give_portable(state, self.weight_map, **trees, num_updates=num_updates)
        self._carry = carry._replace(**{name: place(getattr(given, name)) for name in trees})

    def trained_state_dict(self) -> dict[str, Any]:
        """Return the weights that evaluation uses by name: the averaged ones where there are any."""
        carry = self._trained
        return take_tree(carry.params if carry.average is None else carry.average)

    def describe(self) -> Mapping[str, str]:
        """Return the number of parameters."""
        return {"parameters": f"{count_elements(self._trained.params):,}"}


def _saved(carry: Carry) -> dict[str, Any]:
    """Return what of the carry a checkpoint holds: between groups there is no gradient."""
    return {
        "params": carry.params,
        "variables": carry.variables,
        "optimizer": carry.opt_state,
        "average": carry.average,
    }


def _arrays(batch: Any) -> Any:
    """Return a batch with None for what no compiled step can take, such as text, and arrays for numbers."""
    if type(batch) is dict:
        for value in batch.values():  # pyright: ignore[reportUnknownVariableType]
            if not (is_usual(value) or isinstance(value, jax.Array)):
                break
        else:
            return batch  # pyright: ignore[reportUnknownVariableType]
    leaves, structure = flatten(batch)
    return structure.unflatten([_array(leaf, partial(field_name, batch, place)) for place, leaf in enumerate(leaves)])


def _array(leaf: Any, name: Callable[[], str]) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    # A number of Python's would be of a weak type in one call and not among others in a chunk.
    return to_array(np.asarray(leaf) if isinstance(leaf, (bool, int, float, complex)) else leaf, name, copy=False)


def _check_form(what: str, here: Any, there: Any) -> None:
    """Refuse a pytree of another structure, or with arrays of other shapes or dtypes."""
    mine, theirs = take_kinds(here), take_kinds(there)
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            raise InvalidTypeError(
                f"{what} was assigned another pytree during training: {name!r} is {theirs.get(name, 'not there')} and "
                f"was {mine.get(name, 'not there')}; expected the same names, shapes and dtypes, for which the step is "
                "compiled. Assign others in setup()."
            )


def _are_same(one: Any, other: Any) -> bool:
    pairs = zip(_jax.tree.leaves(one), _jax.tree.leaves(other), strict=True)
    return all(a is b or (hasattr(a, "dtype") and np.array_equal(a, b)) for a, b in pairs)


def _readable(output: Any) -> Any:
    # NumPy has no bfloat16, and metrics count on the host.
    return output.astype(jnp.float32) if getattr(output, "dtype", None) == jnp.bfloat16 else output


def _shapes(batch: Any) -> Any:
    leaves, structure = _jax.tree.flatten(batch)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _name(value: Any) -> str:
    """Return what a message calls a value that may be large."""
    return "None" if value is None else f"a {type(value).__name__}"
