"""How long it takes from the SIGKILL of a run to the first step of the one that goes on.

    python tests/benchmarks/bench_recovery.py [--rounds 5] [--megabytes 20] [--json FILE]

Beside it: what a fresh run of the same program takes to its first step, which is its imports and compilation. The
difference is what reading and verifying the checkpoint costs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

KILLED_AT, SAVED_EVERY = 25, 10


def work(kind: str, root: str, megabytes: int) -> None:
    """Train, and say every step."""
    import parhelion as ph

    backend: Any = ph.load_backend(kind)
    width = int((megabytes * 2**20 / 4) ** 0.5)

    class Say(ph.Plugin):
        def setup(self) -> None: ...

        def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
            print("step", state.global_iteration, flush=True)

    class Data(ph.DataModule):
        def setup(self) -> None:
            x = np.ones((4096, width), np.float32)
            self._train_dataset = self._create_dataset(
                ph.data.ArrayDataset({"x": x}), {"batch_size": 4, "shuffle": True}
            )

    if kind == "torch":
        import torch

        class Net(backend.LossModel):
            def setup(self, fast_init: bool = False) -> None:
                self.module = torch.nn.Linear(width, width, bias=False)
                self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-3)

            def loss(self, batch: Any) -> Any:
                return self.module(batch["x"]).square().mean()
    else:
        import jax.numpy as jnp
        import optax

        class Net(backend.LossModel):
            def setup(self, fast_init: bool = False) -> None:
                self.params = {"w": jnp.ones((width, width)) / width}
                self.optimizer = optax.sgd(1e-3)

            def loss(self, params: Any, batch: Any, key: Any) -> Any:
                return jnp.square(batch["x"] @ params["w"]).mean()

    trainer = backend.Trainer(
        total_steps=1, use_cpu=True, print_banner=False, chkpt_root=root, chkpt_every_iterations=SAVED_EVERY
    )
    trainer.register_plugin(Say("say"))
    trainer.fit(Net("net"), Data())


def run_until(command: list[str], step: int) -> tuple[float, int]:
    """Return when a run began its first step, and which that was, and kill it at a later one."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        first: tuple[float, int] | None = None
        for line in process.stdout or ():
            if not line.startswith("step "):
                continue
            number = int(line.split()[1])
            first = first or (time.monotonic(), number)
            if number >= step:
                os.kill(process.pid, signal.SIGKILL)
                break
        if first is None:
            raise SystemExit("the run ended before its first step")
        return first


def measure(kind: str, megabytes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, __file__, "--work", kind, "--root", root, "--megabytes", str(megabytes)]
        began = time.monotonic()
        fresh = run_until(command, KILLED_AT)[0] - began
        killed = time.monotonic()
        at, step = run_until(command, 0)
        if step <= 1:
            raise SystemExit("it began anew")
        return {"fresh": fresh, "recovered": at - killed, "again": KILLED_AT - step + 1}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work")
    parser.add_argument("--root")
    options = parser.parse_args()
    if options.work is not None:
        work(options.work, options.root, options.megabytes)
        return
    found: dict[str, dict[str, float]] = {}
    print(f"medians of {options.rounds} rounds, a model of {options.megabytes} MB, seconds")
    for kind in ("torch", "jax"):
        rounds = [measure(kind, options.megabytes) for _ in range(options.rounds)]
        found[kind] = row = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        print(
            f"  {kind:5}  a fresh run's first step after {row['fresh']:.2f}   from the kill to a new step "
            f"{row['recovered']:.2f}   steps done again {row['again']:.0f}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
