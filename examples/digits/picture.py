"""The picture that the demo draws: loss curves of runs that were killed, on those of the ones that were not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import matplotlib as mpl
from matplotlib import pyplot as plt

INK, MUTED, FAINT = "#222222", "#767676", "#ececec"
DARK = {"torch": "#c2410c", "jax": "#1d4ed8"}
PALE = {"torch": "#fdba74", "jax": "#a5c4fb"}
NAMES = {"torch": "PyTorch", "jax": "JAX"}


@attrs.frozen
class Panel:
    """A run that was killed, and the one that was not.

    Attributes:
        backends: what the killed one was trained with, first and last.
        whole: losses by step of the run that was never stopped, on the first backend.
        broken: losses by step of the one that was killed.
        resumed_at: the step from which the last process trained.
        killed_at: the step that the first one came to.
    """

    backends: tuple[str, str]
    whole: Mapping[int, float]
    broken: Mapping[int, float]
    resumed_at: int
    killed_at: int


def draw(picture: Path, panels: Sequence[Panel]) -> None:
    """Save a picture of all panels, side by side."""
    mpl.use("Agg")
    plt.rcParams.update({"font.size": 9.5, "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED})
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 4.2), sharey=True, layout="constrained")
    for each, panel in zip(axes, panels, strict=True):
        draw_panel(each, panel)
    axes[0].set(ylabel="training loss")
    axes[0].set_yticks([2, 1, 0.5, 0.2, 0.1], ["2", "1", "0.5", "0.2", "0.1"])
    axes[0].minorticks_off()
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


def draw_panel(axes: Any, panel: Panel) -> None:
    """Draw the whole run, pale and wide, and the broken one on it, in the colors of its backends."""
    first, last = panel.backends
    axes.plot(panel.whole.keys(), panel.whole.values(), color=PALE[first], linewidth=5, label="never stopped")
    if first == last:
        title = NAMES[first]
        axes.plot(panel.broken.keys(), panel.broken.values(), color=DARK[first], linewidth=1.2, label="killed, resumed")
    else:
        title = f"Begun on {NAMES[first]}, finished on {NAMES[last]}"
        # The row at the change belongs to both pieces, so that the line does not tear.
        before = {step: loss for step, loss in panel.broken.items() if step <= panel.resumed_at}
        after = {step: loss for step, loss in panel.broken.items() if step >= panel.resumed_at}
        axes.plot(after.keys(), after.values(), color=DARK[last], linewidth=1.2, label=f"resumed on {NAMES[last]}")
        axes.plot(before.keys(), before.values(), color=DARK[first], linewidth=1.2, label=f"killed on {NAMES[first]}")
    axes.axvline(panel.killed_at, color=INK, linestyle=(0, (1, 2)), linewidth=1)
    axes.annotate("SIGKILL", (panel.killed_at, 0.02), (-6, 0), ("data", "axes fraction"), "offset points", ha="right")
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.set(xlabel="update", yscale="log", xlim=(0, max(panel.whole) + 25))
    handles, labels = axes.get_legend_handles_labels()
    order = [0, *range(len(handles) - 1, 0, -1)]
    axes.legend([handles[k] for k in order], [labels[k] for k in order], frameon=False, loc="upper right")
    axes.tick_params(colors=MUTED, length=0, which="both")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
