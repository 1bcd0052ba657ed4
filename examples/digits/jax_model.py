"""The same network in JAX: pure functions of a dictionary of arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from digits import SCHEDULE, WEIGHT_DECAY, WEIGHT_MAP, make_metrics

import parhelion_jax as backend


def init_layer(key: jax.Array, *shape: int) -> dict[str, jax.Array]:
    """Return a kernel and a bias as PyTorch draws them: uniform within 1 / sqrt(inputs)."""
    bound = jnp.prod(jnp.array(shape[:-1])) ** -0.5
    kernel = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    bias = jax.random.uniform(jax.random.fold_in(key, 1), shape[-1:], minval=-bound, maxval=bound)
    return {"kernel": kernel, "bias": bias}


def conv(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Return relu of a convolution of images (batch, height, width, channels)."""
    x = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x + layer["bias"])


class DigitModel(backend.LossModel):
    """A pytree of parameters, and a loss that is compiled."""

    def setup(self, fast_init: bool = False) -> None:
        one, two, three = jax.random.split(self.key("params"), 3)
        self.params = {
            "conv1": init_layer(one, 3, 3, 1, 32),
            "conv2": init_layer(two, 3, 3, 32, 64),
            "head": init_layer(three, 4 * 4 * 64, 10),
        }
        self.optimizer = optax.adamw(SCHEDULE, weight_decay=WEIGHT_DECAY)
        self.metrics = make_metrics()
        self.weight_map = WEIGHT_MAP

    def loss(self, params: Any, batch: Any, key: jax.Array | None) -> Any:
        x = jnp.moveaxis(batch["image"], 1, -1)
        x = conv(params["conv2"], conv(params["conv1"], x))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(len(x), -1)
        if key is not None:  # in training
            x = jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)
        logits = x @ params["head"]["kernel"] + params["head"]["bias"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, (logits, batch["label"])
