"""The safetensors layout of one file of arrays, written by ourselves.

The library's own NumPy layer writes wrong bytes for strided arrays, cannot name every dtype and copies the
whole state first; the format is small: eight bytes of length, a JSON header, the arrays without a gap.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._arrays import HostArray

__all__ = ["has_dtype", "lay_out"]

_ALIGNMENT = 64
_DTYPES = {
    "float64": ("F64", 8),
    "int64": ("I64", 8),
    "uint64": ("U64", 8),
    "float32": ("F32", 4),
    "int32": ("I32", 4),
    "uint32": ("U32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int16": ("I16", 2),
    "uint16": ("U16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}


def lay_out(arrays: Mapping[str, HostArray]) -> tuple[bytes, dict[str, int]]:
    """Return the file's header, and where each array begins in the file, in the order they lie there.

    Wide elements come first, so that every element is aligned for those who map the file. A dtype that the
    format does not name is stored as its raw bytes (U8, one axis).
    """
    ordered = sorted(arrays.items(), key=lambda item: -_DTYPES.get(item[1].dtype, ("U8", 1))[1])
    entries: dict[str, object] = {}
    starts: dict[str, int] = {}
    end = 0
    for name, array in ordered:
        size = array.data.size
        named = array.dtype in _DTYPES
        entries[name] = {
            "dtype": _DTYPES[array.dtype][0] if named else "U8",
            "shape": list(array.shape) if named else [size],
            "data_offsets": [end, end + size],
        }
        starts[name] = end
        end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}


def has_dtype(name: str) -> bool:
    """Tell whether the format names this dtype, so that every reader knows what the bytes are."""
    return name in _DTYPES
