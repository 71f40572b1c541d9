"""The small cases that docs/scaling.md checks its formulas on, one thread each: python benchmarks/scaling.py

``messages``  two processes over gloo: all-reduces and bytes of one regularized step, by solver and mode
``link``      two processes over gloo: seconds of one all-reduce by its length
``width``     seconds of gradient, product and gradient of v'Hv against the number of parameters (rop)
``memory``    what gradient, product, solve and step add to a process at their peak, in vectors of n numbers (rop)
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __name__ == "__main__" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    # Large blocks come from the system and go back to it: resident memory is then what is in use.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)

import torch
import torch.distributed as dist
import torch.nn.functional as F

from spectral_run.curvature.backends import Backend, choose_backend
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.parallel import ParallelProblem, Processes
from spectral_run.models.mlp import MLP
from spectral_run.regularizers.base import Step
from spectral_run.regularizers.spectral_radius import SpectralRadius

FEATURES, CLASSES = 54, 7


def network(width: int, rows: int) -> tuple[Objective, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = MLP(input_shape=(FEATURES,), classes=CLASSES, widths=[width, width, width])
    return Objective(model, F.cross_entropy), torch.randn(rows, FEATURES), torch.randint(CLASSES, (rows,))


def step(number: int, state: dict[str, torch.Tensor] | None = None) -> Step:
    return Step(number=number, generator=torch.Generator().manual_seed(number), state=state or {})


def pair(work: Callable[[int], None]) -> None:
    """Carry out the work in two processes that know of each other."""
    with tempfile.TemporaryDirectory() as folder:
        started = [
            multiprocessing.get_context("spawn").Process(target=_joined, args=(work, rank, f"{folder}/meet"))
            for rank in range(2)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
            if process.exitcode:
                raise SystemExit(f"a process ended with {process.exitcode}")


def _joined(work: Callable[[int], None], rank: int, meet: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    work(rank)
    dist.destroy_process_group()


def messages(rank: int) -> None:
    sent = []
    real = dist.all_reduce

    def counted(tensor: torch.Tensor, *arguments: object, **named: object) -> object:
        sent.append(tensor.numel())
        return real(tensor, *arguments, **named)

    dist.all_reduce = counted
    if rank == 0:
        print("| penalty | step | products | all-reduces | numbers | numbers / n |\n|---|---|---|---|---|---|")
    settings = {
        "Lanczos, 1e-2": {},
        "power, random start": {"solver": "power", "start": "random"},
        "`mode=track`": {"mode": "track"},
    }
    for name, given in settings.items():
        penalty = SpectralRadius(mu=0.005, K=0.0, **given)
        state: dict[str, torch.Tensor] = {}
        objective, inputs, targets = network(64, 128)
        backend = choose_backend("rop", objective, inputs)
        processes = Processes()
        for number, which in enumerate(("first", "second")):
            sent.clear()
            problem = ParallelProblem.split(processes, backend, objective, inputs, targets)
            found = penalty.gradient(problem, step(number, state))
            state = dict(found.state)
            if rank == 0:
                share = sum(sent) / objective.n
                print(f"| {name} | {which} | {problem.products} | {len(sent)} | {sum(sent):,} | {share:.4f} |")
    if rank == 0:
        print(f"\nn = {objective.n:,}")


def link(rank: int) -> None:
    if rank == 0:
        print("| numbers | seconds, median of 15 | bytes / second |\n|---|---|---|")
    for count in (10**4, 10**5, 10**6, 10**7):
        message, seconds = torch.zeros(count), []
        for _ in range(17):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(message)
            seconds.append(time.perf_counter() - began)
        if rank == 0:
            median = statistics.median(seconds[2:])
            print(f"| {count:,} | {median:.2g} | {4 * count / median:.2g} |")


def width() -> None:
    print(
        "| width | n | batch | gradient | `Hv` / gradient | `Hv` and `grad v'Hv` / gradient | `Hv`: ns per row and n |"
    )
    print("|---|---|---|---|---|---|---|")
    for hidden, rows in ((64, 128), (128, 128), (256, 128), (512, 128), (1024, 128), (512, 32), (512, 512)):
        objective, inputs, targets = network(hidden, rows)
        backend = choose_backend("rop", objective, inputs)
        v = torch.randn(objective.n)
        v /= v.norm()

        problem = backend(objective, inputs, targets)
        problem.linearize()
        calls = (
            partial(_gradient, backend, objective, inputs, targets),
            partial(problem.hvp, v),
            partial(problem.hvp_and_quadratic_grad, v),
        )
        rounds = [[_seconds(call) for call in calls] for _ in range(9)]
        plain = statistics.median(first for first, _, _ in rounds)
        product, both = (statistics.median(r[i] / r[0] for r in rounds) for i in (1, 2))
        each = 1e9 * product * plain / rows / objective.n
        print(
            f"| {hidden} | {objective.n:,} | {rows} | {1e3 * plain:.3g} ms | {product:.2f} | {both:.2f} | {each:.3f} |"
        )


def _gradient(backend: Backend, objective: Objective, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return backend(objective, inputs, targets).grad()


def _seconds(call: Callable[[], object]) -> float:
    call()
    calls, began = 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - began < 0.05:
        call()
        calls += 1
    return (time.perf_counter() - began) / calls


def memory() -> None:
    print("| width | n | gradient | `Hv` | `mode=track` | solve, 4 products | 8 | 16 | 32 | 60 |\n" + "|---" * 10 + "|")
    for hidden in (512, 1024):
        cells = []
        for what in ("gradient", "hvp", "track", "solve-4", "solve-8", "solve-16", "solve-32", "solve-60"):
            receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
            process = multiprocessing.get_context("spawn").Process(target=_peak, args=(hidden, what, sender))
            process.start()
            n, peak = receiver.recv()
            process.join()
            cells.append(f"{peak / (4 * n):.1f}")
        print(f"| {hidden} | {n:,} | {' | '.join(cells)} |")


def _peak(hidden: int, what: str, sender: multiprocessing.connection.Connection) -> None:
    """Bytes that this adds to the resident memory of a process, at most; 4 rows, so that vectors are what counts."""
    torch.set_num_threads(1)
    small, inputs, targets = network(16, 4)
    _do(what, small, inputs, targets)  # what is loaded on first use does not count
    objective, inputs, targets = network(hidden, 4)
    choose_backend("rop", objective, inputs)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    _do(what, objective, inputs, targets)
    sender.send((objective.n, _status("VmHWM") - before))


def _do(what: str, objective: Objective, inputs: torch.Tensor, targets: torch.Tensor) -> object:
    problem = choose_backend("rop", objective, inputs)(objective, inputs, targets)
    kind, _, products = what.partition("-")
    if kind == "gradient":
        return problem.grad()
    if kind == "hvp":
        return problem.hvp(torch.full((objective.n,), objective.n**-0.5))
    if kind == "track":
        return SpectralRadius(mu=0.005, K=0.0, mode="track").gradient(problem, step(0))
    # So small a tolerance that all products are made.
    penalty = SpectralRadius(mu=0.005, K=0.0, eps=1e-12, cap=int(products))
    start = torch.randn(objective.n, generator=torch.Generator().manual_seed(0))
    return problem.eigenpair(penalty._solver(), start)


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def main() -> None:
    parts = {"messages": lambda: pair(messages), "link": lambda: pair(link), "width": width, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="which of them; default: all")
    torch.set_num_threads(1)
    for name in parser.parse_args().parts or parts:
        print(f"\n## {name}\n", flush=True)
        parts[name]()


if __name__ == "__main__":
    main()
