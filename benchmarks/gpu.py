"""Checks and times everything that runs on a GPU, with one command: kernels, graphs, solves, against float64 and torch.

usage: PYTHONPATH=src python benchmarks/gpu.py [--quick]      under 8 minutes; writes benchmarks/results/gpu.json
Every part runs in a process of its own, so that one that fails or hangs costs itself alone; what it raised is in the
report. `--only PART` runs one part; `--device cpu` tries the command itself out where there is no GPU, over the
recordings' stand-in and Triton's interpreter: its times mean nothing, and nothing is written.
Bounds: a product of the MLP (persistent kernel) 10 times, of the CNN (graph) 5 times as fast as eager double backward;
no host synchronization inside a solve; DenseNet-121, batch 32, 224 pixels: product over gradient at most 2.5.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILE = Path(__file__).resolve().parent / "results" / "gpu.json"
LIMIT = 460.0  # seconds for all parts; what is not begun by then is left out, and said so
EACH = {"mlp": 130.0, "densenet": 130.0, "solves": 130.0}
OTHERS = 80.0
Rows = list[dict[str, Any]]


class Part:
    """What a part of the benchmark is given, and what it reports."""

    def __init__(self, device: torch.device, quick: bool, file: Path) -> None:
        self.device, self.quick, self.file = device, quick, file
        self.rows: Rows = []

    def save(self) -> None:
        """Keep what there is: the part may not come to its end."""
        aside = self.file.with_suffix(".new")
        aside.write_text(json.dumps(self.rows))
        aside.replace(self.file)

    def report(self, what: str, value: float, unit: str, bound: float | None = None, *, least: bool = False) -> None:
        """A number; with a bound above, or below where ``least`` says so."""
        kept = None if bound is None else bool(value >= bound if least else value <= bound)
        self.rows.append({"what": what, "value": value, "unit": unit, "bound": bound, "least": least, "kept": kept})

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """What is raised in here goes into the report, and the part goes on."""
        try:
            yield
        except Exception:
            self.rows.append({"what": what, "error": traceback.format_exc()})
        self.save()

    def seconds(self, call: Callable[[], object], *, budget: float = 0.4) -> float:
        """Median over rounds of many calls each, the device waited for at a round's end only."""
        budget = budget / 4 if self.quick else budget
        call()
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        once = max(time.perf_counter() - began, 1e-6)
        rounds, calls = 7, max(1, min(1000, int(budget / 7 / once)))
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(calls):
                call()
            self.wait()
            times.append((time.perf_counter() - began) / calls)
        return statistics.median(times)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def small(part: Part, kind: str, *, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor, Tensor]:
    """The MLP 54-20-20-20-7 or the USPS CNN on a random batch of 128, after some steps of Adam."""
    from spectral_run.curvature.objective import Objective
    from spectral_run.models.mlp import MLP
    from spectral_run.models.usps_cnn import USPSCNN

    torch.manual_seed(0)
    shape: tuple[int, ...] = (1, 16, 16) if kind == "cnn" else (54,)
    activation = "tanh" if kind == "tanh" else "relu"
    if kind == "cnn":
        model: nn.Module = USPSCNN(input_shape=shape, classes=10)
    else:
        model = MLP(input_shape=shape, classes=7, widths=[20, 20, 20], activation=activation)
    teacher = torch.randn(256 if kind == "cnn" else 54, 10 if kind == "cnn" else 7)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(20 if part.device.type == "cpu" else 200):
        x = torch.randn(128, *shape)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x.flatten(1) @ teacher).argmax(1)).backward()
        optimizer.step()
    x = torch.randn(128, *shape)
    y = (x.flatten(1) @ teacher).argmax(1)
    model = model.to(part.device, dtype).requires_grad_(True)
    for p in model.parameters():
        p.grad = None
    return Objective(model, F.cross_entropy), x.to(part.device, dtype), y.to(part.device)


