"""What training on several ranks of torch leaves behind; run by each of them, and compared by a test.

    python -m torch.distributed.run ... torch_ranks.py FOLDER BATCH_SIZE TASK...

Each task leaves ``FOLDER/TASK-RANK.pickle``. The batch size is a rank's own.
"""

from __future__ import annotations

import pickle
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import parhelion as ph
import parhelion_torch as backend
from parhelion.checkpoint import ShardedArray, begin_shared, commit_shared, flatten, load_checkpoint, write_shard
from parhelion.testing import rows_without_clocks
from parhelion_torch.sharded import StoredTensor

SIZE = 48


class Points:
    """Points of three classes; each tells its index."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": np.sin(np.arange(6, dtype=np.float32) * (index + 1)), "label": index % 3, "index": index}


class Data(ph.DataModule):
    def __init__(self, batch_size: int, size: int = SIZE) -> None:
        self.batch_size, self.size = batch_size, size

    def setup(self) -> None:
        train = {"batch_size": self.batch_size, "shuffle": True}
        records = [Points()[index] for index in range(self.size)]
        self._train_dataset = self._create_dataset(records, train)
        self._valid_dataset = self._create_dataset(records[: self.size // 2], {"batch_size": self.batch_size})
        self._test_dataset = self._create_dataset(records, {"batch_size": self.batch_size})


class Net(backend.LossModel):
    """A network of several kinds of trained parts; keeps the indices that it saw."""

    def __init__(self, kind: str = "plain", **options: Any) -> None:
        super().__init__("net", **options)
        self.kind = kind
        self.seen: list[list[int]] = []
        self.statistics: Any = None

    def setup(self, fast_init: bool = False) -> None:
        layers: list[nn.Module] = [nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)]
        if self.kind == "norm":
            layers.insert(1, nn.BatchNorm1d(16))
        self.module = nn.Sequential(*layers)
        trained = list(self.module.parameters())
        if self.kind == "parts":
            self.heads = [nn.Linear(3, 3), nn.LayerNorm(3)]
            self.scale = nn.Parameter(torch.ones(3))
            trained += [*self.heads[0].parameters(), *self.heads[1].parameters(), self.scale]
        if self.kind == "compiled":
            self.module = torch.compile(self.module, backend="eager")
        if self.kind == "late":
            self.module[0].requires_grad_(False)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-2)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def on_training_epoch_start(self, current_epoch: int) -> None:
        if self.kind == "late" and current_epoch == 2:
            self.module[0].requires_grad_(True)

    def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
        if self.kind == "norm":
            self.statistics = self.module[1].running_mean.numpy().copy()

    def loss(self, batch: Any) -> Any:
        if torch.is_grad_enabled():
            self.seen.append(batch["index"].tolist())
        logits = self.module(batch["x"])
        if self.kind == "parts":
            logits = self.heads[1](self.heads[0](logits)) * self.scale
        return nn.functional.cross_entropy(logits, batch["label"]), (logits, batch["label"])


class Spread(backend.LossModel):
    """A network whose parameters are spread over the ranks, unevenly; with one that is not."""

    def __init__(self, kind: str = "spread", *, tied: bool = False, **options: Any) -> None:
        super().__init__("spread", **options)
        self.kind, self.tied = kind, tied

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        self.scale = nn.Parameter(torch.ones(3))
        if self.tied:
            self.module[2] = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
            self.module[2][0].bias = self.module[0].bias
        if self.is_distributed and self.kind == "spread":
            mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
            for layer in (self.module,) if self.tied else (self.module[0], self.module[2], self.module):
                fully_shard(layer, mesh=mesh)
        self.optimizer = torch.optim.AdamW([*self.module.parameters(), self.scale], lr=1e-2)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, batch: Any) -> Any:
        logits = self.module(batch["x"]) * self.scale
        return nn.functional.cross_entropy(logits, batch["label"]), (logits, batch["label"])


class ByHand(backend.Model):
    def setup(self, fast_init: bool = False) -> None:
        self.plain = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        self.net = self.distribute(self.plain)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        with self.gradient_sync(state):
            loss = nn.functional.cross_entropy(self.net(batch["x"]), batch["label"])
            (loss * state.loss_weight).backward()
        if state.is_update:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss

    def valid_step(self, batch: Any, step: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["label"])


@contextmanager
def counted_averages() -> Any:
    """Count the backward passes after which gradients are averaged by the wrappers."""
    averages: list[None] = []
    forward = DistributedDataParallel.forward

    def counted(self: Any, *inputs: Any, **kwargs: Any) -> Any:
        if self.require_backward_grad_sync:
            averages.append(None)
        return forward(self, *inputs, **kwargs)

    DistributedDataParallel.forward = counted
    try:
        yield averages
    finally:
        DistributedDataParallel.forward = forward


def trained_weights(model: Any) -> dict[str, Any]:
    state = model.state_dict()
    found = {**state, **state.get("parts", {})}
    flat: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            flat[name] = value.detach().clone().numpy()
        elif isinstance(value, (dict, list, tuple)):
            for key, each in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{name}.{key}", each)

    walk("", found)
    return flat


def train(model: Any, batch_size: int, size: int = SIZE, **options: Any) -> dict[str, Any]:
    torch.use_deterministic_algorithms(True)
    options = {"total_steps": 3, "valid_frequency": 1, "print_banner": False, "use_cpu": True} | options
    trainer = backend.Trainer(**options)
    with counted_averages() as averages:
        assert trainer.fit(model, Data(batch_size, size)), trainer.error
    return {
        "averages": len(averages),
        "updates": trainer.state.current_iteration,
        "statistics": getattr(model, "statistics", None),
        "weights": trained_weights(model),
        "rows": rows_without_clocks(trainer.history),
        "seen": getattr(model, "seen", []),
        "rank": trainer.rank,
        "model": model,
        "trainer": trainer,
    }


def fit_kind(folder: Path, batch_size: int, kind: str) -> dict[str, Any]:
    return train(Net(kind), batch_size)


def fit_accumulated(folder: Path, batch_size: int, kind: str) -> dict[str, Any]:
    return train(Net(kind), batch_size, 40, accumulation_steps=2)


def fit_options(folder: Path, batch_size: int, kind: str) -> dict[str, Any]:
    options = {"clip": {"clip_norm": 0.05}, "average": {"ema_decay": 0.9}, "low": {"precision": "bfloat16"}}[kind]
    return train(Net("norm" if kind == "average" else "plain", **options), batch_size)


def fit_by_hand(folder: Path, batch_size: int, kind: str) -> dict[str, Any]:
    return train(ByHand("hand"), batch_size, 40, accumulation_steps=2)


def fit_spread(folder: Path, batch_size: int, kind: str) -> dict[str, Any]:
    options = {"": {}, "clip": {"clip_norm": 0.05}, "low": {"precision": "bfloat16"}}[kind]
    return train(Spread(**options), batch_size)


def store(folder: Path, batch_size: int, kind: str) -> dict[str, Any]:
    """Train, then let every rank write its part of one checkpoint."""
    result = train(Spread(kind, tied=True), batch_size, total_steps=1)
    model, world = result["model"], result["trainer"]._parts.world
    tree = {"model": model.state_dict(), "portable": model.portable_state()}
    skeleton, arrays = flatten(tree, backend.Arrays())
    name, meta = f"{kind}-{world.size}", {"run_name": "net", "global_epoch": 1, "global_iteration": 1}
    scratch = world.gather(begin_shared(folder, name) if world.rank == 0 else None)[0]
    if world.rank:
        write_shard(scratch, world.rank, arrays)
    else:
        commit_shared(scratch, name, skeleton, arrays, meta, world.size)
    world.barrier()
    parts = {key: array.parts for key, array in arrays.items() if isinstance(array, ShardedArray)}
    return result | {"parts": {key: [(each.start, each.array.shape) for each in found] for key, found in parts.items()}}


def watch_reads(weights: Any) -> dict[str, Any]:
    """Note the box that is read of each stored tensor."""
    reads: dict[str, Any] = {}
    for name, value in weights.items():
        if isinstance(value, StoredTensor):
            read = value.read

            def noted(start: Any, shape: Any, name: str = name, read: Any = read) -> Any:
                reads[f"module.{name}"] = (tuple(start), tuple(shape))
                return read(start, shape)

            value.read = noted
    return reads


def reopen(folder: Path, batch_size: int, kind: str) -> dict[str, Any]:
    """Give a fresh model, spread or whole, the state of a checkpoint, and train on."""
    origin, how = kind.split("+")
    model = Spread(how, tied=True)
    result = train(model, batch_size, total_steps=0)
    tree = load_checkpoint(folder / origin, backend.Arrays()).tree
    reads = watch_reads(tree["model"]["module"])
    model.load_state_dict(tree["model"])
    result["read"] = dict(reads)
    result["weights"] = trained_weights(model)
    fresh = Spread(how, tied=True)
    train(fresh, batch_size, total_steps=0)
    fresh.load_weights(tree["model"])
    result["only weights"] = trained_weights(fresh)
    return result


TASKS = {
    "spread": fit_spread,
    "fit": fit_kind,
    "accumulate": fit_accumulated,
    "options": fit_options,
    "hand": fit_by_hand,
    "store": store,
    "reopen": reopen,
}


def main(folder: str, batch_size: str, *tasks: str) -> None:
    for task in tasks:
        name, _, kind = task.partition(":")
        result = TASKS[name](Path(folder), int(batch_size), kind)
        trainer = result.pop("trainer")
        del result["model"]
        (Path(folder) / f"{name}-{kind}-{trainer._parts.world.size}-{trainer.rank}.pickle").write_bytes(
            pickle.dumps(result)
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
