"""A script as users write it, without a guard, whose trainer starts its own processes.

torch_own_processes.py FOLDER            leaves FOLDER/facts.json: what the trainer here knows after each call
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import parhelion as ph
import parhelion_torch as backend
from parhelion.errors import InvalidValueError, ParhelionError
from parhelion.testing import rows_without_clocks

folder = Path(sys.argv[1])
told: dict[str, Any] = {}


class UnluckyError(Exception):
    pass


class Data(ph.DataModule):
    def setup(self) -> None:
        records = [{"x": torch.sin(torch.arange(6.0) * (k + 1)), "label": k % 3, "index": k} for k in range(32)]
        self._train_dataset = self._create_dataset(records, {"batch_size": 4, "shuffle": True})
        self._valid_dataset = self._create_dataset(records[:12], {"batch_size": 4})
        self._test_dataset = self._create_dataset(records[:7], {"batch_size": 4})


class Net(backend.LossModel):
    unlucky: int | None = None

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-2)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}
        self.count = 0

    def loss(self, batch: Any) -> Any:
        if torch.is_grad_enabled():
            self.count += 1
            if self.trainer.queue is not None:
                self.trainer.queue.put((self.rank, batch["index"].tolist()))
            if self.rank == self.unlucky:
                raise UnluckyError(f"on rank {self.rank}")
        logits = self.module(batch["x"])
        return nn.functional.cross_entropy(logits, batch["label"]), (logits, batch["label"])

    def predict_step(self, batch: Any, step: int) -> Any:
        return super().predict_step(batch["x"], step)


class Watch(ph.Plugin):
    def __init__(self) -> None:
        super().__init__("watch")

    def setup(self) -> None:
        pass

    def on_training_start(self) -> None:
        self.trainer.queue.put(("plugin", self.trainer.rank, self.trainer.of_mine))


def make(**options: Any) -> backend.Trainer:
    trainer = backend.Trainer(
        use_cpu=True, num_processes=2, total_steps=2, valid_frequency=1, print_banner=False, **options
    )
    trainer.of_mine = "mine"
    trainer.register_plugin(Watch())
    trainer.train_exceptions.append(UnluckyError)
    return trainer


trainer, model = make(chkpt_root=folder / "runs"), Net("net", monitor="valid_loss")
told["before"] = [trainer.is_distributed, trainer.rank, trainer.stop_reason]
told["fit"] = trainer.fit(model, Data())
queue = trainer.queue
items = [queue.get() for _ in range(queue.qsize())]
told["plugin"] = sorted(item[1:] for item in items if item[0] == "plugin")
batches: dict[int, list[list[int]]] = {0: [], 1: []}
for item in items:
    if item[0] != "plugin":
        batches[item[0]].append(item[1])
told["batches"] = batches
told["after"] = {
    "stop_reason": trainer.stop_reason,
    "exit_code": trainer.exit_code,
    "error": trainer.error,
    "iteration": trainer.state.current_iteration,
    "rows": rows_without_clocks(trainer.history),
    "best": trainer.best_checkpoint and trainer.best_checkpoint.is_dir(),
    "model": trainer.model is model,
}
told["test"] = trainer.test(model, Data())
told["results"] = trainer.test_results
told["kept"] = [trainer.state.current_iteration, len(trainer.history)]
torch.manual_seed(0)
told["outputs"] = torch.cat(trainer.predict(model, Data())).tolist()
told["weights"] = {name: each.tolist() for name, each in model.trained_state_dict().items()}
told["count"] = model.count

for name, call in {
    "steps": lambda: next(iter(trainer.steps(model, Data()))),
    "save": trainer.save_checkpoint,
    "wrong": lambda: make().fit(Net("net", monitor="valid_nothing"), None),
}.items():
    try:
        call()
    except (InvalidValueError, ParhelionError) as error:
        told[name] = f"{type(error).__name__}: {error}"

unlucky = Net("unlucky")
unlucky.unlucky = 1
listed = make()
try:
    listed.fit(unlucky, Data())
except UnluckyError as error:
    told["listed"] = [str(error), *error.__notes__]
unlisted = make()
unlisted.train_exceptions.clear()
told["unlisted"] = [unlisted.fit(unlucky, Data()), type(unlisted.error) is UnluckyError, unlisted.stop_reason]
told["unlisted exit"] = unlisted.exit_code
(folder / "facts.json").write_text(json.dumps(told))
