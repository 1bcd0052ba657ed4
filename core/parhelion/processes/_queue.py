"""A queue from the processes of one crew to the one that has started them."""

from __future__ import annotations

import io
import pickle
import queue
import secrets
import select
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from parhelion._by_value import create_pickler
from parhelion.errors import WorldError

from ._gate import Gate, Invitation, knock
from ._line import Line
from ._wires import GONE, POSTED, Wires

__all__ = ["SharedQueue"]

_HOST: Final = "127.0.0.1"
_SECONDS: Final = 30.0


class SharedQueue:
    """What the functions that :func:`spawn` runs put into it, this process gets, while they run and afterwards.

    It goes to them as an argument, or in one. It has the methods of ``multiprocessing.Queue``, takes any number of
    items without anybody getting them, and has an item when ``put`` returns: nothing is lost with the process that put
    it. Only the process that made it gets from it.
    """

    def __init__(self) -> None:
        gate = Gate(_HOST)
        self._invitation = gate.invite(_HOST)
        self._items: queue.Queue[bytes | _Here] = queue.Queue()
        wires = Wires()
        wires.open(gate)
        threading.Thread(target=_serve, args=(wires, self._items), name="parhelion-queue", daemon=True).start()
        self._finalizer = weakref.finalize(self, wires.post, None)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Append an item; never waits."""
        self._items.put(_Here(item))

    def put_nowait(self, item: Any) -> None:
        """Append an item."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the first item, waiting for one if there is none.

        Raises:
            queue.Empty: there is none by then.
        """
        item = self._items.get(block, timeout)
        return item.value if isinstance(item, _Here) else pickle.loads(item)  # noqa: S301 - from a process of ours

    def get_nowait(self) -> Any:
        """Return the first item.

        Raises:
            queue.Empty: there is none.
        """
        return self.get(block=False)

    def empty(self) -> bool:
        """Return whether there is no item."""
        return self._items.empty()

    def qsize(self) -> int:
        """Return how many items there are."""
        return self._items.qsize()

    def close(self) -> None:
        """Take nothing more from other processes."""
        self._finalizer()

    def __reduce__(self) -> tuple[Callable[[Invitation], _FarEnd], tuple[Invitation]]:
        return _FarEnd, (self._invitation,)


class _Here:
    """An item that has not left this process."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _FarEnd:
    """The queue as another process has it."""

    def __init__(self, invitation: Invitation) -> None:
        self._invitation = invitation
        self._lock = threading.Lock()
        self._line: Line | None = None

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Append an item, and return when the queue has it.

        Raises:
            WorldError: the process that made the queue is gone, or has closed it.
            Exception: whatever pickling raises.
        """
        file = io.BytesIO()
        create_pickler(file, is_reply=True).dump(item)
        with self._lock:
            if self._line is None:
                self._line = knock(self._invitation, secrets.randbits(62), _SECONDS)
                weakref.finalize(self, self._line.close)
            self._line.put(pickle.dumps(("put", file.getvalue()), 5))
            try:
                _wait_for_answer(self._line)
            except (EOFError, OSError) as error:
                raise WorldError(
                    "the process that made this queue is gone or has closed it; expected it to be there as long as "
                    "others put something in. Close it when these have ended."
                ) from error

    def put_nowait(self, item: Any) -> None:
        """Append an item."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Raise WorldError: only the process that made the queue gets from it."""
        raise WorldError("this queue is read in another process; expected get() in the one that made it. Put only.")

    get_nowait = empty = qsize = get

    def close(self) -> None:
        """Put nothing more."""
        with self._lock:
            if self._line is not None:
                self._line.close()

    def __reduce__(self) -> tuple[Callable[[Invitation], _FarEnd], tuple[Invitation]]:
        return _FarEnd, (self._invitation,)


def _wait_for_answer(line: Line) -> None:
    while True:
        select.select([line.socket], [] if line.is_flushed else [line.socket], [])
        line.flush()
        for _ in line.read():
            return


def _serve(wires: Wires, items: queue.Queue[Any]) -> None:
    while True:
        for client, message in wires.wait():
            if client == POSTED:
                wires.close()
                return
            if message is not GONE:
                items.put(message[1])
                wires.send((client,), ("taken",))
