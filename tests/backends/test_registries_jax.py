import inspect

import numpy as np
import pytest

from parhelion.errors import DuplicateNameError, InvalidTypeError, UnknownNameError
from parhelion.training import metrics, schedules

jax = pytest.importorskip("jax")
pytest.importorskip("parhelion_jax")

import jax.numpy as jnp  # noqa: E402 - skipped before it could fail
import optax  # noqa: E402

from parhelion_jax import registries  # noqa: E402
from parhelion_jax.registries import (  # noqa: E402
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    OPTIMIZER_REGISTRY,
    SCHEDULE_REGISTRY,
    create_loss,
    create_metric,
    create_model,
    create_optimizer,
    create_schedule,
)

PARAMETERS = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
SELF_TUNING = {"dadapt_adamw", "dog", "dowg", "prodigy", "polyak_sgd"}  # a rate of 0.01 only scales what they find
ARGUMENTS = {"polyak_sgd": {}, "noisy_sgd": {"learning_rate": 0.01, "key": 0}}
# Deprecated, made of another optimizer, or in need of gradients per example.
NOT_REGISTERED = {"optimistic_adam", "schedule_free", "dpsgd", "scale_by_learning_rate"}
NOT_LOSSES = {"smooth_labels", "cosine_similarity", "make_fenchel_young_loss", "ctc_loss_with_forward_probs"}


def value(parameters):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(parameters))


@pytest.fixture
def scoped(monkeypatch):
    """Return a function that replaces a registry's entries for one test."""

    def replace(registry):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        return registry

    return replace


@pytest.mark.parametrize("name", OPTIMIZER_REGISTRY.names())
def test_every_optimizer_takes_steps_downhill(name):
    optimizer = create_optimizer(name, **ARGUMENTS.get(name, {"learning_rate": 0.01}))
    state, parameters = optimizer.init(PARAMETERS), PARAMETERS
    optimizer = optax.with_extra_args_support(optimizer)
    for _ in range(3):
        gradient = jax.grad(value)(parameters)
        extra = {"obj_fn" if name == "sophia" else "value_fn": value, "value": value(parameters), "grad": gradient}
        updates, state = optimizer.update(gradient, state, parameters, **extra)
        parameters = optax.apply_updates(parameters, updates)
    before, after = float(value(PARAMETERS)), float(value(parameters))
    assert after <= before if name in SELF_TUNING else after < before


def test_every_optimizer_of_optax_is_there():
    theirs = {
        name
        for module in (optax, optax.contrib)
        for name, each in vars(module).items()
        if inspect.isfunction(getattr(each, "func", each))  # some are partial
        and not name.startswith(("_", "scale_by_"))
        and {"learning_rate", "max_learning_rate"} & set(inspect.signature(each).parameters)
    }
    assert set(OPTIMIZER_REGISTRY.names()) == theirs - NOT_REGISTERED


def test_an_optimizer_takes_its_arguments_by_place_and_name():
    sgd = create_optimizer("sgd", 0.5, momentum=0.9)
    updates, _ = sgd.update({"w": jnp.ones(2)}, sgd.init({"w": jnp.zeros(2)}))
    assert updates["w"].tolist() == [-0.5, -0.5]


def test_every_schedule_of_optax_and_every_neutral_one_is_there():
    theirs = {
        name
        for name, each in vars(optax.schedules).items()
        if inspect.isfunction(each) and not name.startswith("inject_")
    }
    assert set(SCHEDULE_REGISTRY.names()) == theirs | set(schedules.SCHEDULE_REGISTRY.names())


def test_a_schedule_is_optaxs_or_the_cores():
    schedule = create_schedule("warmup_cosine_decay_schedule", 0.0, 1.0, 10, 100)
    assert float(schedule(10)) == 1.0
    assert create_schedule("cosine", 0.1, num_updates=10) == schedules.cosine(0.1, 10)


def test_every_loss_of_optax_is_there():
    theirs = {name for name, each in vars(optax.losses).items() if callable(each) and not name.startswith("_")}
    assert set(LOSS_REGISTRY.names()) == theirs - NOT_LOSSES
    for name in LOSS_REGISTRY:
        assert create_loss(name) is getattr(optax.losses, name)


