"""What a person gets at the end of a command: a table on the terminal and in files, and the figures beside it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from spectral_run.reports.collect import read_results, table
from spectral_run.reports.figures import gap_against_rho, training_curves
from spectral_run.reports.tables import print_summary, summary


def summarize(folders: list[Path], destination: Path) -> None:
    """Write ``table.csv``, ``table.md`` and figures over the runs to ``destination``, and print the table."""
    results = read_results(folders)
    console = Console()
    if not results:
        console.print("no run has a result.")
        return
    frame = table(results)
    text = summary(frame)
    frame.to_csv(destination / "table.csv", index=False)
    (destination / "table.md").write_text(text.T.to_markdown(disable_numparse=True) + "\n")
    print_summary(text, f"{len(results)} runs" if len(results) > 1 else results[0]["folder"], console)
    drawn = [result for result in results if result["status"] == "done"]
    figures = []
    if drawn:
        figures = [training_curves(drawn, destination / "training_curves.png")]
        figures.append(gap_against_rho(drawn, destination / "gap_against_rho.png"))
    for result in results:
        if result["status"] != "done":
            console.print(f"{result['status']}: {result['folder']}: {result.get('error', '')}", markup=False)
    for path in filter(None, figures):
        console.print(f"figure   {path}", highlight=False, soft_wrap=True)
    console.print(f"results  {destination}", highlight=False, soft_wrap=True)
