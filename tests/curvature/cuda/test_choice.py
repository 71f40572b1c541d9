"""On a GPU small perceptrons are single kernels, once these have shown that they are right there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_run.curvature import backends
from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.cuda import mlp
from spectral_run.curvature.cuda.mlp import MLPProblem
from spectral_run.curvature.cuda.problem import CudaProblem
from spectral_run.curvature.objective import Objective

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(autouse=True)
def _as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():  # the interpreter, and the stand-in for graphs
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(backends, "_on_gpu", lambda inputs: True)


@pytest.fixture
def target(device: torch.device) -> Objective:
    return Objective(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(device), F.cross_entropy)


def test_small_perceptrons_are_single_kernels(target: Objective, device: torch.device) -> None:
    backend = choose_backend("auto", target, torch.zeros(2, 4, device=device))
    assert backend.name == "cuda"
    assert "in single kernels, whose exact products differ from the rules by " in backend.why
    assert float(backend.why.rpartition(" ")[2]) < 1e-5
    problem = backend(target, torch.randn(5, 4, device=device), torch.zeros(5, dtype=torch.int64, device=device))
    assert isinstance(problem, MLPProblem)


def test_wrong_kernels_are_not_taken(monkeypatch: pytest.MonkeyPatch, target: Objective, device: torch.device) -> None:
    monkeypatch.setattr(mlp, "check", lambda problem: 2e-3)
    backend = choose_backend("auto", target, torch.zeros(2, 4, device=device))
    assert backend.name == "cuda"
    assert "not as single kernels: its kernels' Hv differs from the rules by 2.0e-03" in backend.why
    problem = backend(target, torch.randn(5, 4, device=device), torch.zeros(5, dtype=torch.int64, device=device))
    assert isinstance(problem, CudaProblem)


def test_kernels_that_fail_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, target: Objective, device: torch.device
) -> None:
    def fails(problem: MLPProblem) -> float:
        raise RuntimeError("no such instruction\nat all")

    monkeypatch.setattr(mlp, "check", fails)
    backend = choose_backend("auto", target, torch.zeros(2, 4, device=device))
    assert "not as single kernels: its kernels failed: RuntimeError: no such instruction" in backend.why
