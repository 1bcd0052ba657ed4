"""From record indices to batches on the host: datasets, how to load them, fetching and stacking."""

from ._choice import check_params as check_params
from ._choice import choose_sampler as choose_sampler
from ._choice import count_batches as count_batches
from ._choice import get_collate_fn as get_collate_fn
from ._collate import StackLeaves as StackLeaves
from ._collate import collate as collate
from ._collate import stack_arrays as stack_arrays
from ._datamodule import DataModule as DataModule
from ._datamodule import LoaderCreator as LoaderCreator
from ._fetch import Fetch as Fetch
from ._fetch import Records as Records
from ._loader import Loader as Loader
from ._loader import create_loader as create_loader
from ._params import COLLATE_FN_REGISTRY as COLLATE_FN_REGISTRY
from ._params import DATASET_REGISTRY as DATASET_REGISTRY
from ._params import DataLoaderParams as DataLoaderParams
from ._params import Dataset as Dataset
from ._params import DatasetSplit as DatasetSplit
from ._params import check_known as check_known
from ._params import create_collate_fn as create_collate_fn
from ._params import create_dataset as create_dataset
from ._protocols import BatchedDatasetProtocol as BatchedDatasetProtocol
from ._protocols import CollateFn as CollateFn
from ._protocols import DataLoaderProtocol as DataLoaderProtocol
from ._protocols import MapDatasetProtocol as MapDatasetProtocol
from ._protocols import SizedIterable as SizedIterable
