"""What another backend can go on from: weights of a model by name, and the moments of its optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from parhelion.training import weights

from .leaves import VARIABLES, array_like, fill, is_array, named_leaves, named_weights
from .stateful import take_tree

__all__ = ["Carried", "give_moments", "give_portable", "take_moments", "take_portable"]

Give: TypeAlias = Callable[[Any], Mapping[str, Any]]

_log = logging.getLogger("parhelion")

# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance
_ROLES: Final = {"mu": "first", "nu": "second", "trace": "momentum"}
# Its fields are called as Adam's are, and its second moment is that of how much a gradient surprises.
_OTHERS: Final = ("ScaleByBeliefState",)


# -- a whole model ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Carried:
    """What a model goes on with: new trees, none of whose arrays is shared with those that it had."""

    params: Any
    variables: Any
    opt_state: Any
    average: Any


def take_portable(params: Any, variables: Any = None, opt_state: Any = None, average: Any = None) -> dict[str, Any]:
    """Return what a model on another backend can go on from; its arrays are the live ones.

    Args:
        params: the parameters.
        variables: running statistics and the like; None for none.
        opt_state: optax's state; None for none.
        average: averaged parameters, a tree like ``params``; None for none.

    Raises:
        CheckpointMismatchError: two arrays of the model have one name.
    """
    moments = None if opt_state is None else take_moments(opt_state, params)
    return {
        "weights": take_tree(named_weights(params, variables)),
        "average": None if average is None else take_tree(named_leaves(average)),
        "moments": moments
        and {role: take_tree(each) if role in _ROLES.values() else each for role, each in moments.items()},
    }


def give_portable(
    state: Mapping[str, Any],
    weight_map: weights.WeightMap,
    *,
    params: Any,
    variables: Any = None,
    opt_state: Any = None,
    average: Any = None,
    num_updates: int,
) -> Carried:
    """Return the trees with what torch's model had; those that are given stay as they are.

    Args:
        state: what torch's ``portable_state`` returned.
        weight_map: which array there is which here.
        params: the parameters as ``setup`` made them.
        variables: the variables likewise; None for none.
        opt_state: optax's state for them; None for none, and none is returned.
        average: averaged parameters, a tree like ``params``; None for none. Begins at the weights if torch had none.
        num_updates: the updates that the run had made.

    Raises:
        CheckpointMismatchError: the weights do not fit; names the first that does not, and lists the rest.
    """
    like = named_weights(params, variables)
    trained = like | weight_map.to_jax(state["weights"], like=like)
    averaged, moments = state["average"], state["moments"]
    if averaged is not None and average is not None:
        averaged = like | weight_map.to_jax(averaged, like=like)
    if averaged is not None and average is None:
        _log.warning(
            "the other backend's checkpoint has averaged weights, and they are left out: the model averages none"
        )
    if moments is not None:
        mapped = {role: weight_map.to_jax(moments[role], like=like, partial=True) for role in _ROLES.values()}
        moments = {"count": moments["count"], **mapped}
    return Carried(
        params=fill(params, trained),
        variables=fill(variables, trained | _variables_in(trained)),
        opt_state=None if opt_state is None else give_moments(opt_state, params, moments, num_updates),
        average=None if average is None else fill(average, trained if averaged is None else averaged),
    )


def _variables_in(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables that have the names of parameters, by those names."""
    return {name.removeprefix(VARIABLES): each for name, each in named.items() if name.startswith(VARIABLES)}


# -- moments ----------------------------------------------------------------------------------------------------------


