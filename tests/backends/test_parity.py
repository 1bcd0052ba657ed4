"""The same network, weights, optimizer and batches on both backends: the same training, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import parhelion as ph
from support.traces import Divergence, first_divergence, largest_error

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
on_torch = pytest.importorskip("parhelion_torch")
on_jax = pytest.importorskip("parhelion_jax")

jnp = jax.numpy
STEPS, BATCH_SIZE, SIZE = 100, 32, 500
# The bounds on losses, relative: what the two libraries' sums of float32 may differ by, and nothing else.
BOUNDS = {"sgd": 1e-5, "momentum": 1e-5, "adam": 1e-4}


class Images:
    """Images of four classes, (height, width, channels); each is flipped or not, and noisy, by its own generator."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        label, rng = index % 4, ph.sample_rng()
        wave = np.sin(np.arange(48, dtype=np.float32) * (0.1 + 0.05 * label)).reshape(4, 6, 2)
        image = wave[:, ::-1] if rng.random() < 0.5 else wave
        return {"image": image + 2.0 * rng.standard_normal(image.shape, np.float32), "label": label}


class Data(ph.DataModule):
    def setup(self) -> None:
        self._train_dataset = self._create_dataset(Images(), {"batch_size": BATCH_SIZE, "shuffle": True})


WEIGHT_MAPS = {
    "mlp": ph.weights.WeightMap({name: ph.weights.dense(name) for name in ("first", "second", "third")}),
    "cnn": ph.weights.WeightMap(
        {"conv": ph.weights.conv("conv"), "dense": ph.weights.dense("dense", flattened=(4, 2, 3))}
    ),
}


class TorchMLP(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(48, 32), torch.nn.Linear(32, 16)
        self.third = torch.nn.Linear(16, 4)

    def forward(self, image: Any) -> Any:
        # Smooth: at relu's kink one rounding decides whether a weight is moved, and Adam moves it by a whole step.
        return self.third(torch.tanh(self.second(torch.tanh(self.first(image.flatten(1))))))


class TorchCNN(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # Few activations, since one that falls on a kink of relu or of the pool is a matter of a rounding.
        self.conv, self.dense = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Linear(4 * 2 * 3, 4)

    def forward(self, image: Any) -> Any:
        hidden = torch.relu(self.conv(image.permute(0, 3, 1, 2)))
        return self.dense(torch.nn.functional.max_pool2d(hidden, 2).flatten(1))


def jax_mlp(params: Any, image: Any) -> Any:
    hidden = image.reshape(len(image), -1)
    for name in ("first", "second"):
        hidden = jnp.tanh(hidden @ params[name]["kernel"] + params[name]["bias"])
    return hidden @ params["third"]["kernel"] + params["third"]["bias"]


def jax_cnn(params: Any, image: Any) -> Any:
    layout = ("NHWC", "HWIO", "NHWC")
    hidden = jax.lax.conv_general_dilated(image, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=layout)
    hidden = jax.nn.relu(hidden + params["conv"]["bias"])
    hidden = jax.lax.reduce_window(hidden, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return hidden.reshape(len(hidden), -1) @ params["dense"]["kernel"] + params["dense"]["bias"]


TORCH_NETS = {"mlp": TorchMLP, "cnn": TorchCNN}
JAX_NETS = {"mlp": jax_mlp, "cnn": jax_cnn}
SHAPES = {
    "mlp": {"first": (48, 32), "second": (32, 16), "third": (16, 4)},
    "cnn": {"conv": (3, 3, 2, 4), "dense": (24, 4)},
}
TORCH_OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, 0.05),
    "momentum": lambda params: torch.optim.SGD(params, 0.05, momentum=0.5),
    "adam": lambda params: torch.optim.Adam(params, 1e-3),
}
JAX_OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.05),
    "momentum": lambda: optax.sgd(0.05, momentum=0.5),
    "adam": lambda: optax.adam(1e-3),
}


