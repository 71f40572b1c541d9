"""Sums over batches: uneven ones count by their size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.full_data import FullDataProblem
from spectral_run.curvature.measure import measure_rho
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.solvers import solver


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_sum_over_uneven_batches_is_the_whole(summed_case, batch_size: int) -> None:
    case = summed_case
    whole = AutogradProblem(case.objective, case.inputs, case.targets)
    parts = FullDataProblem(case.objective, case.inputs, case.targets, batch_size=batch_size)
    v = torch.randn(whole.n, dtype=torch.float64)
    torch.testing.assert_close(parts.loss(), whole.loss(), rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.grad(), whole.grad(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parts.hvp(v), case.dense_hessian() @ v, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(parts.quadratic_grad(v), case.dense_quadratic_grad(v), rtol=1e-9, atol=1e-10)
    assert parts.products == 2
    torch.testing.assert_close(
        parts.at(case.point + 0.1).hvp(v), whole.at(case.point + 0.1).hvp(v), rtol=1e-9, atol=1e-11
    )


def test_refuses_no_batch_size(summed_case) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        FullDataProblem(summed_case.objective, summed_case.inputs, summed_case.targets, batch_size=0)


@pytest.mark.parametrize("name", ["power", "lanczos", "lobpcg"])
def test_rho_equals_largest_modulus_of_the_dense_hessian(summed_case, name: str) -> None:
    case = summed_case
    values = torch.linalg.eigvalsh(case.dense_hessian())
    result = measure_rho(
        case.objective, case.inputs, case.targets, solver(name, eps=1e-6, relative=True, cap=5000),
        torch.Generator().manual_seed(1), batch_size=3,
    )  # fmt: skip
    assert result.converged
    assert result.rho == pytest.approx(float(values.abs().max()), rel=1e-9)


def test_measuring_uses_evaluation_mode_and_gives_the_mode_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(9, 4).double(), torch.randint(2, (9,))
    settings = solver("lanczos", eps=1e-8, relative=True, cap=100)
    twice = [
        measure_rho(Objective(model, F.cross_entropy), inputs, targets, settings, torch.Generator().manual_seed(s))
        for s in (0, 1)
    ]
    assert twice[0].rho == pytest.approx(twice[1].rho, rel=1e-12)
    assert model.training


@pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="SPECTRAL_DATA is not set")
def test_full_usps_rho_equals_eigsh_on_curvlinops() -> None:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    from spectral_run.datasets.base import DataHome
    from spectral_run.datasets.usps import USPS
    from spectral_run.models.usps_cnn import USPSCNN

    torch.manual_seed(3)
    data = USPS().load(DataHome(Path(os.environ["SPECTRAL_DATA"]), download=False))
    model = USPSCNN(input_shape=(1, 16, 16), classes=10).eval()
    x, y = data.train.inputs, data.train.targets
    assert len(x) == 6250
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for rows in torch.arange(2560).split(128):  # away from the initial point, where the top is nearly repeated
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    ours = measure_rho(
        Objective(model, F.cross_entropy), x, y, solver("lanczos", eps=1e-3, relative=True, cap=300),
        torch.Generator().manual_seed(0), batch_size=1024,
    )  # fmt: skip
    batches = list(zip(x.split(1000), y.split(1000), strict=True))
    parameters = list(model.parameters())
    hessian = HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, batches, check_deterministic=False)
    theirs = eigsh(hessian.to_scipy(), k=1, which="LM", tol=1e-4, return_eigenvectors=False)
    assert ours.converged
    assert ours.rho == pytest.approx(abs(float(theirs[0])), rel=1e-3)
