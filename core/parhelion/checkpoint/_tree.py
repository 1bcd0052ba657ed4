"""Nested state to named arrays and a JSON skeleton, and back. No pickle anywhere.

In the skeleton a JSON object is a dict whose keys are strings, and a JSON list begins with a tag that says
what it is: ``["tuple", 1, 2]``, ``["array", "model.weight"]``. Equal containers come back apart; one array at
two places comes back as one.
"""

from __future__ import annotations

import enum
import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from parhelion.errors import CheckpointError, CheckpointMismatchError, UnsavableValueError

from ._arrays import (
    ArrayAdapter,
    HostArray,
    ShardedArray,
    host_from_numpy,
    is_plain_dtype,
    numpy_dtype,
    numpy_from_host,
    numpy_identity,
)
from ._paths import format_path, unique_name
from ._refusals import refusal
from ._scalars import DECODERS, NOT_PLAIN, Json, encode_scalar
from ._stored import StoredArray, StoredDecoder, stored_in_memory
from ._types import exact_type, rebuild, registered_name, registered_type, value_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

__all__ = ["AnyArray", "flatten", "unflatten"]

# Deep enough for any state, shallow enough for JSON's own recursion.
MAX_DEPTH: Final = 100
_KEY_TYPES: Final = (str, int, float, bool, type(None))
AnyArray: TypeAlias = HostArray | ShardedArray | StoredArray


def flatten(tree: Any, adapter: ArrayAdapter | None = None) -> tuple[Json, dict[str, HostArray | ShardedArray]]:
    """Return the skeleton of ``tree`` and its arrays, named by their paths.

    Nothing is copied that lies contiguously in host memory: the arrays are views of the live ones.

    Args:
        tree: dicts, lists, tuples, sets, plain values, NumPy arrays, registered values, framework arrays.
        adapter: what recognizes and reads the framework's arrays.

    Raises:
        UnsavableValueError: a value has no place in a checkpoint; its path and a way out are named.
    """
    flattener = _Flattener(adapter)
    return flattener.node(tree), flattener.arrays


def unflatten(skeleton: Json, arrays: Mapping[str, AnyArray], adapter: ArrayAdapter | None = None) -> Any:
    """Return the tree that was flattened; its arrays take over the memory of ``arrays``.

    NumPy arrays come back as such. A framework's array comes back as the adapter's kind; without an adapter
    as a NumPy array where NumPy knows the dtype, else as the HostArray. One that lies in parts is given to the
    adapter's ``decode_stored`` if it has one, and is put together otherwise.

    Raises:
        CheckpointMismatchError: a value's type is not on the allow-list or does not take what was saved.
        CheckpointError: the skeleton is not one that ``flatten`` of this release makes.
    """
    return _Unflattener(arrays, adapter).tree(skeleton)


