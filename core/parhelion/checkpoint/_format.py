"""The manifest: what a checkpoint's folder holds, and how to tell that nothing of it changed.

``manifest.json`` is one JSON object whose first line is the checksum of every byte after that line, so a
reader needs no canonical form. These stay for all versions: the checksum line, ``format``, ``version``
and ``meta``.
"""

from __future__ import annotations

import errno
import json
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs
import xxhash

from parhelion.errors import (
    CheckpointError,
    CheckpointVersionError,
    DamagedCheckpointError,
    InvalidTypeError,
    InvalidValueError,
)

from ._tree import flatten, unflatten

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ._scalars import Json

__all__ = [
    "HASH",
    "MANIFEST",
    "SHARD",
    "ArrayEntry",
    "FileEntry",
    "Heading",
    "Manifest",
    "damaged",
    "digest",
    "encode_meta",
    "hasher",
    "malformed",
    "manifest_bytes",
    "read_heading",
    "read_manifest",
    "unreadable",
]

FORMAT: Final = "parhelion-checkpoint"
VERSION: Final = 1
HASH: Final = "xxh3_128"
MANIFEST: Final = "manifest.json"
SHARD: Final = re.compile(r"arrays-(\d{5})\.safetensors")
_ENCODER: Final = json.JSONEncoder(allow_nan=False, ensure_ascii=False)
_COLUMNS: Final = ("file", "offset", "size", "dtype", "shape", "hash")
# What reading a sound manifest can raise that another version, or another program, made.
_MALFORMED = (AttributeError, LookupError, TypeError, ValueError)


@attrs.frozen
class ArrayEntry:
    """Where one array lies, what it is, and the hash of its bytes. Offsets count from the file's begin."""

    file: str
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]
    hash: str
    strides: tuple[int, ...] | None = None


@attrs.frozen
class FileEntry:
    """Size of one file of arrays, and size and hash of the header it begins with."""

    size: int
    header_size: int
    header_hash: str


@attrs.frozen
class Manifest:
    """Everything about a checkpoint but the bytes of its arrays."""

    meta: dict[str, Any]
    tree: Json
    arrays: dict[str, ArrayEntry]
    files: dict[str, FileEntry]


@attrs.frozen
class Heading:
    """What a manifest says in any version: how far the run was, and the caller's meta."""

    iteration: int
    epoch: int
    meta: dict[str, Any]


def hasher() -> xxhash.xxh3_128:
    """Return a new state of the hash that checkpoints use."""
    return xxhash.xxh3_128()


def digest(data: bytes) -> str:
    """Return the hash of ``data`` as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def encode_meta(meta: Mapping[str, Any]) -> Json:
    """Return ``meta`` as JSON.

    Raises:
        InvalidValueError: a required entry is missing.
        InvalidTypeError: a required entry is of another type.
        UnsavableValueError: a value is not plain.
    """
    for key, kind in (("run_name", str), ("global_epoch", int), ("global_iteration", int)):
        if key not in meta:
            raise InvalidValueError(
                f"meta has the entries {', '.join(map(repr, meta)) or 'none'}; expected {key!r} among them. Add it."
            )
        if type(meta[key]) is not kind:
            raise InvalidTypeError(f"meta[{key!r}] is {meta[key]!r}; expected {kind.__name__}. Convert it.")
    node, arrays = flatten(dict(meta))
    if arrays:
        raise InvalidTypeError(
            f"meta holds the array {next(iter(arrays))}; expected plain values. Put arrays into the tree."
        )
    return node


def manifest_bytes(meta: Json, tree: Json, arrays: Mapping[str, ArrayEntry], files: Mapping[str, FileEntry]) -> bytes:
    """Return the content of ``manifest.json``; ``meta`` and ``tree`` are already JSON."""
    sections = {
        "format": _dumps(FORMAT),
        "version": _dumps(VERSION),
        "hash": _dumps(HASH),
        "meta": _dumps(meta),
        "files": _table({name: attrs.asdict(entry) for name, entry in files.items()}),
        "arrays": _table({name: _array_row(entry) for name, entry in arrays.items()}),
        "tree": _dumps(tree),
    }
    body = (",\n".join(f'"{name}": {text}' for name, text in sections.items()) + "\n}\n").encode()
    return _checksum_line(body) + body


def read_heading(folder: Path) -> Heading:
    """Return what the checkpoint in ``folder`` says of itself, whatever its version; no array is read.

    Raises:
        DamagedCheckpointError: the manifest is missing or is not what was written.
    """
    content = _read_content(folder)
    try:
        meta = unflatten(content["meta"], {})
        return Heading(meta["global_iteration"], meta["global_epoch"], meta)
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise malformed(folder, error) from error


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the checkpoint in ``folder``.

    Raises:
        DamagedCheckpointError: it is missing or is not what was written.
        CheckpointVersionError: a newer release wrote it.
        CheckpointError: it is sound, and says what this release cannot read.
    """
    content = _read_content(folder)
    try:
        _check_readable(folder, content)
        return Manifest(
            meta=unflatten(content["meta"], {}),
            tree=content["tree"],
            arrays={name: _array_entry(row) for name, row in content["arrays"].items()},
            files={name: FileEntry(**row) for name, row in content["files"].items()},
        )
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise malformed(folder, error) from error


