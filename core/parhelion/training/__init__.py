"""From batches to a trained model: state, plan, loop, model, trainer, metrics, schedules."""

from . import _metrics as metrics  # noqa: F401  # pyright: ignore[reportUnusedImport] - a public name
from . import _schedules as schedules  # noqa: F401  # pyright: ignore[reportUnusedImport] - a public name
from . import _weights as weights  # noqa: F401  # pyright: ignore[reportUnusedImport] - a public name
from ._attributes import Attributes as Attributes
from ._attributes import OnDevice as OnDevice
from ._attributes import put_attributes as put_attributes
from ._events import BatchEnded as BatchEnded
from ._events import BatchStarted as BatchStarted
from ._events import EpochEnded as EpochEnded
from ._events import EpochStarted as EpochStarted
from ._events import Event as Event
from ._events import StepCommitted as StepCommitted
from ._events import TestBatchEnded as TestBatchEnded
from ._events import TestBatchStarted as TestBatchStarted
from ._events import TestEnded as TestEnded
from ._events import TestStarted as TestStarted
from ._events import TrainingEnded as TrainingEnded
from ._events import TrainingStarted as TrainingStarted
from ._events import ValidationBatchEnded as ValidationBatchEnded
from ._events import ValidationBatchStarted as ValidationBatchStarted
from ._events import ValidationEnded as ValidationEnded
from ._events import ValidationStarted as ValidationStarted
from ._loop import Loop as Loop
from ._model import Model as Model
from ._options import TrainerOptions as TrainerOptions
from ._plan import Due as Due
from ._plan import Plan as Plan
from ._protocols import BackendParts as BackendParts
from ._protocols import Placement as Placement
from ._protocols import Randomness as Randomness
from ._protocols import Verdict as Verdict
from ._protocols import Work as Work
from ._protocols import World as World
from ._scored import Scored as Scored
from ._source import Source as Source
from ._starter import Outcome as Outcome
from ._starter import Starter as Starter
from ._state import BatchSpan as BatchSpan
from ._state import TrainingState as TrainingState
from ._state import TrainingUnit as TrainingUnit
from ._stateful import Stateful as Stateful
from ._stateful import entries as entries
from ._trainer import Trainer as Trainer
from ._window import Window as Window
