"""Programs that users write, each with state somewhere: stopped anywhere and started again, they lose no bit."""

from __future__ import annotations

import copy
import random
import shutil
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import parhelion as ph
import parhelion_torch as backend
from parhelion.checkpoint import list_checkpoints
from parhelion.testing import last_tree, rows_without_clocks, same

SIZE, BATCH = 12, 4
STOPS = (1, 4, 6, 8)  # after the first update, in the second epoch, at its end, in the third


class Points:
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = torch.sin(torch.arange(6, dtype=torch.float32) * (index + 1))
        return {"x": x + 0.1 * torch.rand(6), "label": index % 3, "index": index}


class Data(ph.DataModule):
    def setup(self) -> None:
        self._train_dataset = self._create_dataset(Points(), {"batch_size": BATCH, "shuffle": True})
        self._valid_dataset = self._create_dataset(Points(), {"batch_size": 5})


class Program(backend.Model):
    """A network with dropout, trained by hand; the programs below add a habit each."""

    def __init__(self) -> None:
        super().__init__("net")
        self.seen: list[Any] = []

    def setup(self, fast_init: bool = False) -> None:
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["label"])

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        self.seen.append(batch["index"].tolist())
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def valid_step(self, batch: Any, step: int) -> Any:
        return self.loss(batch)


class Short(backend.LossModel):
    def __init__(self, **options: Any) -> None:
        super().__init__("net", **options)
        self.seen: list[Any] = []

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3))
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1, momentum=0.9)

    def loss(self, batch: Any) -> Any:
        if self.module.training:
            self.seen.append(batch["index"].tolist())
        return nn.functional.cross_entropy(self.module(batch["x"]), batch["label"])


def fit(model: Any, root: Any, *, data: Any = None, plugin: Any = None, **options: Any) -> Any:
    settings = {"total_steps": 3, "valid_frequency": 1, "print_frequency": 1, "chkpt_every_iterations": 1, **options}
    trainer = backend.Trainer(use_cpu=True, print_banner=False, chkpt_root=root, **settings)
    if plugin is not None:
        trainer.register_plugin(plugin)
    assert trainer.fit(model, Data() if data is None else data), trainer.error
    return trainer


def check_resumes(make: Any, tmp_path: Any, *, make_data: Any = Data, make_plugin: Any = None, **options: Any) -> Any:
    """Compare every resumed run with the one that never stopped; return its model."""

    def run(root: Any) -> Any:
        model, plugin = make(), None if make_plugin is None else make_plugin()
        return fit(model, root, data=make_data(), plugin=plugin, **options), model

    whole, model = run(tmp_path / "whole")
    found = {entry.iteration: entry.path for entry in list_checkpoints(tmp_path / "whole" / "net")}
    for stop in STOPS:
        if stop not in found:
            continue
        root = tmp_path / f"from-{stop}"
        shutil.copytree(found[stop], root / "net" / found[stop].name)
        shutil.copy(tmp_path / "whole" / "net" / "history.jsonl", root / "net")
        torch.manual_seed(stop)
        again, twin = run(root)
        assert again.state == whole.state
        assert twin.seen == model.seen[stop:]
        assert rows_without_clocks(again.history) == rows_without_clocks(whole.history)
        assert same(last_tree(root / "net", backend.Arrays()), last_tree(tmp_path / "whole" / "net", backend.Arrays()))
    return model


# -- state in attributes ----------------------------------------------------------------------------------------------


