"""The choice of a back end: what is refused, what is left out, and what that says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.errors import Diverged, StudyError, UnknownName
from regraft.learn import backend_table, backends
from regraft.learn.backends import BACKENDS, CLEARLY, check_backend, choose_backend, deviation
from regraft.learn.batches import ImageBatches
from regraft.learn.features import extract
from regraft.networks import Trunk, body_for_cuts, build
from regraft.networks.fold import FusedConv, fold
from regraft.spec import Preprocessing

PREPROCESSING = Preprocessing(
    image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear", channels="rgb"
)


@pytest.fixture
def trunk() -> Trunk:
    network = build("timm/test_resnet", seed=0, image_size=32)
    return Trunk(body_for_cuts(network, ["layer2.0", "penultimate"], pooled=True), frozen=True)


@pytest.fixture
def sample() -> Tensor:
    drawn = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return drawn.contiguous(memory_format=torch.channels_last)


def folded_with_a_weight_moved(trunk: Trunk, sample: Tensor) -> backend_table.Run:
    module = fold(trunk.body)
    conv = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    conv.weight = nn.Parameter(conv.weight * 1.02)
    return module


def test_little_work_is_done_fused_and_untimed(trunk: Trunk, sample: Tensor) -> None:
    backend = choose_backend(trunk, sample, 100)
    assert backend.name == "fused"
    assert backend.record["images_per_second"] == {}


def test_much_work_goes_to_the_fastest_and_the_record_says_why(
    trunk: Trunk, sample: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "LITTLE_WORK_SECONDS", 0.0)  # so that a count for which no compiler pays is much
    backend = choose_backend(trunk, sample, 20_000)
    record = json.loads(json.dumps(backend.record))
    speeds = record["images_per_second"]
    assert {"eager", "fused"} <= set(speeds)
    assert backend.name == record["backend"]
    assert speeds[backend.name] * backends.CLEARLY >= max(speeds.values())
    assert set(speeds) | set(record["left_out"]) == set(BACKENDS) - {"auto"}
    assert "do not pay" in record["left_out"]["inductor"] or "compiler" in record["left_out"]["inductor"]


def test_a_back_end_that_deviates_is_refused(trunk: Trunk, sample: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backend_table.PREPARE, "fused", folded_with_a_weight_moved)
    for prefer in ("auto", "fused"):
        backend = choose_backend(trunk, sample, 100, prefer=prefer)
        assert backend.name == "eager"
        assert "refused: deviates from eager by" in backend.record["left_out"]["fused"]
        assert backend.record["deviation"]["fused"] > backend.record["tolerance"]
        assert torch.equal(backend(sample)["penultimate"], trunk(sample)["penultimate"])


def test_a_back_end_that_fails_is_left_out(trunk: Trunk, sample: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(trunk: Trunk, sample: Tensor) -> backend_table.Run:
        raise NotImplementedError("no such operator")

    monkeypatch.setitem(backend_table.PREPARE, "fused", fails)
    backend = choose_backend(trunk, sample, 100)
    assert backend.name == "eager"
    assert backend.record["left_out"]["fused"] == "failed: NotImplementedError: no such operator"


def test_not_a_number_is_a_deviation() -> None:
    exact = torch.tensor([[1.0, 2.0]])
    assert deviation({"a": exact}, {"a": exact}) == 0
    broken = deviation({"a": torch.tensor([[1.0, float("nan")]])}, {"a": exact})
    assert not broken <= backends.TOLERANCE


def test_the_deviation_is_in_standard_deviations_of_each_cut() -> None:
    exact = {"wide": torch.tensor([[0.0, 200.0]]), "narrow": torch.tensor([[0.0, 2.0]])}  # std 100 and 1
    moved = {"wide": exact["wide"] + 10, "narrow": exact["narrow"] + 0.5}
    assert deviation(moved, exact) == pytest.approx(0.5)


def test_an_unknown_back_end_is_named_with_the_nearest(trunk: Trunk, sample: Tensor) -> None:
    with pytest.raises(UnknownName, match="no back end 'onnx'; did you mean 'onnxruntime'"):
        choose_backend(trunk, sample, 100, prefer="onnx")


@pytest.mark.parametrize(
    ("name", "finder", "advice"),
    [
        ("onnxruntime", "importlib.util.find_spec", r"pip install 'regraft\[onnx\]'"),
        ("inductor", "shutil.which", r"install g\+\+"),
    ],
)
def test_an_absent_back_end_explains_itself(
    trunk: Trunk, sample: Tensor, monkeypatch: pytest.MonkeyPatch, name: str, finder: str, advice: str
) -> None:
    nothing: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(finder, nothing)
    with pytest.raises(StudyError, match=advice):
        choose_backend(trunk, sample, 100, prefer=name)
    monkeypatch.setattr(backends, "LITTLE_WORK_SECONDS", 0.0)
    assert re.search(advice, choose_backend(trunk, sample, 20_000).record["left_out"][name])


def test_a_back_end_for_cpus_says_so_of_a_trunk_on_a_gpu() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    check_backend("onnxruntime", torch.device("cpu"))
    with pytest.raises(StudyError, match="runs on the CPU only, and the trunk is on cuda; choose auto, fused"):
        check_backend("onnxruntime", torch.device("cuda"))


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """inductor would be tried for all the work of these tests, and compile for minutes."""
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("_no_compiler")
def test_what_can_save_more_than_its_set_up_takes_is_prepared_and_raced(trunk: Trunk, sample: Tensor) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    backend = choose_backend(trunk, sample, 10**6)  # minutes of work; 1 % of it goes into the race
    record = backend.record
    assert record["left_out"].keys() == {"inductor"}
    assert "needs a C++ compiler" in record["left_out"]["inductor"]
    assert record["images_per_second"].keys() == {"eager", "fused", "onnxruntime"}
    assert record["deviation"]["onnxruntime"] <= record["tolerance"]
    assert record["versions"].keys() == {"torch", "onnxruntime"}
    assert record["images_per_second"][backend.name] * CLEARLY >= max(record["images_per_second"].values())
    assert deviation(backend(sample), trunk(sample)) < 1e-5


@pytest.mark.usefixtures("_no_compiler")
def test_broken_weights_leave_plain_pytorch_with_nothing_to_race_against(trunk: Trunk) -> None:
    """No back end may claim to agree with NaN. Images so large that one batch size is left."""
    next(trunk.parameters()).data[0] = float("nan")
    backend = choose_backend(trunk, torch.zeros(8, 3, 128, 128), 10**6, flops=1e9)
    assert backend.name == "eager"
    assert backend.record["left_out"]["fused"].startswith("refused: deviates from eager by nan")
    assert backend.record["images_per_second"].keys() == {"eager"}
    assert backend.batch_size == 16


def test_without_the_private_operators_the_folded_trunk_runs(
    trunk: Trunk, sample: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: FusedConv, *arguments: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise'")

    monkeypatch.setattr(FusedConv, "forward", gone)
    backend = choose_backend(trunk, sample, 100)
    assert backend.name == "fused"
    assert deviation(backend(sample), trunk(sample)) < 1e-5


def pictures(count: int) -> ImageBatches:
    drawn = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return ImageBatches(drawn, np.zeros(count, np.int64), PREPROCESSING, device=torch.device("cpu"))


def test_extraction_runs_over_all_images_whatever_the_batch(trunk: Trunk) -> None:
    batches = pictures(50)
    seen: list[float] = []
    whole = extract(trunk, batches)
    backend = choose_backend(trunk, batches.take(torch.arange(8), None), 50)
    for size in (None, 7):
        features = extract(trunk, batches, backend=backend, batch_size=size, advance=seen.append)
        assert seen[-1] == 1.0
        assert features["layer2.0"].shape == whole["layer2.0"].shape
        assert deviation(features, whole) < 1e-5


def test_broken_weights_are_named(trunk: Trunk) -> None:
    next(trunk.parameters()).data[0] = float("nan")
    backend = choose_backend(trunk, pictures(8).take(torch.arange(8), None), 8)
    for runs in (None, backend):
        with pytest.raises(Diverged, match="NaN or infinity"):
            extract(trunk, pictures(8), backend=runs)
