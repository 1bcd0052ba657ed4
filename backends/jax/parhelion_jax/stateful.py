"""Pytrees of arrays as flat, named state, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from parhelion.errors import CheckpointMismatchError

__all__ = ["check_tree", "count_elements", "give_tree", "has_arrays", "leaf_name", "take_tree"]

# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance
_SCALARS = (bool, int, float, complex)
_VALUE = jax.tree_util.GetAttrKey("value")
_AS_IT_WAS = "Build the model as it was when it was saved."


def leaf_name(path: tuple[Any, ...]) -> str:
    """Return how a leaf is called: the keys that lead to it, as in "conv1/kernel".

    The last step into a flax nnx Variable ("value") is left out, so that names are those of the module's attributes.
    """
    if len(path) > 1 and path[-1] == _VALUE:
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def has_arrays(value: Any) -> bool:
    """Return whether a value is an array of jax, or a pytree with one in it."""
    return any(_is(leaf, jax.Array) for leaf in jax.tree.leaves(value))


def take_tree(tree: Any) -> dict[str, Any]:
    """Return the arrays and numbers of a pytree by name; each is whole in this process.

    A random key becomes its data: the kind of key is the code's business.
    """
    return {name: _taken(leaf) for name, leaf in _named(tree).items()}


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


def give_tree(tree: Any, state: Mapping[str, Any]) -> Any:
    """Return a pytree like ``tree`` with the leaves of ``state``, each where and as its like was.

    Args:
        tree: says structure, dtypes and shardings.
        state: what :func:`take_tree` returned of its like.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _given(leaf, state[leaf_name(path)]) if _is_kept(leaf) else leaf, tree
    )


def count_elements(tree: Any) -> int:
    """Return how many numbers the arrays of a pytree hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if _is(leaf, jax.Array))


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): leaf for path, leaf in leaves if _is_kept(leaf)}


def _is_kept(leaf: Any) -> bool:
    return _is(leaf, (jax.Array, np.ndarray, np.generic)) or type(leaf) in _SCALARS


def _is_key(leaf: Any) -> bool:
    return _is(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _taken(leaf: Any) -> Any:
    if _is_key(leaf):
        return _taken(jax.random.key_data(leaf))
    if _is(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return _whole(leaf)
    return leaf


def _whole(leaf: jax.Array) -> jax.Array:
    """Return an array that is spread over processes as one that every process has all of; all of them come here."""
    mesh = leaf.sharding.mesh  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue] - of a mesh
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=everywhere)(leaf)


def _given(leaf: Any, saved: Any) -> Any:
    if _is_key(leaf):
        data = _given(jax.random.key_data(leaf), saved)
        return jax.device_put(jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf)), leaf.sharding)
    if _is(leaf, jax.Array):
        # Over the host, so that the result is a buffer of its own, which may be donated, and on the same devices.
        host = np.array(saved, leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: host[index])
    if _is(leaf, np.ndarray):
        return np.array(saved)
    return type(leaf)(saved)


def _kind(leaf: Any, *, dtypes: bool) -> str:
    if not hasattr(leaf, "shape"):
        return f"a {type(leaf).__name__}"
    shape = str(tuple(leaf.shape))
    return f"{shape} of {leaf.dtype}" if dtypes else shape
