"""What the files of a checkpoint and of a draft are called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ._seals import is_sealed, unsealed_json

__all__ = [
    "DRAFT",
    "LAST",
    "MANIFEST",
    "SHARD",
    "failure_name",
    "free_number",
    "record_name",
    "shard_name",
    "unreferenced",
]

MANIFEST: Final = "manifest.json"
SHARD: Final = re.compile(r"arrays-(\d{5,})\.safetensors")
# Which checkpoint a scratch folder works on.
DRAFT: Final = "draft.json"
# In the root: which checkpoint was committed last.
LAST: Final = "last.json"


def shard_name(number: int) -> str:
    """Return the name of a file of arrays."""
    return f"arrays-{number:05d}.safetensors"


def record_name(rank: int) -> str:
    """Return the name of what a process notes in the scratch folder about the file that it has written."""
    return f"shard-{rank:05d}.json"


def failure_name(rank: int) -> str:
    """Return the name of what a process notes in the scratch folder when it has failed."""
    return f"failed-{rank:05d}.txt"


def free_number(files: Iterable[str]) -> int:
    """Return a number for files of arrays from which on none is taken."""
    return max((int(match[1]) + 1 for match in map(SHARD.fullmatch, files) if match), default=0)


def unreferenced(files: Iterable[str], manifest: bytes) -> list[str]:
    """Return the files of arrays that a manifest does not speak of.

    Raises:
        ValueError, LookupError, TypeError: it is no manifest.
    """
    if not is_sealed(manifest):
        raise ValueError("the manifest is not what was written")
    kept = set(unsealed_json(manifest)["files"])
    return [file for file in files if SHARD.fullmatch(file) and file not in kept]
