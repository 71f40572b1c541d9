"""Recordings: what a replay computes, where it puts it, and what can't be recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spectral_run.curvature.cuda.capture import Captured, CaptureError, launch


def test_a_replay_fills_the_same_tensors(device: torch.device) -> None:
    x = torch.randn(3, 4, device=device)

    def function() -> tuple[Tensor, Tensor]:
        y = x.t() @ x
        y.add_(1)
        return y.reshape(-1), (y[1:] * 2).sum()

    recorded = Captured(function, device)
    for _ in range(2):
        x.normal_()
        flat, total = recorded.replay()
        want = x.t() @ x + 1
        assert torch.allclose(flat, want.reshape(-1))
        assert torch.allclose(total, 2 * want[1:].sum(), rtol=1e-5, atol=1e-5)
        assert flat is recorded.result[0]


def test_what_was_read_stays_read(device: torch.device) -> None:
    """A tensor that takes a new place is not seen: a recording knows addresses."""
    x = torch.ones(2, device=device)
    held = [x]
    recorded = Captured(lambda: held[0] * 3, device)
    held[0] = torch.zeros(2, device=device)
    assert recorded.replay().tolist() == [3.0, 3.0]


def test_one_recording_reads_what_another_left(device: torch.device) -> None:
    x = torch.ones(2, device=device)
    first = Captured(lambda: x * 2, device)
    first.replay()
    second = Captured(lambda: first.result + 1, device, pool=first.pool)
    x.fill_(5)
    first.replay()
    assert second.replay().tolist() == [11.0, 11.0]


def test_launches_are_recorded(device: torch.device) -> None:
    x, calls = torch.zeros(2, device=device), []

    def function() -> None:
        launch(lambda: calls.append(x.add_(1)))

    recorded = Captured(function, device)
    before, made = x.clone(), len(calls)
    recorded.replay()
    assert (x == before + 1).all()
    assert len(calls) == made + (device.type == "cpu")


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x.sum().item(), "makes the host wait"),
        (lambda x: bool(x[0] > 0), "makes the host wait"),
        (lambda x: x.nonzero(), "makes the host wait"),
        (lambda x: x[x > 0], "indexing by a mask"),
        (lambda x: x * x.new_tensor(2.0), "made of the host's numbers"),
    ],
)
def test_what_can_not_be_recorded(function: Callable[[Tensor], object], match: str, device: torch.device) -> None:
    x = torch.ones(3, device=device)
    with pytest.raises(CaptureError, match=match if device.type == "cpu" else "can't be captured in a CUDA graph"):
        Captured(lambda: function(x), device)
    assert Captured(lambda: x + 1, device).replay().tolist() == [2.0] * 3  # and the next one is not disturbed
