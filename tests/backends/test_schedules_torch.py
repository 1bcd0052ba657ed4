import math
import warnings

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from parhelion.errors import InvalidTypeError
from parhelion.training._schedules import (
    chain,
    constant,
    cosine,
    exponential,
    linear,
    piecewise,
    polynomial,
    step,
    warmup,
)

NUM_UPDATES = 60


def rates(make):
    """Return the learning rates that a torch scheduler gives an SGD that began at 0.8."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    with warnings.catch_warnings():
        # SequentialLR calls its parts in a way that torch itself warns of.
        warnings.simplefilter("ignore", UserWarning)
        scheduler = make(optimizer)
        seen = []
        for _ in range(NUM_UPDATES):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return seen


def sequential(optimizer):
    return lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=5),
            lr_scheduler.ConstantLR(optimizer, 1.0, total_iters=1),
            lr_scheduler.ExponentialLR(optimizer, 0.9),
        ],
        milestones=[5, 15],
    )


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (constant(0.8), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        (linear(0.2, 0.8, 20), lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, total_iters=20)),
        (linear(0.8, 0.08, 7), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=7)),
        (cosine(0.8, NUM_UPDATES, stop=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, NUM_UPDATES, 0.1)),
        (polynomial(0.8, 25, 2.0), lambda o: lr_scheduler.PolynomialLR(o, total_iters=25, power=2.0)),
        (step(0.8, 7, 0.3), lambda o: lr_scheduler.StepLR(o, 7, 0.3)),
        (step(0.8, 1, 0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        (
            exponential(0.8, 0.8 * 0.9**NUM_UPDATES, NUM_UPDATES),
            lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        ),
        (piecewise([0.8, 0.08, 0.008], [10, 30]), lambda o: lr_scheduler.MultiStepLR(o, [10, 30], 0.1)),
        (
            chain([(20, cosine(0.8, 20)), (40, cosine(0.8, 40))]),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=20, T_mult=2),
        ),
        (
            warmup(chain([(10, constant(0.8)), (45, step(0.8, 1, 0.9))]), 5, start=0.08),
            sequential,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_schedule_says_what_torchs_scheduler_of_that_name_says(schedule, theirs):
    ours = [schedule(update) for update in range(NUM_UPDATES)]
    np.testing.assert_allclose(ours, rates(theirs), rtol=1e-9, atol=1e-12)


def test_lambda_lr_takes_a_schedule_as_it_is():
    schedule = warmup(cosine(1.0, 40), 10, start=0.1)
    seen = rates(lambda optimizer: lr_scheduler.LambdaLR(optimizer, schedule))
    assert seen == [0.8 * schedule(update) for update in range(NUM_UPDATES)]
    assert math.isclose(seen[10], 0.8)


def test_a_tensor_of_updates_is_refused_with_the_way_out():
    with pytest.raises(InvalidTypeError, match=r"update is tensor\(3\); .* Pass int\(update\)\."):
        cosine(1.0, 40)(torch.tensor(3))
