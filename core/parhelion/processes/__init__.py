"""The processes that train together: which one this is, how they talk, and how they agree."""

from ._meeting import LocalMeeting as LocalMeeting
from ._meeting import Meeting as Meeting
from ._world import World as World
