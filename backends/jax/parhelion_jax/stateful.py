"""Pytrees of arrays as flat, named state, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parhelion.errors import CheckpointMismatchError, InvalidValueError
from parhelion.training import entries

from .arrays import LazyArray

__all__ = [
    "check_tree",
    "count_elements",
    "give_tree",
    "has_arrays",
    "is_plain",
    "leaf_name",
    "put_tree",
    "take_kinds",
    "take_tree",
    "weak_names",
]

# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance
_jax: Any = jax  # it leaves some of it untyped
_jnp: Any = jnp
_SCALARS = (bool, int, float, complex)
_PLAIN = (*_SCALARS, str, bytes, type(None))
_VALUE = _jax.tree_util.GetAttrKey("value")
_AS_IT_WAS = "Build the model as it was when it was saved."


def leaf_name(path: tuple[Any, ...]) -> str:
    """Return how a leaf is called: the keys that lead to it, as in "conv1/kernel".

    The last step into a flax nnx Variable ("value") is left out, so that names are those of the module's attributes.
    """
    if len(path) > 1 and path[-1] == _VALUE:
        path = path[:-1]
    name: str = _jax.tree_util.keystr(path, simple=True, separator="/")
    return name


def has_arrays(value: Any) -> bool:
    """Return whether a value is an array of jax, or a pytree with one in it."""
    try:
        leaves = _jax.tree.leaves(value)
    except (TypeError, ValueError):  # a dictionary whose keys have no order is no pytree
        return False
    return any(_is(leaf, jax.Array) for leaf in leaves)


def is_plain(value: Any) -> bool:
    """Return whether a value is an array, a number or text, or made of lists, tuples and dicts of such."""
    if type(value) in (list, tuple, dict):
        return all(map(is_plain, entries(value).values()))
    return type(value) in _PLAIN or (_is(value, (jax.Array, np.ndarray, np.generic)) and not _is_key(value))


def take_kinds(tree: Any) -> dict[str, str]:
    """Return of every leaf of a pytree what it is: what stays the same as long as only numbers change."""
    return {
        leaf_name(path): repr(leaf) if type(leaf) in (str, bytes) else _kind(leaf, dtypes=True)
        for path, leaf in _jax.tree_util.tree_leaves_with_path(tree)
    }


def take_tree(tree: Any) -> dict[str, Any]:
    """Return the arrays and numbers of a pytree by name, the live ones; nothing is gathered or copied.

    A random key becomes its data: the kind of key is the code's business.

    Raises:
        InvalidValueError: two leaves have one name.
    """
    return {name: _taken(leaf) for name, leaf in _named(tree).items()}


def weak_names(tree: Any) -> list[str]:
    """Return the names of the arrays whose dtype yields to any other's, as that of ``jnp.asarray(0.1)`` does."""
    return [name for name, leaf in _named(tree).items() if getattr(leaf, "weak_type", False)]


def check_tree(where: str, tree: Any, state: Any, *, dtypes: bool = True) -> None:
    """Refuse the state of another pytree.

    Args:
        where: what the message calls the tree.
        tree: what the state is for.
        state: what :func:`take_tree` returned.
        dtypes: whether the element types must agree too.

    Raises:
        CheckpointMismatchError: a leaf is missing, extra or of another shape or dtype; names the first.
    """
    if not _is(state, Mapping):
        raise CheckpointMismatchError(f"the checkpoint has no {where} and the model has. {_AS_IT_WAS}")
    here = take_tree(tree)
    for name in [*here, *(each for each in state if each not in here)]:
        mine = _kind(here[name], dtypes=dtypes) if name in here else "not there"
        theirs = _kind(state[name], dtypes=dtypes) if name in state else "not there"
        if mine != theirs:
            raise CheckpointMismatchError(
                f"{where} of the checkpoint is another tree: {name!r} is {mine} here and {theirs} in the checkpoint "
                f"({len(here)} leaves here, {len(state)} there; this is the first that differs). {_AS_IT_WAS}"
            )


def give_tree(tree: Any, state: Mapping[str, Any], weak: Collection[str] = ()) -> Any:
    """Return a pytree like ``tree`` with the leaves of ``state``, each where and as its like was.

    Args:
        tree: says structure, dtypes and shardings.
        state: what :func:`take_tree` returned of its like.
        weak: what :func:`weak_names` returned of it.
    """

    def give(path: tuple[Any, ...], leaf: Any) -> Any:
        if not _is_kept(leaf):
            return leaf
        name = leaf_name(path)
        given = _given(leaf, state[name])
        return _weakened(given) if name in weak else given

    return _jax.tree_util.tree_map_with_path(give, tree)


