"""Parhelion on PyTorch."""

from parhelion.sampling import ResumableSamplerType as ResumableSamplerType

from .arrays import Arrays as Arrays
from .data import collate as collate
from .data import create_dataloader as create_dataloader
from .loss_model import LossModel as LossModel
from .model import Model as Model
from .plugins import CUDAPlugin as CUDAPlugin
from .registries import LOSS_REGISTRY as LOSS_REGISTRY
from .registries import METRIC_REGISTRY as METRIC_REGISTRY
from .registries import MODEL_REGISTRY as MODEL_REGISTRY
from .registries import OPTIMIZER_REGISTRY as OPTIMIZER_REGISTRY
from .registries import SCHEDULE_REGISTRY as SCHEDULE_REGISTRY
from .registries import create_loss as create_loss
from .registries import create_metric as create_metric
from .registries import create_model as create_model
from .registries import create_optimizer as create_optimizer
from .registries import create_schedule as create_schedule
from .samplers import SAMPLER_REGISTRY as SAMPLER_REGISTRY
from .samplers import ResumableBucketSampler as ResumableBucketSampler
from .samplers import ResumableConcatSampler as ResumableConcatSampler
from .samplers import ResumableCurriculumSampler as ResumableCurriculumSampler
from .samplers import ResumableDistributedSampler as ResumableDistributedSampler
from .samplers import ResumableFunctionSampler as ResumableFunctionSampler
from .samplers import ResumableMixtureSampler as ResumableMixtureSampler
from .samplers import ResumableRandomSampler as ResumableRandomSampler
from .samplers import ResumableSampler as ResumableSampler
from .samplers import ResumableSequentialSampler as ResumableSequentialSampler
from .samplers import ResumableSubsetSampler as ResumableSubsetSampler
from .samplers import ResumableWeightedSampler as ResumableWeightedSampler
from .samplers import create_sampler as create_sampler
from .schedules import Scheduled as Scheduled
from .schedules import on_metric as on_metric
from .schedules import per_epoch as per_epoch
from .schedules import per_update as per_update
from .trainer import Trainer as Trainer
