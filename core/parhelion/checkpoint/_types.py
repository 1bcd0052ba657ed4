"""The allow-list: which classes a checkpoint may name, and so rebuild."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from parhelion.errors import CheckpointMismatchError, DuplicateNameError, InvalidTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "exact_type",
    "get_trainer_safe_types_for_load",
    "is_namedtuple",
    "rebuild",
    "register_trainer_types_for_safe_load",
    "register_value_type",
    "registered_name",
    "registered_type",
    "takes_fields",
    "value_fields",
    "value_types",
]

Class = TypeVar("Class", bound=type[Any])

_by_name: dict[str, type[Any]] = {}
_written_as: dict[type[Any], str] = {}
_own: dict[str, type[Any]] = {}


def register_value_type(cls: Class, /, *, name: str | None = None) -> Class:
    """Put ``cls`` on the allow-list, so that its values can be saved and rebuilt; return it unchanged.

    It works as a decorator. Registering a class again under its name changes nothing, and one that was
    defined anew (a reloaded module, a notebook cell run twice) takes the place of the former. A further name
    is only read, so a renamed class still opens its old checkpoints.

    Args:
        cls: an attrs class, dataclass, named tuple class or enum. Its values are saved field by field
            (members by name, flags by value) and rebuilt through the constructor; fields that the
            constructor does not take are set afterwards.
        name: what checkpoints call it, by default its module and qualified name. Give one to a class that may
            move, or that lives in a script.

    Raises:
        InvalidTypeError: ``cls`` is none of those.
        DuplicateNameError: the name belongs to another class.
    """
    if not _is_value_type(cls):
        raise InvalidTypeError(
            f"value type is {cls!r}; expected an attrs class, a dataclass, a named tuple class or an enum. "
            "Decorate it with @attrs.frozen, or save its plain parts instead."
        )
    name = _default_name(cls) if name is None else name
    taken = _by_name.get(name)
    if taken is not None and _default_name(taken) != _default_name(cls):
        raise DuplicateNameError(
            f"value type name {name!r} is taken by {taken!r}; names are unique. Pass another name='...'."
        )
    if taken is not None and taken is not cls:
        _written_as.pop(taken, None)
    _by_name[name] = cls
    _written_as.setdefault(cls, name)
    if cls.__module__.partition(".")[0].startswith("parhelion"):
        _own[name] = cls
    return cls


def value_types() -> list[type[Any]]:
    """Return the classes on the allow-list, in the order they were registered."""
    return list(_written_as)


def get_trainer_safe_types_for_load() -> list[type[Any]]:
    """Return the classes that a checkpoint may rebuild; anything else in one is refused, and no code runs."""
    return value_types()


def register_trainer_types_for_safe_load() -> None:
    """Make sure that every class of this package that checkpoints hold is on the allow-list.

    Those classes register where they are defined, so importing the package has done it already, and the call
    then changes nothing. It never touches what a user registered.
    """
    for name, cls in _own.items():
        register_value_type(cls, name=name)


def registered_name(cls: type[Any]) -> str | None:
    """Return the name under which values of exactly ``cls`` are saved, None if it is not registered."""
    return _written_as.get(cls)


def registered_type(name: str, path: str) -> type[Any]:
    """Return the class that checkpoints call ``name``.

    Raises:
        CheckpointMismatchError: no class on the allow-list has that name; ``path`` says where it is needed.
    """
    cls = _by_name.get(name)
    if cls is None:
        raise CheckpointMismatchError(
            f"{path} is a value of type {name!r}; expected one on the allow-list "
            f"({', '.join(sorted(_by_name)) or 'which is empty'}). Import the module that defines it and "
            "call register_value_type on it before loading."
        )
    return cls


def exact_type(value: object) -> type[Any]:
    """Return the class of ``value``, as one that a type checker asks no questions about."""
    return type(value)


def is_namedtuple(cls: type[Any]) -> bool:
    """Tell whether ``cls`` is a named tuple class."""
    return tuple in cls.__mro__ and hasattr(cls, "_fields")


def takes_fields(cls: type[Any]) -> bool:
    """Tell whether values of ``cls`` are made of named fields."""
    return attrs.has(cls) or dataclasses.is_dataclass(cls) or is_namedtuple(cls)


@attrs.frozen
class _Field:
    name: str
    argument: str
    init: bool


def _fields(cls: Any) -> list[_Field]:
    if attrs.has(cls):
        return [_Field(f.name, f.alias or f.name, f.init) for f in attrs.fields(cls)]
    if dataclasses.is_dataclass(cls):
        return [_Field(f.name, f.name, f.init) for f in dataclasses.fields(cls)]
    return [_Field(name, name, init=True) for name in cls._fields]


def value_fields(value: Any) -> dict[str, Any]:
    """Return the fields of a registered value by name."""
    return {f.name: getattr(value, f.name) for f in _fields(type(value))}


def rebuild(cls: type[Any], values: Mapping[str, Any], path: str) -> Any:
    """Return the value of ``cls`` that has these fields; one that is missing takes the class's default.

    Raises:
        CheckpointMismatchError: the class has no such field, or refuses the values.
    """
    fields = {f.name: f for f in _fields(cls)}
    for name in values:
        if name not in fields:
            raise CheckpointMismatchError(
                f"{path} has the field {name!r}; expected one of {', '.join(fields) or 'none'}, the fields "
                f"of {cls.__qualname__}. Load it with the release that wrote it, or give it that field."
            )
    arguments = {fields[name].argument: value for name, value in values.items() if fields[name].init}
    try:
        built = cls(**arguments)
    except Exception as error:
        raise CheckpointMismatchError(
            f"{path} has the fields {', '.join(values) or 'none'}; expected what {cls.__qualname__} accepts "
            f"({type(error).__name__}: {error}). Give fields added since a default."
        ) from error
    for name, value in values.items():
        if not fields[name].init:
            object.__setattr__(built, name, value)
    return built


def _is_value_type(candidate: object) -> bool:
    if not isinstance(candidate, type):
        return False
    cls: type[Any] = candidate
    return issubclass(cls, enum.Enum) or takes_fields(cls)


def _default_name(cls: type[Any]) -> str:
    # A spawned process knows the script's classes under another module name than the script itself does.
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return f"{module}.{cls.__qualname__}"
