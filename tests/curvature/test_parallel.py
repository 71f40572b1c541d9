"""Three processes (and two of them) over gloo against dense derivatives of all the rows, in float64.

The processes are started once; each carries out everything and leaves its numbers in a file.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.exact_layers import running_statistics, swap_norms
from spectral_run.curvature.full_data import FullDataProblem
from spectral_run.curvature.kfac import KFAC
from spectral_run.curvature.measure import measure_rho
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.parallel import ParallelProblem, Processes, ProcessesDifferError, average_statistics
from spectral_run.curvature.solvers import solver

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")

DECAY = 0.3
BACKENDS = ("autograd", "rop", "auto")
SPLITS = ((2, 7), (3, 7), (3, 2))  # processes, rows: uneven pieces, and one without rows
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def directions(n: int) -> Tensor:
    return torch.randn(3, n, generator=generator(1), dtype=torch.float64)


def values(processes: Processes, objective: Objective, inputs: Tensor, targets: Tensor, backend: str) -> dict[str, Any]:
    """Everything that a problem gives, with the messages it took."""
    v, *others = directions(objective.n)
    make = choose_backend(backend, objective, inputs, weight_decay=DECAY)
    problem = ParallelProblem.split(processes, make, objective, inputs, targets)
    messages, got = [], {}

    def note(name: str, compute: Callable[[], Any]) -> None:
        before = processes.messages, problem.collectives, problem.products
        got[name] = compute()
        after = processes.messages, problem.collectives, problem.products
        messages.append((name, *(b - a for a, b in zip(before, after, strict=True))))

    note("linearize", problem.linearize)
    note("grad", problem.grad)
    note("loss", problem.loss)
    note("hvp", lambda: problem.hvp(v))
    note("hvps", lambda: problem.hvps(torch.stack(others)))
    note("both", lambda: torch.stack(problem.hvp_and_quadratic_grad(v)))
    note("quadratic_grad", lambda: problem.quadratic_grad(v))
    there = problem.at(problem.params + 0.1)
    got |= {"there": there.hvp(v), "point there": there.params, "messages": messages}
    return got


def full_data(processes: Processes, objective: Objective, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """The sums over a split, and rho by Lanczos."""
    v, *others = directions(objective.n)
    problem = FullDataProblem(objective, inputs, targets, batch_size=2, processes=processes)
    got: dict[str, Any] = {"loss": problem.loss(), "grad": problem.grad(), "hvp": problem.hvp(v)}
    got |= {"hvps": problem.hvps(torch.stack(others)), "both": torch.stack(problem.hvp_and_quadratic_grad(v))}
    before = processes.messages
    rho = measure_rho(
        objective,
        inputs,
        targets,
        solver("lanczos", eps=1e-8, relative=True, cap=500),
        generator(),
        batch_size=2,
        processes=processes,
    )
    return got | {"rho": rho.rho, "converged": rho.converged, "messages": (processes.messages - before, rho.products)}


def statistics(processes: Processes, inputs: Tensor) -> dict[str, Tensor]:
    """Running statistics after a pass over this process's rows and the mean over processes; see the test."""
    model = swap_norms(nn.Sequential(nn.BatchNorm1d(3, momentum=0.2))).double()
    rows = processes.rows(len(inputs))
    if rows.stop > rows.start:
        with running_statistics(model):
            model(inputs[rows])
    average_statistics(model, processes, (rows.stop - rows.start) / len(inputs))
    return dict(model.state_dict())


def different(processes: Processes) -> str:
    """What is said where the processes do not have the same vector."""
    same = torch.arange(4.0)
    processes.sum(same, same=same)
    same[2] *= 1 + 1e-7 * (processes.rank == 1)  # a last bit
    with pytest.raises(ProcessesDifferError) as error:
        processes.sum(same, same=same)
    return str(error.value)


def flags(processes: Processes) -> list[bool]:
    """Whether the flag was seen before one process raises it, before its next message, and after."""
    processes.sum(torch.ones(1))
    seen = [processes.raised]
    processes.flag = processes.rank == 1
    seen.append(processes.raised)
    processes.sum(torch.ones(1))
    return [*seen, processes.raised]


