"""Laws of training over several devices that one process can show; `tests/study/test_distributed.py` has two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from regraft.errors import StudyError
from regraft.learn.batches import ImageBatches
from regraft.learn.distributed import ALONE, Team, _SharedNorms, check_devices, joined, pooled_statistics
from regraft.seeding import stream, torch_stream
from regraft.spec import Preprocessing


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    x = 1000 + torch.randn(50, 3, generator=torch_stream(0, "parts"), dtype=torch.float64)
    parts = [torch.cat([p.mean(0), p.var(0, correction=0), p.new_tensor([len(p)])]) for p in torch.split(x, [7, 1, 42])]
    mean, var, count = pooled_statistics(torch.stack(parts))
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(var, x.var(0, correction=0), rtol=1e-12, atol=0)
    assert count == 50


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, momentum=None)])
def test_shared_batchnorm_of_one_process_is_batchnorm(norm: nn.Module, tmp_path: Path) -> None:
    rng = torch_stream(0, "norm")
    for p in norm.parameters():
        p.data = torch.rand(4, generator=rng) + 0.5
    # In double precision: the gradient of a bias before BatchNorm is zero, of which float leaves 1e-5.
    network = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).double()
    images = torch.randn(6, 3, 8, 8, generator=rng, dtype=torch.float64)
    slopes = torch.randn(6, 4, 6, 6, generator=rng, dtype=torch.float64)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    found = []
    with joined(0, 1, tmp_path / "meeting", torch.device("cpu")):
        for shared in (False, True):
            network.load_state_dict(start)
            network.zero_grad()
            x = images.clone().requires_grad_()
            if shared:
                with _SharedNorms():
                    out = network(x)
            else:
                out = network(x)
            (out * slopes).sum().backward()
            assert x.grad is not None
            gradients = [p.grad for p in network.parameters()]
            found.append([out, x.grad, *gradients, *(b.clone() for b in network.buffers())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_frozen_batchnorm_stays_as_it_is_among_shared_ones(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean = torch.rand(4, generator=torch_stream(0, "mean"))
    images = torch.randn(6, 4, 8, 8, generator=torch_stream(0, "images"))
    expected, before = norm(images), {name: value.clone() for name, value in norm.state_dict().items()}
    with joined(0, 1, tmp_path / "meeting", torch.device("cpu")), _SharedNorms():
        assert torch.equal(norm(images), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_the_shares_of_a_set_are_the_set_and_none_of_them_is_empty() -> None:
    images = stream(0, "images").integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)
    labels, preprocessing = np.arange(7), Preprocessing(image_size=4, mean=(0.5,) * 3, std=(0.25,) * 3)
    whole = ImageBatches(images, labels, preprocessing, device=torch.device("cpu"))
    shares = [Team(rank, 3).share_of(whole) for rank in range(3)]
    assert [share.labels.tolist() for share in shares] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [len(share) for share in shares] == [3, 2, 2]
    for share in shares:
        taken = share.take(torch.arange(len(share)), None)
        assert torch.equal(taken, whole.take(share.labels, None))
    assert Team(0, 8).share_of(whole) is whole  # eight would leave one with nothing: each takes all
    assert Team().share_of(whole) is whole


def test_a_process_alone_asks_no_other() -> None:
    model, values = nn.Linear(2, 2), (torch.tensor(1.0), torch.tensor(2.0))
    assert ALONE.around(model, torch.device("cpu")) is model
    assert ALONE.sum(*values) == values
    assert ALONE.path == ()
    assert Team(1, 2).path == (1,)


def test_devices_that_are_not_here_are_refused() -> None:
    check_devices(2, torch.device("cpu"))
    check_devices(1, torch.device("mps"))
    with pytest.raises(StudyError, match=r"devices: 2 .* has 1 of kind mps"):
        check_devices(2, torch.device("mps"))