def doubled(objective: Any, x: Tensor, y: Tensor) -> Any:
    """The same problem in float64, by backend ``autograd``."""
    import copy

    from spectral_run.curvature.autograd import AutogradProblem
    from spectral_run.curvature.objective import Objective

    floating = y.double() if y.is_floating_point() else y
    return AutogradProblem(Objective(copy.deepcopy(objective.model).double(), objective.loss), x.double(), floating)


def makers(part: Part, objective: Any, x: Tensor, y: Tensor) -> dict[str, Callable[[], Any]]:
    """Every way to a batch problem that takes this network."""
    from spectral_run.curvature.autograd import AutogradProblem
    from spectral_run.curvature.cuda.problem import CudaNetwork, CudaProblem
    from spectral_run.curvature.rop.problem import RopProblem

    def graph(**settings: Any) -> Any:
        return CudaProblem(CudaNetwork(objective, **settings), objective, x, y)

    def persistent() -> Any:
        from spectral_run.curvature.cuda.mlp import MLPProblem
        from spectral_run.curvature.cuda.mlp_network import mlp_network

        return MLPProblem(mlp_network(objective, x), objective, x, y)

    found: dict[str, Callable[[], Any]] = {
        "eager double backward": lambda: AutogradProblem(objective, x, y),
        "rop, eager": lambda: RopProblem(objective, x, y),
        "graph": graph,
        "graph, fused": lambda: graph(fused=True),
    }
    if x.dtype == torch.float32:
        found |= {"graph, tf32": lambda: graph(precision="tf32"), "graph, bf16": lambda: graph(precision="bf16")}
    if x.dim() == 2:
        found["persistent kernel"] = persistent
    return found


ROUGH = {"graph, tf32": 1e-1, "graph, bf16": 3e-1}
SPEED = {("mlp", "persistent kernel"): 10.0, ("cnn", "graph"): 5.0}


def products(part: Part, kind: str) -> None:
    """Errors and times of gradient, Hv, grad v'Hv by every backend."""
    objective, x, y = small(part, kind)
    reference = doubled(objective, x, y)
    n = objective.n
    v = torch.randn(n, generator=torch.Generator().manual_seed(1)).to(part.device)
    first, second = reference.hvp_and_quadratic_grad(v.double())
    gradient = reference.grad()
    slow: dict[str, float] = {}
    for name, make in makers(part, objective, x, y).items():
        with part.trying(f"{kind}: {name}"):
            problem = make()
            product, quadratic = problem.hvp_and_quadratic_grad(v)
            rough = ROUGH.get(name, 1e-4)
            part.report(f"{kind}: error of gradient, {name}", error(problem.grad(), gradient), "relative", 1e-4)
            part.report(f"{kind}: error of Hv, {name}", error(problem.hvp(v), first), "relative", rough)
            part.report(f"{kind}: error of Hv with grad v'Hv, {name}", error(product, first), "relative", rough)
            part.report(f"{kind}: error of grad v'Hv, {name}", error(quadratic, second), "relative", 10 * rough)
            for what, call in (
                ("Hv", lambda problem=problem: problem.hvp(v)),
                ("Hv and grad v'Hv", lambda problem=problem: problem.hvp_and_quadratic_grad(v)),
                ("new batch: gradient", lambda make=make, problem=problem: again(problem).grad()),
            ):
                took = part.seconds(call)
                part.report(f"{kind}: {what}, {name}", 1e6 * took, "us")
                slow.setdefault(what, took)
                bound = SPEED.get((kind, name)) if what == "Hv" else None
                part.report(f"{kind}: {what}, {name}: times as fast", slow[what] / took, "x", bound, least=True)


def again(problem: Any) -> Any:
    """The same batch anew, over what the backend keeps between batches."""
    from spectral_run.curvature.autograd import AutogradProblem
    from spectral_run.curvature.rop.problem import RopProblem

    batch = problem.objective, problem.inputs, problem.targets
    if isinstance(problem, AutogradProblem):
        return AutogradProblem(*batch)
    if isinstance(problem, RopProblem):
        return RopProblem(*batch, program=problem.program)
    network = getattr(problem, "network", None) or problem._network
    return type(problem)(network, *batch)