def work(rank: int, folder: Path) -> None:
    """One of three processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    pair = dist.new_group([0, 1])
    model, inputs, targets = torch.load(folder / "case.pt", weights_only=False)
    objective = Objective(model, F.cross_entropy)
    got: dict[Any, Any] = {}
    for size, rows in SPLITS:
        if rank < size:
            processes = Processes(pair if size == 2 else None)
            batch = (objective, inputs[:rows], targets[:rows])
            for backend in BACKENDS:
                got[size, rows, backend] = values(processes, *batch, backend)
            got[size, rows, "full"] = full_data(processes, *batch)
            made = ParallelProblem.split(processes, choose_backend("autograd", objective, inputs), *batch)
            got[size, rows, "kfac"] = KFAC().update(made, generator()).tensors()
            got[size, rows, "statistics"] = statistics(processes, inputs[:rows].flatten(1)[:, :3])
    got["different"] = different(Processes())
    got["flags"] = flags(Processes())
    torch.save(got, folder / f"{rank}.pt")
    dist.destroy_process_group()


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["spectral_run.curvature.measure", "spectral_run.curvature.kfac", "pytest"])


@pytest.fixture(scope="module")
def shared_case() -> Any:
    from tests.curvature.conftest import _cnn

    torch.manual_seed(6)
    return _cnn(norm=False)


@pytest.fixture(scope="module")
def ranks(shared_case: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.save((shared_case.objective.model, shared_case.inputs, shared_case.targets), folder / "case.pt")
    children = [CONTEXT.Process(target=work, args=(rank, folder)) for rank in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(3)]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Processes]:
    """A group of one: here signatures are enforced."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Processes()
    dist.destroy_process_group()


def expected(case: Any, rows: int, decay: float) -> dict[str, Tensor]:
    """From dense derivatives of the reference, which shares no code with the package."""
    x, y, w = case.inputs[:rows], case.targets[:rows], case.point

    def f(w: Tensor) -> Tensor:
        return case.reference(w, x, y)

    def hessian(w: Tensor) -> Tensor:
        return torch.func.jacfwd(torch.func.grad(f))(w) + decay * torch.eye(len(w), dtype=w.dtype)

    v, *others = directions(len(w))
    slope = torch.func.jvp(
        lambda u: torch.func.jvp(torch.func.grad(f), (u,), (v,))[1], (w,), (v,)
    )[1]  # fmt: skip
    h = hessian(w)
    return {
        "loss": f(w), "grad": torch.func.grad(f)(w), "hvp": h @ v, "hvps": torch.stack(others) @ h,
        "both": torch.stack([h @ v, slope]), "quadratic_grad": slope,
        "there": hessian(w + 0.1) @ v, "point there": w + 0.1,
    }  # fmt: skip


@pytest.mark.parametrize(("size", "rows"), SPLITS)
def test_several_processes_equal_the_dense_derivatives(ranks: Any, shared_case: Any, size: int, rows: int) -> None:
    want = expected(shared_case, rows, DECAY)
    for backend in BACKENDS:
        for got in ranks[:size]:
            for name, value in want.items():
                torch.testing.assert_close(
                    got[size, rows, backend][name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
                )


@pytest.mark.parametrize(("size", "rows"), SPLITS)
def test_several_processes_equal_one(ranks: Any, shared_case: Any, size: int, rows: int) -> None:
    case, got = shared_case, ranks[0][size, rows, "autograd"]
    one = AutogradProblem(case.objective, case.inputs[:rows], case.targets[:rows], weight_decay=DECAY)
    v, *others = directions(one.n)
    torch.testing.assert_close(got["loss"], one.loss(), **TIGHT)
    torch.testing.assert_close(got["grad"], one.grad(), **TIGHT)
    torch.testing.assert_close(got["hvps"], one.hvps(torch.stack(others)), **TIGHT)
    torch.testing.assert_close(got["both"], torch.stack(one.hvp_and_quadratic_grad(v)), **TIGHT)


def test_every_process_has_the_same_bits(ranks: Any) -> None:
    for size, rows in SPLITS:
        for what in (*BACKENDS, "full"):
            first, *others = (got[size, rows, what] for got in ranks[:size])
            for other in others:
                for name, value in first.items():
                    assert torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name], name


def test_one_message_per_product(ranks: Any) -> None:
    want = [
        ("linearize", 1, 1, 0), ("grad", 0, 0, 0), ("loss", 0, 0, 0), ("hvp", 1, 1, 1), ("hvps", 1, 1, 2),
        ("both", 1, 1, 1), ("quadratic_grad", 1, 1, 1),
    ]  # fmt: skip
    for size, rows in SPLITS:
        for backend in BACKENDS:
            assert ranks[0][size, rows, backend]["messages"] == want


