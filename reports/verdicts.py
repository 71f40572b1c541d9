"""The report ``verdicts``: the paper's claims, what decides each, how it came out, and on which data.

The rules are in ``claims`` and ``evidence``.  Beside the verdicts: every single test, what of rho is left at equal
training loss and in units of the parameters (``equal_loss``), and where the time went.  Costs a second or two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from spectral_run.reports.claim_tests import shares, solver_of
from spectral_run.reports.claims import CLAIMS, COVTYPE, SMOKE, USPS, Claim
from spectral_run.reports.document import Document, TableOut, about
from spectral_run.reports.equal_loss import changes, factors_of_mean, gap_correlations, numbers, ratios
from spectral_run.reports.evidence import (
    ALPHA,
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    UNTESTED,
    Evidence,
    Judgement,
    holm,
    judge,
    over_seeds,
)
from spectral_run.reports.findings import Findings, called
from spectral_run.reports.seeds import models

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Sweep

OUTCOMES: Final = (SUPPORTED, CONTRADICTED, UNDECIDED, UNTESTED)
_REASONS = 3  # that a cell shows; the CSV has all


@dataclass(frozen=True)
class Verdict:
    """A claim with what was found; ``p`` is Holm's, over all claims that were tested."""

    claim: Claim
    findings: Findings
    judgement: Judgement
    p: float
    data: str


def verdicts(sweeps: Mapping[str, Sweep]) -> Document:
    """The report of the sweeps that are there, by experiment; what is missing is not tested."""
    judged = judge_all(sweeps)
    used = tuple(sweep for name, sweep in sweeps.items() if any(name in claim.experiments for claim in CLAIMS))
    meant = {name: sweep for name, sweep in sweeps.items() if sweep.scale != SMOKE}
    gap = gap_correlations(meant["figure2"]) if "figure2" in meant else pd.DataFrame()
    parts = [_verdict_table(judged), *_test_table(judged), *_loss_tables(meant, gap), *_share_table(meant)]
    text = (*_summary(judged), *_losses(meant, gap), *about(used))
    return Document("verdicts", "The paper's claims, judged", text, tuple(parts), used)


def judge_all(sweeps: Mapping[str, Sweep]) -> list[Verdict]:
    """Every claim, in the paper's order."""
    found = [(claim, claim.tried(sweeps)) for claim in CLAIMS]
    outcomes = [judge(findings.tests, findings.missing) for _, findings in found]
    adjusted = holm([outcome.p for outcome in outcomes])
    return [
        Verdict(claim, findings, outcome, p, _data([sweeps[name] for name in claim.experiments if name in sweeps]))
        for (claim, findings), outcome, p in zip(found, outcomes, adjusted, strict=True)
    ]


def _summary(judged: Sequence[Verdict]) -> tuple[str, ...]:
    outcomes = [verdict.judgement.outcome for verdict in judged]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in OUTCOMES)
    tested = [verdict for verdict in judged if verdict.judgement.outcome != UNTESTED]
    supported = [verdict for verdict in tested if verdict.judgement.outcome == SUPPORTED]
    kept = [verdict.claim.key for verdict in supported if verdict.p <= ALPHA]
    gone = [verdict.claim.key for verdict in supported if not verdict.p <= ALPHA]
    paragraphs = [
        f"{len(judged)} claims: {counts}.",
        "Supported: the 95% interval of every test that the claim needs leaves out no effect on the claim's side, and "
        "no model that it favours diverged, hardly learned or is missing (trends over models go without such runs, and "
        "name them). Contradicted: an interval leaves out no effect on "
        "the other side (of several tests corrected for their number, Bonferroni). Not decided: neither. Not tested "
        "here: no sweep, or too few runs for an interval. The rules were written before the sweeps of the paper's "
        "experiments were looked at (`docs/results/baselines.md` was known). A claim without any effect comes "
        f"out as supported in at most about {ALPHA:.1%} of made samples (`reports/evidence.py`).",
    ]
    if tested:
        left = f"still supported then: {', '.join(kept)}" if kept else "none is supported then"
        lost = f"; not any more: {', '.join(gone)}" if gone else ""
        holds = f"{left}{lost}." if supported else "none is supported."
        paragraphs.append(
            f"{len(tested)} claims were tested at once. Where Holm's adjusted p is at most {ALPHA}, that is also the "
            f'probability that any "supported" among them is wrong: {holds}'
        )
    return tuple(paragraphs)