def mlp(part: Part) -> None:
    """The MLP 54-20-20-20-7."""
    products(part, "mlp")
    products(part, "tanh")


def cnn(part: Part) -> None:
    """The USPS CNN."""
    products(part, "cnn")


def solves(part: Part) -> None:
    """Whole solves: pairs, counts, times, and what the host waits for meanwhile."""
    from spectral_run.curvature.lanczos import Lanczos
    from spectral_run.curvature.power import PowerIteration

    for kind in ("mlp", "cnn"):
        objective, x, y = small(part, kind)
        reference = doubled(objective, x, y)
        start = torch.randn(objective.n, generator=torch.Generator().manual_seed(2)).to(part.device)
        for solver in (Lanczos(eps=1e-2), Lanczos(eps=1e-3), PowerIteration(eps=1e-2, cap=200)):
            what = f"{kind}: {type(solver).__name__} {solver.eps:.0e}"
            want = solver.solve(reference.hvp, start.double())
            for name, make in makers(part, objective, x, y).items():
                if name in ROUGH or (name.startswith("persistent") and part.device.type == "cpu"):
                    continue
                with part.trying(f"{what}, {name}"):
                    problem = make()
                    got = problem.eigenpair(solver, start)
                    vector = got.vector.double()
                    true = float((reference.hvp(vector) - got.value * vector).norm())
                    allowed = 1.1 * solver.eps + 1e-5
                    converged = got.reason == "residual"
                    part.report(
                        f"{what}: residual, {name}", true / abs(got.value), "relative", allowed if converged else None
                    )
                    part.report(f"{what}: value off by, {name}", abs(got.value / want.value - 1), "relative", allowed)
                    part.report(f"{what}: products more, {name}", got.products - want.products, "products")
                    solve = partial(problem.eigenpair, solver, start)
                    took = part.seconds(solve)
                    part.report(f"{what}, {name}", 1e6 * took, "us")
                    part.report(f"{what}, {name}: per product", 1e6 * took / got.products, "us")
                    if name.startswith(("graph", "persistent")):
                        waits(part, what, name, solve)


def waits(part: Part, what: str, name: str, solve: Callable[[], object]) -> None:
    """Host synchronizations inside a solve that has been recorded, counted twice: by torch, and in a profile."""
    if part.device.type != "cuda":
        return
    solve()
    part.wait()
    inside = 0 if name.startswith("graph") else 1  # the persistent solve ends in its one transfer, which waits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            solve()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    count = sum("synchroniz" in str(w.message).lower() for w in caught) - inside
    part.report(f"{what}: host synchronizations, {name}", count, "(torch)", 0)
    part.wait()
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        solve()
    names = [event.name for event in recorded.events()]
    wait = sum("Synchronize" in event and "DeviceSynchronize" not in event for event in names) - inside
    part.report(f"{what}: host synchronizations, {name}", max(wait, 0), "(profile)", 0)
    part.report(f"{what}: kernels launched one by one, {name}", names.count("cudaLaunchKernel"), "")
    part.report(f"{what}: graphs launched, {name}", sum(event.startswith("cudaGraphLaunch") for event in names), "")


