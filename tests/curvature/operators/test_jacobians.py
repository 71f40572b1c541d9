"""Every rule's and every compiled layer's ``J v`` and ``J' u``, in float64, on the cases that test their Hessians."""

from __future__ import annotations

import importlib.util
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.backends import Backend, choose_backend
from spectral_run.curvature.native.build import NoNativeCodeError, library
from spectral_run.curvature.native.problem import NativeProblem
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.operators import split
from spectral_run.curvature.operators.jacobian import AutogradJacobian, Jacobian, jacobian_of
from spectral_run.curvature.operators.operators import KINDS, curvature_operator
from spectral_run.curvature.rop.problem import RopProblem

RTOL = 1e-9


def load(path: str) -> ModuleType:
    """Another file of tests, for its cases."""
    name = f"cases_of_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RULES = load("rop/test_every_rule.py")
try:
    NATIVE: dict[str, Any] = load("native/test_native.py").NETWORKS
except BaseException as skipped:  # that file skips itself where there is no compiler
    NATIVE = {}
    WHY = str(skipped)


def assert_is_jacobian(got: Jacobian, function: Callable[[Tensor], Tensor], w: Tensor) -> None:
    """Against torch.func on a function of the flat vector; twice, since products must leave it as it was."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(2, len(w), dtype=torch.float64, generator=generator)
    z, pull = torch.func.vjp(function, w)
    cotangents = torch.randn(2, *z.shape, dtype=torch.float64, generator=generator)
    moved = torch.stack([torch.func.jvp(function, (w,), (v,))[1] for v in vectors])
    pulled = torch.stack([pull(u)[0] for u in cotangents])
    for _ in range(2):
        for made, want in [
            (got.outputs, z),
            (got.jvp(vectors[0]), moved[0]),
            (got.vjp(cotangents[0]), pulled[0]),
            (got.jvps(vectors), moved),
            (got.vjps(cotangents), pulled),
        ]:
            torch.testing.assert_close(made, want, rtol=RTOL, atol=RTOL * float(want.norm()))


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own
@pytest.mark.parametrize("deep", [False, True], ids=["first", "deep"])
@pytest.mark.parametrize(("name", "number"), RULES.ALL, ids=[f"{name}-{i}" for name, i in RULES.ALL])
def test_of_every_rule(name: str, number: int, deep: bool) -> None:
    shape, given, reference = RULES.CASES[name][number]
    torch.manual_seed(3)
    if not isinstance(given, nn.Module):
        given = RULES.Call(*given) if isinstance(given, tuple) else RULES.Call(given)
    layer = given.double()
    for p in layer.parameters():
        p.data = torch.randn_like(p)
    before = [nn.Linear(shape[-1], shape[-1]), *([nn.Tanh(), nn.Linear(shape[-1], shape[-1])] if deep else [])]
    inputs = torch.randn(shape, dtype=torch.float64)
    head = nn.Linear(reference(inputs, *layer.parameters()).flatten(1).shape[1], 3)
    model = nn.Sequential(*before, layer, nn.Flatten(), head).double()
    objective = Objective(model, F.cross_entropy)
    names = [n for n, _ in model.named_parameters()]

    def function(w: Tensor) -> Tensor:
        p = dict(zip(names, objective.split(w), strict=True))
        x = inputs @ p["0.weight"].T + p["0.bias"]
        if deep:
            x = x.tanh() @ p["2.weight"].T + p["2.bias"]
        x = reference(x, *[p[n] for n in names if n.startswith(f"{len(before)}.")]).flatten(1)
        return x @ p[f"{len(before) + 2}.weight"].T + p[f"{len(before) + 2}.bias"]

    w = flatten([p.detach() for p in objective.parameters])
    torch.manual_seed(7)  # the masks of the dropouts' references
    problem = RopProblem(objective, inputs, torch.zeros(len(inputs), dtype=torch.long))
    problem.linearize()
    v = torch.ones_like(w)
    product = problem.hvp(v)
    assert_is_jacobian(problem.jacobian(), function, w)
    assert torch.equal(problem.hvp(v), product)  # the two share dropout's masks and nothing else
    if not objective.random:
        assert_is_jacobian(AutogradJacobian(objective, inputs, w), function, w)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # the reference's, for even kernels
@pytest.mark.parametrize("rows", [3, 150])  # 150 rows are two parts
@pytest.mark.parametrize("name", NATIVE or ["none"])
def test_of_every_compiled_layer(name: str, rows: int) -> None:
    if not NATIVE:
        pytest.skip(f"native: {WHY}")
    make, shape = NATIVE[name]
    torch.manual_seed(0)
    model = make().double()
    objective = Objective(model, F.cross_entropy)
    inputs, targets = torch.randn(rows, *shape).double(), torch.randint(3, (rows,))
    names = [n for n, p in model.named_parameters() if p.requires_grad]

    def function(w: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, objective.split(w), strict=True)), (inputs,))

    w = flatten([p.detach() for p in objective.parameters])
    backend = choose_backend("native", objective, inputs)
    problem = backend(objective, inputs, targets)
    v = torch.ones_like(w)
    product = problem.hvp(v)
    assert_is_jacobian(jacobian_of(problem), function, w)
    assert torch.equal(problem.hvp(v), product)


def test_compiled_problems_and_jacobians_take_turns_on_a_plan() -> None:
    """Each finds the other's primal pass in the plan they share, and must not use what is not its own."""
    try:
        library()
    except NoNativeCodeError as error:
        pytest.skip(f"native: {error}")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.LeakyReLU(0.2)).double()
    objective = Objective(model, F.cross_entropy)
    batches = [(torch.randn(6, 4).double(), torch.randint(3, (6,))) for _ in range(2)]
    backend = choose_backend("native", objective, batches[0][0])
    problems = [backend(objective, *batch) for batch in batches]
    exact = [AutogradProblem(objective, *batch) for batch in batches]
    v, u = torch.randn(objective.n).double(), torch.randn(6, 3).double()
    jacobians = [jacobian_of(problem) for problem in problems]
    theirs = [AutogradJacobian(objective, x, exact[0].params) for x, _ in batches]
    assert isinstance(problems[0], NativeProblem)
    products: list[tuple[Any, Any, Tensor]] = []
    for i in range(2):
        products.append((problems[i].hvp, exact[i].hvp, v))
        products.append((jacobians[i].jvp, theirs[i].jvp, v))
        products.append((jacobians[i].vjp, theirs[i].vjp, u))
    for step in torch.randint(6, (100,), generator=torch.Generator().manual_seed(0)).tolist():
        ours, reference, vector = products[step]
        torch.testing.assert_close(ours(vector), reference(vector), rtol=1e-10, atol=1e-12)


