"""Names of folders: a checkpoint's, a damaged one's, and the hidden ones that are work in progress."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from parhelion.errors import InvalidValueError

__all__ = [
    "check_name",
    "checkpoint_name",
    "is_abandoned",
    "is_set_aside",
    "looks_like_one",
    "scratch_name",
    "set_aside_names",
]

_SET_ASIDE: Final = re.compile(r"\.damaged(-\d+)?$")
_USUAL: Final = re.compile(r"_epoch_\d+_iter_\d+")
_BAD_CHARACTER: Final = re.compile(r"[/\\\x00-\x1f\x7f]")
# Room for what is put behind a name, within the 255 bytes that file systems allow.
_LONGEST: Final = 240
_SCRATCH: Final = re.compile(r"\.parhelion-(?:saving|deleting)-(\d+)-(\d+)-[0-9a-f]+@(.+)")


def checkpoint_name(run_name: str, global_epoch: int, global_iteration: int) -> str:
    """Return the folder's name, ``<run_name>_epoch_<global_epoch>_iter_<global_iteration>``.

    Raises:
        InvalidValueError: ``run_name`` cannot begin a folder's name.
    """
    _check_text(run_name, "run name")
    return check_name(f"{run_name}_epoch_{global_epoch}_iter_{global_iteration}")


def check_name(name: str) -> str:
    """Return ``name`` if it can be a checkpoint's folder.

    Raises:
        InvalidValueError: it cannot.
    """
    _check_text(name, "checkpoint name")
    if is_set_aside(name):
        raise InvalidValueError(
            f"checkpoint name is {name!r}; expected one without the ending of those set aside as damaged. "
            "Choose another ending."
        )
    return name


def _check_text(name: str, what: str) -> None:
    if not name.strip() or name.startswith(".") or _BAD_CHARACTER.search(name):
        raise InvalidValueError(
            f"{what} is {name!r}; expected text without slashes and control characters that does not begin "
            "with a dot. Put '-' in their place."
        )
    size = len(os.fsencode(name))
    if size > _LONGEST:
        raise InvalidValueError(f"{what} is {size} bytes long; expected at most {_LONGEST}. Shorten {name!r}.")


def is_set_aside(name: str) -> bool:
    """Tell whether ``name`` is that of a damaged checkpoint that was set aside."""
    return _SET_ASIDE.search(name) is not None


def looks_like_one(name: str) -> bool:
    """Tell whether ``name`` is of the form that ``checkpoint_name`` gives."""
    return _USUAL.search(name) is not None


def set_aside_names(name: str) -> Iterator[str]:
    """Yield the names that a damaged checkpoint of this name may be given, the first one first."""
    yield f"{name}.damaged"
    yield from (f"{name}.damaged-{count}" for count in itertools.count(2))


def scratch_name(purpose: str) -> str:
    """Return a new hidden name that says which process works there ("saving" or "deleting")."""
    pid = os.getpid()
    return f".parhelion-{purpose}-{pid}-{_start_time(pid)}-{os.urandom(4).hex()}@{_host()}"


def is_abandoned(name: str, *, all_hosts: bool = False) -> bool:
    """Tell whether ``name`` is that of hidden work of a process of this host that has ended.

    Args:
        name: any name.
        all_hosts: whether work of other hosts counts too, of whose processes nothing can be known here.
    """
    match = _SCRATCH.fullmatch(name)
    if match is None:
        return False
    if match[3] != _host():
        return all_hosts
    pid, start = int(match[1]), int(match[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    # The number may have gone to another process since.
    return _start_time(pid) != start


def _start_time(pid: int) -> int:
    """Return when a process started, in ticks since boot; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(status.rpartition(b")")[2].split()[19])


def _host() -> str:
    """Return a name for whoever shares our process numbers: containers of one host name may not."""
    namespace = 0
    with contextlib.suppress(OSError):
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    return f"{os.uname().nodename}.{namespace}"
