"""From a position to record indices: pure functions of integers."""

from ._buckets import ResumableBucketSampler as ResumableBucketSampler
from ._curriculum import ResumableCurriculumSampler as ResumableCurriculumSampler
from ._function import ResumableFunctionSampler as ResumableFunctionSampler
from ._mixture import ResumableMixtureSampler as ResumableMixtureSampler
from ._parts import ResumableConcatSampler as ResumableConcatSampler
from ._parts import ResumableSubsetSampler as ResumableSubsetSampler
from ._permutation import ORDER_VERSION as ORDER_VERSION
from ._permutation import Permutation as Permutation
from ._position import Position as Position
from ._registry import SAMPLER_REGISTRY as SAMPLER_REGISTRY
from ._registry import create_sampler as create_sampler
from ._registry import find_sampler as find_sampler
from ._resumable import FetchRequest as FetchRequest
from ._resumable import ResumableSampler as ResumableSampler
from ._samplers import ResumableDistributedSampler as ResumableDistributedSampler
from ._samplers import ResumableRandomSampler as ResumableRandomSampler
from ._samplers import ResumableSamplerType as ResumableSamplerType
from ._samplers import ResumableSequentialSampler as ResumableSequentialSampler
from ._shard import Block as Block
from ._shard import Shard as Shard
from ._shard import Tail as Tail
from ._weighted import ResumableWeightedSampler as ResumableWeightedSampler