def test_numbers_that_steps_and_hooks_keep_in_self(tmp_path) -> None:
    class Counting(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.count, self.temperature, self.best = 0, 1.0, None

        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss(batch) * self.temperature + 0.01 * self.count

        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            self.count += 1
            return super().train_step(batch, state)

        def on_training_epoch_end(self, current_epoch: int) -> None:
            self.temperature *= 0.7

        def have_metrics_improved(self) -> bool:
            value = self.validated["valid_loss"]
            improved = self.best is None or value < self.best
            self.best = value if improved else self.best
            return improved

    model = check_resumes(Counting, tmp_path)
    assert model.count == 9
    assert model.best is not None


def test_what_the_last_validation_said(tmp_path) -> None:
    class Careful(Program):
        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss(batch) * self.validated.get("valid_loss", 1.0)

    check_resumes(Careful, tmp_path)


def test_hidden_states_carried_from_batch_to_batch(tmp_path) -> None:
    class Recurrent(Program):
        def setup(self, fast_init: bool = False) -> None:
            self.net = nn.LSTM(6, 3)
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
            self.hidden = None

        def loss(self, batch: Any) -> torch.Tensor:
            before = None if self.hidden is None else tuple(each.detach() for each in self.hidden)
            out, hidden = self.net(batch["x"][:, None], before)
            if torch.is_grad_enabled():
                self.hidden = hidden
            return nn.functional.cross_entropy(out[:, 0], batch["label"])

    check_resumes(Recurrent, tmp_path)


def test_running_tensors_and_arrays_made_on_the_way_replaced_or_changed_in_place(tmp_path) -> None:
    class Running(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.mean = None
            self.zero = torch.zeros(3)
            self.replaced = self.zero  # what takes its place must not flow into self.zero
            self.weight = torch.ones(3)
            self.criterion = nn.CrossEntropyLoss(weight=self.weight)
            self.counts = np.zeros(3)
            self.queue: list[torch.Tensor] = []

        def loss(self, batch: Any) -> torch.Tensor:
            logits = self.net(batch["x"]) + self.replaced + self.zero + torch.from_numpy(self.counts).float() * 0.01
            loss = self.criterion(logits, batch["label"])
            return loss + sum((each.mean() for each in self.queue), torch.zeros(()))

        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            loss = super().train_step(batch, state)
            self.mean = loss.detach() if self.mean is None else 0.9 * self.mean + 0.1 * loss.detach()
            self.replaced = self.replaced + self.mean * 0.1
            self.weight.mul_(1.01)
            self.counts[batch["label"].numpy()] += 1
            self.queue = [*self.queue[-2:], loss.detach() * 0.01]
            return loss

    check_resumes(Running, tmp_path)


@pytest.mark.parametrize("where", ["attribute", "list", "dict", "leaf tensor", "list of leaf tensors"])
def test_raw_parameters(tmp_path, where) -> None:
    class Raw(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            scale = nn.Parameter(torch.rand(3))
            if "leaf" in where:
                scale = torch.rand(3, requires_grad=True)
            self.scale = [scale] if "list" in where else {"scale": scale} if where == "dict" else scale
            self.optimizer.add_param_group({"params": [scale]})

        def find(self) -> torch.Tensor:
            return self.scale if isinstance(self.scale, torch.Tensor) else self.scale[0 if "list" in where else "scale"]

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch["x"]) * self.find(), batch["label"])

    check_resumes(Raw, tmp_path)


@pytest.mark.parametrize("kind", ["torch", "numpy", "legacy", "python"])
def test_generators_of_its_own(tmp_path, kind) -> None:
    class Noisy(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.generator: Any = {
                "torch": lambda: torch.Generator().manual_seed(3),
                "numpy": lambda: np.random.default_rng(3),
                "legacy": lambda: np.random.RandomState(3),
                "python": lambda: random.Random(3),
            }[kind]()

        def draw(self) -> float:
            if kind == "torch":
                return float(torch.rand((), generator=self.generator))
            return float(self.generator.random_sample() if kind == "legacy" else self.generator.random())

        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            self.optimizer.param_groups[0]["lr"] = 0.1 * self.draw()
            return super().train_step(batch, state)

    check_resumes(Noisy, tmp_path)


# -- state in modules -------------------------------------------------------------------------------------------------


def test_flags_and_numbers_of_modules_that_hooks_change(tmp_path) -> None:
    class Fickle(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.net.append(nn.BatchNorm1d(3))

        def on_training_epoch_start(self, current_epoch: int) -> None:
            self.net[1].p = 0.1 * current_epoch
            if current_epoch == 2:
                self.net[0].requires_grad_(False)
                self.net[3].eval()
            if current_epoch == 3:
                self.net[0].bias.requires_grad_(True)

    model = check_resumes(Fickle, tmp_path)
    assert not model.net[3].training  # a validation puts modes back


def test_modes_set_at_the_start_last_beyond_a_validation(tmp_path) -> None:
    class Frozen(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.net.append(nn.BatchNorm1d(3))

        def on_training_start(self) -> None:
            self.net[3].eval()

        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            assert not self.net[3].training
            assert self.net[1].training
            return super().train_step(batch, state)

        def valid_step(self, batch: Any, step: int) -> Any:
            assert not self.net[1].training
            return super().valid_step(batch, step)

    check_resumes(Frozen, tmp_path)


def test_buffers_that_are_not_persistent(tmp_path) -> None:
    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(6), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return x - self.mean

    class Hidden(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.net.insert(0, Centered())

    check_resumes(Hidden, tmp_path)


def test_gradients_of_zero_that_an_optimizer_acts_on(tmp_path) -> None:
    """Set to zero and not to None, the gradient of a part that rests still lets momentum and decay move it."""

    class Branching(Program):
        def setup(self, fast_init: bool = False) -> None:
            self.net = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            self.seen.append(batch["index"].tolist())
            branch = self.net[0 if state.global_iteration in (1, 4) else 1]
            loss = nn.functional.cross_entropy(branch(batch["x"]), batch["label"])
            self.optimizer.zero_grad(set_to_none=False)
            loss.backward()
            self.optimizer.step()
            return loss

        def valid_step(self, batch: Any, step: int) -> Any:
            return None

    check_resumes(Branching, tmp_path)


def test_modules_in_lists_and_dicts_are_saved_and_switched_too(tmp_path) -> None:
    class Several(Program):
        def setup(self, fast_init: bool = False) -> None:
            self.nets = [nn.Linear(6, 8), nn.Dropout(0.5)]
            self.heads = {"label": nn.Linear(8, 3)}
            parameters = [*self.nets[0].parameters(), *self.heads["label"].parameters()]
            self.optimizer = torch.optim.Adam(parameters)

        def net(self, x: torch.Tensor) -> torch.Tensor:
            assert self.nets[1].training == torch.is_grad_enabled()
            return self.heads["label"](self.nets[1](self.nets[0](x)))

    model = check_resumes(Several, tmp_path)
    assert model.describe() == {"parameters": "83"}


# -- moments ----------------------------------------------------------------------------------------------------------


def test_what_is_drawn_made_or_reset_when_training_starts(tmp_path) -> None:
    class Starting(Program):
        def on_training_start(self) -> None:
            self.offset = torch.randn(3)
            nn.init.normal_(self.net[0].weight)
            self.reference = copy.deepcopy(self.net)
            self.total = 0

        def loss(self, batch: Any) -> torch.Tensor:
            self.total += 1
            far = sum(
                (a - b).square().sum() for a, b in zip(self.net.parameters(), self.reference.parameters(), strict=True)
            )
            logits = self.net(batch["x"]) + self.offset + 0.01 * self.total
            return nn.functional.cross_entropy(logits, batch["label"]) + 0.1 * far

    check_resumes(Starting, tmp_path)


def test_a_question_about_stopping_that_counts_how_often_it_is_asked(tmp_path) -> None:
    class Impatient(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.asked = 0

        def should_training_stop(self) -> bool:
            self.asked += 1
            return self.asked >= 7

    model = check_resumes(Impatient, tmp_path)
    assert len(model.seen) == 7


def test_a_run_that_its_model_has_stopped_stays_stopped(tmp_path) -> None:
    class Content(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.count = 0

        def should_training_stop(self) -> bool:
            self.count += 1
            return self.count >= 4

    fit(Content(), tmp_path)
    again = Content()
    trainer = fit(again, tmp_path)
    assert (again.seen, trainer.stop_reason) == ([], "early_stop")


def test_counters_and_tensors_of_plugins(tmp_path) -> None:
    class Scaling(ph.Plugin):
        def __init__(self) -> None:
            super().__init__("scaling")
            self.unique_overrides = ph.UniquePluginOverrides(training_batch=True)

        def setup(self) -> None:
            self.count, self.mean = 0, torch.zeros(6)

        def process_training_batch(self, batch: Any, state: Any) -> Any:
            self.count += 1
            self.mean += batch["x"].mean(0)
            return {**batch, "x": batch["x"] - self.mean / self.count}

    check_resumes(Program, tmp_path, make_plugin=Scaling)


def test_state_of_the_data_module(tmp_path) -> None:
    class Growing(Data):
        def setup(self) -> None:
            super().setup()
            self.harder = 0

        def train_dataloader(self) -> Any:
            self.dataset = Hard(self)
            pair = self._create_dataset(self.dataset, {"batch_size": BATCH, "shuffle": True})
            return self._create_dataloader(pair, ph.DatasetSplit.TRAIN)

        def state_dict(self) -> dict[str, Any]:
            return {"harder": self.harder}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.harder = state_dict["harder"]

    class Hard(Points):
        def __init__(self, owner: Growing) -> None:
            self.owner = owner

        def __getitem__(self, index: int) -> dict[str, Any]:
            record = super().__getitem__(index)
            return {**record, "x": record["x"] + self.owner.harder}

    class Teaching(Program):
        def on_training_epoch_end(self, current_epoch: int) -> None:
            self.trainer.datamodule.harder += 1

    check_resumes(Teaching, tmp_path, make_data=Growing)


def test_a_loader_of_torch_s_own_over_our_sampler(tmp_path) -> None:
    """It draws a number from torch's global stream whenever it is iterated, and a resumed run iterates once more."""

    class Own(Data):
        def train_dataloader(self) -> Any:
            points = [Points()[index] for index in range(SIZE)]
            sampler = backend.ResumableRandomSampler(points, batch_size=BATCH)
            return torch.utils.data.DataLoader(points, batch_size=BATCH, sampler=sampler), sampler

    check_resumes(Program, tmp_path, make_data=Own)


def test_a_plugin_that_draws_changes_no_split_of_the_data_and_no_weights(tmp_path) -> None:
    class Thirsty(ph.Plugin):
        def setup(self) -> None:
            torch.rand(3), np.random.rand(), random.random()

    class Splitting(Data):
        def setup(self) -> None:
            order = torch.randperm(SIZE).tolist()
            self._train_dataset = self._create_dataset([Points()[index] for index in order[:8]], {"batch_size": BATCH})
            self._valid_dataset = self._create_dataset([Points()[index] for index in order[8:]], {"batch_size": BATCH})

    one, other = Program(), Program()
    fit(one, tmp_path / "one", data=Splitting())
    fit(other, tmp_path / "other", data=Splitting(), plugin=Thirsty("thirsty"))
    assert one.seen == other.seen
    assert same(one.net.state_dict(), other.net.state_dict())


# -- optimizers and schedulers ----------------------------------------------------------------------------------------

OPTIMIZERS = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_in_every_dtype(tmp_path, name, dtype) -> None:
    """torch casts an optimizer's state to the dtype of the parameters, whatever it was saved in."""

    class Optimized(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.net.to(dtype)
            self.optimizer = getattr(torch.optim, name)(self.net.parameters())

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch["x"].to(dtype)).float(), batch["label"])

    check_resumes(Optimized, tmp_path, total_steps=2)


def test_state_of_an_optimizer_that_is_finer_than_the_parameters(tmp_path) -> None:
    class Master(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {"lr": 0.1})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    if not state:
                        state["master"], state["count"] = parameter.float(), torch.tensor(2**24, dtype=torch.int64)
                    state["count"] += 1
                    state["master"] -= group["lr"] * parameter.grad.float() * (state["count"] % 3)
                    parameter.copy_(state["master"])

    class Fine(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.net.to(torch.bfloat16)
            self.optimizer = Master(self.net.parameters())

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch["x"].bfloat16()).float(), batch["label"])

    check_resumes(Fine, tmp_path)


SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o, s: s.StepLR(o, 2, 0.5),
    "LambdaLR": lambda o, s: s.LambdaLR(o, lambda n: 1 / (n + 1)),
    "MultiplicativeLR": lambda o, s: s.MultiplicativeLR(o, lambda n: 0.9),
    "OneCycleLR": lambda o, s: s.OneCycleLR(o, 0.2, 20),
    "CyclicLR": lambda o, s: s.CyclicLR(o, 0.01, 0.2, 3),
    "CosineAnnealingWarmRestarts": lambda o, s: s.CosineAnnealingWarmRestarts(o, 4),
    "SequentialLR": lambda o, s: s.SequentialLR(o, [s.ConstantLR(o, 0.5, 3), s.ExponentialLR(o, 0.8)], [3]),
    "ChainedScheduler": lambda o, s: s.ChainedScheduler([s.LinearLR(o), s.ExponentialLR(o, 0.9)]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torch_and_none_warns(tmp_path, name) -> None:
    """At the first step of a resumed run torch would warn that no step of the optimizer came before."""

    class Scheduled(Short):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            with warnings.catch_warnings():
                if name == "SequentialLR":  # torch calls its parts in a way that it warns of itself
                    warnings.simplefilter("ignore", UserWarning)
                self.schedules = SCHEDULERS[name](self.optimizer, torch.optim.lr_scheduler)

    if name == "SequentialLR":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            check_resumes(Scheduled, tmp_path)
    else:
        check_resumes(Scheduled, tmp_path)


# -- the short way ----------------------------------------------------------------------------------------------------


def test_more_modules_parameters_and_numbers_in_a_loss_model(tmp_path) -> None:
    class Rich(Short):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.projection = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
            self.sharpness = nn.Parameter(torch.ones(()))
            self.module.append(nn.Linear(3, 3))  # not trained, so its gradients are nobody's
            self.optimizer = torch.optim.AdamW([
                *self.module[:3].parameters(), *self.projection.parameters(), self.sharpness,
            ])  # fmt: skip
            self.count = 0

        def loss(self, batch: Any) -> Any:
            self.seen += [batch["index"].tolist()] if self.module.training else []
            assert self.projection.training == self.module.training
            self.count += self.module.training
            logits = self.projection(self.module(batch["x"])) * self.sharpness * (1 + 0.1 * self.count)
            return nn.functional.cross_entropy(logits, batch["label"])

    model = check_resumes(lambda: Rich(clip_norm=0.05, ema_decay=0.8), tmp_path)
    assert model.count == 9
    assert model.module[3].weight.grad is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("steps", [1, 2])
def test_every_precision_with_clipping_averaging_and_accumulation(tmp_path, precision, steps) -> None:
    class Growing(Short):
        def finish_setup(self, fast_init: bool = False) -> None:
            super().finish_setup(fast_init)
            if self._scaler is not None:
                self._scaler.set_growth_interval(4)  # the stops fall into its middle

    def make() -> Any:
        return Growing(precision=precision, clip_norm=0.5, ema_decay=0.7, monitor="valid_loss")

    check_resumes(make, tmp_path, accumulation_steps=steps)


# -- torchmetrics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["attribute", "dict", "in the network", "collection"])
def test_metrics_of_torchmetrics_in_the_middle_of_their_accumulation(tmp_path, where) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(Program):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            accuracy = torchmetrics.classification.MulticlassAccuracy(3)
            listing = torchmetrics.CatMetric()
            self.metrics: Any = {
                "attribute": lambda: accuracy,
                "dict": lambda: {"accuracy": accuracy},
                "in the network": lambda: None,
                "collection": lambda: torchmetrics.MetricCollection({"accuracy": accuracy}),
            }[where]()
            self.listing = listing
            if where == "in the network":
                self.net.metric = accuracy
            self.accuracy = {
                "dict": lambda: self.metrics["accuracy"],
                "in the network": lambda: self.net.metric,
                "collection": lambda: self.metrics["accuracy"],
            }.get(where, lambda: self.metrics)

        def net_out(self, x: torch.Tensor) -> torch.Tensor:
            return self.net[2](self.net[1](self.net[0](x)))

        def loss(self, batch: Any) -> torch.Tensor:
            logits = self.net_out(batch["x"])
            if torch.is_grad_enabled():
                self.accuracy().update(logits, batch["label"])
                self.listing.update(logits.detach().mean())
            return nn.functional.cross_entropy(logits, batch["label"])

        def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
            if state.global_iteration % 5 == 0:
                self.log("accuracy", self.accuracy().compute())
                self.log("mean", self.listing.compute().mean())
                self.accuracy().reset()
                self.listing.reset()

    model = check_resumes(Measured, tmp_path)
    assert model.accuracy().update_count == 4
    assert len(model.listing.value) == 4


# -- saving by hand ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_written_by_hand_is_as_good(tmp_path) -> None:
    whole = Program()
    fit(whole, tmp_path / "whole")
    model = Program()
    trainer = backend.Trainer(total_steps=3, valid_frequency=1, use_cpu=True, print_banner=False)
    for state in trainer.steps(model, Data()):
        if state.global_iteration == 4:
            path = trainer.save_checkpoint(tmp_path / "mine" / "here")
    torch.rand(5)  # after the fit the streams belong to nobody
    last = trainer.save_checkpoint(tmp_path / "mine" / "last")
    for chosen in (path, last):
        again = Program()
        fit(again, tmp_path / chosen.name)  # another run, which the checkpoint takes over
        trainer = backend.Trainer(
            total_steps=3, valid_frequency=1, use_cpu=True, print_banner=False, chkpt_root=tmp_path / chosen.name
        )
        assert trainer.fit(again, Data(), resume=chosen)
        assert same(again.state_dict(), whole.state_dict())
        assert torch.equal(torch.get_rng_state(), _streams_after(whole, tmp_path))


def _streams_after(_: Any, tmp_path: Any) -> Any:
    tree = last_tree(tmp_path / "whole" / "net", backend.Arrays())
    return torch.from_numpy(tree["randomness"]["0"]["torch"])


def test_no_checkpoint_can_be_written_where_the_state_is_half_made(tmp_path) -> None:
    class Eager(Program):
        def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
            self.trainer.save_checkpoint(tmp_path / "half")

    trainer = backend.Trainer(total_steps=1, use_cpu=True, print_banner=False)
    assert not trainer.fit(Eager(), Data())
    message = "save_checkpoint was called inside a step or a hook, or after one that failed"
    assert message in str(trainer.error)
    with pytest.raises(ph.ParhelionError, match=message):
        trainer.save_checkpoint(tmp_path / "half")
    trainer = backend.Trainer(total_steps=1, accumulation_steps=2, use_cpu=True, print_banner=False)
    for state in trainer.steps(Program(), Data()):
        if not state.is_update:
            with pytest.raises(ph.ParhelionError, match="in the middle of an accumulation group"):
                trainer.save_checkpoint(tmp_path / "half")
    assert not (tmp_path / "half").exists()
