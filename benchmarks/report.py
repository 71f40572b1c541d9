"""Write the tables of docs/speed.md from benchmarks/results/*.json, between their markers.

usage: python benchmarks/report.py [--results DIR] [--docs FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from worker import LIBRARIES, OURS

HERE = Path(__file__).parent
BEGIN, END = "<!-- begin: written by benchmarks/report.py -->", "<!-- end -->"
MAIN = ("mlp", "cnn")
TITLES = {
    "product": "A product `Hv`, what products share being done",
    "primal": "What products share, once per batch",
    "gradient": "A gradient of the loss",
    "quadratic": "A gradient of `v'Hv`",
    "solve 1e-2": "A converged solve, relative residual 1e-2",
    "solve 1e-3": "A converged solve, relative residual 1e-3",
    "step cold": "A regularized step from a random start vector",
    "step warm": "A regularized step from the last step's vector",
}
ABSENT = {"primal": "in every product", "gradient": "PyTorch's own"}
GROWTH = {
    "mlp-width": "Three hidden layers of this width, batch 128",
    "mlp-depth": "This many hidden layers of 20, batch 128",
    "mlp-batch": "MLP 54-20-20-20-7 at this batch size",
    "cnn-batch": "USPS CNN at this batch size",
}
Row = Sequence[str]


def seconds(value: float) -> str:
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if value * factor < 1000:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s"


def number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ratio(quartiles: Sequence[float]) -> str:
    middle, low, high = quartiles
    if low == middle == high == 1.0:
        return "1"
    return f"{number(middle)} [{number(low)}, {number(high)}]"


def table(header: Row, rows: Sequence[Row]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def label(name: str) -> str:
    return f"**{name}**" if name in OURS else name


def unit(record: dict[str, Any]) -> str:
    """The backend that ratios are taken to: the first one there is."""
    return next(iter(record["ratios"]), "")


OTHER = "†"


def mark(result: dict[str, Any]) -> str:
    return f" {OTHER}" if result.get("eigenpair") else ""


def timed(record: dict[str, Any], name: str) -> tuple[str, str] | None:
    """Ratio and median time of a library's fastest variant."""
    if name not in record["best"]:
        return None
    best = record["libraries"][name][record["best"][name]]
    mine = unit(record)
    quartiles = record["ratios"].get(mine, {}).get(name)
    if quartiles and mark(best) != mark(record["libraries"][mine][record["best"][mine]]):
        return "not the same eigenpair", seconds(statistics.median(best["wall"]))
    return ratio(quartiles) if quartiles else "", seconds(statistics.median(best["wall"]))


def quantity_table(quantity: str, cases: Sequence[dict[str, Any]], libraries: Sequence[str]) -> Iterator[str]:
    records = [case["quantities"][quantity] for case in cases]
    solves = quantity.startswith(("solve", "step"))
    header = ["library"]
    for case, record in zip(cases, records, strict=True):
        header += [f"{case['case']['name'].split(',')[0]}: ratio to {unit(record)}", "time", "how"]
        header += ["products"] if solves else []
        header += ["residual"] if quantity.startswith("solve") else []
    width = (len(header) - 1) // len(cases)
    rows = []
    for name in libraries:
        row = [label(name)]
        for record in records:
            found = timed(record, name)
            if found is None:
                row += [ABSENT.get(quantity, "none"), *[""] * (width - 1)]
                continue
            result = record["libraries"][name][record["best"][name]]
            row += [*found, record["best"][name] + mark(result)]
            row += [str(result["products"])] if solves else []
            row += [f"{result['residual']:.1e}"] if quantity.startswith("solve") else []
        rows.append(row)
    yield f"### {TITLES[quantity]}\n"
    yield from table(header, rows)


def growth_table(quantity: str, cases: Sequence[dict[str, Any]], libraries: Sequence[str]) -> Iterator[str]:
    rows = []
    for name in libraries:
        row = [label(name)]
        for case in cases:
            found = timed(case["quantities"][quantity], name)
            if found is None:
                row.append("")
                continue
            record = case["quantities"][quantity]
            result = record["libraries"][name][record["best"][name]]
            row.append(f"{found[0].partition(' [')[0]} ({found[1]}){mark(result)}")
        if any(row[1:]):
            rows.append(row)
    to = unit(cases[0]["quantities"][quantity])
    yield f"{TITLES[quantity]}: ratio to {to} (time)\n"
    yield from table(["library", *[case["case"]["name"] for case in cases]], rows)


