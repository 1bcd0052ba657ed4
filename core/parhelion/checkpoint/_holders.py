"""Who holds a run's lock, so that others can name it and tell whether it is alive."""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

import attrs

from ._names import _host, _start_time  # pyright: ignore[reportPrivateUsage] - one idea of "the same process"

__all__ = ["Holder"]


@attrs.frozen
class Holder:
    """One process that holds, or held, a lock.

    Attributes:
        host: the machine's name and what tells its sets of process numbers apart.
        boot: what the machine's kernel calls this run of itself; one for all its containers.
        pid: the process.
        start: when it began, in ticks since boot.
        since: when it took the lock, in UTC.
        token: tells this holding from every other one.
    """

    host: str
    boot: str
    pid: int
    start: int
    since: str
    token: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process, holding from now on."""
        pid = os.getpid()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(_host(), _boot(), pid, _start_time(pid), since, uuid.uuid4().hex)

    @classmethod
    def parse(cls, text: bytes) -> Holder | None:
        """Return who wrote ``text``; None if that is not (yet) a whole entry."""
        try:
            return cls(**{field.name: json.loads(text)[field.name] for field in attrs.fields(cls)})
        except (ValueError, LookupError, TypeError):
            return None

    def encode(self) -> bytes:
        """Return what :meth:`parse` reads."""
        return json.dumps(attrs.asdict(self)).encode() + b"\n"

    def shares_kernel(self, other: Holder) -> bool:
        """Tell whether one kernel ran, or runs, both: it knows which locks they hold, in containers too."""
        return self.boot == other.boot

    def is_same_process(self, other: Holder) -> bool:
        """Tell whether both are holdings of one process."""
        return (self.host, self.boot, self.pid, self.start) == (other.host, other.boot, other.pid, other.start)

    def is_dead(self, observer: Holder) -> bool:
        """Tell whether ``observer`` can see that this process has ended."""
        sees = (self.host, self.boot) == (observer.host, observer.boot)
        return sees and not _is_running(self.pid, self.start)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.rpartition('.')[0] or self.host} since {self.since}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return os.uname().nodename


def _is_running(pid: int, start: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The number may have gone to another process since.
    return _start_time(pid) == start
