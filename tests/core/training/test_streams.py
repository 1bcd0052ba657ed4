"""Runs on streams: stopped anywhere and started again, they are the run that never stopped."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import parhelion as ph
from parhelion.checkpoint import load_checkpoint
from parhelion.data import DatasetSplit, TextLines, create_loader, create_stream_loader, is_stream, stream_batches
from parhelion.errors import CheckpointMismatchError, UnsavableValueError
from parhelion.training import Trainer, TrainerOptions
from parhelion.training._source import open_source
from support.plain import Descent, Here, parts
from support.streams import Counter, Pairs, Ranges, add_noise, is_wanted


def choose_loader(dataset: Any, split: DatasetSplit, params: Any) -> Any:
    return (create_stream_loader if is_stream(dataset) else create_loader)(dataset, split, params)


class Data(ph.DataModule):
    def __init__(self, make_stream: Any, ready: bool = False, **params: Any) -> None:
        self.make_stream, self.ready, self.params = make_stream, ready, {"batch_size": 4, **params}

    def setup(self) -> None:
        self._train_dataset = self._create_dataset(self.make_stream(), self.params)
        self._valid_dataset = self._create_dataset(Ranges(5, 4).map(to_point), {"batch_size": 4})

    def train_dataloader(self) -> Any:
        return self.make_stream() if self.ready else super().train_dataloader()


def to_point(record: Any) -> Any:
    noise = ph.sample_rng().standard_normal(3, np.float32)
    return {"index": record["id"], "x": noise, "legacy": np.float32(np.random.rand())}


def chained() -> Any:
    return Ranges(11, 6, 9).filter(is_wanted).shuffle(4).transform(Pairs).map(to_point)


class Vectors(Here):
    def to_host(self, values: Any) -> list[float]:
        return [float(each) for value in values for each in np.ravel(value)]


class Together(Descent):
    """Trains on several batches in one call."""

    train_step = Descent.train_step

    def can_train_together(self) -> bool:
        return True

    def train_steps(self, batches: Any, states: Any) -> Any:
        return np.array([self.train_step(batch, state) for batch, state in zip(batches, states, strict=True)])


def run(root: Any, data: Data, stop: int | None = None, chunk: int = 1, **options: Any) -> tuple[Any, Trainer]:
    options = {"print_banner": False, "total_steps": 3, "valid_frequency": 1, "chkpt_root": root, **options}
    changes = {"create_dataloader": choose_loader, "steps_per_execution": chunk, "placement": Vectors()}
    trainer = Trainer(TrainerOptions(**options), parts(**changes))
    model = Together() if chunk > 1 else Descent()
    if stop is None:
        assert trainer.fit(model, data), trainer.error
        return model, trainer
    for state in trainer.steps(model, data):
        if state.global_iteration >= stop and state.is_update:
            trainer.save_checkpoint()
            break
    return model, trainer


def check_resumes(tmp_path: Any, make_data: Any, stop: int, *, other: Any = None, **options: Any) -> None:
    """Compare a run that never stopped with one that did, whose checkpoint is as old as the stop."""
    whole, trainer = run(tmp_path / "whole", make_data(), **options)
    first, _ = run(tmp_path / "parts", make_data(), stop=stop, **options)
    second, resumed = run(tmp_path / "parts", (other or make_data)(), **options)
    assert first.journal + second.journal == whole.journal
    assert second.weights.tobytes() == whole.weights.tobytes()
    drop = {"samples_per_second"}
    rows = [{k: v for k, v in row.items() if k not in drop} for row in trainer.history]
    assert [{k: v for k, v in row.items() if k not in drop} for row in resumed.history] == rows


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_run_that_is_stopped_after_any_batch_goes_on_as_if_it_had_not_been(tmp_path, stop) -> None:
    check_resumes(tmp_path, lambda: Data(chained, batch_size=3), stop, accumulation_steps=2)


@pytest.mark.processes
def test_however_many_workers_made_batches_ahead_the_state_is_of_the_last_one_trained_on(tmp_path) -> None:
    def made(workers: int) -> Any:
        return lambda: Data(chained, batch_size=2, num_workers=workers, options={"prefetch_factor": 5})

    check_resumes(tmp_path, made(2), 4, other=made(3))


@pytest.mark.parametrize("stop", [2, 5, 8])
def test_chunks_take_batches_ahead_and_the_state_is_of_the_last_one_trained_on(tmp_path, stop) -> None:
    check_resumes(
        tmp_path, lambda: Data(chained, batch_size=2), stop, chunk=3, train_unit="iteration", total_steps=14,
        valid_frequency=5,
    )  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(stop=st.integers(1, 14), records=st.integers(8, 30), limit=st.sampled_from([None, 2]))
def test_epochs_of_a_given_length_resume_anywhere(tmp_path_factory, stop, records, limit) -> None:
    check_resumes(
        tmp_path_factory.mktemp("run"),
        lambda: Data(chained, options={"records_per_epoch": records}),
        min(stop, 3 * (limit or records // 4)),
        limit_batches=limit,
    )


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_ends_epochs_of_a_stream_early(tmp_path, limit) -> None:
    model, _ = run(tmp_path, Data(chained), limit_batches=limit)
    assert [epoch for epoch, _ in model.journal] == [e for e in (1, 2, 3) for _ in range(limit)]
    check_resumes(tmp_path / "again", lambda: Data(chained), 1, limit_batches=limit)


def test_groups_never_cross_the_epochs_end_and_weigh_their_records() -> None:
    made = create_stream_loader(Ranges(7, 7), DatasetSplit.TRAIN, ph.DataLoaderParams(batch_size=3))
    source = open_source(made, "train", accumulation_steps=2)
    spans = [*source.spans(ph.Position())]
    assert [span.num_records for span in spans] == [3, 3, 3, 3, 2]
    assert [span.is_update for span in spans] == [False, True, False, True, True]
    assert [span.is_last for span in spans] == [False] * 4 + [True]
    assert [span.loss_weight for span in spans] == [0.5, 0.5, 0.5, 0.5, 1.0]
    assert [batch["id"].tolist() for batch in source.batches(ph.Position())][-1] == [6, 1006]
    limited = open_source(made, "train", limit_batches=2)
    assert [span.num_records for span in limited.spans(ph.Position())] == [3, 3]


def test_states_behind_batches_are_let_go_once_they_are_committed(tmp_path) -> None:
    options = {"print_banner": False, "total_steps": 2}
    trainer = Trainer(TrainerOptions(**options), parts(create_dataloader=choose_loader))
    steps = trainer.steps(Descent(), Data(lambda: Ranges(80).map(to_point), batch_size=2))
    sizes = [len(trainer._sources[0]._entries) for _ in steps]
    assert len(sizes) == 80
    assert max(sizes) <= 3


@given(stop=st.integers(0, 9), ahead=st.integers(0, 9), steps=st.integers(1, 3))
def test_whatever_was_taken_ahead_the_state_is_that_of_the_position_that_counts(stop, ahead, steps) -> None:
    def open_one() -> Any:
        made = create_stream_loader(Ranges(9, 9, 9).shuffle(4), DatasetSplit.TRAIN, ph.DataLoaderParams(batch_size=3))
        return open_source(made, "train", accumulation_steps=steps)

    source, state = open_one(), ph.TrainingState()
    source.begin(state, None, restart=False)
    committed = [state]
    source.follow(lambda: committed[-1].position)
    spans, batches = source.spans(state.position), source.batches(state.position)
    seen = []
    for number, span in enumerate(spans):
        state = state.after(span, 0.0)
        if number < stop:
            seen.append(next(batches)["id"].tolist())
            committed.append(state)
        elif number >= stop + ahead:
            break
    rest = [batch["id"].tolist() for batch in batches] if stop < 9 else []
    saved = source.gather(committed[-1].position, lambda value: [value])
    other = open_one()
    assert other.begin(committed[-1], saved, restart=False) == committed[-1]
    if committed[-1].offset:
        assert [batch["id"].tolist() for batch in other.batches(committed[-1].position)] == rest
        assert len(seen) + len(rest) == 9
    else:
        assert saved["entry"] is None


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4), (4, 2)])
def test_a_checkpoint_has_the_lanes_of_all_ranks_so_that_their_number_may_change(before, after) -> None:
    params = ph.DataLoaderParams(batch_size=2, is_distributed=True, options={"records_per_epoch": 48})

    def open_ranks(world: int, state: Any, saved: Any) -> Any:
        sources = []
        for rank in range(world):
            stream = Ranges(9, 5, 7, 8).shuffle(3)
            made = create_stream_loader(stream, DatasetSplit.TRAIN, params, rank=rank, world=world)
            sources.append(open_source(made, "train"))
            assert sources[-1].begin(state, saved, restart=False) == state
        return sources

    def train(sources: Any, state: Any, steps: int) -> Any:
        """Return the micro-batches in order, and the state and the stream's state behind them."""
        passes = [zip(each.spans(state.position), each.batches(state.position), strict=True) for each in sources]
        found = []
        for _, together in zip(range(steps), zip(*passes, strict=True), strict=False):
            found += [batch["id"].tolist() for _, batch in together]
            state = state.after(together[0][0], 0.0)
        every = [each._entry_at(state.position) for each in sources]
        return found, state, sources[0].gather(state.position, lambda _: every)

    whole, *_ = train(open_ranks(1, ph.TrainingState(), None), ph.TrainingState(), 24)
    first, state, saved = train(open_ranks(before, ph.TrainingState(), None), ph.TrainingState(), 12 // before - 2)
    assert state.offset == 2 * len(first)
    rest, state, _ = train(open_ranks(after, state, saved), state, 24)
    assert first + rest == whole[: len(first + rest)]
    assert len(rest) == (24 - len(first)) // after * after


def test_a_text_file_is_trained_on_and_resumed(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": {k}}}\n' for k in range(23)))
    (tmp_path / "b.jsonl").write_text("".join(f'{{"id": {k}}}\n' for k in range(100, 117)))
    check_resumes(tmp_path, lambda: Data(lambda: TextLines(f"{tmp_path}/*.jsonl").map(to_point), shuffle=True), 13)


class Source:
    """An iterable that says its own state, by itself or by its iterators."""

    def __init__(self, size: int = 10, batch: int = 0) -> None:
        self.size, self.batch, self.next, self.epoch = size, batch, 0, 0

    def __iter__(self) -> Any:
        while self.next < self.size:
            self.next += 1
            yield self.record(self.next - 1)
        self.next, self.epoch = 0, self.epoch + 1

    def record(self, number: int) -> Any:
        record = to_point_by(number, self.epoch)
        return {name: np.stack([value] * self.batch) for name, value in record.items()} if self.batch else record


def to_point_by(number: int, epoch: int) -> Any:
    """Return a record without a key of ours; it draws from the global generator, which is keyed."""
    return {"index": np.int64(number + 100 * epoch), "x": np.full(3, number, np.float32), "legacy": np.random.rand()}


class Anew:
    def __iter__(self) -> Any:
        return (to_point_by(number, 0) for number in range(10))


class Stateful(Source):
    def state_dict(self) -> Any:
        return {"next": self.next, "epoch": self.epoch}

    def load_state_dict(self, state: Any) -> None:
        self.next, self.epoch = state["next"], state["epoch"]


class ByIterators:
    def __iter__(self) -> Any:
        return GetAndSet(10)


class GetAndSet(Counter):
    state_dict = load_state_dict = None

    def __next__(self) -> Any:
        return to_point_by(super().__next__()["id"], 0)

    def get_state(self) -> bytes:
        return str(self.next).encode()

    def set_state(self, state: bytes) -> None:
        self.next = int(state)


class WithEpochs(Stateful):
    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.next = epoch, 0


class Skipping(Source):
    """Begins anew unless it was just told where; told the end, it gives nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.told: int | None = None

    def __iter__(self) -> Any:
        begin, self.told = self.told or 0, None
        for number in range(begin, self.size):
            self.next = number + 1
            yield self.record(number)

    def state_dict(self) -> Any:
        return {"next": self.next}

    def load_state_dict(self, state: Any) -> None:
        self.told = state["next"]


@pytest.mark.parametrize("kind", [Stateful, ByIterators, WithEpochs, Skipping])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 7])
def test_any_source_that_can_say_its_state_resumes(tmp_path, kind, stop) -> None:
    check_resumes(tmp_path, lambda: Data(kind, batch_size=4), stop)


@pytest.mark.parametrize("stop", [2, 9, 10, 13])
def test_a_source_of_ready_batches_that_can_say_its_state_is_returned_as_it_is(tmp_path, stop) -> None:
    check_resumes(tmp_path, lambda: Data(lambda: Stateful(batch=2), ready=True), stop)
    check_resumes(
        tmp_path / "counted", lambda: Data(lambda: stream_batches(ByIterators2(), batches_per_epoch=4), ready=True),
        min(stop, 12),
    )  # fmt: skip


class ByIterators2:
    def __iter__(self) -> Any:
        return Batched(10)


class Batched(GetAndSet):
    def __next__(self) -> Any:
        return {name: np.stack([value] * 2) for name, value in super().__next__().items()}


@pytest.mark.processes
def test_a_source_with_a_state_of_its_own_resumes_in_a_worker(tmp_path) -> None:
    check_resumes(tmp_path, lambda: Data(Stateful, num_workers=1), 4)


def test_a_source_that_cannot_say_its_state_says_so_when_the_run_starts(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING, "parhelion"):
        run(tmp_path, Data(Source), stop=1)
    assert (
        "the stream Source(1 lanes) has neither state_dict and load_state_dict nor get_state and set_state, so a run "
        "that is stopped in the middle of an epoch cannot go on from there" in caplog.text
    )
    caplog.clear()
    run(tmp_path / "other", Data(Stateful), stop=1)
    assert "neither" not in caplog.text


def test_its_epoch_begins_again_only_if_that_is_asked_for(tmp_path) -> None:
    run(tmp_path, Data(Source), stop=5)  # the second batch of the second epoch
    message = (
        r"the run was stopped at record 8 of epoch 2, and the checkpoint does not say where the stream Source"
        r"\(1 lanes\) was then: .* begin the epoch again with allow_changes=\('stream',\)"
    )
    options = {"print_banner": False, "total_steps": 3, "chkpt_root": tmp_path}
    trainer = Trainer(TrainerOptions(**options), parts(create_dataloader=choose_loader))
    with pytest.raises(CheckpointMismatchError, match=message):
        trainer.fit(Descent(), Data(Source))
    model = Descent()
    assert trainer.fit(model, Data(Source), allow_changes=("stream",))
    assert [epoch for epoch, _ in model.journal] == [2, 2, 2, 3, 3, 3]
    assert trainer.state.offset == 0


def test_a_run_stopped_at_an_epochs_end_goes_on_with_any_source(tmp_path) -> None:
    check_resumes(tmp_path, lambda: Data(Anew), 3)


def test_another_stream_is_refused_and_begins_its_epoch_if_allowed(tmp_path) -> None:
    run(tmp_path, Data(lambda: Ranges(9, 9).map(to_point)), stop=2)
    options = {"print_banner": False, "total_steps": 1, "chkpt_root": tmp_path}
    trainer = Trainer(TrainerOptions(**options), parts(create_dataloader=choose_loader))
    data = Data(lambda: Ranges(9, 9).shuffle(3).map(to_point))
    with pytest.raises(CheckpointMismatchError, match=r"stream is '.* > shuffle\(3\) > map' and was 'Ranges"):
        trainer.fit(Descent(), data)
    model = Descent()
    assert trainer.fit(model, data, allow_changes=("stream",))
    assert len(model.journal) == 5


def test_a_stream_that_gives_nothing_ends_the_run_with_an_error(tmp_path) -> None:
    trainer = Trainer(TrainerOptions(print_banner=False, total_steps=2), parts(create_dataloader=choose_loader))
    records = iter([to_point_by(k, 0) for k in range(5)])
    assert not trainer.fit(Descent(), Data(lambda: records))
    assert "gave no batch in epoch 2; expected one at least" in str(trainer.error)


class Unsavable(Stateful):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "open": object()}


def test_a_state_that_no_checkpoint_can_hold_is_refused_before_the_first_step(tmp_path) -> None:
    trainer = Trainer(
        TrainerOptions(print_banner=False, total_steps=1, chkpt_root=tmp_path), parts(create_dataloader=choose_loader)
    )
    model = Descent()
    with pytest.raises(UnsavableValueError, match=r"stream.*state.*open is "):
        trainer.fit(model, Data(Unsavable))
    assert model.journal == []


def test_the_checkpoint_has_one_small_state_for_each_lane(tmp_path) -> None:
    run(tmp_path, Data(chained), stop=2)
    tree = load_checkpoint(next((tmp_path / "descent").glob("*epoch*"))).tree
    entry = tree["stream"]["entry"]
    assert [*entry["lanes"]] == ["0", "1"]  # the third has not been asked yet
    assert (entry["turn"], entry["rest"]) == (2, 0)
    assert entry["lanes"]["0"]["count"] == 4


def test_evaluation_reads_a_stream_from_its_beginning_each_time(tmp_path) -> None:
    _, trainer = run(tmp_path, Data(chained))
    assert len({row["valid_loss"] for row in trainer.history}) == 3  # other weights
    made = create_stream_loader(Ranges(5, 4), DatasetSplit.VALID, ph.DataLoaderParams(batch_size=4))
    source = open_source(made, "valid")
    passes = [[batch["id"].tolist() for batch in source.batches(ph.Position())] for _ in range(2)]
    assert passes[0] == passes[1] == [[0, 1, 2, 3], [1000, 1001, 1002, 1003], [4]]


def test_a_bare_iterable_without_a_state_is_still_no_loader() -> None:
    with pytest.raises(TypeError, match=r"or stream_batches\(loader\) for one that says its state"):
        open_source(iter([1]), "train")


def test_add_noise_is_keyed_in_a_run(tmp_path) -> None:
    model, _ = run(tmp_path, Data(lambda: Ranges(8).map(add_noise).map(to_point), batch_size=2))
    assert len(model.journal) == 12
