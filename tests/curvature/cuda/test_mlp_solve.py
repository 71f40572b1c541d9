"""Whole solves in one kernel against the dense Hessian and the solver on the host; and what only a GPU would show."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.cuda.mlp import CAPACITY, MLPProblem, mlp_network
from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.objective import LossFunction, Objective
from spectral_run.curvature.power import PowerIteration
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.solver import Which

pytestmark = pytest.mark.usefixtures("_triton")


def pair(
    device: torch.device,
    dtype: torch.dtype = torch.float64,
    *,
    rows: int = 20,
    loss: LossFunction = F.cross_entropy,
    weight_decay: float = 0.0,
) -> tuple[MLPProblem, RopProblem, Tensor]:
    """The same problem twice, and a start vector."""
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).to(device, dtype)
    inputs = 2 * torch.randn(rows, 4, dtype=dtype).to(device)
    targets = torch.arange(rows) % 3 if loss is F.cross_entropy else torch.randn(rows, 3, dtype=dtype)
    objective, targets = Objective(model, loss), targets.to(device)
    problem = MLPProblem(mlp_network(objective, inputs), objective, inputs, targets, weight_decay=weight_decay)
    rules = RopProblem(objective, inputs, targets, weight_decay=weight_decay)
    return problem, rules, torch.randn(problem.n, dtype=dtype).to(device)


def dense(rules: RopProblem) -> Tensor:
    return rules.hvps(torch.eye(rules.n, dtype=rules.inputs.dtype, device=rules.inputs.device))


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
def test_against_the_dense_hessian_and_the_host(which: Which, device: torch.device) -> None:
    problem, rules, start = pair(device, weight_decay=0.1 if which == "magnitude" else 0.0)
    solver = Lanczos(eps=1e-6, which=which)
    got, want = problem.eigenpair(solver, start), rules.eigenpair(solver, start)
    values, vectors = np.linalg.eigh(dense(rules).cpu().numpy())
    i = max(range(len(values)), key=lambda j: solver.score(values[j]))
    assert got.reason == want.reason == "residual"
    assert abs(got.value - values[i]) < 1e-11
    assert abs(abs(got.vector.cpu().numpy() @ vectors[:, i]) - 1) < 1e-10
    assert float((rules.hvp(got.vector) - got.value * got.vector).norm()) < 1.01 * got.residual + 1e-14
    assert got.products == problem.products
    assert 0 <= got.products - want.products <= 2
    assert math.isclose(got.gap, want.gap, rel_tol=1e-3)


@pytest.mark.parametrize("loss", [F.cross_entropy, F.mse_loss])
def test_float32_over_two_tiles(loss: LossFunction, device: torch.device) -> None:
    problem, rules, start = pair(device, torch.float32, rows=150, loss=loss)
    solver = Lanczos(eps=1e-3)
    got, want = problem.eigenpair(solver, start), rules.eigenpair(solver, start)
    assert got.converged
    assert abs(got.value - want.value) < 1e-5 * abs(want.value)
    assert abs(abs(float(got.vector @ want.vector)) - 1) < 1e-4
    assert abs(float(got.vector.norm()) - 1) < 1e-6
    assert abs(got.products - want.products) <= 2
    off = rules.hvp(got.vector) - got.value * got.vector
    assert float(off.norm()) < 1.1e-3 * abs(got.value)


def test_an_absolute_tolerance(device: torch.device) -> None:
    problem, rules, start = pair(device)
    solver = Lanczos(eps=1e-2, relative=False)
    got, want = problem.eigenpair(solver, start), rules.eigenpair(solver, start)
    assert got.residual <= 1e-2
    assert abs(got.products - want.products) <= 2


def test_a_cap_ends_the_solve(device: torch.device) -> None:
    problem, rules, start = pair(device)
    for cap in (1, 3):
        solver = Lanczos(eps=1e-12, cap=cap)
        got, want = problem.eigenpair(solver, start), rules.eigenpair(solver, start)
        assert (got.reason, got.products) == (want.reason, want.products) == ("cap", cap)
        assert math.isclose(got.value, want.value, rel_tol=1e-10)
        assert math.isclose(got.residual, want.residual, rel_tol=1e-8)
    assert problem.products == 4


def test_a_full_basis_starts_again_from_its_ritz_vector(device: torch.device) -> None:
    problem, rules, start = pair(device)
    solver = Lanczos(eps=1e-4, basis=10, keep=2, which="smallest")
    got = problem.eigenpair(solver, start)
    assert got.reason == "residual"
    assert got.products > 10
    assert abs(got.value - float(torch.linalg.eigvalsh(dense(rules))[0])) < 1e-7


def test_a_hessian_of_zero(device: torch.device) -> None:
    problem, _, start = pair(device, loss=F.mse_loss)
    with torch.no_grad():
        for parameter in problem.objective.parameters:
            parameter.zero_()
    inputs = torch.zeros_like(problem.inputs)
    model = nn.Linear(4, 3, bias=False).to(inputs)
    objective = Objective(model, F.mse_loss)
    flat = MLPProblem(mlp_network(objective, inputs), objective, inputs, problem.targets)
    got = flat.eigenpair(Lanczos(), start[: flat.n])
    assert (got.reason, got.value, got.residual, got.products) == ("zero", 0.0, 0.0, 1)
    assert abs(float(got.vector.norm()) - 1) < 1e-12


def test_an_invariant_subspace_ends_the_solve(device: torch.device) -> None:
    problem, rules, _ = pair(device)
    _, vectors = torch.linalg.eigh(dense(rules))
    got = problem.eigenpair(Lanczos(eps=1e-9), vectors[:, -1].contiguous())
    assert got.converged
    assert got.products <= 2


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
def test_nan_ends_the_solve(device: torch.device) -> None:
    problem, _, start = pair(device)
    problem.inputs[1] = float("nan")
    got = problem.eigenpair(Lanczos(), start)
    assert got.reason == "nan"
    assert math.isnan(got.value)
    assert got.products == 1
    assert torch.allclose(got.vector, start / start.norm())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_start_vector_of_zero_or_nan(device: torch.device) -> None:
    problem, _, start = pair(device)
    for factor in (0.0, float("nan")):
        with pytest.raises(ValueError, match="the start vector must be finite and not zero"):
            problem.eigenpair(Lanczos(), factor * start)
    assert problem.products == 0


def test_the_same_numbers_every_time(device: torch.device) -> None:
    problem, _, start = pair(device, torch.float32)
    one, other = (problem.eigenpair(Lanczos(cap=3), start) for _ in range(2))
    assert (one.value, one.residual) == (other.value, other.residual)
    assert torch.equal(one.vector, other.vector)


def test_other_solvers_go_their_own_way(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, rules, start = pair(device)
    monkeypatch.setattr(problem, "_solve", None)  # the kernel is not to be used
    for solver in (PowerIteration(cap=3), Lanczos(cap=4, cluster=2)):
        got, want = problem.eigenpair(solver, start), rules.eigenpair(solver, start)
        assert abs(got.value - want.value) < 1e-9
        assert got.products == want.products
    with pytest.raises(ValueError, match="Lanczos takes no preconditioner"):
        problem.eigenpair(Lanczos(), start, preconditioner=lambda v: v)


@dataclass
class Threads:
    """Accesses to memory since the last barrier, as if every element of a tensor belonged to another thread."""

    written: set[int] = field(default_factory=set)
    read: dict[int, set[object]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    blind: bool = False  # to barriers

    def barrier(self) -> None:
        if not self.blind:
            self.written.clear()
            self.read.clear()

    def access(self, pointers: Any, mask: Any, *, store: bool) -> None:
        shape = np.shape(pointers.data)
        places = np.ravel(pointers.data)[np.ravel(np.broadcast_to(mask.data, shape)).astype(bool)].tolist()
        # Vectors of the same places are handled by the same threads: what is read may be overwritten.
        owner: object = places[0] if len(shape) == 1 and len(places) > 1 else object()
        for place in places:
            if place in self.written:
                self.faults.append("used what another thread has written")
            if store and self.read.get(place, {owner}) != {owner}:
                self.faults.append("overwrote what another thread may still read")
            if not store:
                self.read.setdefault(place, set()).add(owner)
        if store:
            self.written.update(places)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """The interpreter watched: it runs a program as one thread, and so would never notice a missing barrier."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    seen, builder = Threads(), interpreter.InterpreterBuilder
    load, store, barrier = builder.create_masked_load, builder.create_masked_store, builder.create_barrier

    def watched_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        seen.access(pointers, mask, store=False)
        return load(self, pointers, mask, *rest)

    def watched_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        seen.access(pointers, mask, store=True)
        return store(self, pointers, value, mask, *rest)

    def watched_barrier(self: Any, *rest: Any) -> Any:
        seen.barrier()
        return barrier(self, *rest)

    monkeypatch.setattr(builder, "create_masked_load", watched_load)
    monkeypatch.setattr(builder, "create_masked_store", watched_store)
    monkeypatch.setattr(builder, "create_barrier", watched_barrier)
    return seen


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
def test_a_barrier_stands_between_threads(threads: Threads, device: torch.device) -> None:
    problem, _, start = pair(device, torch.float32, rows=130)
    launches: tuple[Callable[[], object], ...] = (
        problem.linearize,
        lambda: problem.hvp_and_quadratic_grad(start),
        lambda: problem.eigenpair(Lanczos(eps=1e-7, basis=10, keep=2, cap=11), start),
    )
    for launch in launches:
        launch()
        assert threads.faults == []
        threads.barrier()
    threads.blind = True
    problem.hvp(start)
    assert "used what another thread has written" in threads.faults


