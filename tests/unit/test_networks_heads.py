"""Trunks, heads, and a trained network as the source of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regraft.errors import StudyError, UnknownCut, WeightsMismatch
from regraft.networks import (
    Grafted,
    NetworkSpec,
    Trunk,
    build,
    check_within,
    cut,
    graft,
    load_body,
    make_head,
    pool,
    resolve_cut,
    state_hash,
    trunk_state,
)  # fmt: skip
from regraft.networks.pooling import POOLINGS
from regraft.spec import Head

SPEC = NetworkSpec("resnet18", "cifar", 32)
LINEAR, MLP, REST = (
    Head.model_validate(fields) for fields in ({}, {"kind": "mlp", "hidden": 8, "dropout": 0.5}, {"kind": "rest"})
)


def grafted(at: str | None, head: Head = LINEAR, **changes: Any) -> Grafted:
    options: dict[str, Any] = {"frozen": True, "seed": 0, "image_size": 32} | changes
    weights = options.pop("weights", None)
    return graft("resnet18", "cifar", weights, at, head, 3, **options)


def images(n: int = 2) -> Tensor:  # (n, 3, 32, 32)
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# --- the frozen trunk --------------------------------


def test_a_frozen_trunk_stays_frozen_whatever_is_called() -> None:
    trunk = Trunk(cut(build("resnet18", seed=0), "layer1.0")[0], frozen=True)
    model = nn.Sequential(trunk, nn.Flatten())
    for call in (model.train, model.eval, lambda: model.train(True), lambda: trunk.train(True)):
        call()
        assert not any(module.training for module in trunk.modules())
    before = trunk.state_hash()
    assert not trunk(images().requires_grad_()).requires_grad
    assert trunk.state_hash() == before
    with pytest.raises(RuntimeError, match="frozen trunk cannot be made trainable"):
        trunk.requires_grad_(True)
    with pytest.raises(RuntimeError, match="frozen trunk cannot be made trainable"):
        trunk.requires_grad_()
    trunk.requires_grad_(False)


def test_a_head_trains_on_the_output_of_a_frozen_trunk() -> None:
    model = grafted("layer1.0")
    model(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert all(parameter.grad is None for parameter in model.trunk.parameters())


@pytest.mark.parametrize("name", ["bn1.running_mean", "bn1.num_batches_tracked", "conv1.weight"])
def test_the_hash_sees_every_parameter_and_buffer(name: str) -> None:
    trunk = Trunk(cut(build("resnet18", seed=0), "layer1.0")[0], frozen=True)
    before = trunk.state_hash()
    trunk.body.state_dict()[name].view(-1)[:1].add_(1)
    assert trunk.state_hash() != before


def test_the_hash_is_of_name_type_shape_and_bytes() -> None:
    x = torch.arange(4.0)
    hashes = [
        state_hash(state)
        for state in (
            {"a": x},
            {"b": x},
            {"a": x.double()},
            {"a": x.view(2, 2)},
            {"a": x + 1},
            {"a": x.bfloat16()},
        )
    ]
    assert len(set(hashes)) == len(hashes)
    assert state_hash({"a": x, "b": x + 1}) == state_hash({"b": x + 1, "a": x})
    assert state_hash({"a": torch.stack([x, x])[:, ::2]}) == state_hash({"a": torch.tensor([[0.0, 2.0]] * 2)})


# --- heads --------------------------------


@pytest.mark.parametrize("kind", ["linear", "mlp", "rest"])
def test_a_head_depends_on_its_seed_alone_and_leaves_the_global_generator_alone(kind: str) -> None:
    head, point = Head.model_validate({"kind": kind}), resolve_cut("resnet18", "layer4.0", 32, stem="cifar")
    before = torch.random.get_rng_state()
    first, again, other = (make_head(head, point, 3, spec=SPEC, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert state_hash(first.state_dict()) == state_hash(again.state_dict())
    assert state_hash(first.state_dict()) != state_hash(other.state_dict())


def test_every_head_but_the_rest_of_the_network_sees_pooled_features_alone() -> None:
    kinds = ("linear", "mlp", "rest", "prototype", "knn", "head2toe")
    on_pooled = {kind: Head.model_validate({"kind": kind}).pools for kind in kinds}
    assert [kind for kind, alone in on_pooled.items() if not alone] == ["rest"]


def test_a_head_takes_pooled_features_too() -> None:
    point, maps = resolve_cut("resnet18", "layer1.0", 32, stem="cifar"), torch.rand(2, 64, 8, 8)
    for kind in POOLINGS:
        for head in (Head(pool=kind), Head(kind="mlp", pool=kind)):
            made = make_head(head, point, 3, spec=SPEC, seed=0)
            assert torch.equal(made(maps), made(pool(maps, "chw", kind)))


def test_a_head_whose_pooling_the_map_does_not_have_is_refused() -> None:
    with pytest.raises(StudyError, match=r"grid-2 needs a map.*Possible here: average, average-max\. Choose"):
        make_head(Head(pool="grid-2"), resolve_cut("resnet18", "layer4.0", 32), 3, spec=SPEC, seed=0)  # 1 x 1


def test_rest_and_trunk_together_have_exactly_the_networks_tensors() -> None:
    model = grafted("layer2.0", REST)
    plain = build("resnet18", classes=3, stem="cifar", seed=0)
    assert trunk_state(model).keys() == plain.state_dict().keys()
    plain.load_state_dict(trunk_state(model))
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), plain.eval()(images()))


def test_the_rest_is_re_initialised() -> None:
    source = build("resnet18", classes=3, stem="cifar", seed=0).state_dict()
    model = grafted("layer2.0", REST, weights=source, seed=5)
    state = trunk_state(model)
    assert torch.equal(state["layer2.0.conv1.weight"], source["layer2.0.conv1.weight"])
    assert not torch.equal(state["layer2.1.conv1.weight"], source["layer2.1.conv1.weight"])


# --- grafted networks as sources --------------------------------


def test_a_random_trunk_is_the_network_of_that_seed() -> None:
    body = cut(build("resnet18", stem="cifar", seed=4), "layer2.0")[0]
    assert grafted("layer2.0", seed=4).trunk.state_hash() == Trunk(body, frozen=True).state_hash()


@pytest.mark.parametrize(("at", "head"), [("layer2.1", LINEAR), (None, LINEAR), ("layer1.0", REST)])
def test_a_trained_network_is_a_source_that_can_be_cut_earlier(at: str | None, head: Head) -> None:
    parent = grafted(at, head, frozen=False, seed=3)
    child = grafted("layer1.1", weights=trunk_state(parent))
    x = images()
    with torch.no_grad():
        plain = build("resnet18", classes=3, stem="cifar", seed=9).eval()
        plain.load_state_dict(trunk_state(parent), strict=False)
        assert torch.equal(child.trunk(x), cut(plain, "layer1.1")[0](x))


def test_what_a_source_run_did_not_keep_cannot_be_cut() -> None:
    check_within("resnet18", "cifar", 32, "layer1.1", source_cut="layer2.0", source_head=LINEAR)
    check_within("resnet18", "cifar", 32, None, source_cut="layer2.0", source_head=REST)
    with pytest.raises(UnknownCut, match=r"kept resnet18 only up to 'layer2.0'.*`head: rest`"):
        check_within("resnet18", "cifar", 32, "layer2.1", source_cut="layer2.0", source_head=LINEAR)
    with pytest.raises(WeightsMismatch, match=r"lack .* of the .* below the cut, first 'layer2.1"):
        grafted("layer2.1", weights=trunk_state(grafted("layer2.0")))


def test_weights_of_another_shape_are_refused() -> None:
    body = cut(build("resnet18", stem="cifar", seed=0), "layer1.0")[0]
    with pytest.raises(WeightsMismatch, match=r"there: 'conv1.weight' has shape .*7, 7.* wants .*3, 3"):
        load_body(body, build("resnet18", seed=0).state_dict(), origin="there")


@pytest.mark.parametrize("head", [LINEAR, REST, MLP])
def test_a_grafted_network_survives_saving(head: Head, tmp_path: Path) -> None:
    model, again = grafted("layer4.0", head, seed=1).eval(), grafted("layer4.0", head, seed=2).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(model(images()), again(images()))


@pytest.mark.parametrize("kind", ["linear", "mlp", "rest"])
def test_a_trunk_that_was_trained_meets_another_head_than_the_one_it_was_trained_under(kind: Any) -> None:
    """Weights stay near where they began, so a trunk fits the head that its training began with, trained or not."""
    spec = NetworkSpec("timm/test_resnet", "imagenet", 32)
    point = resolve_cut(spec.network, "layer2", 32)

    def weights(generation: int) -> Tensor:
        head = make_head(Head(kind=kind), point, 5, spec=spec, seed=0, generation=generation)
        return next(p for p in head.parameters() if p.ndim > 1)

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(0), weights(1))
    assert not torch.equal(weights(1), weights(2))
