"""Values on their way between processes: pickled, the bytes of arrays beside the pickle, and classes kept the same.

A function or class that another process cannot import, such as one of a script, travels by value. What comes
back as an instance of such a class is an instance of the very class here: classes are numbered as they are sent,
and a worker sends the number back. (Sent back by value, cloudpickle would replace the methods of the class here by
copies with other globals.)
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import io
import itertools
import mmap
import os
import pickle
import struct
import sys
import traceback
import types
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final, cast

from parhelion.errors import WorkerError

from ._companions import get_reducers, load_companions
from ._ring import make_file

__all__ = ["describe_unpicklable", "read_error", "read_file", "read_value", "write_error", "write_file", "write_value"]

_HEADER: Final = struct.Struct("<q")
_ALIGNMENT: Final = 64
_INLINE: Final = 1024  # bytes; below this a buffer costs more beside the pickle than in it
_DEEPEST: Final = 8

_get_type: Callable[[Any], Any] = type
_numbers = itertools.count()
_sent: weakref.WeakValueDictionary[int, type] = weakref.WeakValueDictionary()
_came: weakref.WeakKeyDictionary[type, int] = weakref.WeakKeyDictionary()


def write_value(value: Any) -> list[Any]:
    """Return the parts of what a worker sends: the pickle, then the bytes of each larger array.

    Raises:
        Exception: whatever pickling raises.
    """
    load_companions()
    try:
        return _pickle(value, _create_pickler)
    except (pickle.PicklingError, AttributeError, TypeError):
        return _pickle(value, functools.partial(_get_pickler(), is_reply=True))


def _create_pickler(file: Any, buffer_callback: Any) -> pickle.Pickler:
    pickler = pickle.Pickler(file, 5, buffer_callback=buffer_callback)
    if reducers := get_reducers():
        table: Any = ChainMap(dict(reducers), copyreg.dispatch_table)
        pickler.dispatch_table = table
    return pickler


def read_value(parts: list[Any]) -> Any:
    """Return the value whose parts these are; its arrays use their memory."""
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - from our own worker


def _pickle(value: Any, create: Callable[..., Any]) -> list[Any]:
    file = io.BytesIO()
    buffers: list[memoryview] = []

    def keep_apart(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _INLINE:
            return True
        buffers.append(view)
        return False

    create(file, buffer_callback=keep_apart).dump(value)
    return [file.getbuffer(), *buffers]


def write_file(value: Any) -> tuple[BinaryIO, set[str]]:
    """Return an open file that has no name, with a value for other processes to share the arrays of.

    Beside it, the names of the modules that the classes and functions in the value are of.

    Raises:
        Exception: whatever pickling raises.
    """
    modules: set[str] = set()
    parts = _pickle(value, functools.partial(_get_pickler(), is_reply=False, modules=modules))
    file = os.fdopen(make_file(0), "w+b")
    for part in [struct.pack(f"<{len(parts) + 1}q", len(parts), *(part.nbytes for part in parts)), *parts]:
        file.write(part)
        file.write(bytes(-file.tell() % _ALIGNMENT))
    file.flush()
    return file, modules


def read_file(descriptor: int) -> Any:
    """Return the value in a file of :func:`write_file`; what is changed in its arrays is seen by nobody else."""
    view = memoryview(mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE))
    (count,) = _HEADER.unpack_from(view)
    sizes = struct.unpack_from(f"<{count}q", view, _HEADER.size)
    parts: list[memoryview] = []
    end = _HEADER.size + 8 * count
    for size in sizes:
        start = end + -end % _ALIGNMENT
        end = start + size
        parts.append(view[start:end])
    return read_value(parts)


@functools.cache
def _get_pickler() -> Any:
    # Costs 20 ms, and only those who use workers need it.
    base: Any = importlib.import_module("cloudpickle").Pickler

    class Pickler(base):  # type: ignore[misc]  # cloudpickle has no types
        def __init__(self, file: Any, *, is_reply: bool, buffer_callback: Any, modules: set[str] | None = None) -> None:
            base.__init__(self, file, protocol=5, buffer_callback=buffer_callback)
            self._is_reply = is_reply
            self._modules: set[str] = set() if modules is None else modules

        def reducer_override(self, obj: Any) -> Any:
            is_class = isinstance(obj, type)
            if is_class or isinstance(obj, types.FunctionType):
                name = getattr(obj, "__module__", None)
                if not _travels_by_value(name):
                    self._modules.add(str(name))
            elif isinstance(obj, types.ModuleType):
                self._modules.add(obj.__name__)
            elif (reduce := get_reducers().get(_get_type(obj))) is not None:
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


def describe_unpicklable(value: Any, name: str, error: Exception) -> str:
    """Return where in ``value`` there is what cannot be pickled, and why."""
    path, part = _find_unpicklable(value, name)
    kind = type(part).__name__
    return f"{path} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}, which cannot be pickled ({_write(error)})"


def _find_unpicklable(value: Any, path: str, depth: int = 0) -> tuple[str, Any]:
    for step, part in _walk(value) if depth < _DEEPEST else ():
        try:
            _pickle(part, functools.partial(_get_pickler(), is_reply=True))
        except Exception:  # noqa: BLE001 - user code may raise anything here
            return _find_unpicklable(part, path + step, depth + 1)
    return path, value


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in cast("dict[Any, Any]", value).items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{k}]", part) for k, part in enumerate(cast("list[Any]", value)))
    elif not isinstance(value, type):
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())


def write_error(error: Exception, worker: int) -> list[Any]:
    """Return the parts of what a worker sends for an error: its text, its type, and what caused it."""
    trace = "".join(traceback.format_exception(error))
    message = f"{error}\n\nIt was raised in worker process {worker}:\n{trace}"
    return [message.encode(errors="replace"), _write_part(type(error)), _write_part(error.__cause__)]


def _write_part(value: Any) -> bytes:
    """Return the pickle of a class, or of an error, that the parent can read, or nothing."""
    kind: type = value if isinstance(value, type) else type(value)
    try:
        if kind in _came:
            file = io.BytesIO()
            _get_pickler()(file, is_reply=True, buffer_callback=None).dump(value)
            return file.getvalue()
        return pickle.dumps(value)
    except Exception:  # noqa: BLE001 - a type of any making
        return b""


def read_error(parts: list[Any]) -> Exception:
    """Return the error whose parts these are: of its type if that can be made of a message, else a WorkerError."""
    message = bytes(parts[0]).decode()
    error = _make_error(_read_part(parts[1]), message)
    cause = _read_part(parts[2])
    if isinstance(cause, BaseException):
        error.__cause__ = cause
    return error


def _make_error(kind: Any, message: str) -> Exception:
    # A StopIteration would end the iteration as if there were no more batches.
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, StopIteration):
        try:
            return kind(message)
        except Exception:  # noqa: BLE001 - it wants other arguments
            return WorkerError(message)
    return WorkerError(message)


def _read_part(part: Any) -> Any:
    try:
        return pickle.loads(part)  # noqa: S301 - from our own worker
    except Exception:  # noqa: BLE001 - it cannot be made again here
        return None


def _write(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
