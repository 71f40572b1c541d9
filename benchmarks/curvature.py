"""Time curvature against other libraries: one process per library, the same network and data, interleaved rounds.

usage: python benchmarks/curvature.py [--case mlp cnn ...] [--library native jax ...] [--quick] [--out DIR]

In every round each library in turn times the same quantity for a moment while the others wait, all on one core and one
thread, so that the machine's noise meets everyone alike; a ratio is taken within a round. A moment in which another
process took the core (CPU time below 95% of wall time) is repeated. All processes are started anew in every session,
since the same code can be faster or slower by half in another process (where its memory lies, how it was compiled).
Medians and quartiles are over the rounds of all sessions. Nobody is timed whose results disagree with the float64
reference. Results: a JSON file per group of cases, from which benchmarks/report.py makes the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cases import GROUPS, MEMORY, Case, make
from peers.base import MEMORY_CAP
from worker import LIBRARIES, OURS

HERE = Path(__file__).parent
MAIN = ("mlp", "cnn")
"""Cases with every quantity, timed longest."""
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}
# Large blocks come from the system and go back to it: resident memory is then what is in use, not what was once.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
TOLERANCE = {"gradient": 1e-4, "product": 1e-4, "quadratic": 1e-3, "step": 0.1}
"""Largest relative error that passes; a step's contains that of an eigenvector solved to 1e-2."""
MEMORY_TOLERANCE = 1e-2
"""For the gradient of deep networks in float32: enough to show that the networks are the same."""
UNDISTURBED = 0.95
REPEATS = 4
SECONDS_PER_SESSION = 30.0
"""For one quantity of one case; three rounds at least."""


