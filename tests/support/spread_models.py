"""Models and data for jax's runs on several devices: nothing in them depends on how a batch is split."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import parhelion as ph
import parhelion_jax as backend


class Images:
    """Small images of three classes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.sin(np.arange(64, dtype=np.float32) * (index + 1)).reshape(8, 8, 1)
        image += 0.1 * ph.sample_rng().standard_normal((8, 8, 1), np.float32)
        return {"image": image, "label": index % 3, "index": index}


class Data(ph.DataModule):
    """``batch_size`` is a process's own; evaluation has an odd number of records."""

    def __init__(self, batch_size: int, size: int = 40, **params: Any) -> None:
        self.params = {"batch_size": batch_size, "shuffle": True, **params}
        self.size = size

    def setup(self) -> None:
        batch_size = self.params["batch_size"]
        self._train_dataset = self._create_dataset(Images(self.size), self.params)
        self._valid_dataset = self._create_dataset(Images(21), {"batch_size": batch_size})
        self._test_dataset = self._create_dataset(Images(21), {"batch_size": batch_size})


def convolve(params: Any, image: jax.Array) -> jax.Array:
    """Return logits: two convolutions and a dense layer."""
    hidden = image
    for name in ("one", "two"):
        hidden = jax.lax.conv_general_dilated(
            hidden, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jax.nn.relu(hidden)
    return hidden.mean((1, 2)) @ params["out"]


def connect_densely(params: Any, image: jax.Array) -> jax.Array:
    """Return logits: two dense layers."""
    return jnp.tanh(image.reshape(len(image), -1) @ params["one"]) @ params["out"]


NETWORKS = {
    "cnn": (convolve, {"one": (3, 3, 1, 4), "two": (3, 3, 4, 8), "out": (8, 3)}),
    "mlp": (connect_densely, {"one": (64, 16), "out": (16, 3)}),
}


class Classifier(backend.LossModel):
    """A network that notes the order of the records that all devices together train on."""

    def __init__(self, network: str = "cnn", *, rate: float = 0.1, dropout: bool = False, **options: Any) -> None:
        super().__init__("classifier", **options)
        self.network, self.rate, self.has_dropout = network, rate, dropout

    def setup(self, fast_init: bool = False) -> None:
        shapes = NETWORKS[self.network][1]
        self.params = {name: 0.3 * jax.random.normal(self.key("params", name), shape) for name, shape in shapes.items()}
        self.optimizer = optax.sgd(self.rate, momentum=None if self.rate > 1 else 0.9)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        image = batch["image"]
        if self.has_dropout and key is not None:
            image = jnp.where(jax.random.bernoulli(key, 0.8, image.shape), image, 0)
        logits = NETWORKS[self.network][0](params, image)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, (logits, batch["label"])


class Explicit(backend.Model):
    """A regression by hand, with arrays that are bound to no device."""

    def __init__(self) -> None:
        super().__init__("explicit")

    def setup(self, fast_init: bool = False) -> None:
        self.w = self.placement.replicate(jnp.ones((64, 3)))
        self.free = {"rate": jnp.float32(0.1), "weak": jnp.asarray(0.5), "noise": self.key("noise")}
        self.gradients = jax.jit(jax.value_and_grad(self.loss_of))

    def loss_of(self, w: Any, batch: Any) -> Any:
        return jnp.square(batch["image"].reshape(len(batch["image"]), -1) @ w - batch["label"][:, None]).mean()

    def train_step(self, batch: Any, state: Any) -> Any:
        loss, gradient = self.gradients(self.w, batch)
        free = self.free
        noise, following = jax.random.split(free["noise"])
        self.w = self.w - free["rate"] * free["weak"] * (gradient + jax.random.normal(noise, (64, 3)))
        self.free = free | {"noise": following}
        return loss

    def valid_step(self, batch: Any, step: int) -> Any:
        return self.gradients(self.w, batch)[0]


class Journal(ph.Plugin):
    """Notes the indices of every training batch, in the order of the global batch, and draws on each rank.

    What it notes belongs to the process: it is in no checkpoint, of which all ranks get the first one's.
    """

    def __init__(self) -> None:
        super().__init__("journal")
        self.notes = _Notes()
        self.unique_overrides.training_batch = True

    def setup(self) -> None: ...

    def process_training_batch(self, batch: Any, step: Any) -> Any:
        index = batch["index"]
        if isinstance(index, jax.Array) and not index.is_fully_addressable:
            everywhere = jax.sharding.NamedSharding(index.sharding.mesh, jax.sharding.PartitionSpec())
            index = jax.jit(lambda x: x, out_shardings=everywhere)(index)
        self.notes.order.append(np.asarray(index).tolist())
        return batch

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.notes.draws.append(float(np.random.rand()))


class _Notes:
    def __init__(self) -> None:
        self.order: list[list[int]] = []
        self.draws: list[float] = []


def make_trainer(**options: Any) -> backend.Trainer:
    return backend.Trainer(**{"print_banner": False, "print_frequency": 1, "total_steps": 1, **options})


def train(model: Any, data: Any, **options: Any) -> tuple[backend.Trainer, Journal]:
    """Return the trainer of a finished run, and what was noted in it."""
    trainer, journal = make_trainer(**options), Journal()
    trainer.register_plugin(journal)
    assert trainer.fit(model, data), trainer.error
    return trainer, journal


def host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
