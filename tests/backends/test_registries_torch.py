import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from parhelion.errors import DuplicateNameError, UnknownNameError
from parhelion.training import metrics, schedules
from parhelion_torch import registries
from parhelion_torch.registries import (
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

SCHEDULERS = {
    "ChainedScheduler": lambda o: {"schedulers": [lr_scheduler.StepLR(o, 2)]},
    "ConstantLR": lambda o: {},
    "CosineAnnealingLR": lambda o: {"T_max": 5},
    "CosineAnnealingWarmRestarts": lambda o: {"T_0": 5},
    "CyclicLR": lambda o: {"base_lr": 0.1, "max_lr": 0.2},
    "ExponentialLR": lambda o: {"gamma": 0.9},
    "LambdaLR": lambda o: {"lr_lambda": schedules.cosine(1, 5)},
    "LinearLR": lambda o: {},
    "MultiStepLR": lambda o: {"milestones": [2]},
    "MultiplicativeLR": lambda o: {"lr_lambda": schedules.constant(0.5)},
    "OneCycleLR": lambda o: {"max_lr": 0.2, "total_steps": 5},
    "PolynomialLR": lambda o: {},
    "ReduceLROnPlateau": lambda o: {},
    "SequentialLR": lambda o: {
        "schedulers": [lr_scheduler.StepLR(o, 2), lr_scheduler.StepLR(o, 2)],
        "milestones": [2],
    },
    "StepLR": lambda o: {"step_size": 2},
}

signs = torch.tensor([1.0, -1.0])
rows, probabilities = torch.randn(2, 3), torch.rand(2, 3)
log_probabilities = rows.log_softmax(1)
LOSSES = {
    "BCELoss": (probabilities, probabilities.round()),
    "BCEWithLogitsLoss": (rows, probabilities),
    "CTCLoss": (
        torch.randn(6, 2, 4).log_softmax(2),
        torch.tensor([[1, 2], [3, 1]]),
        torch.tensor([6, 6]),
        torch.tensor([2, 2]),
    ),
    "CosineEmbeddingLoss": (rows, rows + 1, signs),
    "CrossEntropyLoss": (rows, torch.tensor([0, 2])),
    "GaussianNLLLoss": (rows, rows + 1, probabilities + 1),
    "HingeEmbeddingLoss": (rows, rows.sign()),
    "HuberLoss": (rows, rows + 1),
    "KLDivLoss": (log_probabilities, rows.softmax(1)),
    "L1Loss": (rows, rows + 1),
    "MSELoss": (rows, rows + 1),
    "MarginRankingLoss": (rows[:, 0], rows[:, 1], signs),
    "MultiLabelMarginLoss": (rows, torch.tensor([[0, -1, -1], [1, 2, -1]])),
    "MultiLabelSoftMarginLoss": (rows, probabilities.round()),
    "MultiMarginLoss": (rows, torch.tensor([0, 2])),
    "NLLLoss": (log_probabilities, torch.tensor([0, 2])),
    "PoissonNLLLoss": (rows, probabilities),
    "SmoothL1Loss": (rows, rows + 1),
    "SoftMarginLoss": (rows, rows.sign()),
    "TripletMarginLoss": (rows, rows + 1, rows - 1),
    "TripletMarginWithDistanceLoss": (rows, rows + 1, rows - 1),
}


@pytest.fixture
def parameter():
    return nn.Parameter(torch.ones(2, 2))


@pytest.fixture
def scoped(monkeypatch):
    """Return a function that replaces a registry's entries for one test."""

    def replace(registry):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        return registry

    return replace


@pytest.mark.parametrize("name", OPTIMIZER_REGISTRY.names())
def test_every_optimizer_takes_a_step_downhill(name, parameter):
    optimizer = create_optimizer(name, [parameter], lr=0.01)
    assert type(optimizer) is getattr(torch.optim, name)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        if name == "SparseAdam":
            parameter.grad = parameter.grad.to_sparse()
        return loss

    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < before


def test_every_optimizer_of_torch_is_there():
    theirs = {
        name
        for name, each in vars(torch.optim).items()
        if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)
    }
    assert set(OPTIMIZER_REGISTRY.names()) == theirs - {"Optimizer"}


