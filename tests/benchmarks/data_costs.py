"""Tables of what a loader costs beside its rate: the first batch, memory, large datasets, busy cores, a far resume."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import loaders
import numpy as np
import psutil
import resumes
from data_peers import THREADS
from rates import check, drain, measure_rate, read_cpu
from records import BATCH, Columns, Counted, Repeated, TensorColumns, Virtual
from rounds import Rounds

SMALL = 6_400  # records
STEP, HUGE = 1_000_000, 10**9
SIZES = (10**4, 10**6, 10**8, 10**9)

# How it is opened, and the options that it has with workers.
WITH_WORKERS: dict[str, tuple[Callable[..., loaders.Epochs], dict[str, Any]]] = {
    "Parhelion Loader": (loaders.parhelion, {}),
    "Parhelion Loader, threads": (loaders.parhelion, THREADS),
    "Parhelion create_dataloader (torch)": (loaders.parhelion_torch, {}),
    "Parhelion DataLoader (torch)": (loaders.parhelion_torch_class, {}),
    "torch DataLoader": (loaders.torch, {}),
    "torch DataLoader, persistent_workers": (loaders.torch, {"persistent_workers": True}),
    "torchdata StatefulDataLoader": (loaders.torchdata, {}),
    "grain DataLoader": (loaders.grain, {}),
    "grain MapDataset, mp_prefetch": (loaders.grain_map, {}),
    "fifteen DataLoader": (loaders.fifteen, {}),
}


def make_rows(size: int) -> Columns:
    return Columns((32,), np.float32, size)


IN_MEMORY: dict[str, tuple[Callable[[], Columns], str]] = {
    "small": (partial(make_rows, SMALL), "0.9 MB of data"),
    "large": (partial(Columns, (3, 32, 32), np.uint8, 1 << 16), "202 MB of data"),
}


def time_call(call: Callable[[], Any]) -> float:
    """Return the milliseconds that ``call`` takes."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def warm_up(open_loader: Callable[..., loaders.Epochs]) -> None:
    """Import what the loader needs: that is not what it costs."""
    with ExitStack() as stack:
        drain(open_loader(make_rows(SMALL), stack, 0)(0), 2)


def measure_first(peer: tuple[Callable[..., loaders.Epochs], dict[str, Any]]) -> list[float]:
    """Return the milliseconds until the first batch of a new loader, of a second one, and of its next epoch.

    The last figure is the milliseconds of CPU time that all processes have taken until the very first batch.
    """
    open_loader, options = peer
    warm_up(open_loader)
    large, small = make_rows(1 << 19), make_rows(SMALL)
    figures = []
    cpu, spent = read_cpu(), 0.0
    for dataset in (large, large):
        with ExitStack() as stack:
            figures.append(time_call(lambda: next(open_loader(dataset, stack, 2, **options)(0))))  # noqa: B023
            spent = spent or (read_cpu() - cpu) * 1e3
    with ExitStack() as stack:
        epochs, last = open_loader(small, stack, 2, **options), 0.0
        for _ in epochs(0):
            last = time.perf_counter()
        next(epochs(1))
        figures.append((time.perf_counter() - last) * 1e3)
    return [*figures, spent]


def print_first(found: Rounds) -> None:
    print("\n### Time to the first batch with two workers, 524,288 records of f32[32] with a label, ms\n")
    print_medians(found, {"new loader": ".0f", "another": ".0f", "next epoch": ".1f", "new loader, CPU": ".0f"})
    print("\n* wanted: under torch's")


def measure_memory(peer: tuple[Callable[..., loaders.Epochs], dict[str, Any]], make: Callable[[], Any]) -> list[float]:
    """Return what two workers take, in MB.

    That is each one's own, and this with its share of what processes share; what all processes take more than this one
    did before; and how many processes there are.
    """
    open_loader, options = peer
    warm_up(open_loader)
    dataset = make()
    dataset.x.sum(), dataset.y.sum()  # every page is there
    before = read_memory(os.getpid())["Pss"]
    with ExitStack() as stack:
        batches = chain.from_iterable(map(open_loader(dataset, stack, 2, **options), count()))
        drain(batches, 150)
        found = [read_memory(child.pid) for child in psutil.Process().children(recursive=True)]
        own = sum(each["Private_Clean"] + each["Private_Dirty"] for each in found)
        shared = sum(each["Pss"] for each in found)
        whole = shared + read_memory(os.getpid())["Pss"] - before
        drain(batches, 1)  # they were there until now
        return [own / 2, shared / 2, whole, len(found)]


