"""The short way on torch: what LossModel does between setup and loss."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import parhelion as ph
import parhelion_torch as backend
from parhelion.checkpoint import list_checkpoints, load_checkpoint
from parhelion.errors import CheckpointMismatchError
from parhelion.testing import last_tree, same

SIZE = 22


class Points:
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = torch.sin(torch.arange(4, dtype=torch.float64) * (index + 1))
        return {"x": x.float(), "y": x.sum().float(), "label": index % 3}


class Data(ph.DataModule):
    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size

    def setup(self) -> None:
        self._train_dataset = self._create_dataset(Points(), {"batch_size": self.batch_size, "shuffle": True})
        self._valid_dataset = self._create_dataset(Points(), {"batch_size": 9})
        self._test_dataset = self._create_dataset(Points(), {"batch_size": 9})


class Watched(torch.optim.SGD):
    """Writes down the gradient and the learning rate of every step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[tuple[torch.Tensor, float]] = []

    def step(self, closure: Any = None) -> Any:
        gradients = [each.grad.reshape(-1) for group in self.param_groups for each in group["params"]]
        self.steps.append((torch.cat(gradients).clone(), float(self.param_groups[0]["lr"])))
        return super().step(closure)


class Line(backend.LossModel):
    """A linear regression."""

    def __init__(self, **options: Any) -> None:
        super().__init__("line", **options)
        self.factor = 1.0

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Linear(4, 1)
        if not fast_init:
            self.optimizer = Watched(self.module.parameters(), lr=0.1)

    def loss(self, batch: Any) -> Any:
        return nn.functional.mse_loss(self.module(batch["x"])[:, 0].float(), batch["y"]) * self.factor


class Scaled(Line):
    """With a scale that fits from the first update on, and soon grows."""

    def finish_setup(self, fast_init: bool = False) -> None:
        super().finish_setup(fast_init)
        if self._scaler is not None:
            self._scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=4)


class Classes(Line):
    """Three classes, with outputs for metrics."""

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        self.optimizer = Watched(self.module.parameters(), lr=0.1)

    def loss(self, batch: Any) -> Any:
        logits = self.module(batch["x"])
        return nn.functional.cross_entropy(logits, batch["label"]), (logits, batch["label"])


def make_trainer(**options: Any) -> backend.Trainer:
    return backend.Trainer(**{"use_cpu": True, "print_banner": False, "total_steps": 2, **options})


def fit(model: Any, data: Any = None, **options: Any) -> backend.Trainer:
    trainer = make_trainer(**options)
    assert trainer.fit(model, Data() if data is None else data), trainer.error
    return trainer


def changed(model: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


# -- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("steps", [2, 3])
def test_accumulated_gradients_are_those_of_one_large_batch(precision, clip_norm, steps) -> None:
    """22 records in batches of 2: the last group of an epoch is short, and its last batch too."""

    def gradients(batch_size: int, steps: int) -> torch.Tensor:
        model = Scaled(precision=precision, clip_norm=clip_norm)
        fit(model, Data(batch_size), accumulation_steps=steps)
        return torch.stack([gradient for gradient, _ in model.optimizer.steps])

    small, large = gradients(2, steps), gradients(2 * steps, 1)
    assert len(small) == len(large) == 2 * math.ceil(SIZE / (2 * steps))
    tolerance = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}[precision]
    assert torch.linalg.norm(small - large) <= tolerance * torch.linalg.norm(large)
    if clip_norm is not None:
        norms = torch.linalg.norm(small, dim=1)
        assert norms.max() <= clip_norm * (1 + 1e-4)
        assert norms.max() >= clip_norm * 0.99  # it did clip, and what was unscaled
    elif precision == "float32":
        assert torch.linalg.norm(small, dim=1).max() > 0.05


def test_two_losses_may_be_summed_and_the_logged_one_is_not_scaled() -> None:
    model = Line(precision="float16")
    trainer = fit(model, print_frequency=1)
    assert all(0 < row["loss"] < 100 for row in trainer.history)


def test_an_infinite_gradient_is_skipped_by_the_scaler_and_is_no_error(tmp_path) -> None:
    model = changed(Line(precision="float16"), factor=4.0)
    weights = []

    class Watching(ph.Plugin):
        def setup(self) -> None: ...

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            weights.append(model.module.weight.clone())

    trainer = make_trainer(print_frequency=1, chkpt_root=tmp_path, chkpt_every_iterations=1)
    trainer.register_plugin(Watching("watching"))
    assert trainer.fit(model, Data()), trainer.error
    assert torch.equal(weights[0], weights[1])  # the first scale, 65536, is too large
    assert not torch.equal(weights[1], weights[-1])
    assert model._scaler is not None
    assert model._scaler.get_scale() < 65536
    assert all(math.isfinite(row["loss"]) for row in trainer.history)
    assert trainer.state.current_iteration == len(trainer.history) == 12