def test_of_a_network_with_frozen_and_unused_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2).double()))
    objective = Objective(model, F.cross_entropy)
    inputs = torch.randn(6, 4).double()

    def function(w: Tensor) -> Tensor:
        b, c, d = w[2:7], w[7:22].view(3, 5), w[22:]
        return torch.tanh(inputs @ model[0].weight.detach().T + b) @ c.T + d

    w = flatten([p.detach() for p in objective.parameters])
    assert next(n for n, p in model.named_parameters() if p.requires_grad) == "unused"
    batch = inputs, torch.zeros(6, dtype=torch.long)
    assert_is_jacobian(RopProblem(objective, *batch).jacobian(), function, w)
    assert_is_jacobian(jacobian_of(AutogradProblem(objective, *batch)), function, w)


@pytest.mark.parametrize("kind", KINDS)
def test_linearization_of_a_single_batch_is_kept(make_case, make_backend, monkeypatch, kind: str) -> None:
    case = make_case("mlp", "cross-entropy")
    inner = make_backend("rop", case)
    made: list[str] = []

    def problem(*batch: Any, **settings: Any) -> Any:
        made.append("problem")
        return inner.make(*batch, **settings)

    def jacobian(of: Any) -> Jacobian:
        made.append("jacobian")
        return jacobian_of(of)

    monkeypatch.setattr(split, "jacobian_of", jacobian)
    operator = curvature_operator(
        kind, case.objective, case.inputs, case.targets, backend=Backend(name="rop", why="", make=problem),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    v = torch.ones(operator.n, dtype=torch.float64)
    for _ in range(3):
        operator.matvec(v)
        operator.matvecs(torch.stack([v, 2 * v]))
    assert made == (["problem"] if kind == "hessian" else ["problem", "jacobian"])


@pytest.mark.parametrize("name", ["rop", "autograd"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_at_a_time_is_held(make_case, make_backend, monkeypatch, kind: str, name: str) -> None:
    """Not even the Jacobian before: its activations are gone when the next forward pass runs."""
    case = make_case("mlp", "cross-entropy")
    inner = make_backend(name, case)
    problems: weakref.WeakSet[Any] = weakref.WeakSet()
    jacobians: weakref.WeakSet[Any] = weakref.WeakSet()
    before: list[tuple[int, int]] = []

    def problem(*batch: Any, **settings: Any) -> Any:
        before.append((len(problems), len(jacobians)))
        problems.add(new := inner.make(*batch, **settings))
        return new

    def jacobian(of: Any) -> Jacobian:
        before.append((len(problems) - 1, len(jacobians)))
        jacobians.add(new := jacobian_of(of))
        return new

    monkeypatch.setattr(split, "jacobian_of", jacobian)
    made = curvature_operator(
        kind, case.objective, case.inputs, case.targets, backend=Backend(name=name, why="", make=problem),
        batch_size=2, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    v = torch.ones(made.n, dtype=torch.float64)
    made.matvec(v)
    made.matvecs(torch.stack([v, 2 * v]))
    assert len(before) >= 8
    assert set(before) == {(0, 0)}