def memory_table(case: dict[str, Any], libraries: Sequence[str]) -> Iterator[str]:
    plain = case["memory"].get("kept graph", {}).get("gradient")
    rows = []
    for name in libraries:
        peaks = case["memory"].get(name)
        if peaks is None:
            reason = case["left_out"].get(name, "").partition(": ")[2]
            rows.append([label(name), reason or "none", "", "", ""])
            continue
        over = number(peaks["solve"] / plain) if plain else ""
        own = number(peaks["solve"] / peaks["gradient"])
        rows.append([label(name), over, own, f"{peaks['solve']:.0f} MiB", f"{peaks['gradient']:.0f} MiB"])
    yield f"### {case['case']['name']}\n"
    yield from table(
        ["library", "solve / PyTorch's plain gradient", "solve / its own gradient", "solve", "gradient"], rows
    )


def first_results(cases: Sequence[dict[str, Any]], libraries: Sequence[str]) -> Iterator[str]:
    rows = []
    for name in libraries:
        found = [case.get("first", {}).get(name) for case in cases]
        rows.append([label(name), *[f"{seconds(f['seconds'])} ({f['quantity']})" if f else "" for f in found]])
    yield from table(["library", *[case["case"]["name"].split(",")[0] for case in cases]], rows)


def accuracy(cases: Sequence[dict[str, Any]], libraries: Sequence[str]) -> Iterator[str]:
    chosen = {"product": "Hv", "quadratic": "gradient of v'Hv", "step cold": "step"}
    header = ["library", *[f"{case['case']['name'].split(',')[0]}: {t}" for case in cases for t in chosen.values()]]
    rows = []
    for name in libraries:
        row = [label(name)]
        for case in cases:
            for quantity in chosen:
                variants = case["quantities"][quantity]["libraries"].get(name, {}).values()
                row.append(f"{max(result['error'] for result in variants):.0e}" if variants else "")
        rows.append(row)
    yield from table(header, rows)


def tables(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    some = next(iter(results.values()))
    seen = {name for result in results.values() for name in result["versions"]}
    libraries = [name for name in LIBRARIES if name in seen]
    versions = {
        package: v
        for result in results.values()
        for found in result["versions"].values()
        for package, v in found.items()
    }
    where = some["environment"]
    dates = sorted({result["environment"]["date"] for result in results.values()})
    codes = sorted({result["environment"]["code"] for result in results.values()})
    yield (
        f"{', '.join(dates)}, {where['processor']}, one thread on one of {where['cores']} cores, "
        f"Python {where['python']}, "
        + ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
        + f"; code {', '.join(codes)} (a hash of `curvature/`, `regularizers/`, `benchmarks/`)"
        + (f" at commit {where['commit']}" if where["commit"] else "")
        + f". Sessions: {some['sessions']}.\n"
    )
    missing = {name: why for result in results.values() for name, why in result["absent"].items()}
    for name, why in missing.items():
        yield f"Left out: {name} ({why}).\n"
    main = [case for group in MAIN if group in results for case in results[group]["cases"]]
    if main:
        yield "## Products, solves, steps\n"
        for case in (case["case"] for case in main):
            values = ", ".join(f"{value:.3g}" for value in case["largest eigenvalues"])
            yield (
                f"- {case['name']}: {case['parameters']:,} parameters, after {case['steps']} steps of Adam; "
                f"largest eigenvalues {values}"
            )
        yield ""
        for quantity in TITLES:
            yield from quantity_table(quantity, main, libraries)
        yield "### The first step (or solve) in a new process: compilation, plans, imports on demand\n"
        yield from first_results(main, libraries)
        yield "### Relative error against float64\n"
        yield from accuracy(main, libraries)
    if any(group in results for group in GROWTH):
        yield "## Growth\n"
    for group, title in GROWTH.items():
        if group in results:
            yield f"### {title}\n"
            cases = results[group]["cases"]
            for quantity in cases[0]["quantities"]:
                yield from growth_table(quantity, cases, libraries)
    if "memory" in results:
        yield "## Memory\n"
        for case in results["memory"]["cases"]:
            yield from memory_table(case, libraries)


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs" / "speed.md")
    arguments = parser.parse_args(command)
    groups = (*MAIN, *GROWTH, "memory")
    files = {group: arguments.results / f"{group}.json" for group in groups}
    results = {group: json.loads(file.read_text()) for group, file in files.items() if file.exists()}
    if not results:
        raise SystemExit(f"report: no results in {arguments.results}; run 'make bench'.")
    text = arguments.docs.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"report: {arguments.docs} lacks the markers {BEGIN} and {END}.")
    written = "\n".join(tables(results)).rstrip()
    arguments.docs.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}")


if __name__ == "__main__":
    main()