_COMPILE = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from spectral_run.curvature.cuda.kernels.mlp_solve import solve_kernel as kernel

def tuples(value):
    return tuple(map(tuples, value)) if isinstance(value, list) else value

settings = {name: tuples(value) for name, value in json.loads(sys.argv[1]).items()}
types = {"rows": "i32", "cap": "i32", "eps": "fp32", "small": "*fp64", "result": "*fp64"}
signature = {n: "constexpr" if n in settings else types.get(n, "*fp32") for n in kernel.arg_names}
source = ASTSource(fn=kernel, signature=signature, constexprs=settings)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
assert compiled.asm["cubin"]
print(compiled.metadata.shared)
"""


def test_the_benchmarks_solve_compiles_for_a_gpu(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from spectral_run.curvature.cuda.kernels import mlp_solve

    widths = [54, 20, 20, 20, 7]
    layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    objective = Objective(nn.Sequential(*layers[:-1]).to(device), F.cross_entropy)
    inputs, targets = torch.randn(128, 54).to(device), torch.zeros(128, dtype=torch.int64, device=device)
    problem = MLPProblem(mlp_network(objective, inputs), objective, inputs, targets)
    problem.linearize()
    settings: dict[str, Any] = {}

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            assert grid == (1,)
            return lambda *_, **given: settings.update(given)

    monkeypatch.setattr(mlp_solve, "solve_kernel", Kernel())
    problem._solve(Lanczos(), torch.randn(problem.n).to(device))
    assert settings.pop("num_warps") == 8
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-c", _COMPILE, json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) <= CAPACITY