def read_memory(pid: int) -> dict[str, float]:
    """Return what the system says of a process's memory, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def print_memory(found: Rounds, what: str) -> None:
    print(f"\n### Memory of two workers, {what}, MB\n")
    print_medians(
        found,
        {
            "a worker's own": ".1f",
            "with its share of what is shared": ".1f",
            "all, over before": ".1f",
            "processes": ".0f",
        },
    )


def growth_peers() -> dict[str, tuple[Callable[..., loaders.Epochs], int, int]]:
    """Return how to open each, how many records there are, and how many workers."""
    peers: list[tuple[str, Callable[..., loaders.Epochs], int, tuple[int, ...]]] = [
        ("Parhelion Loader", loaders.parhelion, 0, SIZES),
        ("Parhelion Loader, two workers", loaders.parhelion, 2, (SIZES[0], HUGE)),
        ("Parhelion create_dataloader (torch)", loaders.parhelion_torch, 0, (SIZES[0], HUGE)),
        ("grain MapDataset", loaders.grain_map, 0, (SIZES[0], HUGE)),
        # At 1e8 these take seconds, and gigabytes.
        ("torch DataLoader", loaders.torch, 0, SIZES[:2]),
        ("fifteen DataLoader", loaders.fifteen, 0, SIZES[:2]),
    ]
    return {
        f"{name}, {write_size(size)}": (how, size, workers) for name, how, workers, sizes in peers for size in sizes
    }


def write_size(size: int) -> str:
    """Return a power of ten in short."""
    return f"1e{len(str(size)) - 1}"


def measure_growth(peer: tuple[Callable[..., loaders.Epochs], int, int]) -> list[float]:
    """Return microseconds to the first batch, and per batch by the wall and of CPU; and the peak of memory in MB."""
    open_loader, size, workers = peer
    warm_up(open_loader)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, firsts = read_status("VmRSS"), []
    for _ in range(1 if workers else 5):
        with ExitStack() as stack:
            firsts.append(time_call(lambda: next(open_loader(Virtual(size), stack, workers)(0))))
    with ExitStack() as stack:
        rate, cpu = measure_rate(open_loader(Virtual(size), stack, workers), 0.3)
    peak = max(0.0, read_status("VmHWM") - before)
    return [statistics.median(firsts) * 1e3, BATCH / rate * 1e6, cpu * BATCH, peak]


def read_status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def print_growth(found: Rounds) -> None:
    print("\n### As the dataset grows, f32[32] computed from the index, batches of 64\n")
    print_medians(found, {"first batch, us": ",.0f", "batch, us": ".0f", "batch, CPU us": ".0f", "peak MB": ".1f"})
    print("\n* wanted: the same at every size")


def make_images() -> Any:
    return Repeated((3, 224, 224), np.uint8, 256, 16_384)


def make_tensor_images() -> Any:
    return TensorColumns((3, 224, 224), np.uint8, 256)


BUSY: dict[str, tuple[Callable[..., loaders.Epochs], Callable[[], Any], int]] = {
    "Parhelion Loader": (loaders.parhelion, make_images, 0),
    "Parhelion create_dataloader (torch)": (loaders.parhelion_torch, make_images, 0),
    "Parhelion create_dataloader (torch), tensors": (loaders.parhelion_torch, make_tensor_images, 0),
    "torch DataLoader": (loaders.torch, make_images, 0),
    "torch DataLoader, tensors": (loaders.torch, make_tensor_images, 0),
    "torch DataLoader, tensors, one thread": (loaders.torch, make_tensor_images, 1),
    "torchdata StatefulDataLoader": (loaders.torchdata, make_images, 0),
    "grain MapDataset": (loaders.grain_map, make_images, 0),
    "fifteen DataLoader": (loaders.fifteen, make_images, 0),
}


def measure_busy(peer: tuple[Callable[..., loaders.Epochs], Callable[[], Any], int]) -> list[float]:
    """Return this process's CPU microseconds per sample with idle and with busy cores, the rates, and its threads."""
    open_loader, make, num_threads = peer
    if num_threads:
        import torch

        torch.set_num_threads(num_threads)
    with ExitStack() as stack:
        batches = chain.from_iterable(map(open_loader(make(), stack), count()))
        drain(batches, 4)
        idle = take_time(batches)
        for _ in range(os.cpu_count() or 1):
            stack.callback(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
        take_time(batches, 0.3)
        busy = take_time(batches)
        return [idle[0], busy[0], idle[1], busy[1], psutil.Process().num_threads()]


def take_time(batches: Any, box: float = 0.7) -> tuple[float, float]:
    """Return this process's microseconds of CPU time per sample, and samples per second, by the wall."""
    seen, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < wall + box:
        drain(batches, 1)
        seen += BATCH
    return (time.process_time() - cpu) / seen * 1e6, seen / (time.perf_counter() - wall)


def print_busy(found: Rounds) -> None:
    print("\n### Collating u8[3,224,224] in the loop's process, all cores busy with other work, CPU us per sample\n")
    heads = {
        "idle cores": ".0f",
        "busy cores": ".0f",
        "idle, samples/s": ",.0f",
        "busy, samples/s": ",.0f",
        "threads": ".0f",
    }
    print_medians(found, heads)
    print("\n* wanted: with busy cores what it is with idle ones; at worst, busy over the least idle:")
    for name, rounds in found.items():
        print(f"* {name}: {max(each[1] for each in rounds) / min(each[0] for each in rounds):.2f}")


def resume_peers() -> dict[str, tuple[Callable[..., resumes.Resume], int]]:
    names = {
        "Parhelion Loader": resumes.parhelion,
        "Parhelion create_dataloader (torch)": resumes.parhelion_torch,
        "torchdata StatefulDataLoader, in order": resumes.torchdata,
        "grain DataLoader": resumes.grain,
        "grain MapDataset": resumes.grain_map,
    }
    return {f"{name}, {workers} workers": (how, workers) for workers in (0, 4) for name, how in names.items()}


def measure_resume(peer: tuple[Callable[..., resumes.Resume], int]) -> list[float]:
    """Return the seconds until the first batch, by the wall and of CPU, and how many records were asked for."""
    prepare, workers = peer
    with ExitStack() as stack:
        next(prepare(Virtual(SMALL), stack, 0, 1)())  # imports
    folder = Path(tempfile.mkdtemp())
    with ExitStack() as stack:
        dataset = Counted(HUGE, folder / "before")
        resume = prepare(dataset, stack, workers, STEP)
        dataset.path = folder / "after"
        dataset.path.touch()
        cpu, wall = read_cpu(), time.perf_counter()
        batch = next(resume())
        wall = time.perf_counter() - wall
        cpu = read_cpu() - cpu
        check(batch, HUGE)
        return [wall, cpu, len(dataset.calls())]


def print_resume(found: Rounds) -> None:
    print(f"\n### Resume at step {STEP:,} of a shuffled epoch of {write_size(HUGE)} records, batches of {BATCH}\n")
    print_medians(found, {"first batch, s": ".3f", "CPU, s": ".3f", "records asked for": ",.0f"})
    print("\n* wanted: under 1 s, and no record asked for beyond the batches made ahead")


def print_medians(found: Rounds, heads: dict[str, str]) -> None:
    """Print the median of every figure, under its name and in its format."""
    print(f"| loader | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    for name, rounds in found.items():
        columns = zip(*rounds, strict=True)
        cells = [format(statistics.median(each), form) for each, form in zip(columns, heads.values(), strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