@pytest.mark.parametrize(("size", "rows"), SPLITS)
def test_full_data_and_its_rho(ranks: Any, shared_case: Any, size: int, rows: int) -> None:
    want = expected(shared_case, rows, 0.0)
    got = ranks[0][size, rows, "full"]
    for name in ("loss", "grad", "hvp", "hvps", "both"):
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-11)
    x, y = shared_case.inputs[:rows], shared_case.targets[:rows]
    hessian = torch.func.jacfwd(torch.func.grad(lambda w: shared_case.reference(w, x, y)))(shared_case.point)
    assert got["converged"]
    assert got["rho"] == pytest.approx(float(torch.linalg.eigvalsh(hessian).abs().max()), rel=1e-9)
    assert got["messages"][0] == got["messages"][1]


def test_kfac_takes_the_whole_batch_in_every_process(ranks: Any, shared_case: Any) -> None:
    case = shared_case
    for size, rows in SPLITS:
        one = AutogradProblem(case.objective, case.inputs[:rows], case.targets[:rows])
        want = KFAC().update(one, generator()).tensors()
        for got in ranks[:size]:
            assert all(torch.equal(got[size, rows, "kfac"][name], value) for name, value in want.items())


def test_running_statistics_are_the_mean_over_rows_of_each_process_s_own(ranks: Any, shared_case: Any) -> None:
    for size, rows in SPLITS:
        x = shared_case.inputs[:rows].flatten(1)[:, :3]
        mean, variance = torch.zeros(3).double(), torch.zeros(3).double()
        for rank in range(size):
            own = x[rows * rank // size : rows * (rank + 1) // size]
            if len(own):
                unbiased = own.var(0, correction=1) if len(own) > 1 else torch.zeros(3).double()
                mean, variance = mean + own.mean(0) * len(own) / rows, variance + unbiased * len(own) / rows
        for got in ranks[:size]:
            state = got[size, rows, "statistics"]
            torch.testing.assert_close(state["0.running_mean"], 0.2 * mean, **TIGHT)
            torch.testing.assert_close(state["0.running_var"], 0.8 + 0.2 * variance, **TIGHT)
            assert state["0.num_batches_tracked"] == 1


def test_different_vectors_are_an_error_everywhere(ranks: Any) -> None:
    for got in ranks:
        assert "must be the same in every process differ" in got["different"]


def test_a_flag_is_seen_everywhere_with_the_next_message(ranks: Any) -> None:
    for got in ranks:
        assert got["flags"] == [False, False, True]


def test_a_group_of_one(alone: Processes, shared_case: Any) -> None:
    case = shared_case
    got = values(alone, case.objective, case.inputs, case.targets, "autograd")
    want = expected(case, len(case.inputs), DECAY)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-11)
    full_data(alone, case.objective, case.inputs, case.targets)
    statistics(alone, case.inputs.flatten(1)[:, :3])


def test_own_rows_or_own_masks_have_no_kfac(alone: Processes, shared_case: Any) -> None:
    case = shared_case
    local = AutogradProblem(case.objective, case.inputs, case.targets)
    problem = ParallelProblem(alone, case.objective, local, 1.0)
    torch.testing.assert_close(problem.loss(), local.loss(), **TIGHT)
    refused = "ParallelProblem is no batch of a network with its inputs and targets"
    with pytest.raises(ValueError, match=refused):
        KFAC().update(problem, generator())
    random = Objective(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 3)).double(), F.cross_entropy)
    make = choose_backend("autograd", random, case.inputs)
    split = ParallelProblem.split(alone, make, random, case.inputs, case.targets)
    with pytest.raises(ValueError, match=refused):
        KFAC().update(split, generator())
    at = split.at(split.params)  # the same masks at the same point
    torch.testing.assert_close(at.grad(), split.grad(), **TIGHT)


@pytest.mark.parametrize("share", [-0.1, 1.5, 0.0, float("nan")])
def test_refuses_a_share_that_can_t_be(alone: Processes, shared_case: Any, share: float) -> None:
    case = shared_case
    local = AutogradProblem(case.objective, case.inputs, case.targets)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], and 0 only without local rows"):
        ParallelProblem(alone, case.objective, local, share)


def test_needs_a_group() -> None:
    with pytest.raises(RuntimeError, match=r"torch\.distributed must be initialized first"):
        Processes()


def test_pieces_of_rows_are_even_and_whole(alone: Processes) -> None:
    for size in (1, 2, 3, 8):
        for count in (0, 1, 7, 8, 1151):
            pieces = []
            for rank in range(size):
                alone.rank, alone.size = rank, size
                pieces.append(alone.rows(count))
            assert [i for piece in pieces for i in range(count)[piece]] == list(range(count))
            lengths = [piece.stop - piece.start for piece in pieces]
            assert max(lengths) - min(lengths) <= 1
