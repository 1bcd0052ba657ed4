"""Models, optimizers, schedules, losses and metrics by name.

torch's own classes are there under the names that torch gives them. The registries of schedules and metrics
are children of the core's: every neutral name works here, and what is registered here stays here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn, optim
from torch.optim import lr_scheduler

from parhelion.registry import Registry
from parhelion.training import metrics, schedules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.optim.optimizer import ParamsT

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

_OPTIMIZERS = (
    optim.ASGD,
    optim.Adadelta,
    optim.Adafactor,
    optim.Adagrad,
    optim.Adam,
    optim.AdamW,
    optim.Adamax,
    optim.LBFGS,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Rprop,
    optim.SGD,
    optim.SparseAdam,
)
_SCHEDULERS = (
    lr_scheduler.ChainedScheduler,
    lr_scheduler.ConstantLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
    lr_scheduler.CyclicLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.LambdaLR,
    lr_scheduler.LinearLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.ReduceLROnPlateau,
    lr_scheduler.SequentialLR,
    lr_scheduler.StepLR,
)
_LOSSES = (
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.CTCLoss,
    nn.CosineEmbeddingLoss,
    nn.CrossEntropyLoss,
    nn.GaussianNLLLoss,
    nn.HingeEmbeddingLoss,
    nn.HuberLoss,
    nn.KLDivLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.MarginRankingLoss,
    nn.MultiLabelMarginLoss,
    nn.MultiLabelSoftMarginLoss,
    nn.MultiMarginLoss,
    nn.NLLLoss,
    nn.PoissonNLLLoss,
    nn.SmoothL1Loss,
    nn.SoftMarginLoss,
    nn.TripletMarginLoss,
    nn.TripletMarginWithDistanceLoss,
)


def _registry(
    kind: str,
    entries: Iterable[Callable[..., Any]] = (),
    parent: Registry[Callable[..., Any]] | None = None,
) -> Registry[Callable[..., Any]]:
    registry = Registry(kind, parent)
    for entry in entries:
        registry.register(entry)
    return registry


MODEL_REGISTRY = _registry("model")
"""What a project trains: ``torch.nn.Module`` classes and models, registered by the project itself."""

OPTIMIZER_REGISTRY = _registry("optimizer", _OPTIMIZERS)
"""The classes of ``torch.optim``."""

SCHEDULE_REGISTRY = _registry("schedule", _SCHEDULERS, schedules.SCHEDULE_REGISTRY)
"""The classes of ``torch.optim.lr_scheduler``; then the core's pure schedules."""

LOSS_REGISTRY = _registry("loss", _LOSSES)
"""The losses of ``torch.nn``."""

METRIC_REGISTRY = _registry("metric", parent=metrics.METRIC_REGISTRY)
"""The core's metrics, and what is registered for torch alone."""

if hasattr(optim, "Muon"):  # from torch 2.9 on
    OPTIMIZER_REGISTRY.register(optim.Muon)


def create_model(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a new model of the class registered as ``type_name``, built with the other arguments.

    Raises:
        UnknownNameError: no model has that name; near matches are named.
    """
    return MODEL_REGISTRY.get(type_name)(*args, **kwargs)


def create_optimizer(type_name: str, params: ParamsT, **kwargs: Any) -> optim.Optimizer:
    """Return a new optimizer of the class registered as ``type_name``, over ``params``.

    Args:
        type_name: a name in ``OPTIMIZER_REGISTRY``, such as "AdamW".
        params: parameters, named ones or groups, as torch's optimizers take them.
        kwargs: the class's other arguments.

    Raises:
        UnknownNameError: no optimizer has that name; near matches are named.
    """
    return cast("optim.Optimizer", OPTIMIZER_REGISTRY.get(type_name)(params, **kwargs))


def create_schedule(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a new schedule of the kind registered as ``type_name``, built with the other arguments.

    A pure schedule ("cosine") takes its numbers, a scheduler of torch ("StepLR") the optimizer first.

    Raises:
        UnknownNameError: no schedule has that name; near matches are named.
    """
    return SCHEDULE_REGISTRY.get(type_name)(*args, **kwargs)


def create_loss(type_name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """Return a new loss of the class registered as ``type_name``, built with the other arguments.

    Raises:
        UnknownNameError: no loss has that name; near matches are named.
    """
    return cast("nn.Module", LOSS_REGISTRY.get(type_name)(*args, **kwargs))


def create_metric(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a new metric of the kind registered as ``type_name``, built with the other arguments.

    Raises:
        UnknownNameError: no metric has that name; near matches are named.
    """
    return METRIC_REGISTRY.get(type_name)(*args, **kwargs)
