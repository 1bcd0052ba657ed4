"""Values on their way between processes: pickled, with the bytes of arrays beside the pickle."""

from __future__ import annotations

import copyreg
import functools
import io
import mmap
import os
import pickle
import struct
import traceback
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final, cast

from parhelion._by_value import create_pickler, is_sent
from parhelion.errors import WorkerError

from ._companions import get_reducers, load_companions
from ._ring import make_file

__all__ = ["describe_unpicklable", "read_error", "read_file", "read_value", "write_error", "write_file", "write_value"]

_HEADER: Final = struct.Struct("<q")
_ALIGNMENT: Final = 64
_INLINE: Final = 1024  # bytes; below this a buffer costs more beside the pickle than in it
_DEEPEST: Final = 8


def write_value(value: Any) -> list[Any]:
    """Return the parts of what a worker sends: the pickle, then the bytes of each larger array.

    Raises:
        Exception: whatever pickling raises.
    """
    load_companions()
    try:
        return _pickle(value, _create_pickler)
    except (pickle.PicklingError, AttributeError, TypeError):
        return _pickle(value, functools.partial(create_pickler, is_reply=True, reducers=get_reducers()))


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
    parts = _pickle(value, functools.partial(create_pickler, is_reply=False, reducers=get_reducers(), modules=modules))
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


def describe_unpicklable(value: Any, name: str, error: Exception) -> str:
    """Return where in ``value`` there is what cannot be pickled, and why."""
    path, part = _find_unpicklable(value, name)
    kind = type(part).__name__
    return f"{path} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}, which cannot be pickled ({_write(error)})"


def _find_unpicklable(value: Any, path: str, depth: int = 0) -> tuple[str, Any]:
    for step, part in _walk(value) if depth < _DEEPEST else ():
        try:
            _pickle(part, functools.partial(create_pickler, is_reply=True, reducers=get_reducers()))
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
        if is_sent(kind):
            file = io.BytesIO()
            create_pickler(file, is_reply=True, reducers=get_reducers()).dump(value)
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