def take_moments(opt_state: Any, params: Any) -> dict[str, Any] | None:
    """Return the moments of an optimizer of optax by the names of the parameters, and the updates that they saw.

    Found are ``mu`` and ``nu`` (adam, adamw, nadam, radam, lamb) and ``trace`` (sgd with momentum), in chains, masks,
    partitions and injected hyperparameters.

    Args:
        opt_state: optax's state.
        params: the parameters that it belongs to.

    Returns:
        ``count``, ``first``, ``second`` and ``momentum``; ``count`` is 0 where the optimizer keeps none. None if the
        state holds anything else as large: it then means something to that optimizer alone.
    """
    shapes = _shapes(params)
    moments: dict[str, Any] = {"count": 0, "first": {}, "second": {}, "momentum": {}}
    is_clear = True

    def read(node: Any) -> Mapping[str, Any]:
        nonlocal is_clear
        fields = _moment_fields(node, shapes)
        for field in fields:
            found, known = named_leaves(getattr(node, field)), moments[_ROLES[field]]
            is_clear = is_clear and not found.keys() & known.keys()
            known |= found
        if "mu" in fields and _has_count(node):
            moments["count"] = max(moments["count"], int(node.count))
        return dict.fromkeys(fields)

    others = _rebuild(opt_state, read)
    return moments if is_clear and not any(map(_is_large, jax.tree.leaves(others))) else None


def give_moments(opt_state: Any, params: Any, moments: Mapping[str, Any] | None, num_updates: int) -> Any:
    """Return the state of an optimizer that goes on with moments that another had.

    Moments of the same kinds are taken over, and what the other had not counted yet is zero. Of other kinds, or if
    there are none, the optimizer begins anew, which is logged. Schedules go on at ``num_updates`` either way.

    Args:
        opt_state: optax's new state.
        params: the parameters that it belongs to.
        moments: what :func:`take_moments` returns, by the names here; None for none.
        num_updates: the updates that the run had made; at 0 there is nothing to go on with.

    Raises:
        CheckpointMismatchError: a moment has another shape than its parameter.
    """
    if num_updates == 0 or not jax.tree.leaves(opt_state):
        return opt_state
    shapes, here = _shapes(params), take_moments(opt_state, params)
    there: Mapping[str, Any] = moments or {"count": 0, **{role: {} for role in _ROLES.values()}}
    fits = here is not None and all(bool(here[role]) == bool(there[role]) for role in _ROLES.values())
    if not fits:
        _log.warning("the optimizer begins anew: its moments are none that the other backend's checkpoint has")

    def write(node: Any) -> Mapping[str, Any]:
        fields = _moment_fields(node, shapes)
        if not fits and fields:
            return {}
        own = {field: _filled(getattr(node, field), there[_ROLES[field]]) for field in fields}
        if _has_count(node) and (fields or _is_clock(node)):
            own["count"] = array_like(node.count, (there["count"] or num_updates) if fields else num_updates)
        return own

    return _rebuild(opt_state, write)


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(leaf) for name, leaf in named_leaves(params).items()}


def _moment_fields(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the fields of an optimizer's state that are moments of the parameters, or of some of them."""
    for fields in (["mu", "nu"], ["trace"]):
        if type(node).__name__ not in _OTHERS and all(hasattr(node, field) for field in fields):
            found = [named_leaves(getattr(node, field)) for field in fields]
            if all(shapes.get(name) == np.shape(leaf) for named in found for name, leaf in named.items()):
                return fields
    return []


def _filled(tree: Any, named: Mapping[str, Any]) -> Any:
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in named_leaves(tree).items()}
    return fill(tree, zeros | dict(named))


def _has_count(node: Any) -> bool:
    count: Any = getattr(node, "count", None)
    return is_array(count) and np.ndim(count) == 0 and jnp.issubdtype(count.dtype, jnp.integer)


def _is_clock(node: Any) -> bool:
    """Return whether a count says how far a schedule is, as there is nothing beside it that it could have counted."""
    own = {field: getattr(node, field) for field in node._fields if not field.startswith("inner")}
    return not any(map(_is_large, jax.tree.leaves(own)))


def _is_large(leaf: Any) -> bool:
    return is_array(leaf) and np.ndim(leaf) > 0 and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _rebuild(node: Any, give: Give) -> Any:
    """Return a state in which every named tuple has the fields that ``give`` returns for it, inner ones included."""
    if _is(node, tuple) and hasattr(node, "_fields"):
        own = give(node)
        rest = {field: _rebuild(getattr(node, field), give) for field in node._fields if field not in own}
        return node._replace(**own, **rest)
    if _is(node, (tuple, list)):
        return type(node)(_rebuild(each, give) for each in node)
    if _is(node, dict):
        return {key: _rebuild(each, give) for key, each in node.items()}
    return node