def test_the_state_of_the_scaler_goes_on_in_the_middle_of_its_growth_interval(tmp_path) -> None:
    whole = Scaled(precision="float16")
    fit(whole, chkpt_root=tmp_path / "whole", total_steps=3)
    fit(Scaled(precision="float16"), chkpt_root=tmp_path / "parts", total_steps=1)
    (first,) = list_checkpoints(tmp_path / "parts" / "line")
    scaler = load_checkpoint(first.path, backend.Arrays()).tree["model"]["scaler"]["state"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (32.0, 2)
    parts = Scaled(precision="float16")
    fit(parts, chkpt_root=tmp_path / "parts", total_steps=3)
    assert parts._scaler.get_scale() == whole._scaler.get_scale() != scaler["scale"]
    assert same(parts.state_dict(), whole.state_dict())


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_mixed_precision_computes_in_that_type_and_keeps_weights_in_float32(precision, dtype) -> None:
    seen = set()

    class Looking(Line):
        def loss(self, batch: Any) -> Any:
            seen.add(self.module(batch["x"]).dtype)
            return super().loss(batch)

    model = Looking(precision=precision)
    trainer = fit(model, valid_frequency=1)
    assert seen == {dtype}
    assert model.module.weight.dtype is torch.float32
    assert math.isfinite(trainer.history[-1]["valid_loss"])


# -- the average of the weights ---------------------------------------------------------------------------------------


class Averaged(Classes):
    def __init__(self, **options: Any) -> None:
        super().__init__(ema_decay=0.75, **options)
        self.weights: list[Any] = []

    def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
        self.weights.append([each.detach().clone() for each in self.module.parameters()])


def test_the_average_is_the_one_computed_by_hand() -> None:
    model = Averaged()
    fit(model)
    average = model.weights[0]
    for weights in model.weights[1:]:
        average = [0.75 * old + 0.25 * new for old, new in zip(average, weights, strict=True)]
    found = dict(model._average.module.named_parameters())
    assert len(found) == len(average)
    for one, other in zip(found.values(), average, strict=True):
        torch.testing.assert_close(one.detach(), other)


def test_evaluation_uses_the_average_and_training_gets_its_weights_back() -> None:
    class Comparing(Averaged):
        def on_validation_end(self, validation_cycle: int) -> None:
            assert self.module is self._average.module
            assert not self.module.training
            rows = [Points()[index] for index in range(SIZE)]
            x, label = torch.stack([row["x"] for row in rows]), torch.tensor([row["label"] for row in rows])
            self.expected = nn.functional.cross_entropy(self._average.module(x), label).item()

        def on_training_epoch_start(self, current_epoch: int) -> None:
            assert self.module is self.first
            assert self.module.training

        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.first = self.module

    model = Comparing()
    trainer = fit(model, valid_frequency=1)
    assert trainer.history[-1]["valid_loss"] == pytest.approx(model.expected, rel=1e-5)
    without = Classes()
    fit(without, valid_frequency=1)
    assert same(model.module.state_dict(), without.module.state_dict())


def test_training_gets_its_weights_back_also_when_a_validation_fails() -> None:
    class Failing(Averaged):
        def valid_step(self, batch: Any, step: int) -> Any:
            raise OSError("planted")

    model = Failing()
    assert not make_trainer(valid_frequency=1).fit(model, Data())
    assert model.module is not model._average.module


def test_buffers_of_integers_stay_integers_in_the_average() -> None:
    model = Averaged()
    fit(model)
    batches = model._average.module[1].num_batches_tracked
    assert batches.dtype is torch.int64
    assert torch.equal(batches, model.module[1].num_batches_tracked)
    assert torch.equal(model._average.module[1].running_mean, model.module[1].running_mean)


def test_the_average_is_in_the_checkpoint_and_what_is_used_afterwards(tmp_path) -> None:
    model = Averaged()
    trainer = fit(model, chkpt_root=tmp_path)
    tree = last_tree(tmp_path / "line", backend.Arrays())["model"]
    assert same(tree["average"], model._average.state_dict())
    assert same(model.trained_state_dict(), model._average.module.state_dict())
    assert not same(model.trained_state_dict(), model.module.state_dict())
    assert trainer.test(model, Data())
    fresh = Averaged()
    other = make_trainer(chkpt_root=tmp_path)
    assert other.test(fresh, Data())
    assert other.test_results == trainer.test_results


def test_weights_loaded_from_elsewhere_are_those_of_the_average_too(tmp_path) -> None:
    donor = Classes()
    fit(donor, chkpt_root=tmp_path)
    path = ph.find_last_checkpoint(tmp_path / "line")

    class Loading(Averaged):
        def load_for_testing(self) -> None:
            self.load_weights(load_checkpoint(path, backend.Arrays()).tree["model"])

    trainer, other = fit(Classes()), make_trainer()
    assert trainer.test(trainer.model, Data())
    assert other.test(Loading(), Data())
    assert other.test_results == trainer.test_results
    begun = Averaged()
    assert make_trainer(total_steps=0).fit(begun, Data(), init_from=path)
    assert same(begun.trained_state_dict(), load_checkpoint(path, backend.Arrays()).tree["model"]["module"])


# -- schedules --------------------------------------------------------------------------------------------------------


def rates(model: Any) -> list[float]:
    return [rate for _, rate in model.optimizer.steps]


@pytest.mark.parametrize("steps", [1, 4])
def test_a_schedule_per_update_and_one_per_epoch(steps) -> None:
    class Scheduled(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.schedules = self.make()

    updates = math.ceil(6 / steps)
    pure = Scheduled()
    pure.make = lambda: ph.schedules.linear(1.0, 0.0, 10)
    fit(pure, accumulation_steps=steps)
    assert rates(pure) == [pytest.approx(max(0, 1 - 0.1 * update)) for update in range(2 * updates)]
    by_epoch = Scheduled()
    by_epoch.make = lambda: backend.per_epoch(lambda epoch: 0.5**epoch)
    fit(by_epoch, accumulation_steps=steps)
    assert rates(by_epoch) == [1.0] * updates + [0.5] * updates
    torch_s = Scheduled()
    torch_s.make = lambda: [backend.per_epoch(torch.optim.lr_scheduler.StepLR(torch_s.optimizer, 1, 0.5))]
    fit(torch_s, accumulation_steps=steps)
    assert rates(torch_s) == [0.1] * updates + [0.05] * updates
    plain = Scheduled()
    plain.make = lambda: torch.optim.lr_scheduler.ExponentialLR(plain.optimizer, 0.5)
    fit(plain, accumulation_steps=steps)
    assert rates(plain) == [pytest.approx(0.1 * 0.5**update) for update in range(2 * updates)]


@pytest.mark.parametrize("by", ["monitor", "on_metric"])
def test_a_plateau_is_stepped_with_the_validation_s_value(by) -> None:
    class Flat(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0, factor=0.5)
            self.schedules = plateau if by == "monitor" else [backend.on_metric(plateau, "valid_flat")]

        def valid_step(self, batch: Any, step: int) -> Any:
            return {"flat": 1.0}

    model = Flat(monitor="valid_flat" if by == "monitor" else None)
    fit(model, valid_frequency=1, total_steps=4)
    assert rates(model) == [0.1] * 12 + [0.05] * 6 + [0.025] * 6


def test_the_logged_learning_rate_is_the_one_of_the_update_also_after_every_resume(tmp_path) -> None:
    class Scheduled(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0, factor=0.5)
            cycle = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
            self.schedules = [backend.per_update(cycle), backend.on_metric(plateau, "valid_flat")]

        def valid_step(self, batch: Any, step: int) -> Any:
            return {"flat": 1.0}

    options = {"total_steps": 3, "valid_frequency": 1, "print_frequency": 1}
    whole = Scheduled()
    trainer = fit(whole, **options)
    assert [row["lr"] for row in trainer.history] == rates(whole)
    assert rates(whole)[-1] == pytest.approx(0.1 * 0.9**17 * 0.5)  # both schedules
    used: list[float] = []
    for stop in range(1, 19):
        part = Scheduled()
        walker = make_trainer(**options, chkpt_root=tmp_path, chkpt_every_iterations=1)
        for state in walker.steps(part, Data()):
            if state.global_iteration == stop:
                break
        used += rates(part)
    assert used == rates(whole)
    assert [row["lr"] for row in walker.history] == rates(whole)


@pytest.mark.parametrize("kind", ["tensor", "groups"])
def test_a_pure_schedule_sets_the_rate_of_all_groups_also_where_it_is_a_tensor(kind) -> None:
    class Grouped(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            groups = [{"params": [self.module.weight]}, {"params": [self.module.bias]}]
            self.optimizer = Watched(groups, lr=torch.tensor(0.1) if kind == "tensor" else 0.1)
            self.schedules = lambda update: 0.25

    model = Grouped()
    fit(model)
    assert [float(group["lr"]) for group in model.optimizer.param_groups] == [0.25, 0.25]


def test_a_model_that_waits_for_validations_and_gets_none_is_told(caplog) -> None:
    with caplog.at_level("WARNING", "parhelion"):
        fit(Line(monitor="valid_loss"))
    assert "the model waits for values of validations and valid_frequency is None" in caplog.text


# -- the best checkpoint ----------------------------------------------------------------------------------------------


class Scripted(Line):
    """Its validations give what the test wants."""

    def __init__(self, values: list[float], **options: Any) -> None:
        super().__init__(monitor="valid_score", **options)
        self.script = values

    def valid_step(self, batch: Any, step: int) -> Any:
        return {"score": self.script[self.trainer.state.validation_cycles]}


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 4)])
def test_the_best_checkpoint_is_saved_kept_and_named(tmp_path, mode, best) -> None:
    model = Scripted([3.0, 1.0, 2.0, 5.0, 4.0, 4.0], mode=mode)
    trainer = fit(model, total_steps=6, valid_frequency=1, chkpt_root=tmp_path, chkpt_keep_last=1)
    kept = {entry.epoch: entry.path for entry in list_checkpoints(tmp_path / "line")}
    assert set(kept) == {best, 6}
    assert trainer.best_checkpoint == kept[best]
    again = Scripted([3.0, 1.0, 2.0, 5.0, 4.0, 4.0, 0.5, 9.0], mode=mode)
    further = fit(again, total_steps=7, valid_frequency=1, chkpt_root=tmp_path, chkpt_keep_last=1)
    assert further.best_checkpoint == (kept[4] if mode == "max" else tmp_path / "line" / "line_epoch_7_iter_42")