class _Flattener:
    """One walk over a tree."""

    def __init__(self, adapter: ArrayAdapter | None) -> None:
        self.arrays: dict[str, HostArray | ShardedArray] = {}
        self._adapter = adapter
        self._names: dict[Hashable, str] = {}
        self._open: set[int] = set()
        self._path: list[object] = []

    def node(self, value: object) -> Json:
        scalar = encode_scalar(value)
        if scalar is not NOT_PLAIN:
            return scalar
        encode = _CONTAINERS.get(type(value))
        if encode is not None:
            return self._inside(value, encode)
        if registered_name(type(value)) is not None:
            return self._inside(value, _Flattener.from_registered)
        return self.from_array(value)

    def _inside(self, container: Any, encode: Callable[[_Flattener, Any], Json]) -> Json:
        if id(container) in self._open:
            raise self._refuse("a container that holds itself", "Save a tree: break the cycle.")
        if len(self._path) > MAX_DEPTH:
            raise self._refuse(f"nested more than {MAX_DEPTH} levels deep", "Save a flatter tree.")
        self._open.add(id(container))
        node = encode(self, container)
        self._open.remove(id(container))
        return node

    def _child(self, key: object, value: Any) -> Json:
        self._path.append(key)
        node = self.node(value)
        self._path.pop()
        return node

    def from_dict(self, value: dict[Any, Any]) -> Json:
        if all(type(key) is str and type(encode_scalar(key)) is str for key in value):
            return {key: self._child(key, item) for key, item in value.items()}
        return ["dict", *self._pairs(value)]

    def from_ordered(self, value: OrderedDict[Any, Any]) -> Json:
        # torch keeps the versions of a state_dict's modules in an attribute of the OrderedDict.
        attributes = {name: self._child(name, item) for name, item in vars(value).items()}
        return ["ordered", attributes, *self._pairs(value)]

    def _pairs(self, value: dict[Any, Any]) -> list[Json]:
        return [[self._key(key, "a key"), self._child(key, item)] for key, item in value.items()]

    def _key(self, key: Any, role: str) -> Json:
        kind = exact_type(key)
        if kind is tuple:
            return ["tuple", *(self._key(part, role) for part in key)]
        if kind not in _KEY_TYPES:
            raise UnsavableValueError(
                f"{format_path(self._path)} has {role} of type {kind.__name__}: {key!r}; expected str, "
                "int, float, bool, None or a tuple of those. Use those, or save a list instead."
            )
        return encode_scalar(key)

    def from_list(self, value: list[Any]) -> Json:
        return ["list", *(self._child(index, item) for index, item in enumerate(value))]

    def from_tuple(self, value: tuple[Any, ...]) -> Json:
        return ["tuple", *(self._child(index, item) for index, item in enumerate(value))]

    def from_set(self, value: Iterable[Any]) -> Json:
        # Sorted, for a set's own order changes from process to process.
        members = sorted((self._key(member, "a member") for member in value), key=json.dumps)
        return [type(value).__name__, *members]

    def from_registered(self, value: Any) -> Json:
        cls = exact_type(value)
        name = registered_name(cls)
        if issubclass(cls, enum.Flag):
            return ["flag", name, encode_scalar(value.value)]
        if issubclass(cls, enum.Enum):
            return ["enum", name, value.name]
        return ["value", name, {key: self._child(key, item) for key, item in value_fields(value).items()}]

    def from_array(self, value: Any) -> Json:
        if type(value) is np.ndarray and is_plain_dtype(value.dtype):
            return [
                "ndarray",
                self._keep(("ndarray", numpy_identity(value)), lambda _: host_from_numpy(value)),
            ]
        if type(value) is HostArray:
            return ["array", self._keep(("host", id(value)), lambda _: value)]
        adapter = self._adapter
        identity = None if adapter is None else adapter.identity(value)
        if adapter is None or identity is None:
            raise self._refuse(*refusal(value))
        return ["array", self._keep(("array", identity), lambda path: adapter.encode(value, path))]

    def _keep(self, identity: Hashable, encode: Callable[[str], HostArray | ShardedArray]) -> str:
        if identity not in self._names:
            path = format_path(self._path)
            array = encode(path)
            name = unique_name(path, self.arrays)
            self.arrays[name] = array
            self._names[identity] = name
        return self._names[identity]

    def _refuse(self, what: str, way_out: str) -> UnsavableValueError:
        return UnsavableValueError(
            f"{format_path(self._path)} is {what}; expected a plain value, a container, an array or a value "
            f"of a registered type. {way_out}"
        )


_CONTAINERS: dict[type, Callable[[_Flattener, Any], Json]] = {
    dict: _Flattener.from_dict,
    OrderedDict: _Flattener.from_ordered,
    list: _Flattener.from_list,
    tuple: _Flattener.from_tuple,
    set: _Flattener.from_set,
    frozenset: _Flattener.from_set,
}


