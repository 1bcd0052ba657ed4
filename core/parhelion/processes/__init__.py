"""The processes that train together: which one this is, how they talk, and how they agree."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from parhelion._later import import_later as _import_later

from ._meeting import LocalMeeting as LocalMeeting
from ._meeting import Meeting as Meeting
from ._overdue import OVERDUE as OVERDUE
from ._overdue import PREEMPTED as PREEMPTED
from ._overdue import is_overdue as is_overdue
from ._world import World as World

if _TYPE_CHECKING:
    from ._launch import launch as launch
    from ._launched import Launched as Launched
    from ._launched import find_launched as find_launched
    from ._opening import open_world as open_world
    from ._queue import SharedQueue as SharedQueue
    from ._spawn import spawn as spawn

# Most runs have one process, and need none of this: 20 ms.
__getattr__, __dir__ = _import_later(
    __name__,
    {
        "_launch": "launch",
        "_launched": "Launched find_launched",
        "_opening": "open_world",
        "_queue": "SharedQueue",
        "_spawn": "spawn",
    },
)
