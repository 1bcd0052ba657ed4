"""Whatever is wrong gives a clear error or a stated fall-back: never a silent wrong run, never a hang."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
backend = pytest.importorskip("parhelion_torch")

import parhelion as ph  # noqa: E402
from parhelion.checkpoint import list_checkpoints, load_checkpoint  # noqa: E402
from parhelion.errors import CheckpointMismatchError, CheckpointVersionError, CollateError, RecordError  # noqa: E402
from support import torch_case as case  # noqa: E402


class Numbers:
    def __init__(self, size: int = 20) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return {"x": float(index), "index": index}


class Only(ph.DataModule):
    def __init__(self, dataset: Any, **params: Any) -> None:
        self.dataset, self.params = dataset, params

    def setup(self) -> None:
        self._train_dataset = self._create_dataset(self.dataset, {"batch_size": 4, **self.params})


class Idle(backend.Model):
    def setup(self, fast_init: bool = False) -> None:
        self.net = torch.nn.Linear(1, 1)

    def train_step(self, batch: Any, state: Any) -> None:
        pass


def fit(dataset: Any, **params: Any) -> Any:
    trainer = case.make_trainer(total_steps=1)
    trainer.fit(Idle("idle"), Only(dataset, **params))
    return trainer


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"batch_size": 0}, r"batch_size is 0; expected an integer >= 1"),
        ({"batch_size": -3}, r"batch_size is -3; expected an integer >= 1"),
        ({"random_seed": -1}, r"random_seed is -1; expected an integer from 0 to 2\*\*64 - 1"),
        ({"random_seed": 2**70}, r"random_seed is \d+; expected an integer from 0 to 2\*\*64 - 1"),
        ({"num_workers": -1}, r"num_workers is -1; expected an integer >= 0"),
        ({"batch_size": 21, "drop_last": True}, r"no batch"),
        ({"shufle": True}, r"shufle.*shuffle"),
        ({"options": {"prefetch_facto": 2}}, r"prefetch_facto.*prefetch_factor"),
    ],
)
def test_a_value_that_cannot_work_is_named(params, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Numbers(), **params)


def test_an_empty_dataset_is_said_to_be_empty() -> None:
    with pytest.raises(ValueError, match="empty"):
        fit(Numbers(0))


def test_a_sampler_of_the_wrong_type_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"sampler.*SequentialSampler"):
        fit(Numbers(), sampler=torch.utils.data.SequentialSampler(Numbers()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: backend.create_sampler("ResumableRandomSample"),
        lambda: backend.create_optimizer("AdamV", []),
        lambda: ph.create_dataset("nothing"),
        lambda: ph.create_collate_fn("defualt"),
        lambda: ph.create_plugin("CUDAPlugi"),
    ],
)
def test_an_unknown_name_lists_what_there_is(make) -> None:
    with pytest.raises(KeyError, match=r"name is '.*'; expected one of"):
        make()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad", [None, object(), {"deep": 1}])
def test_a_record_that_cannot_be_collated_is_named_by_index_and_field(workers, bad) -> None:
    class Odd(Numbers):
        def __getitem__(self, index: int) -> Any:
            return {"x": bad if index == 13 else 1.0}

    trainer = fit(Odd(), num_workers=workers)
    assert isinstance(trainer.error, CollateError)
    assert "sample index 13" in str(trainer.error)
    assert "'x'" in str(trainer.error)


def test_a_dataset_that_raises_in_a_worker_is_heard_within_seconds_with_index_and_traceback(caplog) -> None:
    class Broken(Numbers):
        def __getitem__(self, index: int) -> Any:
            if index == 6:
                raise ZeroDivisionError("a planted mistake")
            return super().__getitem__(index)

    began = time.monotonic()
    with caplog.at_level("ERROR", "parhelion"):
        trainer = fit(Broken(), num_workers=2)
    assert time.monotonic() - began < 20
    assert trainer.stop_reason == "error"
    assert isinstance(trainer.error, RecordError)
    assert "sample index 6" in str(trainer.error)
    assert "a planted mistake" in caplog.text
    assert "__getitem__" in caplog.text


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    """Return the root of a run of two epochs that kept every checkpoint, and its oracle of three."""
    model = case.make_model("none")
    assert case.make_trainer(total_steps=2, chkpt_root=tmp_path, chkpt_frequency=1).fit(model, case.Data(0))
    return tmp_path


def resume(root: Path, **options: Any) -> Any:
    model = case.make_model("none")
    trainer = case.make_trainer(total_steps=3, chkpt_root=root)
    assert trainer.fit(model, case.Data(0), **options)
    return model


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "arrays cut in half": lambda folder: (folder / "arrays-00000.safetensors").write_bytes(
        (folder / "arrays-00000.safetensors").read_bytes()[: (folder / "arrays-00000.safetensors").stat().st_size // 2]
    ),
    "arrays emptied": lambda folder: (folder / "arrays-00000.safetensors").write_bytes(b""),
    "arrays missing": lambda folder: (folder / "arrays-00000.safetensors").unlink(),
    "a bit flipped in the data": lambda folder: flip(folder / "arrays-00000.safetensors", -3),
    "a bit flipped in the header": lambda folder: flip(folder / "arrays-00000.safetensors", 20),
    "manifest cut in half": lambda folder: (folder / "manifest.json").write_bytes(
        (folder / "manifest.json").read_bytes()[:300]
    ),
    "manifest emptied": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "a bit flipped in the manifest": lambda folder: flip(folder / "manifest.json", -40),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_set_aside_said_and_the_one_before_used(finished, kind, caplog) -> None:
    newest = list_checkpoints(finished / "net")[0].path
    DAMAGE[kind](newest)
    with caplog.at_level("WARNING", "parhelion"):
        model = resume(finished)
    assert len(model.seen) == 2 * case.NUM_BATCHES  # from the end of epoch 1
    assert newest.with_name(f"{newest.name}.damaged").exists()
    assert newest.name in caplog.text


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(finished, kind) -> None:
    newest = list_checkpoints(finished / "net")[0].path
    DAMAGE[kind](newest)
    with pytest.raises(ph.ParhelionError, match=newest.name):
        resume(finished, resume=newest)


def test_a_checkpoint_of_a_newer_format_is_refused_by_name(finished, caplog) -> None:
    manifest = list_checkpoints(finished / "net")[0].path / "manifest.json"
    text = manifest.read_text()
    first, rest = text.split("\n", 1)
    rest = rest.replace('"version":1', '"version":7').replace('"version": 1', '"version": 7')
    assert rest != text.split("\n", 1)[1]
    import xxhash

    old = xxhash.xxh3_128_hexdigest(text.split("\n", 1)[1].encode())
    assert old in first
    manifest.write_text(first.replace(old, xxhash.xxh3_128_hexdigest(rest.encode())) + "\n" + rest)
    with pytest.raises(CheckpointVersionError, match=r"7"):
        resume(finished)
    assert manifest.exists()


def test_a_checkpoint_of_another_network_is_refused_with_every_difference(finished) -> None:
    class Wider(case.Net):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.module = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Linear(32, 3))
            self.optimizer = torch.optim.AdamW(self.module.parameters())

    with pytest.raises(CheckpointMismatchError, match=r"0\.weight") as caught:
        case.make_trainer(total_steps=3, chkpt_root=finished).fit(Wider("none"), case.Data(0))
    assert "(32, 6)" in str(caught.value)
    assert "(16, 6)" in str(caught.value)


def test_a_checkpoint_under_another_model_s_name_is_refused(finished) -> None:
    newest = list_checkpoints(finished / "net")[0].path
    model = case.make_model("none")
    model.save_name = "other"
    with pytest.raises(CheckpointMismatchError, match=r"model is 'other' and was 'net'"):
        case.make_trainer(total_steps=3, chkpt_root=finished).fit(model, case.Data(0), resume=newest)


def test_a_value_that_cannot_be_saved_fails_by_its_path_and_the_previous_checkpoint_stays(tmp_path) -> None:
    class Careless(case.Net):
        def state_dict(self) -> Any:
            state = super().state_dict()
            if len(self.seen) > case.NUM_BATCHES:
                state["history"] = [1, {"fn": print}]
            return state

    trainer = case.make_trainer(total_steps=2, chkpt_root=tmp_path, chkpt_frequency=1)
    assert trainer.fit(Careless("none"), case.Data(0)) is False
    assert "model.history[1].fn is a " in str(trainer.error)
    (kept,) = list_checkpoints(tmp_path / "net")
    assert kept.iteration == case.NUM_BATCHES
    assert load_checkpoint(kept.path, case.adapter).tree["state"].global_iteration == case.NUM_BATCHES
