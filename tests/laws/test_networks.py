"""Laws 1-4 of the architecture guide, for every kind of network that regraft promises."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from regraft.networks import (
    Grafted,
    NetworkSpec,
    Trunk,
    body_for_cuts,
    build,
    cut,
    cut_points,
    describe,
    graft,
    make_head,
    pool,
    resolve_cut,
    state_hash,
)  # fmt: skip
from regraft.networks.cuts import CutPoint, feature_name, pooled_body
from regraft.networks.pooling import CELLS, POOLINGS, poolings
from regraft.spec import Head
from regraft.spec.models import Pooling

LINEAR, MLP = Head(), Head(kind="mlp", hidden=8)


@dataclass(frozen=True)
class Case:
    network: str
    image_size: int  # pixels
    stem: str = "imagenet"
    cuts: tuple[str, ...] = ()  # an early, a middle and a late one for the default suite

    def build(self) -> nn.Module:
        return build(self.network, classes=10, stem=self.stem, seed=0, image_size=self.image_size)


CASES = [
    Case("resnet18", 32, "imagenet", ("maxpool", "layer2.0", "penultimate")),
    Case("resnet18", 32, "cifar", ("relu", "layer3.1", "penultimate")),
    Case("resnet50", 32, "imagenet", ("layer1.0", "layer2.2", "penultimate")),
    Case("resnet50", 32, "cifar", ("layer1.0", "layer2.2", "penultimate")),
    Case("resnet50_v1", 32, "imagenet", ("layer2.0", "layer4.2")),
    Case("vgg11_bn", 32, "imagenet", ("features.2", "features.14", "classifier.1")),
    Case("densenet121", 32, "imagenet", ("features.denseblock1", "features.transition2", "penultimate")),
    Case("mobilenet_v2", 32, "imagenet", ("features.0", "features.7", "penultimate")),
    Case("mobilenet_v3_small", 32, "imagenet", ("features.1", "features.8", "penultimate")),
    Case("efficientnet_b0", 32, "imagenet", ("features.1.0", "features.4.1", "penultimate")),
    Case("convnext_tiny", 32, "imagenet", ("features.0", "features.3.1", "penultimate")),
    Case("timm/vit_tiny_patch16_224", 32, "imagenet", ("patch_embed", "blocks.5", "penultimate")),
    Case("swin_t", 32, "imagenet", ("features.1.0", "features.4", "penultimate")),
]


def _id(case: Case) -> str:
    return f"{case.network}-{case.stem}"


@pytest.fixture(scope="module", params=CASES, ids=_id)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def network(case: Case) -> Iterator[nn.Module]:
    """In eval mode. The tests of a case share it, since no law may change it; that is checked at the end."""
    built = case.build().eval()
    before, names = state_hash(built.state_dict()), [name for name, _ in built.named_modules()]
    yield built
    assert state_hash(built.state_dict()) == before, "the source network was changed"
    assert [name for name, _ in built.named_modules()] == names
    assert not any(module.training for module in built.modules())
    assert all(parameter.requires_grad for parameter in built.parameters())


def images(case: Case, n: int = 2) -> Tensor:  # (n, 3, s, s)
    generator = torch.Generator().manual_seed(7)
    return torch.randn(n, 3, case.image_size, case.image_size, generator=generator)


def poolings_of(point: CutPoint) -> list[Pooling]:
    # of (c, h, w) and (h, w, c) alike, the first two sides hold one of the map's
    return [kind for kind in POOLINGS if CELLS.get(kind, 1) <= min(point.shape[:2]) and kind in poolings(point.layout)]


def check_parts(network: nn.Module, at: str, x: Tensor, expected: Tensor) -> Tensor:
    """Laws that hold at one cut; returns the cut's value."""
    body, tail = cut(network, at)
    with torch.no_grad():
        features: Tensor = body(x)
        kept = features.clone()
        assert torch.equal(tail(features), expected)
    assert torch.equal(features, kept), "the tail wrote into its input"
    below, above = body.state_dict(), tail.state_dict()
    assert not below.keys() & above.keys()
    assert below.keys() | above.keys() == network.state_dict().keys()
    own = {t.data_ptr() for t in network.state_dict().values()}
    assert not own & {t.data_ptr() for t in (*below.values(), *above.values())}
    return features


def test_tail_after_body_is_the_network(case: Case, network: nn.Module) -> None:
    x = images(case)
    with torch.no_grad():
        expected = network(x)
    for at in case.cuts:
        check_parts(network, at, x, expected)


