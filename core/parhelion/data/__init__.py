"""From record indices to batches on the host: datasets, how to load them, fetching and stacking."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from parhelion._later import import_later as _import_later

from ._choice import SAMPLER_OPTIONS as SAMPLER_OPTIONS
from ._choice import check_params as check_params
from ._choice import choose_sampler as choose_sampler
from ._choice import count_batches as count_batches
from ._choice import get_collate_fn as get_collate_fn
from ._collate import StackLeaves as StackLeaves
from ._collate import collate as collate
from ._collate import stack_arrays as stack_arrays
from ._companions import register_leaves as register_leaves
from ._datamodule import DataModule as DataModule
from ._datamodule import LoaderCreator as LoaderCreator
from ._fetch import Fetch as Fetch
from ._fetch import Records as Records
from ._kinds import is_stream as is_stream
from ._loader import Framework as Framework
from ._loader import Loader as Loader
from ._loader import create_loader as create_loader
from ._loader import open_loader as open_loader
from ._memory import empty as empty
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
from ._stats import LoaderStats as LoaderStats

if _TYPE_CHECKING:
    from ._ahead import take_ahead as take_ahead
    from ._arrays import ArrayDataset as ArrayDataset
    from ._arrays import open_npy as open_npy
    from ._combined import ConcatDataset as ConcatDataset
    from ._combined import Subset as Subset
    from ._huggingface import HuggingFaceDataset as HuggingFaceDataset
    from ._iterable_stream import IterableStream as IterableStream
    from ._iterable_stream import get_state_methods as get_state_methods
    from ._lane import Lane as Lane
    from ._lane import StatefulIterator as StatefulIterator
    from ._map_stream import MapStream as MapStream
    from ._mixing import CutMix as CutMix
    from ._mixing import MixUp as MixUp
    from ._recognition import as_batched as as_batched
    from ._recognition import as_source as as_source
    from ._rows import get_take as get_take
    from ._shards import ShardStream as ShardStream
    from ._stream import Stream as Stream
    from ._stream_choice import create_stream_loader as create_stream_loader
    from ._stream_choice import stream_batches as stream_batches
    from ._stream_loader import StreamCursor as StreamCursor
    from ._stream_loader import StreamLoader as StreamLoader
    from ._stream_pass import Delivery as Delivery
    from ._tables import ArrowDataset as ArrowDataset
    from ._tar_shards import TarShards as TarShards
    from ._text_lines import TextLines as TextLines
    from ._transforms import Chain as Chain
    from ._transforms import Collate as Collate
    from ._transforms import TransformedDataset as TransformedDataset
    from ._transforms import transformed as transformed

# Sources, transforms and streams are many modules, of which a run uses few: 90 ms.
__getattr__, __dir__ = _import_later(
    __name__,
    {
        "_ahead": "take_ahead",
        "_arrays": "ArrayDataset open_npy",
        "_combined": "ConcatDataset Subset",
        "_huggingface": "HuggingFaceDataset",
        "_iterable_stream": "IterableStream get_state_methods",
        "_lane": "Lane StatefulIterator",
        "_map_stream": "MapStream",
        "_mixing": "CutMix MixUp",
        "_recognition": "as_batched as_source",
        "_rows": "get_take",
        "_shards": "ShardStream",
        "_stream": "Stream",
        "_stream_choice": "create_stream_loader stream_batches",
        "_stream_loader": "StreamCursor StreamLoader",
        "_stream_pass": "Delivery",
        "_tables": "ArrowDataset",
        "_tar_shards": "TarShards",
        "_text_lines": "TextLines",
        "_transforms": "Chain Collate TransformedDataset transformed",
    },
)
