"""Hashes, and JSON files whose first line is the checksum of every byte after that line.

So a reader needs no canonical form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

import xxhash

if TYPE_CHECKING:
    from ._scalars import Json

__all__ = ["HASH", "digest", "dumps", "hasher", "is_sealed", "seal", "sealed_json", "table", "unsealed_json"]

HASH: Final = "xxh3_128"
_ENCODER: Final = json.JSONEncoder(allow_nan=False, ensure_ascii=False)


def hasher() -> xxhash.xxh3_128:
    """Return a new state of the hash that checkpoints use."""
    return xxhash.xxh3_128()


def digest(data: bytes) -> str:
    """Return the hash of ``data`` as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def seal(body: bytes) -> bytes:
    """Return ``body``, an object without its opening brace, behind a line with that and its checksum."""
    return b'{"checksum": "%s:%s",\n' % (HASH.encode(), digest(body).encode()) + body


def is_sealed(raw: bytes) -> bool:
    """Tell whether ``raw`` is what ``seal`` has made."""
    _, newline, body = raw.partition(b"\n")
    return bool(newline) and raw == seal(body)


def sealed_json(sections: Mapping[str, str]) -> bytes:
    """Return an object of sections that are JSON already, sealed."""
    return seal((",\n".join(f'"{name}": {text}' for name, text in sections.items()) + "\n}\n").encode())


def unsealed_json(raw: bytes) -> dict[str, Any]:
    """Return what a sealed object holds, whose seal was looked at before.

    Raises:
        ValueError, TypeError, RecursionError: it is no strict JSON, or no object.
    """
    return dict(json.loads(raw, parse_constant=_refuse_constant))


def table(rows: Mapping[str, Json]) -> str:
    """Return an object with one row per line, for whoever opens the file."""
    lines = ",\n".join(f"  {dumps(name)}: {dumps(row)}" for name, row in rows.items())
    return f"{{\n{lines}\n}}" if lines else "{}"


def dumps(node: Json) -> str:
    """Return strict JSON."""
    return _ENCODER.encode(node)


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is no JSON")
