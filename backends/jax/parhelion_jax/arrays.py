"""jax arrays to the checkpoint's host arrays, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import attrs
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer

from parhelion.checkpoint import HostArray, Part, ShardedArray, StoredArray
from parhelion.errors import CheckpointMismatchError, UnsavableValueError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

__all__ = ["Arrays", "LazyArray"]

Index: TypeAlias = tuple[slice, ...]

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
_count_processes: Callable[[], int] = cast("Any", jax).process_count


class Arrays:
    """The adapter by which checkpoints hold jax arrays.

    An array comes back on the host's device, uncommitted, with the bits and the shape that it had; one that
    was sharded over devices comes back whole. One that was spread over processes is written by all of them, each its
    own shards; several processes get it back as a :class:`LazyArray`, and read of it what they need. Where jax has no
    64-bit types (``jax_enable_x64`` is off), an array of such a type comes back as a NumPy array: nothing is rounded. A
    memory layout other than C order (torch's channels last) is laid out plainly. One array at two places comes back as
    one.
    """

    def identity(self, leaf: Any) -> Hashable | None:
        """Return a key that the places of one array share; None for what is no jax array."""
        # An array cannot be written to, so equal memory behind two of them means nothing.
        return id(leaf) if isinstance(leaf, jax.Array) else None

    def encode(self, leaf: Any, path: str) -> HostArray | ShardedArray:
        """Return the array's bytes, copied from its devices, or a view of it where it lies on the host.

        A step that donates the array meanwhile leaves the view as it is: jax then copies. Of an array that is spread
        over processes these are the shards here that no other place counts as its own; nothing is gathered.

        Raises:
            UnsavableValueError: the array was donated or deleted, holds random keys, has elements smaller
                than a byte, or is being traced.
        """
        _check_savable(leaf, path)
        if leaf.is_fully_addressable or (leaf.is_fully_replicated and leaf.addressable_shards):
            return _to_host(leaf)
        own = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
        parts = tuple(Part(_begin(shard.index, leaf.shape), _to_host(shard.data)) for shard in own)
        return ShardedArray(leaf.dtype.name, leaf.shape, parts)

    def decode(self, array: HostArray) -> jax.Array | npt.NDArray[Any]:
        """Return the jax array, or a NumPy array over ``array.data`` for a 64-bit type without x64.

        Raises:
            CheckpointMismatchError: this jax has no such dtype.
        """
        dtype = _to_dtype(array.dtype)
        host = array.data.view(dtype).reshape(array.shape)
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            return host
        # On an accelerator the state of a large model has no room beside itself.
        with jax.default_device(_get_host_device()):
            return _to_jax(host)

    def decode_stored(self, stored: StoredArray) -> LazyArray | jax.Array | npt.NDArray[Any]:
        """Return an array that was saved in parts: whole in a process alone, else one that is read when it is placed.

        Raises:
            CheckpointMismatchError: this jax has no such dtype.
        """
        if _count_processes() == 1:
            return self.decode(stored.read_all())
        return LazyArray(stored, _to_dtype(stored.dtype))


@attrs.frozen(eq=False)
class LazyArray:
    """An array of a checkpoint that is read once it is known which parts of it this process needs.

    ``np.asarray`` and ``jnp.asarray`` of it are the whole array.

    Attributes:
        dtype: the element type.
    """

    _stored: StoredArray = attrs.field(repr=lambda stored: str(stored.shape))
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every axis."""
        return self._stored.shape

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    def read(self, index: Index) -> npt.NDArray[Any]:
        """Return the elements of a box, one slice of step 1 for each axis; nothing else is read."""
        start = _begin(index, self.shape)
        stop = tuple(each.indices(size)[1] for each, size in zip(index, self.shape, strict=True))
        shape = tuple(end - begin for begin, end in zip(start, stop, strict=True))
        return self._stored.read(start, shape).data.view(self.dtype).reshape(shape)

    def whole(self) -> jax.Array | npt.NDArray[Any]:
        """Return all of it as :meth:`Arrays.decode` does."""
        return Arrays().decode(self._stored.read_all())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all of it, newly read, as NumPy asks for it."""
        whole = self._stored.read_all().data.view(self.dtype).reshape(self.shape)
        return whole if dtype is None else whole.astype(dtype, copy=bool(copy))


def _begin(index: Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return where a box begins along every axis."""
    return tuple(each.indices(size)[0] for each, size in zip(index, shape, strict=True))


def _to_host(array: jax.Array) -> HostArray:
    """Return the bytes of an array that is whole in this process."""
    seen: npt.NDArray[Any] = np.asarray(array)
    host = np.ascontiguousarray(seen)
    is_view = np.may_share_memory(seen, host) and _lies_on_host(array)
    return HostArray(array.dtype.name, array.shape, host.reshape(-1).view(np.uint8), is_fresh=not is_view)


def _lies_on_host(array: jax.Array) -> bool:
    """Return whether NumPy sees the live buffer itself, not a copy that was made for it.

    Keeping that view would keep the buffer from being donated, and the next step would copy it to new memory, which
    takes longer than a copy to memory that is kept.
    """
    sharding: Any = array.sharding
    is_one = sharding.num_devices == 1 or array.is_fully_replicated
    is_near = next(iter(sharding.device_set)).platform == "cpu" or sharding.memory_kind not in {None, "device"}
    return bool(is_one and is_near)


def _to_dtype(name: str) -> np.dtype[Any]:
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise CheckpointMismatchError(
            f"dtype is {name!r}; expected one that jax {jax.__version__} has. Use a newer jax, or load without an "
            "adapter."
        )
    return dtype


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