def kernels(part: Part) -> None:
    """T's eigenpairs and the fused kernels, against float64 and against torch's operations."""
    import numpy as np

    from spectral_run.curvature.cuda.kernels import fused
    from spectral_run.curvature.cuda.kernels.tridiagonal import ENDS, SCRATCH, ritz_kernel

    numbers = np.random.default_rng(0)
    on_gpu = part.device.type == "cuda"
    for k in (1, 2, 7, 24, 48) if on_gpu else (3,):
        with part.trying(f"ritz, k = {k}"):
            alpha, beta = numbers.normal(size=k), numbers.random(k)
            width = max(2, 1 << (k - 1).bit_length())
            memory = torch.zeros(2 + SCRATCH, width, dtype=torch.float64, device=part.device)
            memory[0, :k], memory[1, :k] = torch.from_numpy(alpha), torch.from_numpy(beta)
            out = torch.zeros(5, dtype=torch.float64, device=part.device)
            values = np.linalg.eigvalsh(np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1))
            scale = np.abs(values).max()
            for which, want in {"largest": values[-1], "smallest": values[0], "magnitude": scale}.items():
                settings = {"WHICH": ENDS[which], "KMAX": width, "LANES": 64, "SWEEPS": 8, "SECOND": True}
                call = partial(ritz_kernel[(1,)], memory[0], memory[1], memory[2:], out, k, **settings)
                call()
                got = float(out[0].abs() if which == "magnitude" else out[0])
                part.report(f"ritz, k = {k}, {which}: error", abs(got - want) / scale, "relative", 1e-13)
                part.report(f"ritz, k = {k}, {which}", 1e6 * part.seconds(call, budget=0.1), "us")
    n = 10_000_000 if on_gpu else 1000
    random = [torch.randn(n, device=part.device) for _ in range(9)]
    with part.trying("fused: order 1 of an elementwise function"):
        slope, g1, bend, x1 = random[:4]
        both(part, "fused: order 1 of an elementwise function, 1e7",
             lambda: fused.backward1(slope, g1, bend, x1), lambda: torch.addcmul(slope * g1, bend, x1))  # fmt: skip
    with part.trying("fused: order 2 of an elementwise function"):
        slope, third, g0, bent, bend, x1, x2, g1, g2 = random

        def torch_way() -> Tensor:
            gradient = (third * g0) * (x1 * x1)
            return gradient.addcmul_(slope, g2).addcmul_(bent, g1, value=2).addcmul_(bend, x2)

        both(part, "fused: order 2 of an elementwise function, 1e7",
             lambda: fused.backward2(slope, third, g0, bent, bend, x1, x2, g1, g2), torch_way)  # fmt: skip
    del random
    for rows, classes in ((128, 10), (4096, 1000)) if on_gpu else ((8, 3),):
        with part.trying("fused: cross-entropy"):
            p = torch.softmax(torch.randn(rows, classes, device=part.device), 1)
            q, z1 = p / rows, torch.randn(rows, classes, device=part.device)

            def eager(p: Tensor = p, q: Tensor = q, z1: Tensor = z1) -> Tensor:
                weighted = q * z1
                return torch.addcmul(weighted, p, weighted.sum(1, keepdim=True), value=-1)

            own = lambda p=p, q=q, z1=z1: fused.cotangent1(p, q, z1)  # noqa: E731
            both(part, f"fused: cross-entropy, {rows} x {classes}", own, eager)
    for k, n in ((16, 2_967), (16, 1_000_000), (48, 7_000_000)) if on_gpu else ((4, 30),):
        with part.trying("fused: orthogonalization"):
            basis = torch.randn(k, n, device=part.device) / n**0.5
            basis = torch.linalg.qr(basis.T.double())[0].T.float().contiguous()
            w = torch.randn(n, device=part.device)

            def steps(basis: Tensor = basis, w: Tensor = w) -> Tensor:
                for _ in range(2):
                    w = torch.addmv(w, basis.t(), torch.mv(basis, w), alpha=-1)
                torch.linalg.vector_norm(w)
                return w

            own = lambda basis=basis, w=w: fused.orthogonalize(basis, w)[0]  # noqa: E731
            both(part, f"fused: orthogonalization, {k} x {n}", own, steps)
            part.report(
                f"fused: orthogonality left, {k} x {n}", float((basis @ own()).norm() / w.norm()), "relative", 1e-5
            )


def both(part: Part, what: str, own: Callable[[], Tensor], eager: Callable[[], Tensor]) -> None:
    part.report(f"{what}: error", error(own(), eager()), "relative", 1e-5)
    fast, slow = part.seconds(own, budget=0.3), part.seconds(eager, budget=0.3)
    part.report(what, 1e6 * fast, "us")
    part.report(f"{what}: times as fast as torch", slow / fast, "x")


