"""What a run tells the world: console, text log, JSONL history, progress bar, TensorBoard."""

from ._console import ConsoleTracker as ConsoleTracker
from ._console import banner_text as banner_text
from ._file import FileLog as FileLog
from ._history import JsonlHistory as JsonlHistory
from ._history import read_history as read_history
from ._progress import ProgressBar as ProgressBar
from ._protocol import Tracker as Tracker
from ._tensorboard import TensorBoardTracker as TensorBoardTracker
from ._trackers import Trackers as Trackers
