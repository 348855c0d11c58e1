"""A frozen trunk cannot change; of a trainable one, what becomes of the BatchNorms is as it was said."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor, nn

from regraft.networks import Trunk, state_hash
from regraft.spec.tuning import Norms


def body() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))


def images() -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


STATES = {"source": (False, False), "affine": (True, False), "target": (False, True), "all": (True, True)}


@pytest.mark.parametrize("norms", STATES)
def test_norms_learn_or_follow_the_images_as_said(norms: Norms) -> None:
    affine, statistics = STATES[norms]
    trunk = Trunk(body(), frozen=False, norms=norms).train()
    before = {name: tensor.clone() for name, tensor in trunk.body.state_dict().items()}
    trunk(images()).sum().backward()
    (norm,) = trunk.norm_layers
    assert norm.weight.requires_grad == norm.bias.requires_grad == affine
    after = trunk.body.state_dict()
    assert torch.equal(after["1.running_mean"], before["1.running_mean"]) is not statistics
    assert trunk.body[0].weight.grad is not None  # type: ignore[index]
    assert trunk.body[3].training, "what is no norm follows train()"  # type: ignore[index]
    assert not any(module.training for module in trunk.eval().body.modules())


@pytest.mark.parametrize("frozen", [True, False])
def test_the_usual_norms_stay_in_a_frozen_trunk_and_learn_in_another(frozen: bool) -> None:
    assert Trunk(body(), frozen).norms == ("source" if frozen else "all")


def test_a_frozen_trunk_stays_still_whatever_is_called_on_it() -> None:
    trunk = Trunk(body(), frozen=True)
    assert not any(module.training for module in trunk.modules()), "from the beginning"
    before = trunk.state_hash()
    for call in (trunk.train, lambda: trunk.train(True), trunk.eval, lambda: nn.Sequential(trunk).train()):
        call()
        assert not any(module.training for module in trunk.modules())
        features = trunk(images())
        assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    assert trunk.state_hash() == before
    assert torch.equal(trunk(images()), body().eval()(images()))
    assert not trunk(images().requires_grad_()).requires_grad, "not even of the images"


@pytest.mark.parametrize("frozen", [True, False])
def test_the_hash_is_of_parameters_and_buffers(frozen: bool) -> None:
    hashes = []
    for name in (None, "0.weight", "1.bias", "1.running_mean", "1.num_batches_tracked"):
        trunk = Trunk(body(), frozen)
        if name is not None:
            trunk.body.state_dict()[name].add_(1)
        hashes.append(trunk.state_hash())
    assert len(set(hashes)) == len(hashes)


def test_a_frozen_trunk_is_not_made_trainable_and_another_can_be_held_still() -> None:
    trunk = Trunk(body(), frozen=True)
    with pytest.raises(RuntimeError, match="cannot be made trainable"):
        trunk.requires_grad_()
    assert trunk.requires_grad_(False) is trunk
    other = Trunk(body(), frozen=False)
    assert other.requires_grad_(False) is other
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert all(parameter.requires_grad for parameter in other.requires_grad_().parameters())
    assert other.train() is other
    assert other.eval() is other


def test_statistics_that_follow_the_images_move_in_a_frozen_trunk_that_is_asked_for_it() -> None:
    trunk = Trunk(body(), frozen=True, norms="target").train()
    before, hashed = trunk.norm_layers[0].running_mean, trunk.state_hash()
    assert before is not None
    kept = before.clone()
    assert not trunk(images()).requires_grad
    assert not torch.equal(trunk.norm_layers[0].running_mean, kept)  # type: ignore[arg-type]
    assert trunk.state_hash() == hashed, "the hash is of parameters alone, since the statistics are meant to move"
    assert not trunk.body[3].training  # type: ignore[index]
    assert not any(module.training for module in trunk.eval().modules())
    with torch.no_grad():
        trunk.body[0].bias.add_(1)  # type: ignore[index]
    assert trunk.state_hash() != hashed


def test_the_hash_of_a_state_is_of_names_types_shapes_and_bytes() -> None:
    tensor = torch.arange(6, dtype=torch.float32)
    hashed = state_hash({"a": tensor, "b": tensor})
    content = tensor.numpy().tobytes()
    written = b"a torch.float32 (6,)\n" + content + b"b torch.float32 (6,)\n" + content
    assert hashed == hashlib.sha256(written).hexdigest()
    assert state_hash({"b": tensor, "a": tensor}) == hashed, "in whatever order"
    views = torch.stack([tensor, tensor], dim=1)[:, 0]
    assert state_hash({"a": views, "b": tensor.clone().requires_grad_()}) == hashed, "however it lies in memory"
    others = [
        {"a": tensor, "c": tensor}, {"a": tensor.view(2, 3), "b": tensor}, {"a": tensor.view(torch.int32), "b": tensor},
        {"a": tensor}, {"a": tensor, "b": tensor + 1},
    ]  # fmt: skip
    assert len({hashed, *map(state_hash, others)}) == 1 + len(others)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.int64, torch.bool])
def test_a_scalar_of_any_type_has_a_hash(kind: torch.dtype) -> None:
    one, zero = (state_hash({"a": torch.tensor(value, dtype=kind)}) for value in (1, 0))
    assert one != zero
