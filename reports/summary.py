"""What a person gets at the end of a command: a table on the terminal and in files, and the figures beside it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from spectral_run.reports.collect import LABEL, STATUS, read_results, table
from spectral_run.reports.figures import gap_against_rho, save, training_curves
from spectral_run.reports.tables import legend, markdown, print_summary, summary
from spectral_run.runner.files import write_whole


def summarize(folders: list[Path], destination: Path) -> None:
    """Write ``table.csv``, ``table.md`` and figures over the runs to ``destination``, and print the table."""
    results = read_results(folders)
    console = Console(highlight=False, markup=False, emoji=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)  # a path stays in one piece

    if results:
        frame = table(results)
        text, signs = summary(frame), legend(frame)
        models = frame[LABEL].nunique()
        title = f"{len(frame)} run{'s' * (len(frame) > 1)} of {models} model{'s' * (models > 1)}"
        if len(frame) > 1:
            say(title)
        print_summary(text, console)
        if signs:
            say(signs)
        destination.mkdir(parents=True, exist_ok=True)
        write_whole(destination / "table.csv", frame.to_csv(index=False).encode())
        caption = ". ".join(part[0].upper() + part[1:] for part in (title, signs) if part)
        write_whole(destination / "table.md", f"{caption}.\n\n{markdown(text)}".encode())
        for status, folder, error in zip(
            frame[STATUS], frame["folder"], (str(r.get("error") or "") for r in results), strict=True
        ):
            if status != "done":
                say(f"{status}: {folder}{': ' * bool(error)}{error.partition(chr(10))[0]}")
    known = {result["folder"] for result in results}
    for folder in dict.fromkeys(folders):
        if str(folder) not in known:
            say(f"no result: {folder}")
    for name, figure in (("training_curves", training_curves(results)), ("gap_against_rho", gap_against_rho(results))):
        if figure is not None:
            save(figure, destination / f"{name}.png")
            say(f"figure   {destination / name}.png")
    say(f"results  {destination}")
