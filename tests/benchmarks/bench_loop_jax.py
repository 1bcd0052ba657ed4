"""What a training loop on jax costs per step, over a bare Python loop of the same compiled step, on the CPU.

"empty": the step does nothing but count. "real": an MLP 32-64-10 with SGD on batches of 64, of which the explicit
loops call the same function. "Placed" batches are on the device before the clock runs; NumPy's are in the host's
memory, and how they get over is part of the loop. The clock runs from the 201st step, with everything compiled, until
the last one's results are there; where several steps are one call, whole calls are measured. Every measurement has a
process of its own; rounds go through all peers in turn, so that a busy moment hits all alike. A peer that is not
installed is left out.

    python tests/benchmarks/bench_loop_jax.py [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from rounds import Tick, compare, make_arrays, print_steps

NUM_STEPS = {"empty": 20_000, "real": 8_000}
SKIP = 200
PEERS: dict[str, dict[str, Callable[[int, Tick], None]]] = {"empty": {}, "real": {}}


def add(modes: str, name: str, function: Callable[..., None], **options: Any) -> None:
    for mode in modes.split():
        PEERS[mode][name] = partial(function, mode, **options)


def make_batches(count: int, *, placed: bool) -> list[Any]:
    import jax

    if not placed:
        return make_arrays(count)
    distinct = jax.device_put(make_arrays(64), jax.devices()[0])
    return [distinct[k % 64] for k in range(count)]


def make_params() -> Any:
    import jax
    import jax.numpy as jnp

    first, second = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(first, (32, 64)) * 0.1, "b1": jnp.zeros(64),
        "w2": jax.random.normal(second, (64, 10)) * 0.1, "b2": jnp.zeros(10),
    }  # fmt: skip


def loss_of(params: Any, batch: Any) -> Any:
    import jax
    import optax

    hidden = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def make_parts() -> tuple[Any, Any, Any]:
    """Return parameters, the optimizer's state, and the step."""
    import jax
    import optax

    params, optimizer = make_params(), optax.sgd(0.1)

    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        loss, gradient = jax.value_and_grad(loss_of)(params, batch)
        changes, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, changes), opt_state, loss

    return params, optimizer.init(params), step


def bare(mode: str, count: int, tick: Tick, *, placed: bool) -> None:
    import jax

    batches, (params, opt_state, step) = make_batches(count, placed=placed), make_parts()
    step = jax.jit(step, donate_argnums=(0, 1))
    for batch in batches:
        tick()
        if mode == "real":
            params, opt_state, _ = step(params, opt_state, batch)
    jax.block_until_ready(params)
    tick.stop()


def scan(mode: str, count: int, tick: Tick) -> None:
    """The device's own time: all steps in one call, of batches that are there."""
    import jax
    import jax.numpy as jnp

    arrays = make_arrays(64)
    stacked = {name: jnp.stack([batch[name] for batch in arrays]) for name in arrays[0]}
    params, opt_state, step = make_parts()

    @jax.jit
    def run(params: Any, opt_state: Any) -> Any:
        def body(carry: Any, k: Any) -> Any:
            params, opt_state, loss = step(*carry, {name: value[k % 64] for name, value in stacked.items()})
            return (params, opt_state), loss

        return jax.lax.scan(body, (params, opt_state), jnp.arange(count - SKIP))

    jax.block_until_ready(run(params, opt_state))
    tick.count = SKIP
    tick()
    jax.block_until_ready(run(params, opt_state))
    tick.count = count
    tick.stop()


class Ticking(list[Any]):
    """Ready batches that count how many of them were asked for."""

    tick: Tick

    def __getitem__(self, index: Any) -> Any:
        self.tick()
        return super().__getitem__(index)


def parhelion_explicit(mode: str, count: int, tick: Tick, *, unit: str, placed: bool = True) -> None:
    import jax

    import parhelion_jax as backend

    class Explicit(backend.Model):
        def setup(self, fast_init: bool = False) -> None:
            self.params, self.opt_state, step = make_parts()
            self.step = jax.jit(step, donate_argnums=(0, 1))

        def train_step(self, batch: Any, state: Any) -> None:
            tick()
            if mode == "real":
                self.params, self.opt_state, _ = self.step(self.params, self.opt_state, batch)

        def on_training_end(self) -> None:
            jax.block_until_ready(self.params)
            tick.stop()

    fit(Explicit("bench"), make_batches(count, placed=placed), unit)


