"""A model that is only evaluated, and what its evaluation must come to: computed from all records at once."""

from __future__ import annotations

from typing import Any

import numpy as np

import parhelion as ph
from parhelion.training import Scored, Trainer, TrainerOptions
from support.threads import Threads, in_all, rank_parts

NUM_CLASSES = 3


class Cases:
    """``size`` records: a loss, a label, a prediction that is often right, a yes or no, and a score with many ties."""

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(size)
        self.loss = rng.standard_normal(size) * 10.0 ** rng.integers(-6, 7, size)
        self.label = rng.integers(0, NUM_CLASSES, size)
        self.predicted = np.where(rng.random(size) < 0.6, self.label, rng.integers(0, NUM_CLASSES, size))
        self.positive = rng.integers(0, 2, size)
        self.score = rng.integers(0, 5, size) / 4 + self.positive / 2

    def __len__(self) -> int:
        return len(self.loss)

    def __getitem__(self, index: int) -> dict[str, Any]:
        names = ("loss", "label", "predicted", "positive", "score")
        return {"index": index, **{name: getattr(self, name)[index] for name in names}}


class CasesData(ph.DataModule):
    """The same records for every split."""

    def __init__(self, size: int, batch_size: int, train: int = 16) -> None:
        self.size, self.batch_size, self.train = size, batch_size, train

    def setup(self) -> None:
        params = {"batch_size": self.batch_size, "options": {"global_rng": "off"}}
        self._train_dataset = self._create_dataset(Cases(self.train), {**params, "batch_size": 1})
        self._valid_dataset = self._create_dataset(Cases(self.size), params)
        self._test_dataset = self._create_dataset(Cases(self.size), params)


class Judge(Scored):
    """Takes its losses and predictions from the records; keeps a journal of its steps."""

    def __init__(self, **options: Any) -> None:
        super().__init__("judge", **options)
        self.journal: list[Any] = []
        self.moments: list[tuple[str, int]] = []

    def setup(self, fast_init: bool = False) -> None:
        metrics = ph.metrics
        self.metrics = {
            "accuracy": metrics.Accuracy(),
            "matrix": metrics.ConfusionMatrix(NUM_CLASSES),
            "f1": metrics.F1(NUM_CLASSES, "each"),
            "auc": metrics.AUC(),
            "mean": metrics.Mean(),
            "sum": metrics.Sum(),
        }

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        return float(batch["loss"].mean())

    def examine(self, batch: Any) -> tuple[Any, Any]:
        self.journal.append(batch["index"].tolist())
        self.log("count", len(batch["index"]), "sum")
        self.log("total", batch["loss"].sum(), "sum")
        classes = (batch["predicted"], batch["label"])
        return batch["loss"].mean(), {
            **dict.fromkeys(("accuracy", "matrix", "f1"), classes),
            "auc": (batch["score"], batch["positive"]),
            **dict.fromkeys(("mean", "sum"), (batch["loss"],)),
        }

    def idle_step(self, step: int) -> None:
        self.moments.append(("idle", step))

    def on_testing_batch_start(self, step: int) -> None:
        self.moments.append(("start", step))

    def on_testing_batch_end(self, step: int) -> None:
        self.moments.append(("end", step))


def judge(world: Threads, size: int, batch_size: int) -> tuple[dict[str, float], Judge]:
    """Return what a test comes to on this rank, and the model that made it."""
    trainer, model = Trainer(TrainerOptions(print_banner=False), rank_parts(world)), Judge()
    if not trainer.test(model, CasesData(size, batch_size)):
        raise trainer.error or AssertionError("the test ended without a result")
    return trainer.test_results, model


def judge_on(ranks: int, size: int, batch_size: int) -> list[tuple[dict[str, float], Judge]]:
    """Return what :func:`judge` does on every rank."""
    results = in_all(lambda world: judge(world, size, batch_size), ranks)
    for each in results:
        if isinstance(each, Exception):
            raise each
    return results


def expected(size: int) -> dict[str, float]:
    """Return what a test must come to, from all records at once."""
    cases = Cases(size)
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    np.add.at(counts, (cases.label, cases.predicted), 1)
    occurs = counts.sum(0) + counts.sum(1)
    hits = np.diag(counts)
    precision, recall, f1 = (
        np.divide(above, below, out=np.zeros(NUM_CLASSES), where=below > 0)
        for above, below in ((hits, counts.sum(0)), (hits, counts.sum(1)), (2 * hits, occurs))
    )
    yes, no = cases.score[cases.positive == 1], cases.score[cases.positive == 0]
    pairs = (yes[:, None] > no) + 0.5 * (yes[:, None] == no)
    share = hits.sum() / size
    return {
        "count": size,
        "total": float(np.sum(cases.loss.astype(np.longdouble))),
        "loss": float(np.mean(cases.loss.astype(np.longdouble))),
        "accuracy": share,
        "matrix_accuracy": share,
        "matrix_precision": precision[occurs > 0].mean(),
        "matrix_recall": recall[occurs > 0].mean(),
        "matrix_f1": f1[occurs > 0].mean(),
        **{f"f1_{number}": f1[number] for number in range(NUM_CLASSES)},
        "auc": float(pairs.mean()) if pairs.size else float("nan"),
        "mean": float(np.mean(cases.loss.astype(np.longdouble))),
        "sum": float(np.sum(cases.loss.astype(np.longdouble))),
    }