def densenet(part: Part) -> None:
    """DenseNet-121 with 14 labels, batch 32, 224 pixels."""
    import torchvision

    from spectral_run.curvature.autograd import AutogradProblem
    from spectral_run.curvature.cuda.problem import CudaNetwork, CudaProblem
    from spectral_run.curvature.exact_layers import swap_norms
    from spectral_run.curvature.lanczos import Lanczos
    from spectral_run.curvature.objective import Objective
    from spectral_run.curvature.rop.problem import RopProblem

    rows, pixels = (32, 224) if part.device.type == "cuda" else (2, 32)
    torch.manual_seed(0)
    plain = torchvision.models.densenet121(num_classes=14).train().to(part.device)
    x = torch.randn(rows, 3, pixels, pixels, device=part.device)
    y = torch.rand(rows, 14, device=part.device)
    parameters = list(plain.parameters())

    def gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.binary_cross_entropy_with_logits(plain(x), y), parameters)

    fused_layers = part.seconds(gradient, budget=3)
    part.report("densenet: gradient, torch's own layers", 1e3 * fused_layers, "ms")
    objective = Objective(swap_norms(plain), F.binary_cross_entropy_with_logits)
    exact_layers = part.seconds(lambda: AutogradProblem(objective, x, y).grad(), budget=3)
    part.report("densenet: gradient, exact layers, autograd", 1e3 * exact_layers, "ms")
    v = torch.randn(objective.n, generator=torch.Generator().manual_seed(1)).to(part.device)
    rules = RopProblem(objective, x, y)
    want = rules.hvp(v).clone()
    if not part.quick:
        part.report("densenet: Hv, rop, eager", 1e3 * part.seconds(lambda: rules.hvp(v), budget=3), "ms")
    del rules
    for precision in ("exact", "tf32"):
        with part.trying(f"densenet: graph, {precision}"):
            torch.cuda.empty_cache()
            began = time.perf_counter()
            network = CudaNetwork(objective, precision=precision)
            problem = CudaProblem(network, objective, x, y)
            problem.linearize()
            part.wait()
            part.report(f"densenet: recording, {precision}", time.perf_counter() - began, "s")
            off, allowed = error(problem.hvp(v), want), 1e-3 if precision == "exact" else None
            part.report(f"densenet: error of Hv against the rules, {precision}", off, "relative", allowed)
            took = part.seconds(lambda problem=problem: problem.hvp(v), budget=3)
            part.report(f"densenet: Hv, graph, {precision}", 1e3 * took, "ms")
            primal = part.seconds(lambda problem=problem: problem._load(), budget=3)
            part.report(f"densenet: primal pass, graph, {precision}", 1e3 * primal, "ms")
            bound = 2.5 if precision == "exact" else None
            part.report(f"densenet: Hv over gradient (exact layers), {precision}", took / exact_layers, "x", bound)
            part.report(f"densenet: Hv over gradient (torch's own layers), {precision}", took / fused_layers, "x")
            twice = part.seconds(lambda problem=problem: problem.hvp_and_quadratic_grad(v), budget=3)
            part.report(f"densenet: Hv and grad v'Hv, graph, {precision}", 1e3 * twice, "ms")
            if precision == "exact":
                solver = Lanczos(eps=1e-2, cap=12)
                problem.eigenpair(solver, v)
                part.wait()
                began = time.perf_counter()
                found = problem.eigenpair(solver, v)
                part.wait()
                part.report(
                    "densenet: Lanczos, per product", 1e3 * (time.perf_counter() - began) / found.products, "ms"
                )
            if part.device.type == "cuda":
                part.report(f"densenet: memory, {precision}", torch.cuda.max_memory_allocated() / 2**30, "GiB")
            del problem, network


