import math

import numpy as np
import pytest
import torch

from parhelion.training import metrics

METRICS = {
    "Mean": (metrics.Mean, lambda scores, labels: (scores[:, 0],)),
    "Sum": (metrics.Sum, lambda scores, labels: (scores[:, 0],)),
    "Accuracy": (lambda: metrics.Accuracy(top_k=2), lambda scores, labels: (scores, labels)),
    "ConfusionMatrix": (lambda: metrics.ConfusionMatrix(5), lambda scores, labels: (scores, labels)),
    "F1": (lambda: metrics.F1(5), lambda scores, labels: (scores, labels)),
    "AUC": (metrics.AUC, lambda scores, labels: (scores[:, 0], labels % 2)),
}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(64, 5, generator=generator),
        torch.randint(5, (64,), generator=generator),
        torch.rand(64, generator=generator) < 0.7,
    )


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_counts_as_the_numpy_array_of_its_values(kind, dtype, batch):
    make, arguments = METRICS[kind]
    scores, labels, mask = batch
    scores = scores.to(dtype).requires_grad_()
    ours, theirs = make(), make()
    ours.update(*arguments(scores, labels), mask=mask)
    theirs.update(*arguments(scores.detach().double().numpy(), labels.numpy()), mask=mask.numpy())
    np.testing.assert_equal(ours.compute(), theirs.compute())


def test_a_loss_that_carries_a_graph_is_counted_by_its_value():
    metric = metrics.Mean()
    loss = (torch.tensor([2.0], requires_grad=True) ** 2).mean()
    metric.update(loss, weight=torch.tensor(3))
    assert metric.compute() == 4.0


def test_what_is_on_no_host_is_not_read_by_an_update():
    metric = metrics.Accuracy()
    metric.update(torch.zeros(4, 3, device="meta"), torch.zeros(4, dtype=torch.long, device="meta"))
    with pytest.raises(NotImplementedError, match="meta tensor"):
        metric.compute()
    assert math.isnan(metric.compute())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", METRICS)
def test_an_update_with_cuda_tensors_makes_no_synchronization(kind, batch):
    make, arguments = METRICS[kind]
    lazy, eager = make(), make()
    scores, labels, mask = (each.cuda() for each in batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            lazy.update(*arguments(scores, labels), mask=mask)
        scores.add_(100.0).neg_()  # what was counted is what it was
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in range(20):
        eager.update(*arguments(*batch[:2]), mask=batch[2])
    np.testing.assert_equal(lazy.compute(), eager.compute())
