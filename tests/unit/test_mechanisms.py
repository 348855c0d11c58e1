"""Ways to run a network in training: what they cost, what they leave alone, and that they learn the same."""

from __future__ import annotations

import copy
import json
import os
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regraft.errors import StudyError, UnknownName
from regraft.learn.backends import Candidate
from regraft.learn.graphs import MOST_GRAPHS, Forward, Graphs, kept
from regraft.learn.mechanisms import Measured, _Trial, choose, least_ahead, worth_trying

CPU = torch.device("cpu")
LABELS = torch.arange(10) % 2


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def images(seed: int, count: int = 10) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def step(forward: Forward) -> None:
    cross_entropy(forward(images(0)), LABELS).backward()  # type: ignore[no-untyped-call]


def train(model: nn.Module, forward: Forward, counts: list[int]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for seed, count in enumerate(counts):
        optimizer.zero_grad()
        cross_entropy(forward(images(seed, count)), LABELS[:count]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_the_least_time_ahead_wins_and_what_is_spent_does_not_count() -> None:
    ways = {"eager": Measured(0, 0.010), "graphs": Measured(2, 0.006), "compile": Measured(30, 0.004)}
    assert least_ahead(ways, 499) == "eager"  # 4.99 s against 2 + 2.994
    assert least_ahead(ways, 501) == "graphs"
    assert least_ahead(ways, 13_999) == "graphs"  # 2 + 83.994 against 30 + 55.996
    assert least_ahead(ways, 14_001) == "compile"
    assert least_ahead({"eager": Measured(0, 0.1), "graphs": Measured(0, 0.1)}, 100) == "eager"


def test_a_candidate_is_tried_only_if_its_assumed_gain_pays_its_set_up() -> None:
    candidate, eager = Candidate(gain=2.0, setup_seconds=60.0), Measured(0.0, 0.01)
    assert not worth_trying(candidate, eager, 12_000, batch_sizes=1)  # 60 s can be saved, and 60 s are spent
    assert worth_trying(candidate, eager, 12_001, batch_sizes=1)
    assert not worth_trying(candidate, eager, 12_001, batch_sizes=2)  # each size is prepared by itself
    assert worth_trying(candidate, Measured(1.0, 0.01), 12_000, batch_sizes=1)  # the best so far is not ready either


def test_on_a_cpu_auto_is_eager_and_says_why() -> None:
    model = network().train()
    found = choose(model, images(0), steps_left=10**6, step=step, device=CPU)
    assert found.name == "eager"
    assert found.forward is model
    assert "not timed" in found.record["why"]
    assert json.loads(json.dumps(found.record)) == found.record


def test_unknown_and_impossible_ways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(wish: str) -> None:
        choose(network(), images(0), steps_left=10, step=step, device=CPU, wish=wish)

    with pytest.raises(UnknownName, match=re.escape("did you mean 'compile'? Known: auto, eager, compile, graphs")):
        ask("compiled")
    with pytest.raises(StudyError, match="'graphs' needs a CUDA device, and training is on cpu"):
        ask("graphs")
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(StudyError, match="'compile' needs a C\\+\\+ compiler"):
        ask("compile")


def test_what_takes_longer_to_prepare_than_is_left_is_not_prepared() -> None:
    trial = _Trial(network(), 10, step, CPU, batch_sizes=1)
    record = trial.fastest(1000).record
    assert record["mechanism"] == "eager"
    assert record["why"] == "nothing else pays"
    assert set(record["seconds_per_step"]) == {"eager"}
    assert record["seconds_per_step"]["eager"] > 0
    assert record["steps_left"] == 1000
    assert "do not pay an assumed 60 s of set-up" in record["left_out"]["compile"]
    assert "needs a CUDA device" in record["left_out"]["graphs"]


@pytest.mark.parametrize(("steps", "why"), [(199, "not timed: 199 steps, fewer than 200"), (0, "not timed: 0 steps")])
def test_a_training_too_short_to_be_timed_is_eager_on_a_gpu_too(steps: int, why: str) -> None:
    """Nothing is run for it, so it needs no GPU to be seen."""
    model = network().train()
    found = choose(model, images(0), steps_left=steps, step=step, device=torch.device("cuda"))
    assert (found.name, found.forward) == ("eager", model)
    assert found.record["why"].startswith(why)
    assert found.record["seconds_per_step"] == {}


def test_where_a_whole_batch_does_not_go_through_nothing_is_timed_and_the_record_says_so() -> None:
    def too_large(forward: Forward) -> None:
        step(forward)  # what a step leaves behind
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = network()
    before = copy.deepcopy(model.state_dict())
    found = _Trial(model, 10, too_large, CPU, batch_sizes=2).fastest(10**9)
    assert (found.name, found.forward) == ("eager", model)
    assert found.record["why"] == "a whole batch does not go through; not timed"
    assert found.record["left_out"] == {"eager": "failed: out of memory"}
    assert found.record["seconds_per_step"] == {}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_probing_leaves_weights_statistics_gradients_and_random_numbers_alone() -> None:
    model = network(dropout=0.5)
    step(model)  # gradients from before
    state = copy.deepcopy(model.state_dict())
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    random = torch.random.get_rng_state()
    _Trial(model, 10, step, CPU, batch_sizes=1).fastest(1000)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert len(gradients) == 6
    for parameter, (gradient, value) in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
    assert torch.equal(torch.random.get_rng_state(), random)
    fails_half_way = nn.Sequential(model, nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"), kept(model, CPU):
        fails_half_way(images(0))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))


def test_a_network_that_cannot_be_prepared_runs_eagerly_and_the_record_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(torch, "compile", refuse)
    model = network()
    found = choose(model, images(0), steps_left=10, step=step, device=CPU, wish="compile")
    assert found.name == "eager"
    assert found.forward is model
    assert found.record["why"] == "compile was asked for and failed"
    assert found.record["left_out"] == {"compile": "failed: RuntimeError: no such operator"}


def record_on_a_cpu(shell: nn.Module, sample: tuple[Tensor]) -> Forward:
    """What torch.cuda.make_graphed_callables does, as far as its traps go: gradients always land in the same memory,
    and the norms' momentum stays what it was while recording. Without a GPU nothing real is to be had."""
    parameters = list(shell.parameters())
    landing = [torch.empty_like(p) for p in parameters]
    norm = next(m for m in shell.modules() if isinstance(m, nn.BatchNorm2d))
    momentum = norm.momentum
    original = shell.forward

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor, *weights: Tensor) -> Tensor:
            live, norm.momentum = norm.momentum, momentum
            with torch.enable_grad():
                ctx.logits = original(inputs)
            norm.momentum = live
            logits: Tensor = ctx.logits.detach()
            return logits

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            for place, value in zip(landing, torch.autograd.grad(ctx.logits, parameters, gradient), strict=True):
                place.copy_(value)
            return (None, *(place.detach() for place in landing))

    def forward(inputs: Tensor) -> Tensor:
        assert inputs.shape == sample[0].shape
        logits: Tensor = Replay.apply(inputs, *parameters)
        return logits

    return forward


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_recorded_steps_survive_batches_in_parts_and_sharpness_aware_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record_on_a_cpu)
    model, eager = network(), network()
    graphs = Graphs(model)
    train(model, graphs, [10, 10, 9, 9])
    train(eager, eager, [10, 10, 9, 9])
    assert len(graphs.graphs) == 2
    gradients: list[list[Tensor]] = []
    for net, forward in ((model, graphs), (eager, eager)):
        net.zero_grad()
        for seed, count in ((1, 10), (2, 10), (3, 9)):  # one batch in three parts
            cross_entropy(forward(images(seed, count)), LABELS[:count]).backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
        norm.momentum = 0.0  # as in the first pass of a sharpness-aware step
        net.zero_grad()
        cross_entropy(forward(images(4)), LABELS).backward()  # type: ignore[no-untyped-call]
        norm.momentum = 0.1
    torch.testing.assert_close(*gradients)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_once_training_has_begun_what_cannot_be_recorded_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    with pytest.raises(RuntimeError, match="not permitted"):
        Graphs(network())(images(0))
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record_on_a_cpu)
    graphs = Graphs(network())
    graphs(images(0, 10))
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    for count in range(2, 10):
        assert graphs(images(0, count)).shape == (count, 2)
    assert len(graphs.graphs) == MOST_GRAPHS


