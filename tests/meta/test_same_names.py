"""The two backends have the same files, the same public names and the same arguments, but for what is listed here.

A reader who knows one of them knows the other. Every difference has its reason; one that is gone has to be struck out.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

torch_backend = pytest.importorskip("parhelion_torch")
jax_backend = pytest.importorskip("parhelion_jax")

FILES = {
    "torch": {
        "attributes": "modules keep numbers and buffers that no state_dict has; a pytree has nothing but its leaves",
        "devices": "a process trains on one GPU, and is told by its launcher which",
        "distribution": "wrappers average gradients; on jax the compiled step does, over global arrays",
        "own_processes": "a trainer starts a process for each GPU; one process of jax has several devices",
        "sharded": "tensors over processes are told by their placements; jax's arrays know their shards themselves",
        "export": "torch has a file format of its own for weights; safetensors, which both know, is the core's",
        "sources": "tensors that NumPy has no arrays for; jax's arrays are the stateless loaders'",
        "stacking": "batches are made as tensors; on jax they are the core's, in NumPy, until they are placed",
        "torch_workers": "torch's own workers, where somebody wants them; jax has no loader of its own",
    },
    "jax": {
        "convolutions": "XLA's CPU has a fast kernel for one layout only; torch chooses by itself",
        "leaves": "torch's modules name their weights themselves",
        "mesh": "one process trains on several devices",
        "minibatches": "stateless loaders, as JAX's users know them",
        "narrowing": "jax has no 64-bit types unless asked, and may share a host array's memory",
        "order": "the order of the stateless loaders",
        "parting": "jax waits for minutes at an end, or aborts the others",
        "prefetch": "maps over iterables of batches, as JAX's users know them",
        "records": "jax must be told which records are pytrees",
        "rows": "gathers the rows of the loader in memory",
        "update": "the compiled step of LossModel, a pure function; on torch it is a method",
    },
}

PUBLIC = {
    "torch": {
        "CUDAPlugin": "its sibling is DevicePlugin, for a device of any kind",
        "export_state_dict": "writes torch's own file format",
        "on_metric": "torch's ReduceLROnPlateau is stepped from outside; optax has it inside the optimizer",
    },
    "jax": {
        "DataLoaderProtocol": "what the stateless loaders are",
        "DevicePlugin": "its sibling is CUDAPlugin",
        "InMemoryDataLoader": "the stateless loader of arrays",
        "MapDatasetProtocol": "what the stateless loaders take",
        "SizedIterable": "what the stateless loaders return",
        "connect": "jax has to be told of its processes before anything else uses it",
        "cycled_minibatches": "belongs to the stateless loaders",
        "disconnect": "ends what connect began",
        "mesh_map": "sharding_map for batches that keep their shape, over a mesh",
        "prefetching_map": "belongs to the stateless loaders",
        "sharding_map": "belongs to the stateless loaders",
    },
}

MEMBERS = {
    "torch": {
        "Model.distribute": "a module has to be wrapped for several processes",
        "Model.gradient_sync": "the wrapper is told when a group of batches is complete; on jax a compiled step is",
        "Model.let_go": "modules over processes hold on to a group that has to end before Python does",
        "Model.shared_buffers": "each process has buffers of its own between two steps; on jax they are global",
        "LossModel.distribute": "likewise",
        "LossModel.gradient_sync": "likewise",
        "LossModel.let_go": "likewise",
        "LossModel.shared_buffers": "likewise",
        "Model.modules": "modules are what torch's models consist of",
        "LossModel.modules": "likewise",
        "Scheduled.done": "torch's schedulers count by themselves; on jax a schedule is a function of the update",
        "Scheduled.metric": "belongs to on_metric",
        "Scheduled.observe": "belongs to on_metric",
        "Scheduled.check_state_dict": "torch's schedulers have state",
        "Scheduled.load_state_dict": "likewise",
        "Scheduled.state_dict": "likewise",
    },
    "jax": {
        "Model.key": "jax has no global generator",
        "Model.own_names": "says which attributes are no pytrees to be saved",
        "Model.placement": "a model may place arrays on the mesh",
        "Model.trees": "pytrees are what jax's models consist of",
        "LossModel.key": "likewise",
        "LossModel.own_names": "likewise",
        "LossModel.placement": "likewise",
        "LossModel.trees": "likewise",
        "LossModel.params": "what torch's module holds; a property, for its buffers are donated",
        "LossModel.variables": "batch statistics and the like, which torch's modules hold",
    },
}

ARGUMENTS = {
    "torch": {"Trainer.num_processes": "several processes on the CPU; one of jax has as many devices as it is told"},
    "jax": {
        "Trainer.mesh": "the user's own sharding",
        "Trainer.steps_per_execution": "several steps in one compiled call",
        "create_dataloader.num_shards": "the devices that a batch will be split over",
    },
}

BACKENDS = {"torch": torch_backend, "jax": jax_backend}
CLASSES = ("Model", "LossModel", "Trainer", "Scheduled")
CALLS = ("Model", "LossModel", "Trainer", "create_dataloader", "create_sampler", "per_epoch", "per_update")


def files(backend: ModuleType) -> set[str]:
    return {info.name for info in pkgutil.iter_modules(backend.__path__)}


def public(backend: ModuleType) -> set[str]:
    return {name for name, value in vars(backend).items() if name[0] != "_" and not isinstance(value, ModuleType)}


def members(backend: ModuleType) -> set[str]:
    return {f"{kind}.{name}" for kind in CLASSES for name in dir(getattr(backend, kind)) if name[0] != "_"}


def arguments(backend: ModuleType) -> set[str]:
    return {f"{call}.{name}" for call in CALLS for name in inspect.signature(getattr(backend, call)).parameters}


@pytest.mark.parametrize(
    ("look", "allowed"),
    [(files, FILES), (public, PUBLIC), (members, MEMBERS), (arguments, ARGUMENTS)],
    ids=["files", "public names", "members", "arguments"],
)
def test_the_backends_differ_in_what_is_listed_and_in_nothing_else(look, allowed) -> None:
    found = {name: look(backend) for name, backend in BACKENDS.items()}
    for name, other in (("torch", "jax"), ("jax", "torch")):
        only = found[name] - found[other]
        assert sorted(only - set(allowed[name])) == [], f"only in {name}, and not listed with a reason"
        assert sorted(set(allowed[name]) - only) == [], f"listed for {name}, and no difference any more"


@pytest.mark.parametrize("call", CALLS)
def test_shared_arguments_have_one_order_and_one_default(call) -> None:
    one, other = (inspect.signature(getattr(backend, call)).parameters for backend in BACKENDS.values())
    shared = [name for name in one if name in other]
    assert shared == [name for name in other if name in one]
    for name in shared:
        assert (one[name].default, one[name].kind) == (other[name].default, other[name].kind), name


def test_a_difference_without_a_reason_is_found(monkeypatch) -> None:
    """The test above can fail, on both of its ways."""
    monkeypatch.setattr(jax_backend, "brand_new", int, raising=False)
    with pytest.raises(AssertionError, match="only in jax, and not listed"):
        test_the_backends_differ_in_what_is_listed_and_in_nothing_else(public, PUBLIC)
    monkeypatch.undo()
    allowed = {**FILES, "torch": {**FILES["torch"], "trainer": "there on both"}}
    with pytest.raises(AssertionError, match="listed for torch, and no difference any more"):
        test_the_backends_differ_in_what_is_listed_and_in_nothing_else(files, allowed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_file_has_a_public_table_of_its_own(backend) -> None:
    for name in files(BACKENDS[backend]):
        module = importlib.import_module(f"parhelion_{backend}.{name}")
        assert [each for each in module.__all__ if not hasattr(module, each)] == []
        assert module.__doc__
