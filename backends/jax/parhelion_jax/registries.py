"""Models, optimizers, schedules, losses and metrics by name.

optax's own functions are there under the names that optax gives them. The registries of schedules and metrics
are children of the core's: every neutral name works here, and what is registered here stays here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, cast

import optax  # pyright: ignore[reportMissingTypeStubs] - it ships no types

from parhelion.errors import InvalidTypeError
from parhelion.registry import Registry
from parhelion.training import metrics, schedules

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
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "fromage",
    "lamb",
    "lars",
    "lbfgs",
    "lion",
    "nadam",
    "nadamw",
    "noisy_sgd",
    "novograd",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "polyak_sgd",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sign_sgd",
    "signum",
    "sm3",
    "yogi",
)
_CONTRIBUTED = (
    "acprop",
    "ademamix",
    "adopt",
    "cocob",
    "dadapt_adamw",
    "dog",
    "dowg",
    "galore",
    "madgrad",
    "momo",
    "momo_adam",
    "muon",
    "prodigy",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "simplified_ademamix",
    "sophia",
)
_SCHEDULES = (
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "exponential_decay",
    "join_schedules",
    "linear_onecycle_schedule",
    "linear_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polynomial_schedule",
    "sgdr_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
)
_LOSSES = (
    "binary_dice_loss",
    "convex_kl_divergence",
    "cosine_distance",
    "ctc_loss",
    "dice_loss",
    "generalized_kl_divergence",
    "hinge_loss",
    "huber_loss",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "l2_loss",
    "log_cosh",
    "multiclass_generalized_dice_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "ntxent",
    "perceptron_loss",
    "poly_loss_cross_entropy",
    "ranking_softmax_loss",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax_loss",
    "squared_error",
    "triplet_margin_loss",
)


def _registry(
    kind: str,
    modules: Iterable[tuple[Any, Iterable[str]]] = (),
    parent: Registry[Callable[..., Any]] | None = None,
) -> Registry[Callable[..., Any]]:
    registry = Registry(kind, parent)
    for module, names in modules:
        for name in names:
            # The oldest optax that is supported lacks the newest ones.
            if hasattr(module, name):
                registry.register(getattr(module, name), name=name)
    return registry


MODEL_REGISTRY = _registry("model")
"""What a project trains, registered by the project itself: models, and modules of whatever library it uses."""

OPTIMIZER_REGISTRY = _registry("optimizer", [(optax, _OPTIMIZERS), (optax.contrib, _CONTRIBUTED)])
"""The optimizers of ``optax`` and ``optax.contrib``: functions that return a gradient transformation."""

SCHEDULE_REGISTRY = _registry("schedule", [(optax.schedules, _SCHEDULES)], schedules.SCHEDULE_REGISTRY)
"""The schedules of ``optax``, which can be traced; then the core's pure ones."""

LOSS_REGISTRY = _registry("loss", [(optax.losses, _LOSSES)])
"""The losses of ``optax``: functions that give one loss for each example, unless their page says otherwise."""

METRIC_REGISTRY = _registry("metric", parent=metrics.METRIC_REGISTRY)
"""The core's metrics, and what is registered for jax alone."""


def create_model(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a new model of the class registered as ``type_name``, built with the other arguments.

    Raises:
        UnknownNameError: no model has that name; near matches are named.
    """
    return MODEL_REGISTRY.get(type_name)(*args, **kwargs)


def create_optimizer(type_name: str, *args: Any, **kwargs: Any) -> optax.GradientTransformation:
    """Return a new gradient transformation of the kind registered as ``type_name``.

    Args:
        type_name: a name in ``OPTIMIZER_REGISTRY``, such as "adamw".
        args: the function's arguments; the learning rate comes first.
        kwargs: its other arguments by name.

    Raises:
        UnknownNameError: no optimizer has that name; near matches are named.
    """
    return cast("optax.GradientTransformation", OPTIMIZER_REGISTRY.get(type_name)(*args, **kwargs))


def create_schedule(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a new schedule of the kind registered as ``type_name``, built with the other arguments.

    Raises:
        UnknownNameError: no schedule has that name; near matches are named.
    """
    return SCHEDULE_REGISTRY.get(type_name)(*args, **kwargs)


def create_loss(type_name: str, **kwargs: Any) -> Callable[..., Any]:
    """Return the loss registered as ``type_name``, to be called with predictions and targets.

    A function is returned with the arguments bound to it; a class is built with them.

    Raises:
        UnknownNameError: no loss has that name; near matches are named.
        InvalidTypeError: the function has no such parameter.
    """
    entry = LOSS_REGISTRY.get(type_name)
    if inspect.isclass(entry):
        return cast("Callable[..., Any]", entry(**kwargs))
    if not kwargs:
        return entry
    try:
        inspect.signature(entry).bind_partial(**kwargs)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
        raise InvalidTypeError(
            f"arguments of loss {type_name!r} are ({given}), of which it has not all ({error}); expected some of "
            f"{', '.join(inspect.signature(entry).parameters)}. Remove the others."
        ) from error
    return functools.partial(entry, **kwargs)


def create_metric(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a new metric of the kind registered as ``type_name``, built with the other arguments.

    Raises:
        UnknownNameError: no metric has that name; near matches are named.
    """
    return METRIC_REGISTRY.get(type_name)(*args, **kwargs)
