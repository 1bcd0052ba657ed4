"""Models, optimizers, schedules, losses and metrics by name.

The schedule and metric registries are children of the core's: every neutral name works here, and what is
registered here stays here. torch's own classes are there under the names that torch gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn, optim
from torch.optim import lr_scheduler

from parhelion.registry import Registry
from parhelion.training import _metrics, _schedules

__all__ = [
    "LOSS_REGISTRY",
    "METRIC_REGISTRY",
    "MODEL_REGISTRY",
    "OPTIMIZER_REGISTRY",
    "SCHEDULE_REGISTRY",
    "create_loss",
    "create_metric",
    "create_model",
    "create_optimizer",
    "create_schedule",
]