def test_an_optimizer_takes_groups_and_its_arguments(parameter):
    groups = [{"params": [parameter], "lr": 0.5}, {"params": [nn.Parameter(torch.zeros(1))]}]
    optimizer = create_optimizer("AdamW", groups, lr=0.1, weight_decay=0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torch_is_made_over_an_optimizer(name, parameter):
    optimizer = create_optimizer("SGD", [parameter], lr=0.1, momentum=0.9)
    arguments = SCHEDULERS[name](optimizer)
    if name == "ChainedScheduler":
        scheduler = create_schedule(name, **arguments)
    else:
        scheduler = create_schedule(name, optimizer, **arguments)
    assert type(scheduler) is getattr(lr_scheduler, name)
    optimizer.step()
    scheduler.step(*[1.0] * (name == "ReduceLROnPlateau"))


def test_every_scheduler_of_torch_and_every_neutral_schedule_is_there():
    theirs = set(lr_scheduler.__all__) - {"LRScheduler"}
    assert set(SCHEDULERS) == theirs
    assert set(SCHEDULE_REGISTRY.names()) == theirs | set(schedules.SCHEDULE_REGISTRY.names())


def test_a_neutral_schedule_falls_back_to_the_core():
    assert create_schedule("cosine", 0.1, num_updates=10) == schedules.cosine(0.1, 10)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gives_a_finite_scalar(name):
    loss = create_loss(name)
    assert type(loss) is getattr(nn, name)
    value = loss(*LOSSES[name])
    assert value.shape == ()
    assert value.isfinite()


def test_no_loss_is_registered_that_is_not_tried_here():
    assert set(LOSS_REGISTRY.names()) == set(LOSSES)


def test_a_loss_takes_its_arguments():
    assert create_loss("CrossEntropyLoss", label_smoothing=0.1).label_smoothing == 0.1


def test_a_metric_falls_back_to_the_core():
    metric = create_metric("Accuracy", top_k=2)
    assert isinstance(metric, metrics.Accuracy)
    metric.update(torch.eye(3), torch.tensor([0, 1, 0]))
    assert metric.compute() == 1.0
    assert METRIC_REGISTRY.names() == metrics.METRIC_REGISTRY.names()


def test_a_project_registers_its_own_model(scoped):
    @scoped(MODEL_REGISTRY).register
    class TwoLayers(nn.Sequential):
        def __init__(self, width):
            super().__init__(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))

    model = create_model("TwoLayers", width=5)
    assert model(torch.zeros(4, 3)).shape == (4, 2)


@pytest.mark.parametrize(
    ("create", "name", "message"),
    [
        (create_model, "ResNet", "model name is 'ResNet'; expected one of none, the registry is empty"),
        (create_loss, "CrossEntropy", "loss name is 'CrossEntropy'; .* Did you mean 'CrossEntropyLoss'"),
        (create_schedule, "cosin", "schedule name is 'cosin'; .* Did you mean 'cosine'"),
        (create_schedule, "CosineAnealingLR", "Did you mean 'CosineAnnealingLR'"),
        (create_metric, "accuracy", "metric name is 'accuracy'; .* Did you mean 'Accuracy'"),
        (
            lambda name: create_optimizer(name, []),
            "adamw",
            "optimizer name is 'adamw'; .* Did you mean 'AdamW'",
        ),
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
def test_what_is_registered_for_torch_shadows_the_core_and_does_not_leak_into_it(scoped, child, parent, create):
    name = parent.names()[0]
    theirs = parent.get(name)
    scoped(child).register(lambda: "mine", name=name)
    child.register(lambda: "new", name="new")
    assert create(name) == "mine"
    assert create("new") == "new"
    assert parent.get(name) is theirs
    assert "new" not in parent


def test_a_name_of_torch_cannot_be_taken(scoped):
    with pytest.raises(DuplicateNameError, match="optimizer name 'Adam' is taken by"):
        scoped(OPTIMIZER_REGISTRY).register(lambda params: None, name="Adam")


def test_the_public_names_are_the_five_registries_and_their_functions():
    kinds = ("loss", "metric", "model", "optimizer", "schedule")
    expected = [f"{kind.upper()}_REGISTRY" for kind in kinds] + [f"create_{kind}" for kind in kinds]
    assert registries.__all__ == expected
