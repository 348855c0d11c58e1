"""Where images lie changes no result; those that do not fit into memory are read ahead, in order, and let go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from regraft.learn.batches import Batches, ImageBatches, forward_in_chunks, read_ahead
from regraft.learn.fit import fit
from regraft.learn.rows import Kept, Mapped, Part, free_bytes, rooms_of_groups, rows_of
from regraft.seeding import stream, torch_stream
from regraft.spec import Augment, Preprocessing, Recipe
from regraft.spec.recipe import Augmentation

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(image_size=12, mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.25))
NOTHING, PLENTY = 0, 2**40  # bytes that images may take


def mapped_file(path: Path, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    np.save(path, images)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


@pytest.fixture(params=[3, 1], ids=["colour", "grey"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> list[Part]:
    """150 images of two splits, in no order."""
    rng = stream(0, "images")
    shape = (12, 12, request.param)
    first = mapped_file(tmp_path / "first.npy", rng.integers(0, 256, (200, *shape), np.uint8))
    second = mapped_file(tmp_path / "second.npy", rng.integers(0, 256, (60, *shape), np.uint8))
    return [(first, rng.permutation(200)[:110]), (second, rng.permutation(60)[:40])]


def batches_of(parts: Sequence[Part], memory_bytes: int, how: Augmentation = "crop-flip") -> ImageBatches:
    labels = np.arange(sum(len(positions) for _, positions in parts)) % 3
    return ImageBatches.of_parts(
        parts, labels, PREPROCESSING, augmentation=Augment(how), device=CPU, memory_bytes=memory_bytes
    )


def epoch(batches: Batches, order: Tensor, announced: bool) -> list[Tensor]:
    """The inputs of seven steps, augmented."""
    steps = order.tensor_split(7)
    if announced:
        read_ahead(batches, steps)
    generator = torch_stream(0, "augment")
    return [batches.take(positions, generator) for positions in steps]


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Bit for bit and in the same order in memory, which decides how a convolution adds up."""
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("announced", [True, False])
def test_mapped_images_are_those_in_memory_bit_for_bit(parts: list[Part], announced: bool) -> None:
    kept, mapped = batches_of(parts, PLENTY), batches_of(parts, NOTHING)
    assert (type(kept.rows), type(mapped.rows)) == (Kept, Mapped)
    copied = np.concatenate([images[positions] for images, positions in parts])
    old = ImageBatches(copied, kept.labels.numpy(), PREPROCESSING, augmentation=kept.augmentation, device=CPU)
    for number in range(2):  # epochs
        order = torch.from_numpy(stream(0, "order", number).permutation(150))
        expected = epoch(old, order, announced)
        assert same(epoch(kept, order, announced), expected)
        assert same(epoch(mapped, order, announced), expected)


def test_evaluation_meets_every_image_once_in_order(parts: list[Part]) -> None:
    kept, mapped = batches_of(parts, PLENTY), batches_of(parts, NOTHING)

    def inputs(batches: ImageBatches) -> list[Tensor]:
        return list(forward_in_chunks(150, 40, CPU, lambda positions: batches.take(positions, None)))

    assert [len(chunk) for chunk in inputs(mapped)] == [40, 40, 40, 30]
    assert same(inputs(mapped), inputs(kept))


def test_the_next_batch_is_being_read_while_one_is_used(parts: list[Part]) -> None:
    rows = rows_of(parts, CPU, NOTHING)
    assert isinstance(rows, Mapped)
    steps = torch.from_numpy(stream(0, "order").permutation(150)).tensor_split(5)
    rows.expect(steps)
    for step, following in zip(steps, (*steps[1:], None), strict=True):
        rows.take(step)
        assert (rows.ahead is None) == (following is None)
        if rows.ahead is not None and following is not None:
            assert rows.ahead.places.tolist() == following.tolist()


def test_what_was_announced_and_not_taken_does_no_harm(parts: list[Part]) -> None:
    """An epoch may be broken off, and another order may be asked for than the one announced."""
    kept, mapped = batches_of(parts, PLENTY), batches_of(parts, NOTHING)
    steps = torch.arange(149, -1, -1).tensor_split(6)
    read_ahead(mapped, steps)
    asked = [steps[0], steps[3], torch.tensor([7]), steps[1], torch.tensor([], dtype=torch.int64), steps[5]]
    assert same([mapped.take(p, None) for p in asked], [kept.take(p, None) for p in asked])
    read_ahead(mapped, [])
    assert same([mapped.take(p, None) for p in steps], [kept.take(p, None) for p in steps])


def test_images_changed_in_two_ways_are_read_once(parts: list[Part]) -> None:
    """As FixMatch asks for them: a little, then a lot."""
    weak = batches_of(parts, NOTHING, "flip")
    strong = weak.changed(Augment("crop-flip"))
    assert strong.rows is weak.rows
    steps = torch.from_numpy(stream(1, "order").permutation(150)).tensor_split(4)
    read_ahead(weak, steps)
    plain = batches_of(parts, PLENTY, "flip")
    for positions in steps:
        assert weak.rows.take(positions) is strong.rows.take(positions)
        ours = [b.take(positions, torch_stream(2, "augment")) for b in (weak, strong)]
        theirs = [b.take(positions, torch_stream(2, "augment")) for b in (plain, plain.changed(Augment("crop-flip")))]
        assert same(ours, theirs)


