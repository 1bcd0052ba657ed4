"""What training on several ranks costs over a bare loop with DistributedDataParallel, in CPU time of all threads.

    python tests/benchmarks/bench_ranks.py [--ranks 2] [--steps 500] [--rounds 5] [--json FILE]

Each rank takes turns: the bare loop, then the trainer, the same module, optimizer, data and loader, on one thread. A
step takes 5 ms and more. The figures are the medians over rounds of the sums over ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZE, WIDTH, CLASSES, BATCH = 512, 1024, 10, 64


def work(folder: Path, steps: int, rounds: int) -> None:
    """Be one rank."""
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    import parhelion as ph
    import parhelion_torch as backend
    from parhelion.data import ArrayDataset

    torch.set_num_threads(1)

    def make_net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(SIZE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, SIZE), nn.ReLU(), nn.Linear(SIZE, CLASSES)
        )

    def make_data(ranks: int) -> Any:
        count = steps * BATCH * ranks
        x = torch.randn(1024, SIZE).numpy()
        return ArrayDataset({"x": x[[k % 1024 for k in range(count)]], "y": (torch.arange(count) % CLASSES).numpy()})

    class Net(backend.LossModel):
        def setup(self, fast_init: bool = False) -> None:
            self.module = make_net()
            self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.01)

        def loss(self, batch: Any) -> Any:
            return nn.functional.cross_entropy(self.module(batch["x"]), batch["y"])

    class Data(ph.DataModule):
        def setup(self) -> None:
            self._train_dataset = self._create_dataset(data, {"batch_size": BATCH, "shuffle": True})

    def make_trainer() -> Any:
        return backend.Trainer(total_steps=1, use_cpu=True, print_banner=False)

    first = make_trainer()
    ranks = int(os.environ["WORLD_SIZE"])
    data = make_data(ranks)

    def bare() -> None:
        net = DistributedDataParallel(make_net())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        loader, _ = backend.create_dataloader(data, batch_size=BATCH, shuffle=True, is_distributed=True)
        for batch in loader:
            loss = nn.functional.cross_entropy(net(batch["x"]), batch["y"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def ours() -> None:
        trainer = make_trainer()
        if not trainer.fit(Net("net"), Data()):
            raise RuntimeError(trainer.error)

    taken: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for _ in range(rounds + 1):  # the first warms up
        for name, run in (("bare", bare), ("ours", ours)):
            torch.distributed.barrier()
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            torch.distributed.barrier()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    (folder / f"{first.rank}.json").write_text(json.dumps({name: times[1:] for name, times in taken.items()}))


def measure(ranks: int, steps: int, rounds: int) -> dict[str, float]:
    """Return milliseconds of CPU and of wall clock per step, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "parhelion.launch", "-n", str(ranks), __file__, "--work", folder]
        subprocess.run([*command, "--steps", str(steps), "--rounds", str(rounds)], check=True)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
    figures: dict[str, float] = {}
    for place, kind in enumerate(("cpu", "wall")):
        pairs = []
        for number in range(rounds):
            bare, ours = (sum(each[name][number][place] for each in found) / ranks for name in ("bare", "ours"))
            pairs.append((bare, ours))
        figures[f"bare_{kind}_ms"] = statistics.median(bare for bare, _ in pairs) * 1000 / steps
        figures[f"ours_{kind}_ms"] = statistics.median(ours for _, ours in pairs) * 1000 / steps
        figures[f"{kind}_ratio"] = statistics.median(ours / bare for bare, ours in pairs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    if options.work is not None:
        work(options.work, options.steps, options.rounds)
        return
    figures = measure(options.ranks, options.steps, options.rounds)
    print(f"{options.ranks} ranks, {options.steps} steps, medians of {options.rounds} rounds, per step and rank")
    for kind in ("cpu", "wall"):
        bare, ours, ratio = (figures[name] for name in (f"bare_{kind}_ms", f"ours_{kind}_ms", f"{kind}_ratio"))
        print(f"  {kind:4}  bare {bare:7.2f} ms   ours {ours:7.2f} ms   ours / bare {ratio:.3f}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