def test_a_run_without_a_monitor_has_no_best_checkpoint(tmp_path) -> None:
    trainer = fit(Line(), valid_frequency=1, chkpt_root=tmp_path)
    assert trainer.best_checkpoint is None
    assert len(list_checkpoints(tmp_path / "line")) == 1  # the last one


def test_early_stopping_counts_what_is_monitored_also_over_a_resume(tmp_path) -> None:
    values = [3.0, 2.0, 2.5, 2.5, 2.5, 1.0]
    options = {"total_steps": 6, "valid_frequency": 1, "early_stop_cycles": 2, "chkpt_frequency": 1}
    whole = fit(Scripted(values), **options)
    assert (whole.stop_reason, whole.state.validation_cycles) == ("early_stop", 4)
    fit(Scripted(values), **{**options, "total_steps": 3}, chkpt_root=tmp_path)
    part = fit(Scripted(values), **options, chkpt_root=tmp_path)
    assert (part.stop_reason, part.state) == ("early_stop", whole.state)


def test_a_monitor_that_is_no_value_of_the_validation_is_an_error() -> None:
    trainer = make_trainer(valid_frequency=1)
    assert not trainer.fit(Line(monitor="valid_acuracy"), Data())
    assert "monitor is 'valid_acuracy'; expected one of the validation's values: valid_loss" in str(trainer.error)


