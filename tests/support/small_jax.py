"""Small models and data on jax, and compiled programs that the tests of a session share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import parhelion as ph
import parhelion_jax as backend
from parhelion.testing import first_difference, last_tree, rows_without_clocks
from parhelion_jax.arrays import Arrays

SIZE = 22


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Compile each program once in a session: a fresh model would compile the same again."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    index = np.arange(start, stop)
    x = np.sin(np.arange(4, dtype=np.float32) * (index[:, None] + 1)).astype(np.float32)
    return {"x": x, "y": x.sum(1), "label": (index % 3).astype(np.int32)}


class Data(ph.DataModule):
    """Ready batches, with other entries beside the rows."""

    def __init__(self, batch_size: int = 4, size: int = SIZE, **others: Any) -> None:
        self.batch_size, self.size, self.others = batch_size, size, others

    def setup(self) -> None: ...

    def batches(self, batch_size: int) -> list[dict[str, Any]]:
        starts = range(0, self.size, batch_size)
        return [rows(start, min(start + batch_size, self.size)) | self.others for start in starts]

    def train_dataloader(self) -> Any:
        return self.batches(self.batch_size)

    def valid_dataloader(self) -> Any:
        return self.batches(9)

    test_dataloader = valid_dataloader


class Points:
    """The same rows as a data set."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return {name: column[0] for name, column in rows(index, index + 1).items()} | {"index": np.int32(index)}


class Loaded(ph.DataModule):
    """Batches from a loader."""

    def __init__(self, batch_size: int = 4, size: int = SIZE, *, shuffle: bool = False) -> None:
        self.params, self.size = {"batch_size": batch_size, "shuffle": shuffle}, size

    def setup(self) -> None:
        self._train_dataset = self._create_dataset(Points(self.size), self.params)
        self._valid_dataset = self._create_dataset(Points(), {"batch_size": 9})


class Line(backend.LossModel):
    """A linear regression."""

    def __init__(self, **options: Any) -> None:
        super().__init__("line", **options)

    def setup(self, fast_init: bool = False) -> None:
        self.params = {"w": jax.random.normal(self.key("params"), (4,)), "b": jnp.zeros(())}
        self.optimizer = optax.sgd(0.1, momentum=0.9)

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return jnp.square(batch["x"] @ params["w"] + params["b"] - batch["y"]).mean()


class Explicit(backend.Model):
    """The same by hand; ``begin`` and ``more`` are for what a test is about."""

    def __init__(self) -> None:
        super().__init__("line")

    def setup(self, fast_init: bool = False) -> None:
        self.w = jax.random.normal(self.key("params"), (4,))
        self.gradients = jax.jit(jax.value_and_grad(lambda w, batch: jnp.square(batch["x"] @ w - batch["y"]).mean()))
        self.begin()

    def begin(self) -> None: ...

    def more(self, gradient: Any, state: Any) -> None: ...

    def train_step(self, batch: Any, state: Any) -> Any:
        loss, gradient = self.gradients(self.w, {"x": batch["x"], "y": batch["y"]})
        self.w = self.w - 0.05 * gradient
        self.more(gradient, state)
        return loss

    def valid_step(self, batch: Any, step: int) -> Any:
        return self.gradients(self.w, {"x": batch["x"], "y": batch["y"]})[0]

    test_step = valid_step


def make_trainer(**options: Any) -> backend.Trainer:
    return backend.Trainer(**{"use_cpu": True, "print_banner": False, "total_steps": 2, **options})


def fit(model: Any, data: Any = None, **options: Any) -> backend.Trainer:
    trainer = make_trainer(**options)
    assert trainer.fit(model, Data() if data is None else data), trainer.error
    return trainer


def host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def failure(model: Any, data: Any = None, **options: Any) -> str:
    """Return the message of the error that a run ends with, however it comes."""
    trainer = make_trainer(**options)
    try:
        assert not trainer.fit(model, Data() if data is None else data)
    except ph.ParhelionError as error:
        return str(error)
    return str(trainer.error)


def assert_resumes(make: Any, root: Path, stop: int = 4, data: Any = Data, **options: Any) -> Any:
    """Assert that a run stopped after ``stop`` updates goes on as if it had not been; return its model."""
    whole, part, again = make(), make(), make()
    trainer = fit(whole, data(), chkpt_root=root / "whole", **options)
    walker = make_trainer(chkpt_root=root / "parts", chkpt_every_iterations=1, **options)
    for state in walker.steps(part, data()):
        if state.current_iteration == stop:
            break
    resumed = fit(again, data(), chkpt_root=root / "parts", **options)
    assert resumed.state == trainer.state
    assert rows_without_clocks(resumed.history) == rows_without_clocks(trainer.history)
    trees = [last_tree(root / each / whole.save_name, Arrays()) for each in ("whole", "parts")]
    assert first_difference(*trees) is None
    return again