def test_all_cuts_together_equal_each_cut_alone(case: Case, network: nn.Module) -> None:
    x = images(case)
    points = cut_points(network, case.image_size)
    with torch.no_grad():
        together = body_for_cuts(network, [point.name for point in points])(x)
        pooled = pooled_body(network, [(point.name, kind) for point in points for kind in poolings_of(point)])(x)
        for point in points:
            assert tuple(together[point.name].shape[1:]) == point.shape
            for kind in poolings_of(point):
                features = pooled.pop(feature_name(point.name, kind))
                assert torch.equal(features, pool(together[point.name], point.layout, kind))
                assert features.shape == (len(x), point.width(kind))
            if point.name in case.cuts:
                assert torch.equal(together[point.name], cut(network, point.name)[0](x))
    assert not pooled


@pytest.mark.slow
def test_at_every_cut_the_parts_are_the_network_and_all_together_equal_each(case: Case, network: nn.Module) -> None:
    x = images(case)
    points = cut_points(network, case.image_size)
    with torch.no_grad():
        expected = network(x)
        together = body_for_cuts(network, [point.name for point in points])(x)
    for point in points:
        assert torch.equal(check_parts(network, point.name, x, expected), together[point.name])


def test_a_description_by_name_is_that_of_the_network(case: Case, network: nn.Module) -> None:
    described = describe(case.network, case.stem, case.image_size)
    measured = cut_points(network, case.image_size)
    # depth differs a little: the description has the network's own number of classes, not ten
    assert [(p.name, p.shape, p.layout, p.parameters, p.flops) for p in described] == [
        (p.name, p.shape, p.layout, p.parameters, p.flops) for p in measured
    ]
    depths = [point.depth for point in measured]
    assert depths == sorted(depths)
    assert 0 < depths[0] <= depths[-1] <= 1


def train_steps(model: nn.Module, case: Case, steps: int = 2) -> None:
    """A few steps of SGD as a careless loop would do them: everything in train mode."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1, momentum=0.9, weight_decay=0.1)
    labels = torch.tensor([0, 1, 2, 0])
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images(case, 4)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_a_frozen_trunk_is_bit_identical_after_training_and_a_trainable_one_is_not(
    case: Case, network: nn.Module
) -> None:
    at = case.cuts[1]
    for frozen in (True, False):
        model = graft(
            case.network, case.stem, network.state_dict(), at, LINEAR, 3,
            frozen=frozen, seed=1, image_size=case.image_size, source_classes=10,
        )  # fmt: skip
        before, head_before = model.trunk.state_hash(), state_hash(model.head.state_dict())
        train_steps(model, case)
        assert (model.trunk.state_hash() == before) is frozen
        assert state_hash(model.head.state_dict()) != head_before


def test_a_head_on_cached_features_is_the_head_on_the_live_frozen_trunk(case: Case, network: nn.Module) -> None:
    at, x, labels = case.cuts[1], images(case), torch.tensor([0, 1])
    spec = NetworkSpec(case.network, case.stem, case.image_size)
    point = resolve_cut(case.network, at, case.image_size, stem=case.stem)
    trunk = Trunk(cut(network, at)[0], frozen=True)
    kinds = poolings_of(point)
    with torch.no_grad():
        features = pooled_body(network, [(at, kind) for kind in kinds])(x)
    for head in (*(Head(pool=kind) for kind in kinds), MLP):
        cached = features[feature_name(at, head.pool)]
        assert head.pools
        live, from_cache = (make_head(head, point, 3, spec=spec, seed=1) for _ in range(2))
        model = Grafted(trunk, live).train()
        nn.functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        logits = from_cache.get_submodule("classify")(cached)
        nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        for one, other in zip(live.parameters(), from_cache.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            assert torch.equal(one.grad, other.grad)
    assert all(parameter.grad is None for parameter in trunk.parameters())


DROPS = {"swin_t", "convnext_tiny", "efficientnet_b0"}  # stochastic depth inside the blocks
CLASSIFIER_DROPS = {"vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"}


def test_both_parts_follow_train_and_eval_as_the_network_does(case: Case, network: nn.Module) -> None:
    """In training mode the same draws give the same logits: nothing of the mode is frozen into the parts."""
    twin = copy.deepcopy(network)
    body, tail = cut(twin, case.cuts[1])
    x = images(case, 4)
    whole, parts = twin.train(), nn.Sequential(body, tail).train()
    outputs: list[tuple[Tensor, Tensor]] = []
    for model in (whole, parts):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(3)
            outputs.append((model(x), model(x)))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    if case.network in DROPS | CLASSIFIER_DROPS:
        assert not torch.equal(*outputs[1]), "dropout did not run in training mode"
    running = {name: t for name, t in {**body.state_dict(), **tail.state_dict()}.items() if "running" in name}
    for name, tensor in running.items():  # BatchNorm's statistics moved alike
        assert torch.equal(tensor, twin.state_dict()[name])
    with torch.no_grad():
        assert torch.equal(tail.eval()(body.eval()(x)), twin.eval()(x))