def _losses(sweeps: Mapping[str, Sweep], gap: pd.DataFrame) -> tuple[str, ...]:
    sentences = list(changes(gap))
    for name, ours in (("table2", COVTYPE), ("figure1", USPS)):
        found = factors_of_mean(sweeps[name], ours) if name in sweeps else {}
        said = ", ".join(
            f"{measure} {_number(math.exp(test.value))} [{_number(math.exp(test.low))}, {_number(math.exp(test.high))}]"
            for measure, test in found.items()
        )
        if said:
            sentences.append(f"{name}: the regularized models' geometric mean over the unregularized model's: {said}.")
    if not sentences:
        return ()
    return (
        "Cross-entropy's Hessian shrinks with the loss, and rho changes with the scale of the weights; so here is rho "
        "at equal training loss, and times the squared norm of the parameters. " + " ".join(sentences),
    )


def _verdict_table(judged: Sequence[Verdict]) -> TableOut:
    frame, shown, bold = [], [], set()
    for row, verdict in enumerate(judged):
        test, outcome = verdict.judgement.decisive, verdict.judgement.outcome
        missing = [*verdict.findings.missing, *verdict.findings.remarks]
        claim = verdict.claim
        frame.append(
            {"name": claim.key, "section": claim.section, "says": claim.says, "rule": claim.rule, "outcome": outcome}
            | (
                {"decisive": test.what, "null": test.null, "p_one_sided": verdict.judgement.p} | numbers(test)
                if test
                else {}
            )
            | {
                "p_holm": verdict.p,
                "tests": len(verdict.findings.tests),
                "data": verdict.data,
                "remarks": "; ".join(missing),
            }
        )
        shown.append(
            {
                "name": claim.key,
                "claim": claim.says,
                "section": claim.section,
                "supported if": claim.rule,
                "outcome": outcome,
                "decided by": _decided(test) if test else "",
                "p (Holm)": "" if math.isnan(verdict.p) else _p(verdict.p),
                "tried on": verdict.data,
                "missing, left out": _few(missing),
            }
        )
        if outcome in (SUPPORTED, CONTRADICTED):
            bold.add((row, list(shown[-1]).index("outcome")))
    caption = (
        "The paper's claims. Decided by: of all tests of a claim the weakest, or the one that contradicts it, with its "
        "95% interval (accuracies and shares are fractions, logarithms natural); p is one-sided, small where it speaks "
        "for the claim, by Holm's method over the claims tested."
    )
    return TableOut("verdicts", caption, pd.DataFrame(frame), pd.DataFrame(shown), frozenset(bold))


def _test_table(judged: Sequence[Verdict]) -> list[TableOut]:
    frame, shown = [], []
    for verdict in judged:
        for test in verdict.findings.tests:
            about_test = {"name": verdict.claim.key, "test": test.what}
            frame.append(
                about_test
                | {"null": test.null, "side": test.sign, "p_one_sided": test.p, "method": test.method}
                | numbers(test)
            )
            shown.append(
                about_test
                | {
                    "value [95% interval]": _valued(test),
                    "claimed": f"{'above' if test.sign > 0 else 'below'} {_number(test.null)}",
                    "p": _p(test.p),
                    "n": f"{test.n} {test.of}",
                    "method": test.method,
                }
            )
    caption = (
        "Every test; p one-sided and of this test alone. Accuracies and shares are fractions, rho natural logarithms."
    )
    return [TableOut("verdict_tests", caption, pd.DataFrame(frame), pd.DataFrame(shown))] if shown else []


def _loss_tables(sweeps: Mapping[str, Sweep], gap: pd.DataFrame) -> list[TableOut]:
    tables = []
    if len(gap):
        shown = gap[["test", "log of"]].assign(
            given=["training loss" if equal else "" for equal in gap["at equal training loss"]],
            correlation=[
                f"{v:.2f} [{a:.2f}, {b:.2f}]"
                for v, a, b in zip(gap["value"], gap["ci_low"], gap["ci_high"], strict=True)
            ],
            n=gap["n"].astype(str),
        )
        caption = "Correlation of the gap's size with the log of rho and what stands beside it, over figure 2's models."
        tables.append(TableOut("verdict_equal_loss", caption, gap, shown))
    for name in ("table2", "figure1"):
        found = ratios(sweeps[name]) if name in sweeps else pd.DataFrame()
        if len(found):
            tables.append(
                TableOut(
                    f"verdict_rho_{name}",
                    f"rho over training loss, and times the squared norm of the parameters, of the models of {name}: "
                    "geometric mean over seeds; in brackets, where it has an interval, the factor over the "
                    "unregularized model.",
                    found,
                    _wide(found),
                )
            )
    return tables


