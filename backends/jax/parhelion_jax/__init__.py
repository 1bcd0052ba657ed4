"""Parhelion on JAX."""

from .loss_model import LossModel as LossModel
from .model import Model as Model
from .schedules import Scheduled as Scheduled
from .schedules import per_epoch as per_epoch
from .schedules import per_update as per_update
from .trainer import Trainer as Trainer
