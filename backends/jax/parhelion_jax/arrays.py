"""jax arrays to the checkpoint's host arrays, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer

from parhelion.checkpoint import HostArray
from parhelion.errors import CheckpointMismatchError, UnsavableValueError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

__all__ = ["Arrays"]

_NAMES: Final = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "bfloat16",
    "float16",
    "float32",
    "float64",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "complex64",
    "complex128",
)
# The oldest jax that is supported lacks some of the float8 kinds.
_DTYPES: Final[dict[str, np.dtype[Any]]] = {name: np.dtype(getattr(jnp, name)) for name in _NAMES if hasattr(jnp, name)}
# jax leaves some of their types unknown.
_to_jax: Callable[[npt.NDArray[Any]], jax.Array] = cast("Any", jnp).asarray
_get_devices: Callable[..., list[Any]] = cast("Any", jax).local_devices


class Arrays:
    """The adapter by which checkpoints hold jax arrays.

    An array comes back on the host's device, uncommitted, with the bits and the shape that it had; one that
    was sharded over devices comes back whole. Where jax has no 64-bit types (``jax_enable_x64`` is off), an
    array of such a type comes back as a NumPy array: nothing is rounded. A memory layout other than C order
    (torch's channels last) is laid out plainly. One array at two places comes back as one.
    """

    def identity(self, leaf: Any) -> Hashable | None:
        """Return a key that the places of one array share; None for what is no jax array."""
        # An array cannot be written to, so equal memory behind two of them means nothing.
        return id(leaf) if isinstance(leaf, jax.Array) else None

    def encode(self, leaf: Any, path: str) -> HostArray:
        """Return the array's bytes, copied from its devices, or a view of it where it lies on the host.

        A step that donates the array meanwhile leaves the view as it is: jax then copies.

        Raises:
            UnsavableValueError: the array was donated or deleted, holds random keys, has elements smaller
                than a byte, is being traced, or lies in parts on devices of several processes.
        """
        _check_savable(leaf, path)
        host = np.ascontiguousarray(leaf)
        return HostArray(leaf.dtype.name, leaf.shape, host.reshape(-1).view(np.uint8))

    def decode(self, array: HostArray) -> jax.Array | npt.NDArray[Any]:
        """Return the jax array, or a NumPy array over ``array.data`` for a 64-bit type without x64.

        Raises:
            CheckpointMismatchError: this jax has no such dtype.
        """
        dtype = _DTYPES.get(array.dtype)
        if dtype is None:
            raise CheckpointMismatchError(
                f"dtype is {array.dtype!r}; expected one that jax {jax.__version__} has. Use a newer jax, or "
                "load without an adapter."
            )
        host = array.data.view(dtype).reshape(array.shape)
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            return host
        # On an accelerator the state of a large model has no room beside itself.
        with jax.default_device(_get_host_device()):
            return _to_jax(host)


def _get_host_device() -> Any:
    try:
        return _get_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names only others
        return None


def _check_savable(array: jax.Array, path: str) -> None:
    for applies, what, way_out in _refusals(array):
        if applies:
            raise UnsavableValueError(
                f"{path} is {what}; expected an array of whole-byte elements that has its data here. {way_out}"
            )


def _refusals(array: jax.Array) -> Iterator[tuple[bool, str, str]]:
    """Yield what may keep an array out of a checkpoint: whether it does, its name, a way out."""
    yield (
        isinstance(array, Tracer),
        f"a traced value ({array.dtype})",
        "Save outside of jit, grad and vmap.",
    )
    yield (
        jnp.issubdtype(array.dtype, jax.dtypes.extended),
        f"an array of random keys ({array.dtype})",
        "Save jax.random.key_data(key), and wrap it again with jax.random.wrap_key_data.",
    )
    yield (
        array.is_deleted(),
        "an array that was donated to a computation or deleted",
        "Keep what the computation returned instead, or a copy from before (jnp.copy).",
    )
    yield (
        array.dtype.name not in _DTYPES,
        f"an array of the packed dtype {array.dtype}",
        "Save array.astype(jnp.int8), or jnp.float32 for a float.",
    )
    yield (
        not (array.is_fully_addressable or array.is_fully_replicated),
        "an array in parts on devices of several processes",
        "Gather it first: jax.experimental.multihost_utils.process_allgather(array, tiled=True).",
    )
