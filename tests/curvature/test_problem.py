"""What the contract itself gives: products of a block, one after another where a backend has no batched form."""

from __future__ import annotations

import torch

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.full_data import FullDataProblem


def test_block_products_are_the_dense_hessians_and_are_counted(summed_case) -> None:
    case = summed_case
    vectors = torch.randn(3, len(case.point), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = vectors @ case.dense_hessian()
    whole = AutogradProblem(case.objective, case.inputs, case.targets)
    parts = FullDataProblem(case.objective, case.inputs, case.targets, batch_size=3)
    for problem in (whole, parts):
        torch.testing.assert_close(problem.hvps(vectors), want, rtol=1e-9, atol=1e-11)
        assert problem.products == 3
