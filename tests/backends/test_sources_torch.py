"""Sources of batches under torch: its TensorDataset, and tensors of what the core gathers and mixes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sources = pytest.importorskip("parhelion_torch.sources")

from torch.utils.data import Subset, TensorDataset  # noqa: E402

from parhelion.data import (  # noqa: E402
    ArrayDataset,
    Collate,
    ConcatDataset,
    CutMix,
    HuggingFaceDataset,
    Loader,
    MixUp,
    as_batched,
    transformed,
)
from parhelion.sampling import ResumableRandomSampler  # noqa: E402
from parhelion.seeds import sample_rng  # noqa: E402
from parhelion.testing import check_loader_resumes  # noqa: E402
from parhelion_torch import create_dataloader  # noqa: E402
from parhelion_torch.stacking import to_tensors  # noqa: E402

SIZE = 23


def tensors(*, dtype=torch.float32):
    x = torch.arange(SIZE * 6).reshape(SIZE, 3, 2).to(dtype)
    return TensorDataset(x, torch.arange(SIZE))


def test_tensors_that_numpy_can_share_are_gathered_by_the_core_without_a_copy_of_them():
    dataset = tensors()
    for recognize in (as_batched, sources.as_batched):
        found = recognize(dataset)
        assert type(found) is ArrayDataset
        assert np.shares_memory(found.arrays[0], dataset.tensors[0].numpy())
        batch = to_tensors(found.__getitems__(np.array([4, 0])))
        assert all(map(torch.equal, batch, dataset[[4, 0]]))


@pytest.mark.parametrize(
    "dataset",
    [tensors(dtype=torch.bfloat16), TensorDataset(torch.zeros(SIZE, 2, requires_grad=True), torch.arange(SIZE))],
    ids=["bfloat16", "with a gradient"],
)
def test_other_tensors_are_selected_by_torch_and_left_alone_by_the_core(dataset):
    assert as_batched(dataset) is dataset
    found = sources.as_batched(dataset)
    assert type(found) is sources.TensorRows
    assert len(found) == SIZE
    for indices in ([4, 0, 4], np.array([3, 22])):
        assert all(map(torch.equal, found.__getitems__(indices), dataset[list(indices)]))
    record = found[5]
    assert all(map(torch.equal, record, dataset[5]))
    assert record[0].data_ptr() != dataset[5][0].data_ptr()


def test_a_dataset_derived_from_torch_s_does_as_it_says():
    class Negated(TensorDataset):
        def __getitem__(self, index):
            return tuple(-tensor for tensor in super().__getitem__(index))

    dataset = Negated(torch.arange(3))
    assert as_batched(dataset) is dataset
    assert sources.as_batched(dataset) is dataset


def test_a_loader_of_tensors_resumes_and_gives_what_single_records_give():
    def make(dataset):
        return lambda: create_dataloader(dataset, batch_size=4, shuffle=True)

    check_loader_resumes(make(sources.as_batched(tensors())), max_examples=3)
    check_loader_resumes(make(sources.as_batched(tensors(dtype=torch.bfloat16))), max_examples=3)
    for dataset in (tensors(), tensors(dtype=torch.bfloat16)):
        plain, ours = (make(each)()[0] for each in (dataset, sources.as_batched(dataset)))
        for expected, found in zip(plain, ours, strict=True):
            assert all(map(torch.equal, expected, found))


def test_batches_of_tensors_can_be_joined():
    one, other = (sources.TensorRows(*tensors(dtype=torch.bfloat16).tensors) for _ in range(2))
    joined = ConcatDataset([one, other])
    rows = [40, 3, 22, 25, 3]
    expected = torch.cat([one.tensors[0], other.tensors[0]])[rows]
    assert torch.equal(joined.__getitems__(np.array(rows))[0], expected)


def test_records_of_a_torch_subset_draw_their_own_numbers():
    class Draws:
        def __len__(self):
            return SIZE

        def __getitem__(self, index):
            return sample_rng().random()

    def draw(dataset):
        sampler = ResumableRandomSampler(dataset, seed=1, batch_size=4)
        return [batch.tolist() for batch in Loader(dataset, sampler)]

    expected = draw(transformed(Draws(), float))
    assert draw(transformed(Subset(Draws(), range(SIZE)), float)) == expected
    assert draw(ConcatDataset([Subset(Draws(), range(9)), Subset(Draws(), range(9, SIZE))])) == expected


MIXING = Collate(then=[MixUp(num_classes=3), CutMix()])


class Images:
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        image = np.full((1, 4, 4), index, np.float32) + sample_rng().random(dtype=np.float32)
        return {"image": image, "label": index % 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_batches_are_the_same_bits_on_both_backends(workers):
    jax_backend = pytest.importorskip("parhelion_jax")
    options = {"random_seed": 4, "batch_size": 5, "shuffle": True}
    host = [*jax_backend.create_dataloader(Images(), collate_fn=MIXING, **options)[0]]
    ours, _ = create_dataloader(
        Images(), collate_fn=MIXING.followed_by(to_tensors), num_workers=workers, pin_memory=False, **options
    )
    device = [*ours]
    assert len(device) == len(host) == 5
    for one, other in zip(device, host, strict=True):
        assert {name: (part.dtype, part.shape) for name, part in one.items()} == {
            name: (getattr(torch, str(part.dtype)), part.shape) for name, part in other.items()
        }
        assert [part.numpy().tobytes() for part in one.values()] == [part.tobytes() for part in other.values()]


def test_tensors_share_the_memory_of_what_was_mixed():
    kept = []
    finish = Collate(then=[kept.append, lambda _: kept[0]]).followed_by(to_tensors)
    batch = finish([{"x": np.ones(3)}])
    assert batch["x"].data_ptr() == kept[0]["x"].ctypes.data


def test_hugging_face_s_torch_format_gives_tensors():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"x": [[1.0, 2.0]] * 5, "name": list("abcde")}).with_format("torch")
    found = HuggingFaceDataset(data)
    assert found.returns_batches
    batch = found.__getitems__(np.array([3, 1]))
    assert torch.equal(batch["x"], torch.tensor([[1.0, 2.0]] * 2))
    assert batch["name"] == ["d", "b"]