# -- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", ["tuple", "mapping"])
@pytest.mark.parametrize("library", ["parhelion", "torchmetrics"])
def test_metrics_count_every_record_once_and_forget_the_pass_before(outputs, library) -> None:
    class Measured(Classes):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            if library == "torchmetrics":
                made = pytest.importorskip("torchmetrics").classification.MulticlassAccuracy(3, average="micro")
            else:
                made = ph.metrics.Accuracy()
            self.metrics = {"accuracy": made} | ({"records": ph.metrics.Sum()} if outputs == "mapping" else {})

        def loss(self, batch: Any) -> Any:
            loss, arguments = super().loss(batch)
            records = (torch.ones(len(batch["x"])),)
            return loss, arguments if outputs == "tuple" else {"accuracy": arguments, "records": records}

    model = Measured()
    trainer = fit(model, valid_frequency=1)
    rows = [Points()[index] for index in range(SIZE)]
    model.module.eval()
    x, label = torch.stack([row["x"] for row in rows]), torch.tensor([row["label"] for row in rows])
    accuracy = (model.module(x).argmax(1) == label).float().mean().item()
    assert trainer.history[-1]["valid_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert trainer.test(model, Data())
    assert trainer.test_results["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    if outputs == "mapping":
        assert (trainer.history[-1]["valid_records"], trainer.test_results["test_records"]) == (SIZE, SIZE)


def test_a_metric_with_several_values_gives_a_value_for_each() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class Several(Classes):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            kinds = torchmetrics.classification
            self.metrics = {
                "m": torchmetrics.MetricCollection({"a": kinds.MulticlassAccuracy(3), "f": kinds.MulticlassF1Score(3)})
            }

    trainer = fit(Several(), valid_frequency=1)
    assert {"valid_m_a", "valid_m_f", "valid_loss"} <= set(trainer.history[-1])


def test_metrics_without_outputs_are_an_error() -> None:
    class Blind(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.metrics = {"accuracy": ph.metrics.Accuracy()}

    trainer = make_trainer(valid_frequency=1)
    assert not trainer.fit(Blind(), Data())
    assert isinstance(trainer.error, TypeError)
    assert "loss returned no outputs and there are metrics (accuracy); expected (loss, outputs)" in str(trainer.error)


# -- using what was trained -------------------------------------------------------------------------------------------


def test_predictions_come_without_gradients_in_order_and_put_the_mode_back() -> None:
    class Pairs(Data):
        def setup(self) -> None:
            super().setup()
            self._test_dataset = self._create_dataset([(Points()[k]["x"], k) for k in range(5)], {"batch_size": 2})

    model = Line()
    trainer = fit(model)
    out = trainer.predict(model, Pairs())
    assert [len(each) for each in out] == [2, 2, 1]
    assert not out[0].requires_grad
    assert model.module.training
    torch.testing.assert_close(torch.cat(out)[3], model.module(Points()[3]["x"]).detach())


def test_parameters_are_counted_once_with_an_average_and_when_shared() -> None:
    class Tied(Line):
        def setup(self, fast_init: bool = False) -> None:
            embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            head.weight = embedding.weight
            self.module = nn.ModuleDict({"embedding": embedding, "head": head})
            self.optimizer = torch.optim.Adam(self.module.parameters())

        def loss(self, batch: Any) -> Any:
            hidden = self.module["embedding"](batch["label"])
            return nn.functional.cross_entropy(self.module["head"](hidden), batch["label"])

    model = Tied(ema_decay=0.9)
    fit(model)
    assert model.describe() == {"parameters": "20"}


def test_tied_weights_stay_tied_after_a_resume(tmp_path) -> None:
    class Tied(Line):
        def setup(self, fast_init: bool = False) -> None:
            embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            head.weight = embedding.weight
            self.module = nn.ModuleDict({"embedding": embedding, "head": head})
            self.optimizer = torch.optim.Adam(self.module.parameters())

        def loss(self, batch: Any) -> Any:
            hidden = self.module["embedding"](batch["label"])
            return nn.functional.cross_entropy(self.module["head"](hidden), batch["label"])

    whole = Tied()
    fit(whole, total_steps=3)
    fit(Tied(), chkpt_root=tmp_path, total_steps=1)
    part = Tied()
    fit(part, chkpt_root=tmp_path, total_steps=3)
    assert part.module["head"].weight is part.module["embedding"].weight
    assert same(part.state_dict(), whole.state_dict())


def test_a_model_set_up_for_testing_needs_no_optimizer(tmp_path) -> None:
    model = Line()
    trainer = fit(model, chkpt_root=tmp_path)
    assert trainer.test(model, Data())
    fresh, other = Line(), make_trainer(chkpt_root=tmp_path)
    assert other.test(fresh, Data())
    assert fresh.optimizer is None
    assert other.test_results == trainer.test_results


def test_a_run_may_begin_with_weights_alone(tmp_path) -> None:
    class Explicit(backend.Model):
        def setup(self, fast_init: bool = False) -> None:
            self.net = nn.Linear(4, 1)
            self.scale = nn.Parameter(torch.ones(()))
            self.optimizer = torch.optim.SGD([*self.net.parameters(), self.scale], lr=0.1, momentum=0.9)
            head = nn.Linear(1, 1)
            self.both = {"head": head, "optimizer": torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)}

        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            hidden = self.net(batch["x"]) * self.scale
            loss = nn.functional.mse_loss(self.both["head"](hidden)[:, 0], batch["y"])
            for optimizer in (self.optimizer, self.both["optimizer"]):
                optimizer.zero_grad()
            loss.backward()
            for optimizer in (self.optimizer, self.both["optimizer"]):
                optimizer.step()
            return loss

    donor = Explicit("donor")
    fit(donor, chkpt_root=tmp_path)
    path = ph.find_last_checkpoint(tmp_path / "donor")
    heir = Explicit("heir")
    assert make_trainer(total_steps=0).fit(heir, Data(), init_from=path)
    assert same(heir.net.state_dict(), donor.net.state_dict())
    assert torch.equal(heir.scale, donor.scale)
    assert same(heir.both["head"].state_dict(), donor.both["head"].state_dict())
    assert not heir.optimizer.state  # no momentum, which is no weight
    assert not heir.both["optimizer"].state
    short, line = Line(), Line()
    fit(short, chkpt_root=tmp_path)
    assert make_trainer(total_steps=0).fit(line, Data(), init_from=ph.find_last_checkpoint(tmp_path / "line"))
    assert same(line.trained_state_dict(), short.trained_state_dict())


def test_weights_to_begin_with_are_not_read_by_a_run_that_goes_on(tmp_path) -> None:
    fit(Line(), chkpt_root=tmp_path)
    assert make_trainer(chkpt_root=tmp_path).fit(Line(), Data(), init_from=tmp_path / "gone")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_to_begin_with_may_be_of_another_type(tmp_path, dtype) -> None:
    fit(Line(), chkpt_root=tmp_path)

    class Half(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.module.to(dtype)

    model = Half()
    path = ph.find_last_checkpoint(tmp_path / "line")
    assert make_trainer(total_steps=0).fit(model, Data(), init_from=path)
    assert model.module.weight.dtype is dtype
    if dtype is torch.bfloat16:  # but a run that goes on must not lose bits
        with pytest.raises(
            CheckpointMismatchError, match=r"weight is \(1, 4\) of bfloat16 here and \(1, 4\) of float32"
        ):
            make_trainer(chkpt_root=tmp_path).fit(Half(), Data())


# -- compiled modules -------------------------------------------------------------------------------------------------


def test_a_compiled_module_has_the_names_that_it_has_without(tmp_path) -> None:
    class Compiled(Classes):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.module = torch.compile(self.module, backend="eager")

    whole = Compiled(ema_decay=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's compiler warns of is its own
        fit(whole, total_steps=2, valid_frequency=1)
        fit(Compiled(ema_decay=0.5), total_steps=1, valid_frequency=1, chkpt_root=tmp_path)
        part = Compiled(ema_decay=0.5)
        fit(part, total_steps=2, valid_frequency=1, chkpt_root=tmp_path)
    assert same(part.state_dict(), whole.state_dict())
    assert not any("_orig_mod" in name for name in part.trained_state_dict())
    plain = Classes()
    assert make_trainer(chkpt_root=tmp_path).test(plain, Data())


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float8"}, r"precision is 'float8'; expected one of 'float32', 'bfloat16', 'float16'"),
        ({"clip_norm": 0}, r"clip_norm is 0; expected a number > 0, or None"),
        ({"clip_norm": math.nan}, r"clip_norm is nan; expected a number > 0"),
        ({"clip_norm": "1"}, r"clip_norm is '1'; expected a number > 0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; expected a number between 0 and 1"),
        ({"ema_decay": 0}, r"ema_decay is 0; expected a number between 0 and 1"),
        ({"ema_decay": True}, r"ema_decay is True; expected a number between 0 and 1"),
        ({"mode": "best"}, r"mode is 'best'; expected 'min' or 'max'"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Line(**options)


def made(**attributes: Any) -> Any:
    """Return a model whose setup assigns these, made by functions of the model."""

    class Made(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            for name, make in attributes.items():
                setattr(self, name, make(self))

    return Made()


OTHER = nn.Linear(4, 1)
SCHEDULERS = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (made(module=lambda m: None), r"self.module is None after setup\(\); expected a torch.nn.Module"),
        (made(optimizer=lambda m: None), r"self.optimizer is None after setup\(\); expected a torch optimizer"),
        (made(optimizer=lambda m: "Adam"), r"self.optimizer is 'Adam' after setup\(\); expected a torch optimizer"),
        (made(schedules=lambda m: 0.1), r"schedules has 0.1; expected a function from a count to a learning rate"),
        (
            made(schedules=lambda m: SCHEDULERS.StepLR(torch.optim.SGD(OTHER.parameters()), 1)),
            r"a scheduler in schedules is of another optimizer; expected self.optimizer",
        ),
        (
            made(schedules=lambda m: SCHEDULERS.ReduceLROnPlateau(m.optimizer)),
            r"schedules has a ReduceLROnPlateau and the model monitors nothing; expected on_metric",
        ),
        (
            made(schedules=lambda m: backend.per_update(SCHEDULERS.ReduceLROnPlateau(m.optimizer))),
            r"a schedule per update is .*; expected a ReduceLROnPlateau on a metric, and nothing else there",
        ),
        (
            made(schedules=lambda m: backend.on_metric(SCHEDULERS.StepLR(m.optimizer, 1), "valid_loss")),
            r"a schedule per metric is .*; expected a ReduceLROnPlateau on a metric",
        ),
        (
            made(
                optimizer=lambda m: torch.optim.SGD(
                    [{"params": [m.module.weight], "lr": 0.1}, {"params": [m.module.bias], "lr": 0.2}]
                ),
                schedules=lambda m: lambda update: 0.1,
            ),
            r"sets one learning rate, and the optimizer's groups have \[0.1, 0.2\]; expected the same. Use torch's",
        ),
    ],
)
def test_a_setup_that_cannot_work_is_refused(model, message) -> None:
    with pytest.raises(ph.ParhelionError, match=message):
        make_trainer().fit(model, Data())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda batch: torch.ones(3, requires_grad=True),
            r"loss\(batch\) returned a tensor of shape \(3,\); expected a scalar",
        ),
        (lambda batch: None, r"loss\(batch\) returned None; expected a scalar tensor"),
        (lambda batch: 1.5, r"loss\(batch\) returned 1.5; expected a scalar tensor"),
    ],
)
def test_a_loss_that_is_no_scalar_is_an_error(loss, message) -> None:
    trainer = make_trainer()
    trainer.train_exceptions.append(TypeError)
    with pytest.raises(TypeError, match=message):
        trainer.fit(changed(Line(), loss=loss), Data())


def test_a_model_without_a_loss_says_so() -> None:
    class Forgetful(backend.LossModel):
        def setup(self, fast_init: bool = False) -> None:
            self.module = nn.Linear(4, 1)
            self.optimizer = torch.optim.SGD(self.module.parameters())

    trainer = make_trainer()
    assert not trainer.fit(Forgetful("forgetful"), Data())
    assert "Forgetful defines no loss(batch); a LossModel needs one" in str(trainer.error)


def test_a_metric_schedule_without_its_value_is_an_error() -> None:
    model = made(schedules=lambda m: backend.on_metric(SCHEDULERS.ReduceLROnPlateau(m.optimizer), "valid_los"))
    trainer = make_trainer(valid_frequency=1)
    assert not trainer.fit(model, Data())
    assert "a schedule is stepped on 'valid_los'; expected one of the validation's values: valid_loss" in str(
        trainer.error
    )


class Base(Line):
    """What the checkpoint of the next test is of."""

    def setup(self, fast_init: bool = False) -> None:
        self.module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        self.optimizer = torch.optim.Adam(self.module.parameters())
        self.schedules = SCHEDULERS.StepLR(self.optimizer, 5)


def other(**attributes: Any) -> Any:
    class Other(Base):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            if "module" in attributes:
                self.module = attributes["module"]()
                self.optimizer = torch.optim.Adam(self.module.parameters())
                self.schedules = SCHEDULERS.StepLR(self.optimizer, 5)
            for name, make in attributes.items():
                if name not in ("module", "options"):
                    setattr(self, name, make(self))

    return Other(**attributes.get("options", {}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            other(module=lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))),
            (
                r"module is of another model: 1.weight is \(4, 4\) of float32 here and \(1, 4\) of float32 there; "
                r"1.bias is .*; 2.weight is missing in the checkpoint; 2.bias is missing in the checkpoint. Build the"
            ),
        ),
        (other(module=lambda: nn.Sequential(nn.Linear(4, 1))), r"0.weight is .*; 1.weight is only in the checkpoint"),
        (
            other(module=lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)), nn.Linear(4, 1))),
            r"2.weight is missing in the checkpoint; .*; and 5 more",
        ),
        (
            other(optimizer=lambda m: torch.optim.RAdam(m.module.parameters()), schedules=lambda m: None),
            r"the model has 0 schedules and the checkpoint 1; expected the same",
        ),
        (
            other(optimizer=lambda m: torch.optim.RAdam(m.module.parameters()),
                  schedules=lambda m: SCHEDULERS.StepLR(m.optimizer, 5)),
            r"optimizer is of RAdam here and of Adam in the checkpoint",
        ),
        (
            other(optimizer=lambda m: torch.optim.Adam([m.module[0].weight]),
                  schedules=lambda m: SCHEDULERS.StepLR(m.optimizer, 5)),
            r"the parameters of optimizer are \[1\] by group here and \[4\] in the checkpoint",
        ),
        (
            other(schedules=lambda m: SCHEDULERS.ExponentialLR(m.optimizer, 0.5)),
            r"a schedule is ExponentialLR per update here and StepLR per update in the checkpoint",
        ),
        (
            other(schedules=lambda m: backend.per_epoch(SCHEDULERS.StepLR(m.optimizer, 5))),
            r"a schedule is StepLR per epoch here and StepLR per update in the checkpoint",
        ),
        (other(options={"ema_decay": 0.9}), r"only the model has averaged weights; expected both or neither"),
        (other(options={"precision": "float16"}), r"the model has one and the checkpoint none: scaler"),
        (other(extra=lambda m: nn.Linear(1, 1)), r"the saved model has the parts \[\] and Other has \['extra'\]"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_changed(tmp_path, model, message) -> None:
    fit(Base(), total_steps=3, chkpt_root=tmp_path, chkpt_frequency=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for resume in ("auto", tmp_path / "line" / "line_epoch_1_iter_6"):
        with pytest.raises(CheckpointMismatchError, match=message):
            make_trainer(total_steps=4, chkpt_root=tmp_path).fit(model, Data(), resume=resume)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_refused_explicit_model_keeps_the_weights_it_was_set_up_with(tmp_path) -> None:
    class Two(backend.Model):
        def __init__(self, width: int) -> None:
            super().__init__("two")
            self.width = width

        def setup(self, fast_init: bool = False) -> None:
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, self.width)
            self.optimizer = torch.optim.SGD([*self.first.parameters(), *self.second.parameters()], lr=0.1)

        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            loss = self.second(self.first(batch["x"])).square().mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            return loss

    fit(Two(1), chkpt_root=tmp_path)
    before, refused = Two(2), Two(2)
    assert make_trainer(total_steps=0).fit(before, Data())
    with pytest.raises(
        CheckpointMismatchError, match=r"the checkpoint's second is of another model: weight is \(2, 4\)"
    ):
        make_trainer(chkpt_root=tmp_path).fit(refused, Data())
    assert same(refused.first.state_dict(), before.first.state_dict())


def test_a_model_object_may_be_fitted_again_from_the_start() -> None:
    model = Scripted([3.0, 1.0, 2.0])
    fit(model, total_steps=3, valid_frequency=1, early_stop_cycles=1)
    again = fit(model, total_steps=2, valid_frequency=1, early_stop_cycles=1)
    assert again.state.early_stop_count == 0  # 3.0 and then 1.0 are improvements again


def test_a_function_in_place_of_another_schedule_is_accepted(tmp_path) -> None:
    first = made(schedules=lambda m: ph.schedules.constant(0.1))
    fit(first, total_steps=1, chkpt_root=tmp_path)
    second = made(schedules=lambda m: lambda update: 0.5)
    fit(second, total_steps=2, chkpt_root=tmp_path)
    assert rates(second) == [0.5] * 6


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["Adagrad", "AdamW"])
def test_a_run_on_the_gpu_resumes_exactly(tmp_path, precision, name) -> None:
    """Adagrad makes its state at once, on the host where the parameters are then."""

    class OnGpu(Classes):
        def setup(self, fast_init: bool = False) -> None:
            self.module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
            self.optimizer = getattr(torch.optim, name)(self.module.parameters())
            self.running = None

        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            loss = super().train_step(batch, state)
            self.running = loss if self.running is None else 0.9 * self.running + 0.1 * loss
            return loss

    def run(root: Any, total_steps: int) -> Any:
        model = OnGpu(precision=precision, clip_norm=1.0, ema_decay=0.9)
        trainer = backend.Trainer(
            total_steps=total_steps, gpus=[0], enable_deterministic=True, chkpt_root=root, print_banner=False,
            valid_frequency=1, accumulation_steps=2,
        )  # fmt: skip
        assert trainer.fit(model, Data()), trainer.error
        return model

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    torch.cuda.manual_seed(5)
    part = run(tmp_path / "parts", 3)
    assert part.running.is_cuda
    assert torch.equal(part.running, whole.running)
    trees = [last_tree(tmp_path / root / "line", backend.Arrays()) for root in ("parts", "whole")]
    for tree in trees:
        tree.pop("attributes")  # holds tensors that equality cannot compare; compared above
    assert same(*trees)