def test_a_network_trained_on_mapped_images_is_the_same_network(parts: list[Part]) -> None:
    recipe = Recipe(epochs=2, batch_size=40, lr=0.05, augment="crop-flip")
    if parts[0][0].shape[3] == 1:
        pytest.skip("one kind of images suffices")

    def trained(memory_bytes: int) -> dict[str, Tensor]:
        weights = [torch.randn(shape, generator=torch_stream(0, "w")) for shape in ((8, 3, 3, 3), (3, 8))]
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )
        for layer, weight in zip((model[0], model[4]), weights, strict=True):
            layer.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight))})
        train, held = batches_of(parts[:1], memory_bytes), batches_of(parts[1:], memory_bytes)
        return fit(model, train, held, recipe, seed=0, device=CPU).state

    ours, theirs = trained(NOTHING), trained(PLENTY)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize("announced", [True, False])
def test_memory_is_bounded_however_large_the_file_is(tmp_path: Path, announced: bool) -> None:
    shape = (1000, 300, 300, 3)  # 270 MB, holes in the file but for a few bytes
    made: np.memmap[Any, Any] = open_memmap(tmp_path / "large.npy", mode="w+", dtype=np.uint8, shape=shape)
    made[::100, 0, 0, 0] = np.arange(10)
    made.flush()
    del made
    images: NDArray[np.uint8] = np.load(tmp_path / "large.npy", mmap_mode="r")
    rows = rows_of([(images, np.arange(1000))], CPU, memory_bytes=100 * 2**20)
    steps = torch.from_numpy(stream(0, "order").permutation(1000)).tensor_split(50)
    if announced:
        rows.expect(steps)
    before, grown, seen = resident_bytes(), 0, 0
    for positions in steps:
        seen += int(rows.take(positions)[:, 0, 0, 0].sum())
        grown = max(grown, resident_bytes() - before)
    assert seen == sum(range(10))
    assert grown < 50 * 2**20  # three batches of 5.4 MB and the pages under way


def test_images_are_copied_when_they_fit_into_a_share_of_the_free_memory(parts: list[Part]) -> None:
    needed = 150 * parts[0][0][0].nbytes
    assert isinstance(rows_of(parts, CPU, needed), Kept)
    assert isinstance(rows_of(parts, CPU, needed - 1), Mapped)
    assert isinstance(rows_of(parts, CPU), Kept)
    assert 2**20 < free_bytes(CPU) < 2**50


def group(folder: Path, limit: str, used: int, cache: int) -> None:
    """A control group as Linux shows it. Of what is used, `cache` are files that can be read again."""
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cache}\ninactive_file {cache}\nactive_file 0\n")


def test_memory_is_what_every_group_around_this_process_leaves(tmp_path: Path) -> None:
    """A job of 1,000 bytes in a container of 5,000, beside one of no limit."""
    tree, own = tmp_path / "tree", tmp_path / "own"
    tree.mkdir()
    group(tree / "container", "5000", used=4600, cache=100)
    group(tree / "container" / "job", "1000", used=300, cache=250)
    group(tree / "free", "max", used=10**9, cache=0)
    group(tree / "full", "1000", used=1200, cache=0)
    for line, expected in (
        ("0::/container/job", [950, 500]), ("0::/container", [500]), ("0::/free", []), ("0::/full", [0]), ("0::/", []),
        ("4:memory:/container/job", []),  # of version 1 alone: its root is asked, which has no limit
    ):  # fmt: skip
        own.write_text(f"9:cpu:/elsewhere\n{line}\n")
        assert rooms_of_groups(own, tree) == expected, line
    group(tree, "400", used=100, cache=0)  # a container sees its own group as the root
    assert rooms_of_groups(own, tree) == [300]
    assert rooms_of_groups(tmp_path / "none", tree / "none") == [300]  # the groups above a folder hold for it
    assert rooms_of_groups(tmp_path / "none", tmp_path / "none") == []


@pytest.mark.gpu
def test_a_gpu_gets_the_same_images_wherever_they_lie(parts: list[Part]) -> None:
    gpu = torch.device("cuda")
    in_memory = rows_of(parts, CPU, PLENTY)
    assert isinstance(in_memory, Kept)
    steps = torch.from_numpy(stream(0, "order").permutation(150)).to(gpu).tensor_split(7)
    for rows in (rows_of(parts, gpu, PLENTY), Kept(in_memory.images, gpu), rows_of(parts, gpu, NOTHING)):
        rows.expect(steps)
        taken = [rows.take(positions) for positions in steps]
        assert all(images.device.type == "cuda" for images in taken)
        assert same([images.cpu() for images in taken], [in_memory.take(positions.cpu()) for positions in steps])
