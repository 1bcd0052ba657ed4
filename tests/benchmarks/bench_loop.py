"""What a training loop costs per step, over a bare Python loop: 20 000 ready batches in memory, on the CPU.

"empty": the step does nothing but count. "real": an MLP 32-64-10 with SGD on batches of 64. The clock runs from the
first call of the step to the end of the last one, so set-up and tear-down do not count. Every measurement has a process
of its own; rounds go through all peers in turn, so that a busy moment hits all alike. A peer that is not installed is
left out.

    python tests/benchmarks/bench_loop.py [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from typing import Any

from rounds import Tick, compare, make_arrays, print_steps

NUM_STEPS = {"empty": 20_000, "real": 4_000}
PEERS: dict[str, Callable[[str, int, Tick], None]] = {}


def peer(name: str) -> Any:
    def add(function: Any) -> Any:
        PEERS[name] = function
        return function

    return add


def make_batches(count: int) -> list[Any]:
    import torch

    distinct = [
        {"x": torch.from_numpy(batch["x"]), "y": torch.from_numpy(batch["y"]).long()} for batch in make_arrays(64)
    ]
    return [distinct[k % 64] for k in range(count)]


def make_parts() -> tuple[Any, Any, Any]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    return net, torch.optim.SGD(net.parameters(), lr=0.1), torch.nn.functional.cross_entropy


@peer("bare loop")
def bare(mode: str, count: int, tick: Tick) -> None:
    batches, (net, optimizer, loss) = make_batches(count), make_parts()
    for batch in batches:
        tick()
        if mode == "real":
            optimizer.zero_grad()
            loss(net(batch["x"]), batch["y"]).backward()
            optimizer.step()
    tick.stop()


def parhelion(mode: str, count: int, tick: Tick, unit: str, short: bool) -> None:
    import parhelion as ph
    import parhelion_torch as backend

    batches, (net, optimizer, loss) = make_batches(count), make_parts()

    class Data(ph.DataModule):
        def setup(self) -> None: ...

        def train_dataloader(self) -> Any:
            return batches

    class Explicit(backend.Model):
        def setup(self, fast_init: bool = False) -> None:
            self.net, self.optimizer = net, optimizer

        def train_step(self, batch: Any, state: Any) -> None:
            tick()
            if mode == "real":
                optimizer.zero_grad()
                loss(net(batch["x"]), batch["y"]).backward()
                optimizer.step()

        def on_training_end(self) -> None:
            tick.stop()

    class Short(backend.LossModel):
        def setup(self, fast_init: bool = False) -> None:
            self.module, self.optimizer = net, optimizer

        def loss(self, batch: Any) -> Any:
            tick()
            return loss(net(batch["x"]), batch["y"])

        def on_training_end(self) -> None:
            tick.stop()

    logging.getLogger("parhelion").setLevel(logging.ERROR)
    total = count if unit == "iteration" else 1
    trainer = backend.Trainer(train_unit=unit, total_steps=total, use_cpu=True, print_banner=False)
    trainer.fit(Short("bench") if short else Explicit("bench"), Data())


@peer("Parhelion, epochs")
def parhelion_epochs(mode: str, count: int, tick: Tick) -> None:
    parhelion(mode, count, tick, "epoch", short=False)


@peer("Parhelion, iterations")
def parhelion_iterations(mode: str, count: int, tick: Tick) -> None:
    parhelion(mode, count, tick, "iteration", short=False)


@peer("Parhelion, LossModel")
def parhelion_short(mode: str, count: int, tick: Tick) -> None:
    if mode == "empty":
        raise NotImplementedError("a LossModel has no empty step")
    parhelion(mode, count, tick, "epoch", short=True)


@peer("ignite Engine")
def ignite(mode: str, count: int, tick: Tick) -> None:
    from ignite.engine import Engine

    batches, (net, optimizer, loss) = make_batches(count), make_parts()

    def step(_: Any, batch: Any) -> None:
        tick()
        if mode == "real":
            optimizer.zero_grad()
            loss(net(batch["x"]), batch["y"]).backward()
            optimizer.step()

    Engine(step).run(batches, max_epochs=1)
    tick.stop()


def helios(mode: str, count: int, tick: Tick, unit: str) -> None:
    try:
        import torchvision  # noqa: F401
    except ImportError:
        # It is imported for transforms that no step uses, and has no CPU build for every platform.
        _stub_torchvision()
    import helios.model
    import helios.trainer
    from helios import data

    batches, (net, optimizer, loss) = make_batches(count), make_parts()

    class NoSampler:
        start_iter = 0

        def set_epoch(self, epoch: int) -> None: ...

    class Data(data.DataModule):
        def setup(self) -> None: ...

        def train_dataloader(self) -> Any:
            return batches, NoSampler()

    class Model(helios.model.Model):
        def setup(self, for_inference: bool = False) -> None: ...

        def train_step(self, batch: Any, state: Any) -> None:
            tick()
            if mode == "real":
                optimizer.zero_grad()
                loss(net(batch["x"]), batch["y"]).backward()
                optimizer.step()

    trainer = helios.trainer.Trainer(
        train_unit=unit, total_steps=count if unit == "iteration" else 1, use_cpu=True, print_banner=False
    )
    trainer.fit(Model("bench"), Data())
    tick.stop()


def _stub_torchvision() -> None:
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.v2")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].__version__ = "none"  # type: ignore[attr-defined]
    for name in ("Compose", "ToImage", "ToDtype", "ToPureTensor"):
        setattr(sys.modules["torchvision.transforms.v2"], name, object)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms"].v2 = sys.modules["torchvision.transforms.v2"]  # type: ignore[attr-defined]


@peer("helios, epochs")
def helios_epochs(mode: str, count: int, tick: Tick) -> None:
    helios(mode, count, tick, "epoch")


@peer("helios, iterations")
def helios_iterations(mode: str, count: int, tick: Tick) -> None:
    helios(mode, count, tick, "iteration")


def lightning(mode: str, count: int, tick: Tick, manual: bool) -> None:
    import lightning.pytorch as pl
    import torch

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches, (net, _, loss) = make_batches(count), make_parts()

    class Held:
        """The list as a plain iterable; Lightning reads a bare list as several loaders."""

        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Any:
            return iter(batches)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, index: int) -> Any:
            tick()
            if mode == "empty":
                return None
            value = loss(self.net(batch["x"]), batch["y"])
            if not manual:
                return value
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(value)
            optimizer.step()
            return None

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), Held())  # fmt: skip
    tick.stop()


@peer("Lightning, manual")
def lightning_manual(mode: str, count: int, tick: Tick) -> None:
    lightning(mode, count, tick, manual=True)


@peer("Lightning, automatic")
def lightning_automatic(mode: str, count: int, tick: Tick) -> None:
    lightning(mode, count, tick, manual=False)


def measure(mode: str, name: str) -> list[float]:
    """Return the microseconds per step, by the wall and of CPU."""
    PEERS[name](mode, 200, Tick())  # imports and first allocations
    tick = Tick()
    PEERS[name](mode, NUM_STEPS[mode], tick)
    return tick.microseconds(NUM_STEPS[mode])


def main() -> int:
    modes = dict.fromkeys(NUM_STEPS, PEERS)
    return compare(__file__, modes, measure, print_steps, description=__doc__.splitlines()[0])


if __name__ == "__main__":
    raise SystemExit(main())