def put_tree(tree: Any, state: Mapping[str, Any], weak: Collection[str] = ()) -> Any:
    """Return what :func:`give_tree` does, or ``tree`` itself, written to, where it is made of variables of flax nnx.

    Those may hang in several places, also of other trees, and go on doing so.
    """
    given = give_tree(tree, state, weak)
    leaves = _jax.tree_util.tree_leaves_with_path(given)
    variables = [_variable(tree, path) for path, _ in leaves]
    if None in variables:
        return given
    for variable, (_, leaf) in zip(variables, leaves, strict=True):
        variable.set_value(leaf)
    return tree


def count_elements(tree: Any) -> int:
    """Return how many numbers the arrays of a pytree hold."""
    return sum(leaf.size for leaf in _jax.tree.leaves(tree) if _is(leaf, jax.Array))


def _named(tree: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for path, leaf in _jax.tree_util.tree_leaves_with_path(tree):
        if not _is_kept(leaf):
            continue
        if (name := leaf_name(path)) in named:
            raise InvalidValueError(
                f"two leaves of a pytree are called {name!r}; expected a name for each. Rename one, such as a key "
                "with a slash in it."
            )
        named[name] = leaf
    return named


def _variable(tree: Any, path: tuple[Any, ...]) -> Any:
    """Return the variable of flax nnx that a leaf is the value of; None if it is not."""
    if not path or path[-1] != _VALUE:
        return None
    for step in path[:-1]:
        if _is(step, _jax.tree_util.GetAttrKey):
            tree = getattr(tree, step.name)
        elif _is(step, (_jax.tree_util.DictKey, _jax.tree_util.SequenceKey)):
            tree = tree[getattr(step, "key", getattr(step, "idx", None))]
        else:
            return None
    return tree if callable(getattr(tree, "set_value", None)) else None


def _is_kept(leaf: Any) -> bool:
    return _is(leaf, (jax.Array, np.ndarray, np.generic)) or type(leaf) in _SCALARS


def _is_key(leaf: Any) -> bool:
    return _is(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _taken(leaf: Any) -> Any:
    if _is_key(leaf):
        return _taken(_jax.random.key_data(leaf))
    return leaf


def _given(leaf: Any, saved: Any) -> Any:
    if _is_key(leaf):
        data = _given(_jax.random.key_data(leaf), saved)
        return _beside(leaf, _jax.random.wrap_key_data(data, impl=_jax.random.key_impl(leaf)))
    if _is(leaf, jax.Array):
        if not leaf.committed:
            # It goes on being computed with wherever the others are.
            return _jnp.array(np.asarray(saved, leaf.dtype), copy=True)
        # Over the host, so that the result is a buffer of its own, which may be donated, and on the same devices.
        take = _take_boxes(saved, leaf.dtype) if _is(saved, LazyArray) else np.array(saved, leaf.dtype).__getitem__
        return _jax.make_array_from_callback(leaf.shape, leaf.sharding, take)
    if _is(leaf, np.ndarray):
        return np.array(saved)
    return type(leaf)(saved)


def _take_boxes(saved: LazyArray, dtype: Any) -> Callable[[tuple[slice, ...]], Any]:
    """Return what reads one box of a saved array, however many devices are to have it."""
    boxes: dict[str, Any] = {}

    def take(index: tuple[slice, ...]) -> Any:
        name = str(index)  # slices cannot be hashed
        if name not in boxes:
            boxes[name] = saved.read(index).astype(dtype, copy=False)
        return boxes[name]

    return take


def _weakened(array: Any) -> Any:
    # The one operation that gives an array of any content a weak type is writing into one that has it.
    weak = _jnp.full(array.shape, array.dtype.type(0).item())
    return _beside(array, weak.at[...].set(array))


def _beside(leaf: Any, made: Any) -> Any:
    """Return an array where another one is, and bound to there if that is."""
    return _jax.device_put(made, leaf.sharding) if leaf.committed else made


def _kind(leaf: Any, *, dtypes: bool) -> str:
    if not hasattr(leaf, "shape"):
        return f"a {type(leaf).__name__}"
    shape = str(tuple(leaf.shape))
    return f"{shape} of {leaf.dtype}" if dtypes else shape
