"""What trains on torch in a whole run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import parhelion as ph
import parhelion_torch as backend
from support import whole_run


class Net(backend.LossModel):
    def __init__(self, kind: str) -> None:
        super().__init__("net")
        self.kind = kind

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3))
        if self.kind == "spread" and self.is_distributed:
            mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
            for layer in (self.module[0], self.module[3], self.module):
                fully_shard(layer, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-2)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, batch: Any) -> Any:
        logits = self.module(batch["x"])
        return nn.functional.cross_entropy(logits, batch["label"]), (logits, batch["label"])


make_model = Net


def make_trainer(**options: Any) -> backend.Trainer:
    return backend.Trainer(use_cpu=True, **options)


def own_rows(tensor: Any) -> Any:
    return tensor.numpy()


def digest(model: Any) -> str:
    """Return a digest of all weights and moments; every rank must ask for it."""
    if model.module is None:  # it was trained in other processes
        return ""
    parameters = list(model.module.parameters())
    moments = [model.optimizer.state.get(each, {}) for each in parameters]
    values = [*parameters, *(each[name] for each in moments for name in ("exp_avg", "exp_avg_sq") if each)]
    whole = [getattr(each, "full_tensor", lambda each=each: each)() for each in values]
    return whole_run.digest(*(each.detach().numpy() for each in whole))
