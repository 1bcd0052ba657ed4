"""The pictures of docs/samplers.md, drawn from the samplers themselves: ``python examples/samplers/pictures.py``."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from PIL import Image

from parhelion.sampling import (
    ResumableBucketSampler,
    ResumableConcatSampler,
    ResumableCurriculumSampler,
    ResumableDistributedSampler,
    ResumableFunctionSampler,
    ResumableMixtureSampler,
    ResumableRandomSampler,
    ResumableSequentialSampler,
    ResumableSubsetSampler,
    ResumableWeightedSampler,
)

FOLDER = Path(__file__).parents[2] / "docs" / "images"
INK, MUTED, FAINT = "#222222", "#767676", "#ececec"
COLORS = ["#c2410c", "#1d4ed8", "#15803d", "#a16207"]
PALE = ["#fdba74", "#a5c4fb", "#86d9a0", "#e7c873"]
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22)}

DRAWINGS: dict[str, Callable[[], Any]] = {}


def drawing(function: Callable[[], Any]) -> Callable[[], Any]:
    """Register a function that returns a figure, under the name of its file."""
    DRAWINGS[f"sampler-{function.__name__.replace('_', '-')}.png"] = function
    return function


def panels(count: int = 2, height: float = 2.9, **options: Any) -> tuple[Any, Any]:
    figure, axes = plt.subplots(1, count, figsize=(9, height), layout="constrained", **options)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    return figure, axes


def finish(axes: Any, title: str, **labels: Any) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set(**labels)
    axes.tick_params(colors=MUTED, length=0, which="both")
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def dots(axes: Any, values: Any, title: str, color: Any = COLORS[1], **labels: Any) -> None:
    """Draw what comes at each place of an epoch."""
    axes.scatter(np.arange(len(values)), values, s=9, c=color, linewidths=0)
    finish(axes, title, **{"xlabel": "place in the epoch", "ylabel": "record", **labels})


def cells(axes: Any, table: Any, title: str, colors: list[str], **labels: Any) -> None:
    """Draw a table of small integers as colored cells with a little space between them."""
    table = np.asarray(table)
    colormap = ListedColormap(colors)
    axes.pcolormesh(table, cmap=colormap, vmin=-0.5, vmax=len(colors) - 0.5, edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    finish(axes, title, **labels)
    axes.grid(visible=False)


def legend(axes: Any, names: list[str], colors: list[str], **options: Any) -> None:
    handles = [mpl.patches.Patch(color=color, label=name) for name, color in zip(names, colors, strict=False)]
    axes.legend(handles=handles, frameon=False, handlelength=0.9, handleheight=0.9, fontsize=9, **options)


@drawing
def whole() -> Any:
    figure, axes = panels(3, sharey=True)
    data = range(100)
    dots(axes[0], ResumableSequentialSampler(data).indices(0, 0, 100), "Sequential")
    dots(axes[1], ResumableRandomSampler(data, seed=1).indices(0, 0, 100), "Random, epoch 0", ylabel="")
    dots(axes[2], ResumableRandomSampler(data, seed=1).indices(1, 0, 100), "Random, epoch 1", COLORS[0], ylabel="")
    return figure


@drawing
def distributed() -> Any:
    figure, axes = panels(2, sharey=True)
    order = ResumableRandomSampler(range(100), seed=1).indices(0, 0, 100)
    for each, world, size in ((axes[0], 2, 10), (axes[1], 4, 5)):
        ranks = [ResumableDistributedSampler(range(100), world, r, seed=1, batch_size=size) for r in range(world)]
        owner = {index: rank for rank, sampler in enumerate(ranks) for index in sampler}
        dots(each, order, f"{world} ranks, batches of {size}", [COLORS[owner[index]] for index in order.tolist()])
        for edge in range(0, 101, world * size):
            each.axvline(edge - 0.5, color=FAINT, linewidth=1.2, zorder=0)
        legend(each, [f"rank {r}" for r in range(world)], COLORS, ncols=4, **BELOW)
    axes[1].set(ylabel="")
    return figure


@drawing
def weighted() -> Any:
    figure, axes = panels(2)
    weights = np.concatenate([np.linspace(0, 3, 31), np.zeros(9)])
    sampler = ResumableWeightedSampler(range(40), weights, num_samples=2000, seed=1)
    counts = np.bincount(sampler.indices(0, 0, 2000), minlength=40)
    axes[0].bar(np.arange(40), counts, color=PALE[1], width=0.8, label="drawn")
    axes[0].plot(weights / weights.sum() * 2000, color=COLORS[0], linewidth=1.6, label="share of the weight")
    axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    finish(axes[0], "With replacement, 2,000 samples", xlabel="record", ylabel="times drawn")
    once = ResumableWeightedSampler(range(40), weights, replacement=False, seed=1)
    for epoch in range(40):
        order = once.indices(epoch, 0, once.size)
        axes[1].scatter(np.arange(len(order)), weights[order], s=5, color=PALE[1], linewidths=0)
    mean = np.mean([weights[once.indices(epoch, 0, once.size)] for epoch in range(400)], 0)
    axes[1].plot(mean, color=COLORS[0], linewidth=1.6, label="mean of 400 epochs")
    axes[1].legend(frameon=False, fontsize=9, loc="lower left")
    finish(axes[1], "Without: each once, the heavy ones sooner", xlabel="place in the epoch", ylabel="weight")
    return figure


@drawing
def mixture() -> Any:
    figure, axes = panels(2, width_ratios=(1, 1))
    sampler = ResumableMixtureSampler([1000, 300, 60], [0.6, 0.3, 0.1], seed=1)
    who = np.searchsorted(np.cumsum(sampler.sizes), sampler.indices(0, 0, 60), side="right")
    cells(axes[0], who.reshape(6, 10), "The first 60 samples, in rows of 10", PALE, xticks=[], yticks=[])
    legend(
        axes[0],
        ["weight 0.6", "weight 0.3", "weight 0.1"],
        PALE,
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
    )
    rng = np.random.default_rng(0).choice(3, 400, p=[0.6, 0.3, 0.1])
    ours = np.searchsorted(np.cumsum(sampler.sizes), sampler.indices(0, 0, 400), side="right")
    steps = np.arange(1, 401)
    axes[1].axhspan(-1, 1, color=FAINT, zorder=0)
    axes[1].plot(np.cumsum(rng == 0) - 0.6 * steps, color=MUTED, linewidth=1, label="drawn at random")
    axes[1].plot(np.cumsum(ours == 0) - 0.6 * steps, color=COLORS[0], linewidth=1, label="mixture")
    axes[1].legend(frameon=False, fontsize=9, loc="lower left", ncols=2)
    finish(axes[1], "The first dataset: how far from 0.6 k", xlabel="samples k", ylabel="samples too many")
    return figure


@drawing
def mixture_end() -> Any:
    figure, axes = panels(2, sharey=True)
    for each, how, epochs in ((axes[0], "repeat", 2), (axes[1], "end", 5)):
        sampler = ResumableMixtureSampler([100, 40], [1, 1], how, seed=3)
        found = np.concatenate([sampler.indices(epoch, 0, sampler.size) for epoch in range(epochs)])
        color = [COLORS[0] if index >= 100 else COLORS[1] for index in found.tolist()]
        dots(each, found, f'exhausted="{how}": epochs of {sampler.size}', color, xlabel="sample of the run")
        for epoch in range(1, epochs):
            each.axvline(epoch * sampler.size - 0.5, color=INK, linestyle=(0, (1, 2)), linewidth=1)
        each.axhline(99.5, color=MUTED, linewidth=0.6)
    axes[1].set(ylabel="")
    return figure


@drawing
def subset() -> Any:
    figure, axes = panels(2, sharey=True)
    chosen = [*range(10, 30), *range(70, 80)]
    for epoch, each in enumerate(axes):
        dots(each, ResumableSubsetSampler(range(100), chosen, seed=1).indices(epoch, 0, 30), f"Epoch {epoch}")
        each.axhspan(9.5, 29.5, color=FAINT, zorder=0)
        each.axhspan(69.5, 79.5, color=FAINT, zorder=0)
        each.set(ylim=(-3, 103))
        each.grid(visible=False)
    axes[1].set(ylabel="")
    return figure


@drawing
def concat() -> Any:
    figure, axes = panels(2, sharey=True)
    colors = [COLORS[0]] * 40 + [COLORS[1]] * 25 + [COLORS[2]] * 35
    dots(axes[0], ResumableConcatSampler([40, 25, 35], shuffle=False).indices(0, 0, 100), "shuffle=False", colors)
    dots(axes[1], ResumableConcatSampler([40, 25, 35], seed=1).indices(0, 0, 100), "shuffle=True", colors, ylabel="")
    return figure


@drawing
def bucket() -> Any:
    figure, axes = panels(3, sharey=True)
    lengths = np.random.default_rng(1).lognormal(4, 0.5, 6400).astype(int)
    data = range(6400)
    orders = {
        "Random": ResumableRandomSampler(data, seed=1),
        "A chunk a batch": ResumableBucketSampler(data, lengths, 1600, 16, seed=1),
        "A chunk for four": ResumableBucketSampler(data, lengths, 1600, 64, seed=1),
    }
    for each, (title, sampler), color in zip(axes, orders.items(), (MUTED, COLORS[1], COLORS[1]), strict=True):
        batches = lengths[sampler.indices(0, 0, 640)].reshape(-1, 16)
        each.bar(np.arange(40), batches.max(1), color=PALE[0], width=0.9)
        each.bar(np.arange(40), batches.mean(1), color=color, width=0.9)
        wasted = 1 - batches.sum() / (16 * batches.max(1)).sum()
        finish(each, f"{title}: {wasted:.0%} padding", xlabel="batch of 16", ylabel="length" if each is axes[0] else "")
    legend(axes[0], ["longest", "mean"], [PALE[0], MUTED], loc="upper right", ncols=2)
    axes[0].set(ylim=(0, 320))
    return figure


@drawing
def curriculum() -> Any:
    figure, axes = plt.subplots(figsize=(9, 2.9), layout="constrained")
    mixed = ResumableMixtureSampler([40, 100], [1, 3], seed=2)
    phases = [("warm-up", 0, 60), ("mixed", mixed, 100), ("main", 1, None)]
    sampler = ResumableCurriculumSampler([40, 100], phases, seed=1)
    found = sampler.indices(0, 0, sampler.size)
    dots(axes, found, "An epoch of three phases", [COLORS[int(index >= 40)] for index in found.tolist()])
    start = 0
    for name, length in sampler.phases:
        axes.text(start + length / 2, 145, f'"{name}", {length}', ha="center", color=INK, fontsize=9)
        start += length
        axes.axvline(start - 0.5, color=INK, linestyle=(0, (1, 2)), linewidth=1)
    legend(axes, ["easy records", "hard records"], COLORS, ncols=2, loc="lower right", bbox_to_anchor=(1, 1.0))
    axes.set(ylim=(-4, 158))
    return figure


@drawing
def function() -> Any:
    def zigzag(epoch: int, places: Any, num_records: int) -> Any:
        half = (num_records + 1) // 2
        there = np.where(places < half, 2 * places, 2 * (num_records - 1 - places) + 1)
        return there if epoch % 2 == 0 else num_records - 1 - there

    figure, axes = panels(2, sharey=True)
    for epoch, each in enumerate(axes):
        dots(each, ResumableFunctionSampler(range(100), zigzag).indices(epoch, 0, 100), f"zigzag, epoch {epoch}")
    axes[1].set(ylabel="")
    return figure


def main(folder: Path = FOLDER) -> None:
    """Draw all pictures into a folder."""
    mpl.use("Agg")
    plt.rcParams.update({"font.size": 9.5, "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED})
    for name, draw in DRAWINGS.items():
        figure = draw()
        with io.BytesIO() as file:
            figure.savefig(file, dpi=110)
            # A third of the bytes, and no color that one could miss.
            Image.open(file).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(folder / name, optimize=True)
        plt.close(figure)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
