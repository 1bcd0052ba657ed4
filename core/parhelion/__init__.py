"""One experiment, two backends: stop anywhere, resume anywhere, and get exactly the run that was never stopped."""

from .backends import available_backends as available_backends
from .backends import load_backend as load_backend
from .checkpoint import find_last_checkpoint as find_last_checkpoint
from .checkpoint import get_trainer_safe_types_for_load as get_trainer_safe_types_for_load
from .checkpoint import register_trainer_types_for_safe_load as register_trainer_types_for_safe_load
from .checkpoint import register_value_type as register_value_type
from .data import COLLATE_FN_REGISTRY as COLLATE_FN_REGISTRY
from .data import DATASET_REGISTRY as DATASET_REGISTRY
from .data import DataLoaderParams as DataLoaderParams
from .data import DataModule as DataModule
from .data import Dataset as Dataset
from .data import DatasetSplit as DatasetSplit
from .data import create_collate_fn as create_collate_fn
from .data import create_dataset as create_dataset
from .errors import ParhelionError as ParhelionError
from .plugins import PLUGIN_REGISTRY as PLUGIN_REGISTRY
from .plugins import Plugin as Plugin
from .plugins import UniquePluginOverrides as UniquePluginOverrides
from .plugins import create_plugin as create_plugin
from .registry import Registry as Registry
from .registry import update_all_registries as update_all_registries
from .sampling import Position as Position
from .seeds import derive as derive
from .seeds import get_default_seed as get_default_seed
from .seeds import sample_rng as sample_rng
from .seeds import sample_scope as sample_scope
from .training import Plan as Plan
from .training import TrainingState as TrainingState
from .training import TrainingUnit as TrainingUnit
from .training import metrics as metrics
from .training import schedules as schedules
from .training import weights as weights

__version__ = "0.1.0"