@pytest.mark.slow  # inductor compiles for 10 to 60 s
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing inductor
def test_compiled_learns_what_eager_learns() -> None:
    compiled, eager = network(), network()
    before = copy.deepcopy(compiled.state_dict())
    found = choose(compiled, images(0), steps_left=10, step=step, device=CPU, wish="compile")
    assert found.name == "compile"
    assert found.record["setup_seconds"]["compile"] > 0.5  # it was not silently left eager
    assert all(torch.equal(a, b) for a, b in zip(compiled.state_dict().values(), before.values(), strict=True))
    counts = [10, 10, 9, 9, 10, 9]  # two batch sizes, as an epoch has them
    train(compiled, found.forward, counts)
    train(eager, eager, counts)
    for name, value in eager.state_dict().items():  # BatchNorm's statistics among them
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.equal(compiled.state_dict()["1.running_mean"], before["1.running_mean"])


@pytest.mark.slow  # inductor compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing inductor
def test_what_pays_its_set_up_is_prepared_timed_and_chosen_only_if_it_is_the_faster() -> None:
    model, steps_left = network(), 10**9  # any set-up pays
    trial = _Trial(model, 10, step, CPU, batch_sizes=3)
    found = trial.fastest(steps_left)
    record = json.loads(json.dumps(found.record))
    assert record["left_out"].keys() == {"graphs"}  # of a CPU
    assert record["seconds_per_step"].keys() == {"eager", "compile"}
    assert record["setup_seconds"]["compile"] > 0
    ahead = {name: trial.measured[name].ahead(steps_left) for name in record["seconds_per_step"]}
    # Each of the two batch sizes that are still to come is compiled by itself.
    expected = 2 * record["setup_seconds"]["compile"] + steps_left * record["seconds_per_step"]["compile"]
    assert ahead["compile"] == pytest.approx(expected)
    assert found.name == min(ahead, key=lambda name: ahead[name])
    assert record["why"] == "least time ahead"
    assert trial.forwards.keys() == {"eager", found.name}  # what lost is let go of
    train(model, found.forward, [10, 9])