def damaged(folder: Path, what: str) -> DamagedCheckpointError:
    """Return the error that says what is wrong with the checkpoint in ``folder``."""
    return DamagedCheckpointError(
        f"checkpoint {folder} is damaged: {what}. Resume from another one; load_newest takes the newest good one."
    )


def _read_content(folder: Path) -> dict[str, Any]:
    """Return the parsed manifest once its checksum is right."""
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise unreadable(folder, MANIFEST, error) from error
    _, newline, body = raw.partition(b"\n")
    if not newline or raw != _checksum_line(body) + body:
        raise damaged(folder, f"{MANIFEST} ({len(raw)} bytes) is not what was written (its checksum differs)")
    try:
        content = dict(json.loads(raw, parse_constant=_refuse_constant))
    except (*_MALFORMED, RecursionError) as error:
        raise malformed(folder, error) from error
    return content


def _check_readable(folder: Path, content: dict[str, Any]) -> None:
    version = content["version"]
    if version > VERSION:
        raise CheckpointVersionError(
            f"checkpoint {folder} has format version {version}; expected at most {VERSION}, the newest that "
            "this release reads. Upgrade parhelion, or resume from another checkpoint by its path."
        )
    for key, expected in (("format", FORMAT), ("hash", HASH)):
        if content[key] != expected:
            raise ValueError(f"{key} is {content[key]!r} instead of {expected!r}")


def malformed(folder: Path, error: Exception) -> CheckpointError:
    """Return the error for a checkpoint that is unchanged and yet says what cannot be."""
    return CheckpointError(
        f"checkpoint {folder} has a manifest that is malformed though unchanged ({type(error).__name__}: "
        f"{error}); expected what this release writes. Load it with the release that wrote it."
    )


def unreadable(folder: Path, file: str, error: OSError) -> CheckpointError:
    """Return the error for a file that cannot be read: damage only if its bytes are gone for good."""
    if isinstance(error, FileNotFoundError):
        return damaged(folder, f"{file} is missing")
    if error.errno == errno.EIO:
        return damaged(folder, f"{file} cannot be read ({error.strerror})")
    return CheckpointError(
        f"checkpoint {folder} cannot be read ({file}: {error.strerror}); expected readable files. Check its "
        "permissions."
    )


def _checksum_line(body: bytes) -> bytes:
    return b'{"checksum": "%s:%s",\n' % (HASH.encode(), digest(body).encode())


def _array_row(entry: ArrayEntry) -> dict[str, Json]:
    row = {name: getattr(entry, name) for name in _COLUMNS}
    return row if entry.strides is None else row | {"strides": entry.strides}


def _array_entry(row: dict[str, Json]) -> ArrayEntry:
    lists: dict[str, Any] = {name: tuple(row[name]) for name in ("shape", "strides") if name in row}
    return ArrayEntry(**(row | lists))


def _table(rows: Mapping[str, Json]) -> str:
    """Return an object with one row per line, for whoever opens the file."""
    lines = ",\n".join(f"  {_dumps(name)}: {_dumps(row)}" for name, row in rows.items())
    return f"{{\n{lines}\n}}" if lines else "{}"


def _dumps(node: Json) -> str:
    return _ENCODER.encode(node)


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is no JSON")
