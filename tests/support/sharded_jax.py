"""Arrays over the devices of some processes, saved in parts, and opened by others.

    python sharded_jax.py ADDRESS PROCESSES RANK FOLDER TASK...

    save     writes FOLDER/checkpoint; every process its own parts
    train    trains a model whose parameters are spread, and writes FOLDER/trained in the same way
    open     opens the first over meshes of other shapes and sizes, and compares every bit
    go_on    goes on with the second

Asserts; the last line of the output is what was found, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parhelion_jax as backend
from parhelion.checkpoint import (
    ShardedArray,
    begin_shared,
    commit_shared,
    flatten,
    load_checkpoint,
    write_shard,
)
from parhelion_jax.arrays import Arrays, LazyArray
from parhelion_jax.stateful import check_tree, give_tree, take_tree
from parhelion_jax.world import discover_world
from support.spread_models import Classifier, Data, make_trainer

META = {"run_name": "r", "global_epoch": 1, "global_iteration": 1}
SPECS = {
    "rows": P("data"),
    "columns": P(None, "model"),
    "both": P("data", "model"),
    "all_in_rows": P(("data", "model")),
    "everywhere": P(),
}
DTYPES = {"rows": np.float32, "columns": jnp.bfloat16, "both": np.int8, "all_in_rows": np.float32}
SHAPE = (24, 12)


def bits_of(name: str) -> Any:
    """Return any bit patterns, those of NaNs among them."""
    dtype = np.dtype(DTYPES.get(name, np.float32))
    seed = sorted(SPECS).index(name)
    return np.random.default_rng(seed).integers(0, 256, (*SHAPE, dtype.itemsize), np.uint8).view(dtype)[..., 0]


def meshes() -> list[Mesh]:
    """Return those over all devices, and in a process alone those over some of them."""
    devices = jax.devices()
    counts = {len(devices)} if jax.process_count() > 1 else {1, 3, len(devices)}
    orders = [devices[:count] for count in sorted(counts)] + [devices[::-1]]
    return [
        Mesh(np.array(order).reshape(-1, columns), ("data", "model"))
        for order in orders
        for columns in (1, 2, 4)
        if len(order) % columns == 0
    ]


def put(array: Any, mesh: Mesh, spec: Any) -> Any:
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), array.__getitem__)


def make_tree(mesh: Mesh) -> dict[str, Any]:
    tree = {name: put(bits_of(name), mesh, spec) for name, spec in SPECS.items()}
    keys = jax.jit(jax.vmap(jax.random.key), out_shardings=NamedSharding(mesh, P("data")))(np.arange(12))
    return tree | {"keys": keys, "count": 3}


def write(root: Path, name: str, tree: Any) -> dict[str, int]:
    """Write a tree by all processes, and return how many bytes of each spread array this one has written."""
    world = discover_world()
    skeleton, arrays = flatten(tree, Arrays())
    scratch = world.gather(begin_shared(root, name) if world.rank == 0 else None)[0]
    if world.rank == 0:
        commit_shared(scratch, name, skeleton, arrays, META, ranks=world.size)
    else:
        write_shard(scratch, world.rank, arrays)
    world.barrier()
    spread = {name: each for name, each in arrays.items() if isinstance(each, ShardedArray)}
    return {name: sum(part.array.data.nbytes for part in each.parts) for name, each in spread.items()}


def save(folder: Path) -> Any:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    # The weights are in the tree twice, as in a run's, where another backend finds them by their names.
    tree = make_tree(mesh)
    taken = take_tree(tree)
    assert all(taken[name] is tree[name] for name in SPECS)
    return write(folder, "checkpoint", {"state": taken, "portable": {"weights": taken}})


class Reads:
    """Counts the elements that are read of saved arrays."""

    def __init__(self) -> None:
        self.count = 0
        read = LazyArray.read

        def counted(array: LazyArray, index: Any) -> Any:
            box = read(array, index)
            self.count += box.size
            return box

        LazyArray.read = counted


def zeros_like(tree: Any, mesh: Mesh) -> Any:
    """Return a live tree with other content, laid out alike."""
    arrays = {name: put(np.zeros(SHAPE, tree[name].dtype), mesh, spec) for name, spec in SPECS.items()}
    return {**arrays, "keys": tree["keys"][::-1], "count": 0}


def open_all(folder: Path) -> Any:
    """Return by mesh how many elements were read for each that this process needs."""
    world, reads, ratios = discover_world(), Reads(), {}
    for mesh in meshes():
        checkpoint = load_checkpoint(folder / "checkpoint", Arrays(), share=(world.rank, world.size))
        saved, wanted = checkpoint.tree["state"], make_tree(mesh)
        live = zeros_like(wanted, mesh)
        check_tree("state", live, saved)
        assert reads.count == 0
        given = give_tree(live, saved)
        assert given["count"] == 3
        arrays = {name: (given[name], bits_of(name)) for name in SPECS}
        keys = np.asarray(jax.random.key_data(jax.vmap(jax.random.key)(np.arange(12))))
        arrays["keys"] = jax.random.key_data(given["keys"]), keys
        needed = 0
        for name, (array, bits) in arrays.items():
            assert given[name].sharding == live[name].sharding, name
            boxes = {str(shard.index): shard for shard in array.addressable_shards}
            for shard in boxes.values():
                assert np.asarray(shard.data).tobytes() == bits[shard.index].tobytes(), name
            # What every device had when it was saved is no array in parts, and read as a whole.
            needed += 0 if name == "everywhere" else sum(shard.data.size for shard in boxes.values())
        ratios["x".join(map(str, mesh.devices.shape))] = reads.count / needed
        reads.count = 0
    return ratios


class Spread(Classifier):
    """Its first layer is spread over all devices where that can be, and so are the moments of that."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        mesh, value = self.placement.mesh, np.asarray(self.params["one"])
        self.params["one"] = put(value, mesh, P(("data", "model")) if len(value) % mesh.size == 0 else P())


def make_run(*shape: int) -> Any:
    """Return a model over the first devices, a trainer and data for it."""
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    trainer = make_trainer(mesh=Mesh(devices, ("data", "model")), total_steps=3, train_unit="iteration")
    return Spread("mlp"), trainer, Data(12 // jax.process_count())


def train(folder: Path) -> Any:
    model, trainer, data = make_run(2, 2)
    assert trainer.fit(model, data), trainer.error
    tree = {"model": model.state_dict(), "portable": model.portable_state()}
    assert tree["portable"]["weights"]["one"] is tree["model"]["params"]["one"]
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(model.placement.mesh, P()))(model.params["one"])
    if discover_world().rank == 0:
        np.save(folder / "one.npy", np.asarray(whole))
    return write(folder, "trained", tree)


def go_on(folder: Path) -> Any:
    """Go on over three devices in a process alone, else over four in a row."""
    model, trainer, data = make_run(3 if jax.process_count() == 1 else 4, 1)
    steps = trainer.steps(model, data)
    next(steps)
    model.load_state_dict(load_checkpoint(folder / "trained", Arrays()).tree["model"])
    one = np.load(folder / "one.npy")
    for shard in model.params["one"].addressable_shards:
        assert np.asarray(shard.data).tobytes() == one[shard.index].tobytes()
    return len([*steps])


TASKS = {"save": save, "train": train, "open": open_all, "go_on": go_on}


def main(address: str, processes: str, rank: str, folder: str, *tasks: str) -> None:
    if int(processes) > 1:
        backend.connect(address, int(processes), int(rank), timeout=60)
    print(json.dumps({task: TASKS[task](Path(folder)) for task in tasks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
