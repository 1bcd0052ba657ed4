"""Pickling for other processes of this program: what they cannot import travels by value, and classes stay the same.

A function or class of a script, or of a module that was imported by its file, is sent whole. What comes back as an
instance of such a class is an instance of the very class here: classes are numbered as they are sent, and the other
process sends the number back. (Sent back by value, cloudpickle would replace the methods of the class here by copies
with other globals.)
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

__all__ = ["create_pickler", "is_sent"]

_get_type: Callable[[Any], Any] = type
_numbers = itertools.count()
_sent: weakref.WeakValueDictionary[int, type] = weakref.WeakValueDictionary()
_came: weakref.WeakKeyDictionary[type, int] = weakref.WeakKeyDictionary()


def create_pickler(
    file: Any,
    *,
    is_reply: bool,
    reducers: Mapping[type, Callable[[Any], Any]] | None = None,
    buffer_callback: Any = None,
    modules: set[str] | None = None,
) -> Any:
    """Return a pickler whose ``dump`` writes a value into a file.

    Args:
        file: written to.
        is_reply: whether the value goes back to where classes by value came from.
        reducers: for exact types, what ``__reduce__`` would return.
        buffer_callback: see :class:`pickle.Pickler`.
        modules: takes the names of the modules that the classes and functions in the value are of.
    """
    reducers = {} if reducers is None else reducers
    modules = set() if modules is None else modules
    return _get_pickler()(file, is_reply=is_reply, reducers=reducers, buffer_callback=buffer_callback, modules=modules)


def is_sent(kind: type) -> bool:
    """Return whether a class was sent to this process by value."""
    return kind in _came


@functools.cache
def _get_pickler() -> Any:
    # Costs 20 ms, and only those who start processes need it.
    base: Any = importlib.import_module("cloudpickle").Pickler

    class Pickler(base):  # type: ignore[misc]  # cloudpickle has no types
        def __init__(self, file: Any, *, is_reply: bool, reducers: Any, buffer_callback: Any, modules: Any) -> None:
            base.__init__(self, file, protocol=5, buffer_callback=buffer_callback)
            self._is_reply, self._reducers, self._modules = is_reply, reducers, modules

        def reducer_override(self, obj: Any) -> Any:
            is_class = isinstance(obj, type)
            if is_class or isinstance(obj, types.FunctionType):
                name = getattr(obj, "__module__", None)
                if not _travels_by_value(name):
                    self._modules.add(str(name))
            elif isinstance(obj, types.ModuleType):
                self._modules.add(obj.__name__)
            elif (reduce := self._reducers.get(_get_type(obj))) is not None:
                self._modules.add(type(obj).__module__)
                return reduce(obj)
            if is_class and self._is_reply and obj in _came:
                return _get_sent, (_came[obj],)
            reduced: Any = base.reducer_override(self, obj)
            if not is_class or self._is_reply or not _is_by_value(reduced):
                return reduced
            make, arguments, *rest = reduced
            return (_make_numbered, (_number(obj), make, arguments), *rest)

    return Pickler


@functools.cache
def _travels_by_value(name: Any) -> bool:
    """Return whether what a module defines travels by value: another process would not find the module.

    Such are scripts, and modules that were imported by their file, as pytest does with tests; cloudpickle is told.
    """
    module = sys.modules.get(name)
    if module is None or name == "__main__":
        return bool(name == "__main__")
    if _is_found(name, getattr(module, "__file__", None)):
        return False
    importlib.import_module("cloudpickle").register_pickle_by_value(module)
    return True


def _is_found(name: str, file: str | None) -> bool:
    """Return whether an import of a module would read the file that it came from; its parents are only looked up."""
    places: Any = None
    spec: Any = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        whole = ".".join(parts[:count])
        found = (finder.find_spec(whole, places) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((each for each in found if each is not None), None)
        if spec is None:
            return False
        places = spec.submodule_search_locations
    return not spec.has_location or (file is not None and os.path.realpath(spec.origin) == os.path.realpath(file))


def _is_by_value(reduced: Any) -> bool:
    """Return whether something is made first and then given its attributes, unlike what is only looked up."""
    return isinstance(reduced, tuple) and bool(cast("Any", reduced)[2:])


def _number(kind: type) -> int:
    number = next(_numbers)
    _sent[number] = kind
    return number


def _get_sent(number: int) -> type:
    return _sent[number]


def _make_numbered(number: int, make: Callable[..., type], arguments: tuple[Any, ...]) -> type:
    kind = make(*arguments)
    _came[kind] = number
    return kind
