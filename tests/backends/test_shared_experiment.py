"""An experiment that is written once runs on either backend, and a run may change from one to the other at any step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parhelion as ph
from parhelion.checkpoint import load_checkpoint
from parhelion.errors import CheckpointMismatchError
from parhelion.tracking import read_history
from support import twins

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
on_torch = pytest.importorskip("parhelion_torch")
on_jax = pytest.importorskip("parhelion_jax")

SIDES = ["torch", "jax"]
TOTAL = 5 * twins.NUM_BATCHES


class Zoom(ph.Plugin):
    """Makes the points a little larger with every batch that it has seen."""

    def __init__(self) -> None:
        super().__init__("zoom")
        self.unique_overrides.training_batch = True

    def setup(self) -> None:
        self.num_batches, self.cycles = 0, []

    def process_training_batch(self, batch: Any, state: Any) -> Any:
        self.num_batches += 1
        return {**batch, "x": batch["x"] * (1 + 0.01 * self.num_batches)}

    def on_validation_end(self, validation_cycle: int) -> None:
        self.cycles.append(validation_cycle)

    def state_dict(self) -> dict[str, Any]:
        return {"num_batches": self.num_batches, "cycles": list(self.cycles)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_batches, self.cycles = state_dict["num_batches"], list(state_dict["cycles"])


class Leg:
    """One part of a run, on one of the backends, up to a step."""

    def __init__(self, side: str, root: Path, stop: int, **options: Any) -> None:
        self.model, self.data, self.plugin = twins.make_model(side, monitor="valid_loss"), twins.Data(), Zoom()
        self.trainer = twins.make_trainer(
            side,
            run_name="run",
            total_steps=5,
            valid_frequency=1,
            print_frequency=1,
            early_stop_cycles=9,
            random_seed=4,
            enable_file_logging=True,
            log_path=root / "logs",
            enable_tensorboard=True,
            run_path=root / "boards",
            chkpt_root=root,
            chkpt_every_iterations=1,
            chkpt_keep_last=2,
            **options,
        )
        self.trainer.register_plugin(self.plugin)
        for state in self.trainer.steps(self.model, self.data):
            self.state = state
            if state.current_iteration == stop < TOTAL:
                break

    def facts(self) -> Any:
        """Return what of a run is the same bits wherever it runs."""
        return {
            "counters": self.state.dict() | {"average_iter_time": 0},
            "position": self.state.position,
            "plugin": self.plugin.state_dict(),
            "data": self.data.num_setups,
            "seen": self.model.num_seen,
        }


def values(rows: list[dict[str, float]]) -> Any:
    names = sorted({name for row in rows for name in row} - {"samples_per_second", "time"})
    return names, [[row.get(name, -1.0) for name in names] for row in rows]


@pytest.mark.parametrize("sides", [("torch", "jax", "torch"), ("jax", "torch", "jax")], ids="-".join)
def test_a_run_of_three_legs_is_the_run_that_never_changed_sides(tmp_path, sides) -> None:
    whole = Leg(sides[0], tmp_path / "whole", TOTAL)
    root = tmp_path / "legs"
    first, second, third = (Leg(side, root, stop) for side, stop in zip(sides, (10, 24, TOTAL), strict=True))
    assert first.state.position == ph.Position(1, 12)
    assert second.state.position == ph.Position(3, 12)
    assert third.trainer.stop_reason == whole.trainer.stop_reason == "finished"
    assert third.facts() == whole.facts() | {"data": 3}
    # What is computed is the same but for the two libraries' rounding.
    assert third.model._best == pytest.approx(whole.model._best, rel=1e-4)
    trees = [load_checkpoint(ph.find_last_checkpoint(each / "net"), None).tree for each in (tmp_path / "whole", root)]
    assert trees[0]["best"] == trees[1]["best"]
    assert (root / "net" / trees[1]["best"]).is_dir()
    rows = [read_history(each / "net" / "history.jsonl") for each in (tmp_path / "whole", root)]
    assert [row["step"] for row in rows[1]] == list(range(1, TOTAL + 1))
    (names, expected), (_, found) = map(values, rows)
    assert {"loss", "lr", "valid_loss", "valid_accuracy"} <= set(names)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_log_files_go_on_over_three_legs(tmp_path) -> None:
    for side, stop in zip(("torch", "jax", "torch"), (10, 24, TOTAL), strict=True):
        Leg(side, tmp_path, stop)
    text = (tmp_path / "logs" / "run.log").read_text()
    assert [int(number) for number in re.findall(r"iteration (\d+)\b.* loss", text)] == list(range(1, TOTAL + 1))
    assert re.findall(r"backend (torch|jax)", text) == ["torch", "jax", "torch"]
    assert len(list((tmp_path / "boards" / "run").glob("events.*"))) == 3


@pytest.mark.parametrize("sides", [("torch", "jax"), ("jax", "torch")], ids="-".join)
def test_the_side_that_goes_on_knows_when_to_stop_early(tmp_path, sides) -> None:
    def leg(side: str, total: int) -> Any:
        model = twins.make_model(side, monitor="valid_loss")
        model.have_metrics_improved = lambda: False
        trainer = twins.make_trainer(
            side, total_steps=total, valid_frequency=1, early_stop_cycles=5, chkpt_root=tmp_path
        )
        assert trainer.fit(model, twins.Data()), trainer.error
        return trainer

    assert leg(sides[0], 3).state.early_stop_count == 3
    trainer = leg(sides[1], 9)
    assert (trainer.stop_reason, trainer.state.epoch, trainer.state.early_stop_count) == ("early_stop", 5, 5)


def files(root: Path) -> Any:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["resumes", "begins with its weights", "tests"])
@pytest.mark.parametrize("sides", [("torch", "jax"), ("jax", "torch")], ids="-".join)
def test_without_a_map_nothing_on_disk_changes(tmp_path, sides, how) -> None:
    assert twins.make_trainer(sides[0], total_steps=1, chkpt_root=tmp_path).fit(
        twins.make_model(sides[0]), twins.Data()
    )
    before, path = files(tmp_path), ph.find_last_checkpoint(tmp_path / "net")
    root = tmp_path / "other" if how == "begins with its weights" else tmp_path
    trainer = twins.make_trainer(sides[1], total_steps=2, chkpt_root=root)
    model = twins.make_model(sides[1], weight_map=None)
    message = f"written on {sides[0]} and nothing says which of its weights are which of Net's; .* Set self.weight_map"
    options = {"init_from": path} if root != tmp_path else {}
    act = trainer.test if how == "tests" else trainer.fit
    with pytest.raises(CheckpointMismatchError, match=message):
        act(model, twins.Data(), **options)
    assert files(tmp_path) == before


# -- dtypes -----------------------------------------------------------------------------------------------------------

ALL = ph.weights.WeightMap({"": ph.weights.same("")})
HALF = np.arange(0x3F80, 0x3F88, dtype=np.uint16)  # the bits of eight numbers of bfloat16 from 1 on


class TorchState(on_torch.LossModel):
    """Half precision weights that do not move, and counts."""

    count = 0

    def setup(self, fast_init: bool = False) -> None:
        module = torch.nn.Module()
        module.w = torch.nn.Parameter(torch.from_numpy(HALF.view(np.int16).copy()).view(torch.bfloat16))
        module.register_buffer("count", torch.tensor([self.count, -1]))
        self.module, self.weight_map = module, ALL
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.0)

    def loss(self, batch: Any) -> Any:
        return self.module.w.float().sum() * batch["x"].mean()

    def found(self) -> Any:
        return self.module.count.tolist(), self.module.w.detach().view(torch.int16).numpy().tobytes()


class JaxState(on_jax.LossModel):
    """The same; jax's integers have 32 bits."""

    count = 0

    def setup(self, fast_init: bool = False) -> None:
        self.params = {"w": jax.numpy.asarray(HALF.view(jax.numpy.bfloat16))}
        self.variables = {"count": np.array([self.count, -1])}
        self.optimizer, self.weight_map = optax.sgd(0.0), ALL

    def loss(self, params: Any, batch: Any, key: Any, variables: Any) -> Any:
        return params["w"].astype("float32").sum() * batch["x"].mean(), None, variables

    def found(self) -> Any:
        return np.asarray(self.variables["count"]).tolist(), np.asarray(self.params["w"]).tobytes()


STATES = {"torch": TorchState, "jax": JaxState}


def go_on(side: str, root: Path, epochs: int, count: int = 0) -> Any:
    model = STATES[side]("net")
    model.count = count
    trainer = twins.make_trainer(side, total_steps=epochs, chkpt_root=root)
    assert trainer.fit(model, twins.Data()), trainer.error
    return model.found()


@pytest.mark.parametrize("sides", [("torch", "jax", "torch"), ("jax", "torch", "jax")], ids="-".join)
def test_integers_and_bfloat16_come_back_as_they_were(tmp_path, sides) -> None:
    seen = [go_on(side, tmp_path, number, 2**31 - 1 if number == 1 else 0) for number, side in enumerate(sides, 1)]
    assert seen == [([2**31 - 1, -1], HALF.tobytes())] * 3


def test_an_integer_that_jax_cannot_hold_is_refused_by_name(tmp_path) -> None:
    go_on("torch", tmp_path, 1, 2**40)
    before = files(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"count has 1099511627776 and int32 ends at 2147483647"):
        go_on("jax", tmp_path, 2)
    assert files(tmp_path) == before
    assert go_on("torch", tmp_path, 2) == ([2**40, -1], HALF.tobytes())
