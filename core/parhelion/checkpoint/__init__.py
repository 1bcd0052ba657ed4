"""Checkpoints: a tree of state to verified bytes on disk and back, without pickle."""

from ._arrays import ArrayAdapter as ArrayAdapter
from ._arrays import HostArray as HostArray
from ._arrays import Part as Part
from ._arrays import ShardedArray as ShardedArray
from ._arrays import dense_strides as dense_strides
from ._background import Saver as Saver
from ._hold import Hold as Hold
from ._lock import RunLock as RunLock
from ._names import checkpoint_name as checkpoint_name
from ._pins import is_pinned as is_pinned
from ._pins import pin as pin
from ._pins import unpin as unpin
from ._policy import Retention as Retention
from ._policy import retain as retain
from ._reader import Checkpoint as Checkpoint
from ._reader import load_checkpoint as load_checkpoint
from ._retention import CheckpointInfo as CheckpointInfo
from ._retention import find_last_checkpoint as find_last_checkpoint
from ._retention import list_checkpoints as list_checkpoints
from ._retention import load_newest as load_newest
from ._retention import prune as prune
from ._retention import remove_leftovers as remove_leftovers
from ._tree import flatten as flatten
from ._tree import unflatten as unflatten
from ._types import get_trainer_safe_types_for_load as get_trainer_safe_types_for_load
from ._types import register_trainer_types_for_safe_load as register_trainer_types_for_safe_load
from ._types import register_value_type as register_value_type
from ._types import value_types as value_types
from ._writer import save_checkpoint as save_checkpoint
from ._writer import write_checkpoint as write_checkpoint

