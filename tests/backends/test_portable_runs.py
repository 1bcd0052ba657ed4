"""A run that one backend began, the other goes on with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import parhelion as ph
from parhelion.errors import CheckpointMismatchError

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
on_torch = pytest.importorskip("parhelion_torch")
on_jax = pytest.importorskip("parhelion_jax")

WEIGHT_MAP = ph.weights.WeightMap(
    {"body": ph.weights.dense("0"), "bn": ph.weights.norm("1"), "head": ph.weights.dense("3")}
)
RATE = ph.schedules.cosine(0.02, num_updates=24)


class Points:
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = np.sin(np.arange(5, dtype=np.float32) * (index + 1)) + 0.1 * ph.sample_rng().standard_normal(5, np.float32)
        return {"x": x, "y": np.float32(x.sum())}


class Data(ph.DataModule):
    def setup(self) -> None:
        self._train_dataset = self._create_dataset(Points(), {"batch_size": 4, "shuffle": True})
        self._test_dataset = self._create_dataset(Points(), {"batch_size": 4})


class TorchNet(on_torch.LossModel):
    def setup(self, fast_init: bool = False) -> None:
        self.module = torch.nn.Sequential(
            torch.nn.Linear(5, 6, bias=False), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Linear(6, 1)
        )
        self.optimizer = None if fast_init else torch.optim.AdamW(self.module.parameters(), 0.02, weight_decay=0.01)
        self.schedules = RATE
        self.weight_map = WEIGHT_MAP

    def loss(self, batch: Any) -> Any:
        return torch.nn.functional.mse_loss(self.module(batch["x"])[:, 0], batch["y"])


class JaxNet(on_jax.LossModel):
    def setup(self, fast_init: bool = False) -> None:
        first, second = jax.random.split(self.key("params"))
        zeros = jax.numpy.zeros
        self.params = {
            "body": {"kernel": jax.random.normal(first, (5, 6))},
            "bn": {"scale": zeros(6) + 1, "bias": zeros(6)},
            "head": {"kernel": jax.random.normal(second, (6, 1)), "bias": zeros(1)},
        }
        self.variables = {"bn": {"mean": zeros(6), "var": zeros(6) + 1}}
        self.optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=0.02, weight_decay=0.01)
        self.schedules = RATE
        self.weight_map = WEIGHT_MAP

    def loss(self, params: Any, batch: Any, key: Any, variables: Any) -> Any:
        hidden, size = batch["x"] @ params["body"]["kernel"], len(batch["x"])
        stats = variables["bn"]
        mean, var = (stats["mean"], stats["var"]) if key is None else (hidden.mean(0), hidden.var(0))
        if key is not None:
            fresh = {"mean": mean, "var": var * size / (size - 1)}
            variables = {"bn": {name: 0.9 * stats[name] + 0.1 * fresh[name] for name in stats}}
        hidden = (hidden - mean) / jax.numpy.sqrt(var + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
        output = jax.numpy.tanh(hidden) @ params["head"]["kernel"] + params["head"]["bias"]
        return ((output[:, 0] - batch["y"]) ** 2).mean(), None, variables


SIDES = {"torch": (on_torch, TorchNet), "jax": (on_jax, JaxNet)}


def trainer(side: str, root: Any, epochs: int) -> Any:
    return SIDES[side][0].Trainer(
        "run", "epoch", epochs, use_cpu=True, chkpt_root=root, print_banner=False, random_seed=3
    )


def train(side: str, root: Any, epochs: int, **options: Any) -> Any:
    made, model = trainer(side, root, epochs), SIDES[side][1]("net", **options)
    assert made.fit(model, Data()), made.error
    return made, model


def weights(side: str, model: Any) -> Any:
    """Return the trained weights by torch's names."""
    named = model.portable_state()["weights"]
    if side == "torch":
        return {name: value.numpy().copy() for name, value in named.items()}
    return {name: np.array(value) for name, value in WEIGHT_MAP.to_torch(named, num_updates=24).items()}


@pytest.mark.parametrize("sides", [("torch", "jax"), ("jax", "torch")], ids="-".join)
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.8}], ids=["plain", "average"])
def test_a_run_that_changes_sides_ends_where_one_that_stays_does(tmp_path, sides, options) -> None:
    first, second = sides
    for root, last in ((tmp_path / "stays", first), (tmp_path / "changes", second)):
        train(first, root, 2, **options)
        made, model = train(last, root, 4, **options)
        assert made.stop_reason == "finished"
        if last == first:
            expected = weights(first, model)
    for name, value in weights(second, model).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-4, atol=2e-5, err_msg=name)


def predicted(side: str, root: Any, **options: Any) -> Any:
    """Return what the model of the newest checkpoint says, which the other side may have written."""
    made, model = trainer(side, root, 4), SIDES[side][1]("net", **options)
    seen: list[Any] = []
    of_loss = model.valid_step

    def note(batch: Any, step: int) -> Any:
        seen.append(float(of_loss(batch, step)))
        return seen[-1]

    model.test_step = note
    assert made.test(model, Data()), made.error
    return seen


@pytest.mark.parametrize("sides", [("torch", "jax"), ("jax", "torch")], ids="-".join)
def test_a_test_on_the_other_side_sees_the_same_average(tmp_path, sides, caplog) -> None:
    first, second = sides
    train(first, tmp_path, 2, ema_decay=0.8)
    one, other = predicted(first, tmp_path, ema_decay=0.8), predicted(second, tmp_path, ema_decay=0.8)
    assert len(one) == 6
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("sides", [("torch", "jax"), ("jax", "torch")], ids="-".join)
def test_a_fresh_run_begins_with_the_weights_of_the_other_side(tmp_path, sides) -> None:
    first, second = sides
    _, model = train(first, tmp_path / "a", 1)
    begun = SIDES[second][1]("net")
    begun.on_training_start = lambda: seen.update(weights(second, begun))
    seen: dict[str, Any] = {}
    made = trainer(second, tmp_path / "b", 1)
    assert made.fit(begun, Data(), init_from=ph.find_last_checkpoint(tmp_path / "a" / "net")), made.error
    for name, value in weights(first, model).items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(seen[name], value, err_msg=name)


@pytest.mark.parametrize("sides", [("torch", "jax"), ("jax", "torch")], ids="-".join)
def test_without_a_map_the_other_side_says_what_is_missing(tmp_path, sides, monkeypatch) -> None:
    first, second = sides
    train(first, tmp_path, 1)
    monkeypatch.setitem(globals(), "WEIGHT_MAP", None)
    message = f"written on {first} and nothing says which of its weights are which of {SIDES[second][1].__name__}'s"
    with pytest.raises(CheckpointMismatchError, match=message):
        trainer(second, tmp_path, 2).fit(SIDES[second][1]("net"), Data())