def test_a_loss_takes_its_arguments():
    logits, labels = jnp.asarray([[2.0, -1.0]]), jnp.asarray([0])
    loss = create_loss("huber_loss", delta=0.5)
    assert float(loss(jnp.asarray(2.0))) == pytest.approx(0.5 * (2.0 - 0.25))
    plain = create_loss("softmax_cross_entropy_with_integer_labels")
    assert plain(logits, labels).shape == (1,)


def test_a_loss_does_not_take_the_arguments_of_another():
    with pytest.raises(
        InvalidTypeError, match=r"arguments of loss 'l2_loss' are \(delta=1\), .* expected some of pred"
    ):
        create_loss("l2_loss", delta=1)


def test_a_loss_class_of_the_project_is_built_with_the_arguments(scoped):
    @scoped(LOSS_REGISTRY).register
    class Weighted:
        def __init__(self, weight):
            self.weight = weight

        def __call__(self, predictions, targets):
            return self.weight * (predictions - targets)

    assert create_loss("Weighted", weight=3)(2, 1) == 3


def test_a_metric_falls_back_to_the_core():
    metric = create_metric("Accuracy", top_k=2)
    assert isinstance(metric, metrics.Accuracy)
    metric.update(np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
    assert metric.compute() == 1.0
    assert METRIC_REGISTRY.names() == metrics.METRIC_REGISTRY.names()


def test_a_project_registers_its_own_model(scoped):
    @scoped(MODEL_REGISTRY).register
    class Affine:
        def __init__(self, width):
            self.width = width

    assert create_model("Affine", width=5).width == 5


@pytest.mark.parametrize(
    ("create", "name", "message"),
    [
        (create_model, "ResNet", "model name is 'ResNet'; expected one of none, the registry is empty"),
        (create_loss, "softmax_crossentropy", "loss name is .* Did you mean 'softmax_cross_entropy'"),
        (create_schedule, "cosin", "schedule name is 'cosin'; .* Did you mean 'cosine'"),
        (create_schedule, "linear_shedule", "Did you mean 'linear_schedule'"),
        (create_metric, "accuracy", "metric name is 'accuracy'; .* Did you mean 'Accuracy'"),
        (create_optimizer, "AdamW", "optimizer name is 'AdamW'; .* Did you mean 'adamw'"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(create, name, message):
    with pytest.raises(UnknownNameError, match=message):
        create(name)


@pytest.mark.parametrize(
    ("child", "parent", "create"),
    [
        (SCHEDULE_REGISTRY, schedules.SCHEDULE_REGISTRY, create_schedule),
        (METRIC_REGISTRY, metrics.METRIC_REGISTRY, create_metric),
    ],
    ids=["schedule", "metric"],
)
def test_what_is_registered_for_jax_shadows_the_core_and_does_not_leak_into_it(scoped, child, parent, create):
    name = parent.names()[0]
    theirs = parent.get(name)
    scoped(child).register(lambda: "mine", name=name)
    child.register(lambda: "new", name="new")
    assert create(name) == "mine"
    assert create("new") == "new"
    assert parent.get(name) is theirs
    assert "new" not in parent


def test_a_name_of_optax_cannot_be_taken(scoped):
    with pytest.raises(DuplicateNameError, match="optimizer name 'adam' is taken by"):
        scoped(OPTIMIZER_REGISTRY).register(lambda rate: None, name="adam")


def test_what_an_older_optax_lacks_is_left_out():
    class Old:
        sgd = staticmethod(optax.sgd)

    assert registries._registry("optimizer", [(Old, ["sgd", "muon"])]).names() == ["sgd"]


def test_the_public_names_are_the_five_registries_and_their_functions():
    kinds = ("loss", "metric", "model", "optimizer", "schedule")
    expected = [f"{kind.upper()}_REGISTRY" for kind in kinds] + [f"create_{kind}" for kind in kinds]
    assert registries.__all__ == expected
