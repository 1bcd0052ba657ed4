"""The manifest: what a checkpoint's folder holds, and how to tell that nothing of it changed.

``manifest.json`` is one JSON object whose first line is its checksum. These stay for all versions: the checksum
line, ``format``, ``version`` and ``meta``. Version 1 has whole arrays only; version 2 has arrays in parts too.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

import attrs

from parhelion.errors import (
    CheckpointError,
    CheckpointVersionError,
    DamagedCheckpointError,
    InvalidTypeError,
    InvalidValueError,
)

from ._entries import Entry, FileEntry, entry_of, is_in_parts, row_of
from ._layout import MANIFEST
from ._seals import HASH, dumps, is_sealed, sealed_json, table, unsealed_json
from ._stores import store_of
from ._tree import flatten, unflatten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._places import Place
    from ._scalars import Json

__all__ = [
    "MALFORMED",
    "Heading",
    "Manifest",
    "damaged",
    "encode_meta",
    "malformed",
    "manifest_bytes",
    "read_heading",
    "read_manifest",
    "unreadable",
]

FORMAT: Final = "parhelion-checkpoint"
VERSION: Final = 2
_WHOLE_ONLY: Final = 1
# What reading a sound manifest can raise that another version, or another program, made.
MALFORMED: Final = (AttributeError, LookupError, TypeError, ValueError)


@attrs.frozen
class Manifest:
    """Everything about a checkpoint but the bytes of its arrays."""

    meta: dict[str, Any]
    tree: Json
    arrays: dict[str, Entry]
    files: dict[str, FileEntry]


@attrs.frozen
class Heading:
    """What a manifest says in any version: how far the run was, and the caller's meta."""

    iteration: int
    epoch: int
    meta: dict[str, Any]


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


def manifest_bytes(meta: Json, tree: Json, arrays: Mapping[str, Entry], files: Mapping[str, FileEntry]) -> bytes:
    """Return the content of ``manifest.json``; ``meta`` and ``tree`` are already JSON."""
    version = VERSION if any(map(is_in_parts, arrays.values())) else _WHOLE_ONLY
    return sealed_json(
        {
            "format": dumps(FORMAT),
            "version": dumps(version),
            "hash": dumps(HASH),
            "meta": dumps(meta),
            "files": table({name: attrs.asdict(entry) for name, entry in files.items()}),
            "arrays": table({name: row_of(entry) for name, entry in arrays.items()}),
            "tree": dumps(tree),
        }
    )


def read_heading(folder: Place) -> Heading:
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
    except MALFORMED as error:
        raise malformed(folder, error) from error


def read_manifest(folder: Place) -> Manifest:
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
            arrays={name: entry_of(row) for name, row in content["arrays"].items()},
            files={name: FileEntry(**row) for name, row in content["files"].items()},
        )
    except CheckpointError:
        raise
    except MALFORMED as error:
        raise malformed(folder, error) from error


def damaged(folder: Place, what: str) -> DamagedCheckpointError:
    """Return the error that says what is wrong with the checkpoint in ``folder``."""
    return DamagedCheckpointError(
        f"checkpoint {folder} is damaged: {what}. Resume from another one; load_newest takes the newest good one."
    )


def _read_content(folder: Place) -> dict[str, Any]:
    """Return the parsed manifest once its checksum is right."""
    try:
        raw = store_of(folder).read(folder, MANIFEST)
    except OSError as error:
        raise unreadable(folder, MANIFEST, error) from error
    if not is_sealed(raw):
        raise damaged(folder, f"{MANIFEST} ({len(raw)} bytes) is not what was written (its checksum differs)")
    try:
        content = unsealed_json(raw)
    except (*MALFORMED, RecursionError) as error:
        raise malformed(folder, error) from error
    return content


def _check_readable(folder: Place, content: dict[str, Any]) -> None:
    version = content["version"]
    if version > VERSION:
        raise CheckpointVersionError(
            f"checkpoint {folder} has format version {version}; expected at most {VERSION}, the newest that "
            "this release reads. Upgrade parhelion, or resume from another checkpoint by its path."
        )
    for key, expected in (("format", FORMAT), ("hash", HASH)):
        if content[key] != expected:
            raise ValueError(f"{key} is {content[key]!r} instead of {expected!r}")


def malformed(folder: Place, error: Exception) -> CheckpointError:
    """Return the error for a checkpoint that is unchanged and yet says what cannot be."""
    return CheckpointError(
        f"checkpoint {folder} has a manifest that is malformed though unchanged ({type(error).__name__}: "
        f"{error}); expected what this release writes. Load it with the release that wrote it."
    )


def unreadable(folder: Place, file: str, error: OSError) -> CheckpointError:
    """Return the error for a file that cannot be read: damage only if its bytes are gone for good."""
    if isinstance(error, FileNotFoundError):
        return damaged(folder, f"{file} is missing")
    if error.errno == errno.EIO:
        return damaged(folder, f"{file} cannot be read ({error.strerror or error})")
    return CheckpointError(
        f"checkpoint {folder} cannot be read ({file}: {error.strerror or error}); expected readable files. Check its "
        "permissions."
    )
