"""What holds in each of two ranks of torch; every fact runs in both at once.

torch_rank_facts.py FOLDER        leaves FOLDER/RANK.json: for each fact None, or its traceback
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import parhelion_torch as backend
from parhelion.checkpoint import ShardedArray, flatten
from parhelion.errors import InvalidTypeError, InvalidValueError, UnsavableValueError, WorldError
from parhelion.testing import first_difference
from parhelion_torch.distribution import clip_gradients
from parhelion_torch.sharded import fitted, local_part
from parhelion_torch.world import discover_world, telling_what_broke
from support.torch_ranks import Data, Net, Points, Spread

torch.set_num_threads(1)
WORLD = discover_world()
RANK = WORLD.rank


def make_trainer(**options: Any) -> backend.Trainer:
    return backend.Trainer(**{"use_cpu": True, "print_banner": False, "total_steps": 1} | options)


def train(model: Any, data: Any, **options: Any) -> backend.Trainer:
    trainer = make_trainer(**options)
    assert trainer.fit(model, data), trainer.error
    return trainer


class Few(Data):
    """Few records to evaluate."""

    def __init__(self, few: int) -> None:
        super().__init__(2)
        self.few = few

    def setup(self) -> None:
        super().setup()
        records = [Points()[index] for index in range(self.few)]
        self._valid_dataset = self._create_dataset(records, {"batch_size": 2})
        self._test_dataset = self._create_dataset(records, {"batch_size": 2})


def fact_the_world_is_what_the_launcher_says() -> None:
    assert (WORLD.rank, WORLD.local_rank, WORLD.size) == (int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), 2)
    assert WORLD.gather(RANK) == [0, 1]
    assert torch.distributed.get_backend() == "gloo"


def fact_trainers_of_one_program_share_its_world() -> None:
    first, second = make_trainer(), make_trainer()
    assert first._parts.world is second._parts.world is WORLD
    assert (first.rank, first.local_rank, first.is_distributed, first.queue) == (RANK, RANK, True, None)


def fact_more_processes_are_refused_where_a_launcher_has_started_some() -> None:
    with pytest.raises(InvalidValueError, match=r"num_processes is 3 and 2 processes have been started already"):
        make_trainer(num_processes=3)
    assert make_trainer(num_processes=2).queue is None


def fact_steps_draw_other_numbers_on_each_rank_and_set_up_the_same() -> None:
    class Drawing(Net):
        def setup(self, fast_init: bool = False) -> None:
            self.first = float(torch.rand(()))
            super().setup(fast_init)

        def loss(self, batch: Any) -> Any:
            self.drawn = float(torch.rand(()))
            return super().loss(batch)

    model = Drawing()
    train(model, Data(4))
    one, other = WORLD.gather((model.first, model.drawn))
    assert one[0] == other[0]
    assert one[1] != other[1]


def fact_ranks_with_fewer_records_do_not_hold_up_a_module_that_is_spread() -> None:
    for count in (1, 2, 3, 5):
        model = Spread()
        trainer = train(model, Few(count), valid_frequency=1)
        assert trainer.test(model, Few(count))
        assert model.metrics["accuracy"].state_dict()["num_records"] == count
        assert first_difference(*WORLD.gather(trainer.test_results)) is None
        assert trainer.test_results["test_loss"] == pytest.approx(trainer.history[-1]["valid_loss"], abs=1e-6)


def fact_nothing_that_an_idle_rank_logs_is_counted() -> None:
    class Talking(Spread):
        def loss(self, batch: Any) -> Any:
            if not torch.is_grad_enabled():
                self.log("seen", len(batch["index"]), "sum")
            return super().loss(batch)

    assert train(Talking(), Few(3), valid_frequency=1).history[-1]["valid_seen"] == 3


def fact_ranks_without_records_do_not_hold_up_a_replicated_module() -> None:
    model = Net("norm")
    trainer = train(model, Few(1), valid_frequency=1)
    assert trainer.test(model, Few(1))
    assert first_difference(*WORLD.gather(trainer.test_results)) is None


def fact_a_method_of_a_module_is_refused_in_a_training_step() -> None:
    class Layers(nn.Sequential):
        width = 3

        def head(self, x: Any) -> Any:
            return self[2](x)

    class Wrong(Net):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.module = Layers(*self.module)

        def loss(self, batch: Any) -> Any:
            assert self.module.width == 3
            self.module.head(batch["x"])

    trainer = make_trainer()
    trainer.train_exceptions.append(AttributeError)
    with pytest.raises(AttributeError, match=r"head of the module was asked for in a training .* self.module\(...\)"):
        trainer.fit(Wrong(), Data(4))


def fact_options_reach_the_wrapper() -> None:
    class Half(Net):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.module.add_module("unused", nn.Linear(2, 2))
            used = nn.Sequential(*list(self.module)[:3])
            self.module.forward = used.forward

    model = Half()
    model.ddp_options = {"find_unused_parameters": True}
    train(model, Data(4), total_steps=2)
    wrong = Net()
    wrong.ddp_options = ["find_unused_parameters"]
    with pytest.raises(InvalidTypeError, match=r"ddp_options is \['find_unused_parameters'\]; expected arguments of"):
        make_trainer().fit(wrong, Data(4))


def fact_lazy_parameters_are_refused() -> None:
    class Lazy(Net):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.module[0] = nn.LazyLinear(16)

    with pytest.raises(InvalidValueError, match=r"Sequential has lazy parameters without a shape and several"):
        make_trainer().fit(Lazy(), Data(4))


def fact_what_a_spread_module_cannot_do_is_refused() -> None:
    for options, message in (
        ({"ema_decay": 0.9}, r"ema_decay is 0.9 and the module is spread over processes \(fully_shard\); expected a"),
        ({"precision": "float16"}, r"precision is 'float16' and the module is spread .* Use 'bfloat16'"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            make_trainer().fit(Spread(**options), Data(4))


def fact_every_rank_begins_with_the_weights_of_the_first() -> None:
    class Own(Net):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            for each in (*self.module.parameters(), *self.heads[0].parameters(), self.scale):
                nn.init.constant_(each, RANK + 1)

    model = Own("parts")
    train(model, Data(4), total_steps=0)
    assert all((each == 1).all() for each in (*model.module.parameters(), *model.heads[0].parameters(), model.scale))


def fact_gradients_of_all_kinds_are_clipped_together() -> None:
    mesh = init_device_mesh("cpu", (2,))
    plain = nn.Parameter(torch.zeros(2))
    spread = nn.Parameter(distribute_tensor(torch.zeros(3), mesh, [Shard(0)]))
    plain.grad = torch.tensor([3.0, 0.0])
    spread.grad = distribute_tensor(torch.tensor([0.0, 0.0, 4.0]), mesh, [Shard(0)])
    clip_gradients([plain, spread], 1.0)
    assert plain.grad.tolist() == pytest.approx([0.6, 0.0], abs=1e-5)
    assert spread.grad.full_tensor().tolist() == pytest.approx([0.0, 0.0, 0.8], abs=1e-5)


def fact_a_part_of_a_spread_tensor_is_a_box_of_the_whole() -> None:
    whole = torch.arange(5 * 3).reshape(5, 3)
    for shape in ((2,), (2, 1), (1, 2)):
        mesh = init_device_mesh("cpu", shape)
        for placements in ([Shard(0)], [Shard(1)], [Replicate()]):
            placed = [*placements, *([Shard(0)] if len(shape) == 2 else [])]
            tensor = distribute_tensor(whole, mesh, placed)
            start, local = local_part(tensor, "x")
            box = tuple(slice(begin, begin + size) for begin, size in zip(start, local.shape, strict=True))
            assert torch.equal(whole[box], local)
            again = fitted(whole, tensor)
            assert torch.equal(again.to_local(), local)
            assert isinstance(again, DTensor)
            assert again.placements == tensor.placements


def fact_what_several_ranks_have_is_written_by_one() -> None:
    adapter, whole = backend.Arrays(), torch.arange(6.0).reshape(3, 2)
    wanted = {Replicate: [1, 0], Shard: [1, 1]}
    for kind, written in wanted.items():
        placement = kind() if kind is Replicate else kind(0)
        array = adapter.encode(distribute_tensor(whole, init_device_mesh("cpu", (2,)), [placement]), "x")
        assert isinstance(array, ShardedArray)
        assert (array.shape, array.dtype) == ((3, 2), "float32")
        assert [len(each) for each in WORLD.gather(array.parts)] == written
    both = distribute_tensor(whole, init_device_mesh("cpu", (2, 1)), [Replicate(), Shard(0)])
    assert [len(each) for each in WORLD.gather(adapter.encode(both, "x").parts)] == [1, 0]


def fact_a_sum_that_is_not_made_yet_is_refused() -> None:
    tensor = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (2,)), [Partial()])
    with pytest.raises(UnsavableValueError, match=r"grads.x is a DTensor with the placements \(Partial\(sum\),\); exp"):
        backend.Arrays().encode(tensor, "grads.x")


def fact_equal_parts_are_one_array_also_where_they_are_empty() -> None:
    tensor = distribute_tensor(torch.ones(1, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
    _, arrays = flatten({"a": tensor, "b": tensor.detach(), "c": tensor + 0}, backend.Arrays())
    assert list(arrays) == ["a", "c"]


def fact_a_module_that_the_user_has_wrapped_is_not_wrapped_again() -> None:
    class Wrapped(Net):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.module = nn.parallel.DistributedDataParallel(self.module)

    model = Wrapped()
    train(model, Data(4))
    assert not isinstance(model.module, nn.parallel.DistributedDataParallel)
    whole = Net()
    train(whole, Data(4))
    assert all(map(torch.equal, model.module.state_dict().values(), whole.module.state_dict().values()))


def fact_metrics_of_torchmetrics_count_the_records_of_all() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(Net):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.metrics["theirs"] = torchmetrics.classification.MulticlassAccuracy(3, average="micro")

    for count in (1, 3, 5):
        row = train(Measured(), Few(count), valid_frequency=1).history[-1]
        assert row["valid_theirs"] == pytest.approx(row["valid_accuracy"])


def fact_a_collective_that_breaks_off_names_the_process_that_failed() -> None:
    with pytest.raises(ValueError, match="as it is"), telling_what_broke(WORLD):
        raise ValueError("as it is")
    with (
        pytest.raises(WorldError, match=r"a computation over all 2 processes broke off in .*closed by peer"),
        telling_what_broke(WORLD),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:35")


def main(folder: str) -> None:
    results: dict[str, str | None] = {}
    for name, fact in list(globals().items()):
        if name.startswith("fact_"):
            try:
                fact()
                results[name] = None
            except Exception:
                results[name] = traceback.format_exc()
    (Path(folder) / f"{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