def choice(part: Part) -> None:
    """Which backend ``auto`` takes on this device, and why."""
    from spectral_run.curvature.backends import choose_backend

    for kind in ("mlp", "cnn"):
        objective, x, y = small(part, kind)
        backend = choose_backend("auto", objective, x[:2])
        kept = backend.name == "cuda" if part.device.type == "cuda" else None
        part.rows.append({"what": f"{kind}: auto takes {backend.name}: {backend.why}", "kept": kept})
        backend(objective, x, y).grad()
        for precision in ("tf32", "bf16"):
            if part.device.type == "cuda":
                chosen = choose_backend("cuda", objective, x[:2], precision=precision)
                part.rows.append({"what": f"{kind}: {chosen.why}", "kept": None})


PARTS: dict[str, Callable[[Part], None]] = {
    "kernels": kernels,
    "mlp": mlp,
    "cnn": cnn,
    "densenet": densenet,
    "solves": solves,
    "choice": choice,
}


def run_part(name: str, device: str, quick: bool, file: Path) -> None:
    """In a process of its own: the part's rows, into a file, whatever happens."""
    warnings.filterwarnings("ignore", message=".*torch.jit.*")
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = "ieee"  # for all that is compared
    part = Part(torch.device(device), quick, file)
    try:
        PARTS[name](part)
    except Exception:
        part.rows.append({"what": name, "error": traceback.format_exc()})
    finally:
        part.save()


def in_a_process(name: str, device: str, quick: bool, seconds: float) -> Rows:
    environment = dict(os.environ)
    if device == "cpu":
        environment |= {"TRITON_INTERPRET": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--part", name, "--device", device, "--file", str(file)]
        command += ["--quick"] if quick else []
        try:
            done = subprocess.run(command, env=environment, timeout=seconds, capture_output=True, text=True)
            trouble = done.stderr[-3000:] if done.returncode else ""
        except subprocess.TimeoutExpired as expired:
            tail = expired.stderr or b""
            trouble = f"took longer than {seconds:.0f} s; {tail[-2000:]!r}"
        rows: Rows = json.loads(file.read_text()) if file.exists() else []
    return [*rows, {"what": name, "error": trouble}] if trouble else rows


def show(rows: Rows) -> None:
    for row in rows:
        if "error" in row:
            print(f"  FAILED  {row['what']}: {row['error'].strip().splitlines()[-1]}")
            continue
        mark = {True: "ok", False: "OVER" if not row.get("least") else "UNDER", None: ""}[row.get("kept")]
        value = f"{row['value']:14.4g} {row['unit']}" if "value" in row else ""
        bound = f"bound {row['bound']:g}" if row.get("bound") is not None else ""
        print(f"  {mark:7} {row['what']:78} {value:26} {bound}".rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the repetitions")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part (may be given again)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the command itself out")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: there is no CUDA device here; nothing was run.")
        return 1
    if given.part:
        run_part(given.part, given.device, given.quick, given.file)
        return 0
    began = time.perf_counter()
    report: dict[str, Any] = {"quick": given.quick, "versions": {"torch": torch.__version__}, "parts": {}}
    if given.device == "cuda":
        report["device"] = torch.cuda.get_device_name()
        report["versions"]["cuda"] = torch.version.cuda
    for name in given.only or PARTS:
        left = LIMIT - (time.perf_counter() - began)
        if left < 20:
            report["parts"][name] = [{"what": name, "error": "left out: no time"}]
            continue
        rows = in_a_process(name, given.device, given.quick, min(left, EACH.get(name, OTHERS)))
        report["parts"][name] = rows
        print(f"{name} ({time.perf_counter() - began:.0f} s)", flush=True)
        show(rows)
        report["seconds"] = round(time.perf_counter() - began, 1)
        if given.device == "cuda":
            FILE.parent.mkdir(exist_ok=True)
            FILE.write_text(json.dumps(report, indent=1) + "\n")
    everything = [row for rows in report["parts"].values() for row in rows]
    failed = sum("error" in row for row in everything)
    missed = sum(row.get("kept") is False for row in everything)
    print(f"{failed} failed, {missed} beyond their bounds, {len(everything)} in all, {report['seconds']} s")
    return 0 if not failed and not missed else 2


if __name__ == "__main__":
    sys.exit(main())