class Journal:
    """What each step left behind; no part of the model, whose attributes are looked through for state."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []


class Traced:
    """Keeps what its arrays are after each update, by torch's names and in torch's layouts."""

    def __init__(self, net: str, optimizer: str) -> None:
        super().__init__(net)
        self.net, self.kind = net, optimizer
        self.weight_map = WEIGHT_MAPS[net]
        self.journal = Journal()

    def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
        portable = self.portable_state()
        moments = portable["moments"]["first"] or portable["moments"]["momentum"]
        named = {"weights": portable["weights"], "first moments": moments}
        self.journal.steps.append(
            {f"{name} of {what}": each for what, them in named.items() for name, each in self.as_torch(them).items()}
        )


class TorchModel(Traced, on_torch.LossModel):
    def setup(self, fast_init: bool = False) -> None:
        self.module = TORCH_NETS[self.net]()
        self.optimizer = TORCH_OPTIMIZERS[self.kind](self.module.parameters())

    def loss(self, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(self.module(batch["image"]), batch["label"])

    def as_torch(self, named: Any) -> dict[str, Any]:
        return {name: each.numpy().copy() for name, each in named.items()}


class JaxModel(Traced, on_jax.LossModel):
    def setup(self, fast_init: bool = False) -> None:
        make = jax.nn.initializers.glorot_uniform()
        self.params = {
            name: {"kernel": make(self.key("params", name), shape), "bias": jnp.zeros(shape[-1])}
            for name, shape in SHAPES[self.net].items()
        }
        self.optimizer = JAX_OPTIMIZERS[self.kind]()

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        logits = JAX_NETS[self.net](params, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def as_torch(self, named: Any) -> dict[str, Any]:
        return {name: np.array(each) for name, each in self.weight_map.to_torch(named, partial=True).items()}


class Nudged(JaxModel):
    """Moves one bias by hand after step 7."""

    def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
        if state.current_iteration == 7:
            params = self.params
            params["second"]["bias"] = params["second"]["bias"].at[3].add(0.01)
            self.params = params
        super().on_training_batch_end(state, should_log)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small sums gain nothing from several threads, and wait for each other where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(model: Any, steps: int = STEPS, init_from: Any = None, **options: Any) -> list[dict[str, Any]]:
    """Return what the loss of each step was, and the arrays after it."""
    backend = on_torch if isinstance(model, TorchModel) else on_jax
    trainer = backend.Trainer(
        "run", "iteration", steps, print_frequency=1, use_cpu=True, print_banner=False, random_seed=1, **options
    )
    assert trainer.fit(model, Data(), init_from=init_from), trainer.error
    losses = [row["loss"] for row in trainer.history]
    return [{"the loss": loss, **arrays} for loss, arrays in zip(losses, model.journal.steps, strict=True)]


def begin(root: Any, writer: Any, net: str) -> Any:
    """Return a checkpoint of some backend, with whose weights both begin."""
    train(writer(net, "sgd"), 1, chkpt_root=root)
    return ph.find_last_checkpoint(root / net)


@pytest.mark.parametrize("optimizer", BOUNDS)
@pytest.mark.parametrize(("net", "writer"), [("mlp", TorchModel), ("cnn", JaxModel)], ids=["mlp", "cnn"])
def test_both_backends_train_alike(tmp_path, net, writer, optimizer, record_property) -> None:
    start = begin(tmp_path, writer, net)
    one, other = (train(kind(net, optimizer), init_from=start) for kind in (TorchModel, JaxModel))
    losses, bound = [step["the loss"] for step in one], BOUNDS[optimizer]
    assert losses[-1] < 0.9 * losses[0]
    compared = [name for name in one[0] if not name.endswith("first moments")]  # those cancel, near a minimum
    for name in one[0]:
        record_property(name, largest_error(one, other, name))
    assert all(largest_error(one, other, name) <= bound for name in compared), str(first_divergence(one, other, bound))


def test_a_bias_that_differs_from_step_7_on_is_found(tmp_path) -> None:
    start = begin(tmp_path, TorchModel, "mlp")
    one, other = (train(kind("mlp", "adam"), 12, start) for kind in (TorchModel, Nudged))
    found = first_divergence(one, other, BOUNDS["adam"])
    assert (found.step, found.array, found.place) == (7, "second.bias of weights", (3,))
    assert found.values[1] - found.values[0] == pytest.approx(0.01, rel=1e-3)
    assert str(found).startswith(f"step 7: second.bias of weights[3] is {found.values[0]!r} and {found.values[1]!r}, ")


def test_a_wrong_gradient_is_found_in_the_first_moments_of_its_array(tmp_path, monkeypatch) -> None:
    def with_wrong_gradient(params: Any, image: Any) -> Any:
        kernel = params["conv"]["kernel"]
        nothing = (kernel - jax.lax.stop_gradient(kernel)).sum()  # of value 0 and slope 1
        return jax_cnn(params, image).at[:, 0].add(1e-3 * nothing)

    start = begin(tmp_path, JaxModel, "cnn")
    monkeypatch.setitem(JAX_NETS, "cnn", with_wrong_gradient)
    one, other = (train(kind("cnn", "momentum"), 2, start) for kind in (TorchModel, JaxModel))
    found = first_divergence(one, other, 1e-5)
    assert (found.step, found.array) == (1, "conv.weight of first moments")


ROWS = [{"a": np.array([1.0, -4.0]), "b": 2.0}, {"a": np.array([1.0, -2.0]), "b": 3.0}]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"a": np.array([1.0, -2.0001])}, None),
        ({"a": np.array([1.1, -2.0])}, Divergence(2, "a", (0,), (1.0, 1.1), 0.05)),
        ({"a": np.array([1.1, -2.0]), "b": 2.4}, Divergence(2, "b", (), (3.0, 2.4), 0.2)),
        ({"b": float("nan")}, Divergence(2, "b", (), (3.0, float("nan")), float("inf"))),
    ],
    ids=["the same", "within the bound", "an element", "the worst of two", "a NaN"],
)
def test_where_two_runs_part(change, expected) -> None:
    found = first_divergence(ROWS, [ROWS[0], ROWS[1] | change], 1e-3)
    if expected is None:
        assert found is None
        return
    assert (found.step, found.array, found.place) == (expected.step, expected.array, expected.place)
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.error == pytest.approx(expected.error)


@pytest.mark.parametrize("other", [ROWS[:1], [ROWS[0], {"a": ROWS[1]["a"]}], [{"a": np.ones(3), "b": 2.0}, ROWS[1]]])
def test_runs_of_other_steps_names_or_shapes_are_not_compared(other) -> None:
    with pytest.raises(ValueError, match=r"shorter|only one run has b|a is \(2,\) in one run and \(3,\) in the other"):
        first_divergence(ROWS, other, 1.0)
