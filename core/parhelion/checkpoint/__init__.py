"""Checkpoints: a tree of state to verified bytes on disk and back, without pickle."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from parhelion._later import import_later as _import_later

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
from ._places import Place as Place
from ._places import RemotePath as RemotePath
from ._places import as_place as as_place
from ._policy import Retention as Retention
from ._policy import retain as retain
from ._reader import Checkpoint as Checkpoint
from ._reader import load_checkpoint as load_checkpoint
from ._retention import CheckpointInfo as CheckpointInfo
from ._retention import Readers as Readers
from ._retention import delete_checkpoint as delete_checkpoint
from ._retention import find_last_checkpoint as find_last_checkpoint
from ._retention import list_checkpoints as list_checkpoints
from ._retention import load_newest as load_newest
from ._retention import prune as prune
from ._retention import remove_leftovers as remove_leftovers
from ._retention import supersede as supersede
from ._schema import register_upgrade as register_upgrade
from ._schema import upgrade as upgrade
from ._stored import StoredArray as StoredArray
from ._stored import StoredDecoder as StoredDecoder
from ._tree import flatten as flatten
from ._tree import unflatten as unflatten
from ._types import get_trainer_safe_types_for_load as get_trainer_safe_types_for_load
from ._types import register_trainer_types_for_safe_load as register_trainer_types_for_safe_load
from ._types import register_value_type as register_value_type
from ._types import value_types as value_types
from ._writer import begin_shared as begin_shared
from ._writer import commit_shared as commit_shared
from ._writer import save_checkpoint as save_checkpoint
from ._writer import write_checkpoint as write_checkpoint
from ._writer import write_shard as write_shard

if _TYPE_CHECKING:
    from ._difference import ArrayDifference as ArrayDifference
    from ._difference import Difference as Difference
    from ._difference import ValueDifference as ValueDifference
    from ._difference import diff as diff
    from ._inspection import ArraySummary as ArraySummary
    from ._inspection import Problem as Problem
    from ._inspection import Summary as Summary
    from ._inspection import show as show
    from ._inspection import verify as verify
    from ._weights_out import export_weights as export_weights
    from ._weights_out import open_whole as open_whole
    from ._weights_out import read_weights as read_weights

# Tools for people, which no run needs: 20 ms.
__getattr__, __dir__ = _import_later(
    __name__,
    {
        "_difference": "ArrayDifference Difference ValueDifference diff",
        "_inspection": "ArraySummary Problem Summary show verify",
        "_weights_out": "export_weights open_whole read_weights",
    },
)
