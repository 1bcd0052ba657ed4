"""From a position to record indices: pure functions of integers."""

from ._permutation import ORDER_VERSION as ORDER_VERSION
from ._permutation import Permutation as Permutation
from ._position import Position as Position
from ._resumable import FetchRequest as FetchRequest
from ._resumable import ResumableSampler as ResumableSampler
from ._samplers import SAMPLER_REGISTRY as SAMPLER_REGISTRY
from ._samplers import ResumableDistributedSampler as ResumableDistributedSampler
from ._samplers import ResumableRandomSampler as ResumableRandomSampler
from ._samplers import ResumableSamplerType as ResumableSamplerType
from ._samplers import ResumableSequentialSampler as ResumableSequentialSampler
from ._samplers import create_sampler as create_sampler
from ._shard import Block as Block
from ._shard import Shard as Shard
from ._shard import Tail as Tail
