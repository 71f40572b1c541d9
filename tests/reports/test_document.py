"""Documents as CSV, Markdown and LaTeX: full numbers, bold cells, signs that mean something, the same bytes again."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from spectral_run.reports.about import gaps
from spectral_run.reports.document import Document, FigureOut, TableOut, about, csv, latex, markdown, spans, write
from spectral_run.reports.sweeps import Cell, Sweep


def a_table(name: str = "scores", **more: object) -> TableOut:
    frame = pd.DataFrame({"model": ["none", "mu0.01_K1"], "rho": [0.1 + 0.2, 1e-17], "shift": [-0.5, np.nan]})
    shown = pd.DataFrame({"model": ["none", "mu0.01_K1"], "ρ": ["0.3 ± 0.1", "<1|2"], "shift": ["-0.5%", "n/a"]})
    given = {"caption": "Scores & more", "frame": frame, "shown": shown, "bold": frozenset({(1, 1)})} | more
    return TableOut(name=name, **given)


def a_figure(name: str = "curve") -> FigureOut:
    figure = Figure(figsize=(2, 1.5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1, 2], [2, 1, 0])
    axis.set_xlabel("epoch")
    return FigureOut(name, "A line.", figure, "One line that falls.")


def a_sweep(make) -> Sweep:
    done = make.result(
        device="cpu",
        threads=1,
        versions={"torch": "2.15.0"},
        data={"name": "digits", "rows": {"train": 1151, "test": 359}, "sha256": "cd" * 32, "official": False},
    )
    cells = [
        Cell({"method": "none", "seed": "0"}, "done", "a", done),
        Cell({"method": "none", "seed": "1"}, "done", "b", done | {"seed": 1, "versions": {"torch": "2.14.0"}}),
        Cell({"method": "kfac", "seed": "0"}, "failed", "c", make.failed()),
        Cell({"method": "kfac", "seed": "1"}, "missing", None, None),
    ]
    return Sweep("table2", "small", Path("results/paper_small/sweeps/1"), tuple(cells))


def test_csv_has_every_digit():
    read = pd.read_csv(io.StringIO(csv(a_table())))
    pd.testing.assert_frame_equal(read, a_table().frame, check_exact=True)


def test_an_index_that_says_something_is_the_first_column():
    named = a_table(shown=pd.DataFrame({"rho": ["1", "2"]}, index=["none", "kfac"]), bold=frozenset({(1, 0)}))
    assert named.grid.titles == ["", "rho"]
    assert named.grid.rows == [["none", "1"], ["kfac", "2"]]
    assert named.grid.bold == {(1, 1)}


@pytest.mark.parametrize(
    ("cells", "right"),
    [
        (["1", "missing"], True),
        (["11.9 ± 1.7", "failed/missing"], True),
        (["not run", "1"], True),
        (["1", "kfac"], False),
    ],
)
def test_a_column_of_numbers_stays_one_where_some_are_missing(cells: list[str], right: bool):
    shown = pd.DataFrame({"model": ["none", "kfac"], "rho": cells})
    assert a_table(shown=shown, bold=frozenset()).grid.right == [False, right]


def test_markdown_sets_bold_cells_and_no_sign_breaks_the_table():
    head, rule, *rows = markdown(a_table()).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["model", "ρ", "shift"]
    assert rule.count("|") == 4
    assert rule.endswith("-:|")  # numbers to the right
    assert [cell.strip() for cell in rows[0].strip("|").split("|")] == ["none", "0.3 ± 0.1", "-0.5%"]
    assert "| **&lt;1\\|2** |" in rows[1]


def test_latex_is_a_table_of_booktabs_with_every_sign_escaped():
    text = latex(a_table())
    for line in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{Scores \& more}", r"\label{tab:scores}"):
        assert text.count(line) == 1
    assert r"\begin{tabular}{lrr}" in text
    assert r"none & 0.3 $\pm$ 0.1 & $-$0.5\% \\" in text
    assert r"mu0.01\_K1 & \bfseries $<$1$|$2 & n/a \\" in text
    assert text.startswith("\\begin{table}")
    assert text.endswith("\\end{table}\n")


def test_long_texts_break_their_lines_in_latex():
    claim = "regularized models lose less accuracy under covariate shift than others do"
    text = latex(a_table(shown=pd.DataFrame({"claim": [claim], "n": ["3"]}), bold=frozenset()))
    assert r"\begin{tabular}{p{0.89\linewidth}r}" in text


def test_minus_and_hyphen_are_told_apart_in_latex():
    text = latex(a_table(caption="Grad-CAM on `a_b-1`, K-1"))
    assert r"\caption{Grad-CAM on \texttt{a\_b-1}, K-1}" in text


def test_code_needs_both_its_marks():
    assert spans("type `make x` now") == [("type ", False), ("make x", True), (" now", False)]
    assert spans("5` wide") == [("5` wide", False)]


def test_all_files_are_written_in_order_and_the_same_again(tmp_path, make):
    document = Document("table2", "A report", ("Text with `code`.",), (a_table(), a_figure()), (a_sweep(make),))
    first = write(document, tmp_path / "new" / "a")
    names = ["scores.csv", "scores.md", "scores.tex", "curve.png", "curve.pdf", "table2.md", "table2.html"]
    assert [path.name for path in first] == names
    assert sorted(path.name for path in (tmp_path / "new" / "a").iterdir()) == sorted(names)
    for path, again in zip(first, write(document, tmp_path / "b"), strict=True):  # the figure was drawn before
        assert path.read_bytes() == again.read_bytes(), path.name


def test_the_whole_has_gaps_first_then_text_and_parts_in_order(tmp_path, make):
    sweep = a_sweep(make)
    document = Document("all", "A *report*", ("Text.", *about([sweep])), (a_figure(), a_table()), (sweep,))
    write(document, tmp_path)
    text = (tmp_path / "all.md").read_text()
    expected = ["# A \\*report\\*", "> Not in the numbers of table2, 2 of 4 cells:", "Text.", "Data:",
                "![One line that falls.](curve.png)", "**scores.** Scores &amp; more", "**&lt;1\\|2**"]  # fmt: skip
    places = [text.index(piece) for piece in expected]
    assert places == sorted(places)
    assert text.count("Not in the numbers") == 1


def test_a_table_with_the_documents_name_leaves_it_its_markdown(tmp_path):
    write(Document("table2", "Title", (), (a_table("table2"),)), tmp_path)
    assert (tmp_path / "table2.md").read_text().startswith("# Title")
    assert (tmp_path / "table2.csv").exists()


def test_about_says_what_the_results_say(make):
    assert about([a_sweep(make)]) == (
        "Runs: table2 at scale small, 4 cells, 2 done, 1 failed, 1 missing.",
        "Data: digits (1,151 train, 359 test rows), sha256 `cdcdcdcdcdcd`, not the official release.",
        "Seeds: 0, 1.",
        "Device: cpu, 1 thread.",
        "Versions: torch 2.14.0 and 2.15.0.",
        "Not in the numbers of table2, 2 of 4 cells: method=kfac seed=0 (failed: it failed); "
        "method=kfac seed=1 (missing).",
    )


def test_about_a_sweep_without_results():
    sweep = Sweep("x", "", Path("s"), (Cell({}, "missing", None, None),))
    assert about([sweep]) == ("Runs: x, 1 cell, 1 missing.", "Not in the numbers of x, 1 of 1 cell: the run (missing).")


def test_a_cell_is_called_by_what_sets_it_apart():
    cells = [Cell({"data": "x", "seed": str(seed)}, "missing", None, None) for seed in range(2)]
    assert gaps([Sweep("x", "", Path("s"), tuple(cells))]) == (
        "Not in the numbers of x, 2 of 2 cells: seed=0 (missing); seed=1 (missing).",
    )


def test_refusals():
    with pytest.raises(ValueError, match=r"bold cells must be among 2 x 3, got \(0, 3\)"):
        a_table(bold=frozenset({(0, 3)}))
    with pytest.raises(ValueError, match="TableOut: name must be the name of a file"):
        a_table("a/b")
    with pytest.raises(ValueError, match="each TableOut needs a name of its own, got"):
        Document("d", "t", (), (a_table(), a_table()))
    with pytest.raises(ValueError, match="alt must say what is to be seen"):
        FigureOut("f", "", Figure(), " ")