@dataclass
class Process:
    """A worker: one request, one answer."""

    library: str
    core: int
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "worker.py"), self.library, str(self.core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD | self.environment,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        self.send(do, **request)
        return self.receive()

    def send(self, do: str, **request: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # receive() says so

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": f"the process ended with code {self.process.wait()}"}

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()  # the end of its requests
        self.process.stdout.close()
        self.process.wait()


@dataclass
class Bench:
    """What is measured, how long, and what was found."""

    libraries: list[str]
    core: int
    moment: float
    folder: Path
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def start(self) -> dict[str, Process]:
        """A new process per library; they import while this one does something else."""
        processes = {name: Process(name, self.core) for name in self.libraries if name not in self.absent}
        for process in processes.values():
            process.send("hello")
        return processes

    def greet(self, processes: dict[str, Process]) -> None:
        """Wait for the imports; what is not installed is named and dropped."""
        for name, process in list(processes.items()):
            answer = process.receive()
            if trouble := _trouble(answer):
                self.absent[name] = trouble
                print(f"{name}: left out, {trouble}")
                processes.pop(name).close()
            else:
                self.versions[name] = answer["versions"]

    def stop(self, processes: dict[str, Process]) -> None:
        for process in processes.values():
            process.close()
        processes.clear()

    def session(self, processes: dict[str, Process], record: dict[str, Any], file: Path, rounds: int) -> None:
        """Rounds of all quantities of a case, added to its record."""
        print(f"\n{record['case']['name']}", flush=True)
        present = {}
        for name, process in processes.items():
            if trouble := _trouble(process.ask("load", network=record["case"]["network"], file=str(file))):
                record["left_out"][name] = trouble
                print(f"  {name}: {trouble}")
            else:
                present[name] = process
        for quantity in record["case"]["quantities"]:
            kept = record["quantities"].setdefault(quantity, {"rounds": 0, "libraries": {}})
            turns = list(self.prepare(record["case"]["name"], quantity, present, kept["libraries"]))
            once = sum(max(self.moment, result["seconds"]) for *_, result in turns)
            affordable = int(SECONDS_PER_SESSION / once) if once else 0
            for number in range(max(min(3, rounds), min(rounds, affordable))):
                first = number % len(turns) if turns else 0
                for process, variant, result in turns[first:] + turns[:first]:
                    self.turn(process, quantity, variant, result)
                kept["rounds"] += 1
            _compare(kept)
            _show(quantity, kept)

    def prepare(
        self, case: str, quantity: str, present: dict[str, Process], results: dict[str, Any]
    ) -> Iterator[tuple[Process, str, dict[str, Any]]]:
        """Compile, run once, compare with the reference: process, variant and where its times go."""
        for name, process in present.items():
            answer = process.ask("prepare", quantity=quantity)
            if trouble := _trouble(answer):
                self.complain(f"{case}, {quantity}, {name}: {trouble}")
            for variant, report in answer.get("variants", {}).items():
                if error := _disagreement(quantity, report):
                    self.complain(f"{case}, {quantity}, {name} {variant}: {error}")
                    continue
                new = {"wall": [], "cpu": [], "disturbed": 0}
                result = results.setdefault(name, {}).setdefault(variant, new)
                result.update(report)
                yield process, variant, result

    def turn(self, process: Process, quantity: str, variant: str, result: dict[str, Any]) -> None:
        """One moment; where every attempt was disturbed, the least disturbed."""
        attempts = []
        for _ in range(REPEATS):
            answer = process.ask("time", quantity=quantity, variant=variant, seconds=self.moment)
            if trouble := _trouble(answer):
                self.complain(f"{process.library}, {quantity}, {variant}: {trouble}")
                return
            attempts.append(answer)
            if answer["cpu"] >= UNDISTURBED * answer["wall"]:
                break
        else:
            result["disturbed"] += 1
        chosen = max(attempts, key=lambda answer: answer["cpu"] / answer["wall"])
        result["wall"].append(chosen["wall"])
        result["cpu"].append(chosen["cpu"])

    def memory(self, case: Case, record: dict[str, Any], file: Path) -> None:
        """Peak of a gradient and of a short solve above what the process held, each in a new process."""
        print(f"\n{case.name}: peak memory of a gradient, of a solve of {MEMORY_CAP} products, and their ratio")
        small = self.folder / "small.npz"
        make(case, small, rows=2)
        found = record["memory"] = {}
        for name in (name for name in self.libraries if name not in self.absent):
            peaks: dict[str, float] = {}
            for what in ("gradient", "solve"):
                process = Process(name, self.core, EXACT_MEMORY)
                answer = process.ask("memory", network=case.network, small=str(small), file=str(file), what=what)
                process.close()
                if trouble := _trouble(answer):
                    record["left_out"][name] = trouble
                    print(f"  {name}: {trouble}", flush=True)
                    break
                if not answer.get("error", 0.0) <= MEMORY_TOLERANCE:
                    self.complain(f"{case.name}, {name}: relative error of the gradient {answer['error']:.2g}")
                    break
                peaks[what] = answer["peak"]
            else:
                found[name] = peaks
                ratio = peaks["solve"] / peaks["gradient"]
                print(f"  {name:<22}{peaks['gradient']:8.1f} MiB{peaks['solve']:10.1f} MiB{ratio:8.2f}", flush=True)

    def first(self, record: dict[str, Any], file: Path) -> None:
        """Seconds of the first step (or solve) in a new process, imports done: compilation, plans, lazy imports."""
        print(f"\n{record['case']['name']}: the first step (or solve) in a new process, imports done")
        record["first"] = {}
        for name in (name for name in self.libraries if name not in self.absent | record["left_out"]):
            asked = [q for q in ("step cold", "solve 1e-2") if name in record["quantities"].get(q, {}).get("best", {})]
            if not asked:
                continue
            process = Process(name, self.core)
            process.ask("hello")
            process.ask("load", network=record["case"]["network"], file=str(file))
            variant = record["quantities"][asked[0]]["best"][name]
            answer = process.ask("first", quantity=asked[0], variant=variant)
            process.close()
            if trouble := _trouble(answer):
                self.complain(f"{record['case']['name']}, first {asked[0]}, {name}: {trouble}")
                continue
            record["first"][name] = {"quantity": asked[0], "variant": variant} | answer
            print(f"  {name:<22}{answer['seconds']:8.3f} s   {asked[0]}", flush=True)

    def complain(self, what: str) -> None:
        self.wrong.append(what)
        print(f"  WRONG: {what}", flush=True)


def _compare(kept: dict[str, Any]) -> None:
    """The fastest variant of each library, and its ratio to each of this project's backends, round by round."""
    whole = {
        name: {variant: result for variant, result in variants.items() if len(result["wall"]) == kept["rounds"]}
        for name, variants in kept["libraries"].items()
    }
    kept["best"] = {
        name: min(variants, key=lambda variant: _merit(variants[variant]))
        for name, variants in whole.items()
        if variants
    }
    times = {name: whole[name][variant]["wall"] for name, variant in kept["best"].items()}
    kept["ratios"] = {
        mine: {name: _quartiles([a / b for a, b in zip(times[name], times[mine], strict=True)]) for name in times}
        for mine in OURS
        if mine in times
    }


def _merit(result: dict[str, Any]) -> tuple[bool, float]:
    """Those that found the largest eigenvalue come first, whatever they take."""
    return result.get("eigenpair", 0) > 0, statistics.median(result["wall"])


def _trouble(answer: dict[str, Any]) -> str:
    return next((f"{kind}: {answer[kind]}" for kind in ("missing", "unsupported", "failed") if kind in answer), "")


def _disagreement(quantity: str, report: dict[str, Any]) -> str:
    """What is wrong with a result, compared with the reference."""
    kind, _, detail = quantity.partition(" ")
    if kind == "solve":
        eps = float(detail)
        if not report["residual"] <= 1.1 * eps + 1e-5:
            return f"relative residual {report['residual']:.2g}, asked for {eps:.2g}"
        if not report["error"] <= 2 * eps:
            return f"eigenvalue off by {report['error']:.2g}"
    elif kind in TOLERANCE and not report["error"] <= TOLERANCE[kind]:
        return f"relative error {report['error']:.2g}"
    return ""


def _quartiles(values: Sequence[float]) -> list[float]:
    """Median, first and third quartile."""
    if len(values) == 1:
        return [values[0]] * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [middle, low, high]


def _show(quantity: str, record: dict[str, Any]) -> None:
    mine = next(iter(record["ratios"]), None)
    print(f"  {quantity} ({record['rounds']} rounds" + (f"; ratios to {mine})" if mine else ")"))
    for name, variants in record["libraries"].items():
        for variant, result in variants.items():
            best = variant == record["best"].get(name)
            ratio = "{:6.2f} [{:.2f}, {:.2f}]".format(*record["ratios"][mine][name]) if mine and best else ""
            more = f"{result['products']:4d} products" if "products" in result else ""
            more += f"   residual {result['residual']:.1e}" if "residual" in result else ""
            more += f"   eigenpair {result['eigenpair'] + 1}" if result.get("eigenpair") else ""
            print(
                f"    {name:<20}{variant:<22}{1e6 * statistics.median(result['wall']):>12.1f} us  {ratio:<22}{more}"
                + (f"   disturbed {result['disturbed']}" if result["disturbed"] else ""),
                flush=True,
            )


def environment(core: int) -> dict[str, Any]:
    """What the numbers were measured on; names no machine."""
    code = hashlib.sha256()
    for folder in ("curvature", "regularizers", "benchmarks"):
        for path in sorted((HERE.parent / folder).rglob("*")):
            if path.suffix in (".py", ".cpp"):
                code.update(path.read_bytes())
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "code": code.hexdigest()[:8],
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "pinned": core >= 0,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    pairs = [line.partition(":") for line in lines[:26]]
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    names = [fields.get("model name", platform.processor())]
    names += [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return ", ".join(names)


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=GROUPS, default=[name for name in GROUPS if name != "tiny"])
    parser.add_argument("--library", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--sessions", type=int, help="default: 3")
    parser.add_argument("--rounds", type=int, help="in each session; default: 7 for mlp and cnn, 3 for growth")
    parser.add_argument("--moment", type=float, help="seconds that a library is timed in one round; default: .04")
    parser.add_argument("--quick", action="store_true", help="1 session, 5 rounds, .02 s")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args(command)
    sessions = arguments.sessions or (1 if arguments.quick else 3)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    core = cores[-1] if cores else -1
    about = {"environment": environment(core), "sessions": sessions}

    def rounds(group: str) -> int:
        return arguments.rounds or (5 if arguments.quick else 7 if group in MAIN else 3)

    with tempfile.TemporaryDirectory() as scratch:
        moment = arguments.moment or (0.02 if arguments.quick else 0.04)
        bench = Bench(arguments.library, core, moment, Path(scratch))
        records = measure(bench, arguments.case, sessions, rounds)
    about |= {"moment": moment, "versions": bench.versions, "absent": bench.absent, "wrong": bench.wrong}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for group, cases in records.items():
        _write(arguments.out / f"{group}.json", about | {"cases": cases})
    if bench.wrong:
        sys.exit("wrong results, not timed:\n" + "\n".join(bench.wrong))


def measure(
    bench: Bench, groups: Sequence[str], sessions: int, rounds: Callable[[str], int]
) -> dict[str, list[dict[str, Any]]]:
    """All sessions, then what takes a process of its own: a record per case."""
    processes = bench.start()
    cases = [
        (group, case, bench.folder / f"{group}-{i}.npz") for group in groups for i, case in enumerate(GROUPS[group])
    ]
    records = [{"case": asdict(case) | make(case, file), "quantities": {}, "left_out": {}} for _, case, file in cases]
    bench.greet(processes)
    for number in range(sessions):
        print(f"\nsession {number + 1} of {sessions}")
        if number:
            processes = bench.start()
            bench.greet(processes)
        for (group, case, file), record in zip(cases, records, strict=True):
            if case.quantities != MEMORY:
                bench.session(processes, record, file, rounds(group))
        bench.stop(processes)
    for (group, case, file), record in zip(cases, records, strict=True):
        if case.quantities == MEMORY:
            bench.memory(case, record, file)
        elif group in MAIN:
            bench.first(record, file)
    found: dict[str, list[dict[str, Any]]] = {}
    for (group, _, _), record in zip(cases, records, strict=True):
        found.setdefault(group, []).append(record)
    return found


def _write(file: Path, result: dict[str, Any]) -> None:
    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items()}
        return [short(item) for item in value] if isinstance(value, list | tuple) else value

    temporary = file.with_suffix(".part")
    text = json.dumps(short(result), indent=1)
    text = re.sub(r"\[[-+.\de,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text)  # a list of numbers, a line
    temporary.write_text(text + "\n")
    temporary.replace(file)


if __name__ == "__main__":
    main()