def parhelion_short(mode: str, count: int, tick: Tick, *, steps: int, placed: bool = False) -> None:
    import jax
    import optax

    import parhelion_jax as backend

    class Short(backend.LossModel):
        def setup(self, fast_init: bool = False) -> None:
            self.params, self.optimizer = make_params(), optax.sgd(0.1)

        def loss(self, params: Any, batch: Any, key: Any) -> Any:
            return loss_of(params, batch)

        def on_training_end(self) -> None:
            jax.block_until_ready(self.params)
            tick.stop()

    batches = Ticking(make_batches(count, placed=placed))
    batches.tick = tick
    fit(Short("bench"), batches, "epoch", steps_per_execution=steps)


def fit(model: Any, batches: list[Any], unit: str, **options: Any) -> None:
    import parhelion as ph
    import parhelion_jax as backend

    class Data(ph.DataModule):
        def setup(self) -> None: ...

        def train_dataloader(self) -> Any:
            return batches

    logging.getLogger("parhelion").setLevel(logging.ERROR)
    total = len(batches) if unit == "iteration" else 1
    backend.Trainer(train_unit=unit, total_steps=total, use_cpu=True, print_banner=False, **options).fit(model, Data())


def nnx(mode: str, count: int, tick: Tick) -> None:
    import jax
    import optax
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Linear(32, 64, rngs=rngs)
            self.second = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.second(nnx.relu(self.first(x)))

    net = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, optimizer: Any, batch: Any) -> Any:
        def loss(net: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(net(batch["x"]), batch["y"]).mean()

        value, gradient = nnx.value_and_grad(loss)(net)
        optimizer.update(net, gradient)
        return value

    value = None
    for batch in make_arrays(count):
        tick()
        value = step(net, optimizer, batch)
    jax.block_until_ready(value)
    tick.stop()


def keras(mode: str, count: int, tick: Tick, *, steps: int) -> None:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    batches = make_arrays(count)

    class Data(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> Any:
            tick()
            return batches[index]["x"], batches[index]["y"]

    layers = [keras.Input((32,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    net = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss, steps_per_execution=steps)
    net.fit(Data(), epochs=1, verbose=0, shuffle=False)
    tick.stop()


add("empty real", "bare loop", bare, placed=True)
add("real", "bare loop, NumPy batches", bare, placed=False)
add("real", "bare lax.scan, all steps in one call", scan)
add("empty real", "Parhelion, epochs", parhelion_explicit, unit="epoch")
add("empty real", "Parhelion, iterations", parhelion_explicit, unit="iteration")
add("real", "Parhelion, NumPy batches", parhelion_explicit, unit="epoch", placed=False)
add("real", "Parhelion, LossModel", parhelion_short, steps=1, placed=True)
add("real", "Parhelion, LossModel, NumPy batches", parhelion_short, steps=1)
add("real", "Parhelion, LossModel, NumPy batches, 10 steps per call", parhelion_short, steps=10)
add("real", "Parhelion, LossModel, NumPy batches, 50 steps per call", parhelion_short, steps=50)
add("real", "flax nnx.jit, nnx.Optimizer, NumPy batches", nnx)
add("real", "keras fit, NumPy batches", keras, steps=1)
add("real", "keras fit, NumPy batches, 10 steps per call", keras, steps=10)


def measure(mode: str, name: str) -> list[float]:
    """Return the microseconds per step, by the wall and of CPU."""
    tick = Tick(SKIP)
    PEERS[mode][name](SKIP + NUM_STEPS[mode], tick)
    return tick.microseconds(NUM_STEPS[mode])


def main() -> int:
    return compare(__file__, PEERS, measure, print_steps, description=__doc__.splitlines()[0])


if __name__ == "__main__":
    raise SystemExit(main())
