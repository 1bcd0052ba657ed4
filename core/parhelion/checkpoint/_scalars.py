"""Plain values as strict JSON and back: exact in type and in every bit.

A JSON null, boolean, string, or number with at most 53 bits stands for itself. Whatever JSON cannot say is a
list that begins with a tag: ``["float", "7ff8000000000000"]``, ``["bytes", "AAE="]``.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
import pathlib
import struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from ._arrays import is_plain_dtype
from ._types import exact_type

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DECODERS", "NOT_PLAIN", "Json", "encode_scalar"]

# What json.dumps takes; the exact recursive type would buy nothing but casts.
Json: TypeAlias = Any

NOT_PLAIN: Final = object()
_EXACT_INTEGER: Final = 2**53
_PATHS: dict[str, type[pathlib.PurePath]] = {
    "Path": pathlib.Path,
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}


def encode_scalar(value: object) -> Json:
    """Return ``value`` as JSON, or NOT_PLAIN if it is no plain value."""
    kind = exact_type(value)
    encoder = _ENCODERS.get(kind)
    if encoder is not None:
        return encoder(value)
    return _encode_numpy(value) if issubclass(kind, np.generic) else NOT_PLAIN


def _itself(value: Json) -> Json:
    return value


def _encode_int(value: int) -> Json:
    # Hexadecimal: Python refuses decimal text of more than 4300 digits.
    return value if -_EXACT_INTEGER <= value <= _EXACT_INTEGER else ["int", hex(value)]


def _decode_int(text: str) -> int:
    return int(text, 16)


def _encode_float(value: float) -> Json:
    # The bits, so that a NaN keeps its sign and payload.
    return value if math.isfinite(value) else ["float", struct.pack(">d", value).hex()]


def _decode_float(bits: str) -> float:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    return float(value)


def _encode_complex(value: complex) -> Json:
    return ["complex", struct.pack(">dd", value.real, value.imag).hex()]


def _decode_complex(bits: str) -> complex:
    return complex(*struct.unpack(">dd", bytes.fromhex(bits)))


def _encode_str(value: str) -> Json:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        # Lone surrogates (undecodable file names) are no Unicode text; JSON readers merge or drop them.
        return ["str", value.encode("utf-8", "surrogatepass").hex()]
    return value


def _decode_str(text: str) -> str:
    return bytes.fromhex(text).decode("utf-8", "surrogatepass")


def _encode_bytes(value: bytes) -> Json:
    return ["bytes", base64.b64encode(value).decode()]


def _decode_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _encode_date(value: dt.date) -> Json:
    return ["date", value.isoformat()]


def _encode_timedelta(value: dt.timedelta) -> Json:
    return ["timedelta", value.days, value.seconds, value.microseconds]


def _decode_timedelta(days: int, seconds: int, microseconds: int) -> dt.timedelta:
    return dt.timedelta(days, seconds, microseconds)


def _encode_datetime(value: dt.datetime) -> Json:
    zone = value.tzinfo
    if zone is not None and type(zone) is not dt.timezone:
        return NOT_PLAIN
    node: list[Json] = ["datetime", value.replace(tzinfo=None, fold=0).isoformat(), value.fold]
    if zone is None:
        return node
    offset = zone.utcoffset(None)
    unnamed = dt.timezone(offset).tzname(None)
    name = None if zone.tzname(None) == unnamed else _encode_str(zone.tzname(None))
    return [*node, offset.days, offset.seconds, offset.microseconds, name]


def _decode_datetime(text: str, fold: int, *zone: Json) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text).replace(fold=fold)
    if not zone:
        return moment
    *offset, name = zone
    named = [] if name is None else [_text(name)]
    return moment.replace(tzinfo=dt.timezone(dt.timedelta(*offset), *named))


def _encode_path(value: pathlib.PurePath) -> Json:
    kind = "Path" if isinstance(value, pathlib.Path) else type(value).__name__
    return ["path", kind, _encode_str(str(value))]


def _decode_path(kind: str, text: Json) -> pathlib.PurePath:
    return _PATHS[kind](_text(text))


def _encode_numpy(value: Any) -> Json:
    if isinstance(value, np.str_):
        # NumPy's own conversion drops the NULs at the end.
        return ["scalar", "str", _encode_str(str.__str__(value))]
    if isinstance(value, np.bytes_):
        return ["scalar", "bytes", base64.b64encode(bytes(value)).decode()]
    if not is_plain_dtype(value.dtype):
        return NOT_PLAIN
    return ["scalar", value.dtype.str, value.tobytes().hex()]


def _decode_numpy(dtype: str, content: Json) -> np.generic:
    # Strings apart: as an array's element one would lose the NULs at its end.
    if dtype == "str":
        return np.str_(_text(content))
    if dtype == "bytes":
        return np.bytes_(_decode_bytes(content))
    scalar: np.generic = np.frombuffer(bytes.fromhex(content), np.dtype(dtype))[0]
    return scalar


def _text(node: Json) -> str:
    return node if isinstance(node, str) else _decode_str(node[1])


_ENCODERS: dict[type, Callable[[Any], Json]] = {
    type(None): _itself,
    bool: _itself,
    int: _encode_int,
    float: _encode_float,
    complex: _encode_complex,
    str: _encode_str,
    bytes: _encode_bytes,
    dt.date: _encode_date,
    dt.datetime: _encode_datetime,
    dt.timedelta: _encode_timedelta,
    type(pathlib.Path()): _encode_path,
    pathlib.PurePosixPath: _encode_path,
    pathlib.PureWindowsPath: _encode_path,
}

DECODERS: dict[str, Callable[..., object]] = {
    "int": _decode_int,
    "float": _decode_float,
    "complex": _decode_complex,
    "str": _decode_str,
    "bytes": _decode_bytes,
    "date": dt.date.fromisoformat,
    "datetime": _decode_datetime,
    "timedelta": _decode_timedelta,
    "path": _decode_path,
    "scalar": _decode_numpy,
}