class _Unflattener:
    """One walk over a skeleton."""

    def __init__(self, arrays: Mapping[str, AnyArray], adapter: ArrayAdapter | None) -> None:
        self._arrays = arrays
        self._adapter = adapter
        self._made: dict[tuple[str, str], Any] = {}
        self._path: list[object] = []

    def tree(self, skeleton: Json) -> Any:
        try:
            return self._value(skeleton)
        except CheckpointError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"the skeleton at {format_path(self._path)} is malformed ({type(error).__name__}: {error}); "
                "expected what this release writes. Load it with the release that wrote it."
            ) from error

    def _value(self, node: Json) -> Any:
        kind = exact_type(node)
        if kind is dict:
            return self._items(node)
        if kind is not list:
            return node
        tag, *rest = node
        scalar = DECODERS.get(tag)
        return _BUILDERS[tag](self, *rest) if scalar is None else scalar(*rest)

    def _child(self, key: object, node: Json) -> Any:
        self._path.append(key)
        value = self._value(node)
        self._path.pop()
        return value

    def _items(self, nodes: Mapping[str, Json]) -> dict[str, Any]:
        return {key: self._child(key, node) for key, node in nodes.items()}

    def to_list(self, *nodes: Json) -> list[Any]:
        return [self._child(index, node) for index, node in enumerate(nodes)]

    def to_tuple(self, *nodes: Json) -> tuple[Any, ...]:
        return tuple(self.to_list(*nodes))

    def to_set(self, *nodes: Json) -> set[Any]:
        return set(self.to_list(*nodes))

    def to_frozenset(self, *nodes: Json) -> frozenset[Any]:
        return frozenset(self.to_list(*nodes))

    def _pairs(self, *pairs: Json) -> Iterator[tuple[Any, Any]]:
        for key_node, node in pairs:
            key = self._value(key_node)
            yield key, self._child(key, node)

    def to_dict(self, *pairs: Json) -> dict[Any, Any]:
        return dict(self._pairs(*pairs))

    def to_ordered(self, attributes: Json, *pairs: Json) -> OrderedDict[Any, Any]:
        value = OrderedDict(self._pairs(*pairs))
        # Not setattr: a name in a file must not reach a descriptor.
        vars(value).update(self._items(attributes))
        return value

    def to_registered(self, name: str, fields: Json) -> Any:
        path = format_path(self._path)
        return rebuild(registered_type(name, path), self._items(fields), path)

    def to_enum(self, name: str, member: str) -> Any:
        path = format_path(self._path)
        cls = registered_type(name, path)
        members: Mapping[str, Any] = cls.__members__
        if member not in members:
            raise CheckpointMismatchError(
                f"{path} is {name}.{member}; expected one of {', '.join(members)}. Give the enum that "
                "member, or load it with the release that wrote it."
            )
        return members[member]

    def to_flag(self, name: str, node: Json) -> Any:
        path = format_path(self._path)
        cls, value = registered_type(name, path), self._value(node)
        try:
            return cls(value)
        except ValueError as error:
            raise CheckpointMismatchError(
                f"{path} is {name}({value}); expected a combination of its flags ({error}). Give the enum "
                "those flags, or load it with the release that wrote it."
            ) from error

    def to_ndarray(self, name: str) -> Any:
        return self._once("ndarray", name, lambda array: numpy_from_host(self._whole(array), self._shown()))

    def to_array(self, name: str) -> Any:
        return self._once("array", name, self._framework_array)

    def _once(self, kind: str, name: str, make: Callable[[AnyArray], Any]) -> Any:
        if (kind, name) not in self._made:
            self._made[kind, name] = make(self._arrays[name])
        return self._made[kind, name]

    def _framework_array(self, array: AnyArray) -> Any:
        if isinstance(array, ShardedArray):
            array = stored_in_memory(array, self._shown())
        adapter: object = self._adapter
        if isinstance(array, StoredArray) and isinstance(adapter, StoredDecoder):
            return self._decode(array, adapter.decode_stored)
        host = self._whole(array)
        if self._adapter is None:
            return host if numpy_dtype(host.dtype) is None else numpy_from_host(host, self._shown())
        return self._decode(host, self._adapter.decode)

    def _whole(self, array: AnyArray) -> HostArray:
        if isinstance(array, ShardedArray):
            array = stored_in_memory(array, self._shown())
        return array.read_all() if isinstance(array, StoredArray) else array

    def _decode(self, array: HostArray | StoredArray, decode: Callable[[Any], Any]) -> Any:
        try:
            return decode(array)
        except CheckpointMismatchError as error:
            raise self._refuse_array(array, error) from error
        except CheckpointError:
            # While a part was read.
            raise
        except Exception as error:
            raise self._refuse_array(array, error) from error

    def _refuse_array(self, array: HostArray | StoredArray, error: Exception) -> CheckpointMismatchError:
        return CheckpointMismatchError(
            f"{self._shown()} is an array of {array.dtype} and shape {array.shape}; expected one that the adapter "
            f"can take ({type(error).__name__}: {error}). Load without an adapter to look at it."
        )

    def _shown(self) -> str:
        return format_path(self._path)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "list": _Unflattener.to_list,
    "tuple": _Unflattener.to_tuple,
    "set": _Unflattener.to_set,
    "frozenset": _Unflattener.to_frozenset,
    "dict": _Unflattener.to_dict,
    "ordered": _Unflattener.to_ordered,
    "value": _Unflattener.to_registered,
    "enum": _Unflattener.to_enum,
    "flag": _Unflattener.to_flag,
    "array": _Unflattener.to_array,
    "ndarray": _Unflattener.to_ndarray,
}