def _wide(found: pd.DataFrame) -> pd.DataFrame:
    rows: dict[str, dict[str, str]] = {}
    for row in found.to_dict("records"):
        low, high = row.get("ci_low", math.nan), row.get("ci_high", math.nan)
        times = f" ({_number(row['factor'])} [{_number(low)}, {_number(high)}])" if math.isfinite(low) else ""
        rows.setdefault(str(row["model"]), {})[str(row["measure"])] = f"{_number(row['mean'])}{times}"
    wide = pd.DataFrame.from_dict(rows, orient="index").fillna("n/a")
    return wide.reset_index(names="model")


def _share_table(sweeps: Mapping[str, Sweep]) -> list[TableOut]:
    """Of each model whose penalty has a solver: the phases' shares over seeds."""
    frame, shown = [], []
    for name in ("figure5", "table2", "figure1"):
        for model in models(sweeps[name]) if name in sweeps else []:
            by_seed = {seed: shares(result) for seed, result in model.results.items()}
            if not any(found.get("eigensolver", 0) > 0 for found in by_seed.values()):
                continue
            solver = next(map(solver_of, model.results.values()))
            cells = {"sweep": name, "model": called(model), "solver": solver}
            for phase in dict.fromkeys(phase for found in by_seed.values() for phase in found):
                values = {seed: found[phase] for seed, found in by_seed.items() if phase in found}
                test = over_seeds(phase, values)
                mean = sum(values.values()) / len(values)
                frame.append(
                    cells
                    | {"phase": phase}
                    | (numbers(test) if test else {"value": mean, "n": len(values), "of": "seeds"})
                )
            shown.append(
                cells
                | {
                    row["phase"]: _percent(row)
                    for row in frame
                    if row["sweep"] == name and row["model"] == called(model)
                }
            )
    caption = "Shares of the seconds of training, evaluation apart; mean over seeds, 95% interval (Student's t)."
    return [TableOut("verdict_time", caption, pd.DataFrame(frame), pd.DataFrame(shown).fillna(""))] if shown else []


def _percent(row: Mapping[str, object]) -> str:
    value, low, high = (float(str(row.get(key, "nan"))) for key in ("value", "ci_low", "ci_high"))
    return f"{value:.0%}" + (f" [{low:.0%}, {high:.0%}]" if math.isfinite(low) else "")


def _data(sweeps: Sequence[Sweep]) -> str:
    """What a claim was tried on, from the results themselves."""
    told = []
    for sweep in sweeps:
        results = [cell.result for cell in sweep.cells if cell.status == "done" and cell.result is not None]
        if not results:
            told.append(f"{sweep.experiment}: nothing done")
            continue
        data = dict.fromkeys(
            f"{d.get('name')} {sum((d.get('rows') or {}).values()):,} rows{_pixels(result)} "
            f"(sha256 {str(d.get('sha256'))[:8]})"
            for result, d in ((result, result.get("data") or {}) for result in results)
        )
        seeds = ", ".join(map(str, sorted({int(result.get("seed", 0)) for result in results})))
        done = (
            f"{len(results)} of {len(sweep.cells)} runs" if len(results) < len(sweep.cells) else f"{len(results)} runs"
        )
        scale = f", scale {sweep.scale}" if sweep.scale else ""
        told.append(f"{sweep.experiment}: {' and '.join(data)}, {done}, seed{'s' * (', ' in seeds)} {seeds}{scale}")
    return "; ".join(told)


def _pixels(result: Mapping[str, Any]) -> str:
    """Of X-rays, which the paper has at 224 and a CPU at 64."""
    side = ((result.get("config") or {}).get("dataset") or {}).get("crop")
    return f" of {side}x{side} pixels" if side else ""


def _decided(test: Evidence) -> str:
    return f"{test.what}: {_valued(test)} ({test.n} {test.of})"


def _valued(test: Evidence) -> str:
    if math.isnan(test.low):
        return f"{_number(test.value)} (all equal: no interval)"
    return f"{_number(test.value)} [{_number(test.low)}, {_number(test.high)}]"


def _few(reasons: Sequence[str]) -> str:
    more = f"; and {len(reasons) - _REASONS} more" if len(reasons) > _REASONS else ""
    return "; ".join(reasons[:_REASONS]) + more


def _number(value: float) -> str:
    return f"{value:.3g}".replace("e-0", "e-")


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")
