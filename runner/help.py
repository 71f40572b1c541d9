"""``spectral-run --help``: every choice with its one line, read from the conf files. Imports next to nothing."""

from __future__ import annotations

from pathlib import Path

_USAGE = """\
spectral-run: train networks whose loss Hessian has a small spectral radius, and test whether they generalize.

  spectral-run                                             one regularized run on the bundled digits
  spectral-run dataset=usps regularizer=none seed=1        choices and settings are overrides
  spectral-run --multirun regularizer.mu=0.001,0.005 'seed=range(3)' hydra/launcher=parallel
  spectral-run experiment=quickstart                       a stored sweep
  spectral-run run_dir=FOLDER generalization=[spectrum]    measure a finished run, without training
  spectral-run run_dir='results/**' generalization=usps    every finished run below a folder, in one table
  spectral-run report=table2 scale=small                   a table of the paper again, from the runs that are there
  spectral-run ... --cfg job                               print the composed configuration
  spectral-run ... validate=true                           compose and check everything, run nothing
  spectral-run --config-dir mine model=net                 with your own conf files in mine/model/net.yaml

Exit codes: 0 done, 1 failed, 2 bad configuration. A finished run is skipped, a broken-off one goes on where it was.
"""


def help_text(folders: list[Path]) -> str:
    """Usage, every group with its choices, and the settings of ``config.yaml``."""
    parts = [_USAGE]
    groups: dict[str, dict[str, str]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            group = path.parent.relative_to(folder).as_posix()
            if group != "." and not group.startswith("scale/"):  # what a scale does inside: nothing to choose
                groups.setdefault(group, {})[path.stem] = describe(path)
    for group, choices in sorted(groups.items()):
        width = max(map(len, choices))
        parts.append(f"{group}=")
        parts += [f"  {choice:<{width}}  {line}" for choice, line in sorted(choices.items())]
        parts.append("")
    parts.append("Settings and their defaults")
    text = (Path(__file__).parent.parent / "conf" / "config.yaml").read_text()
    shown = text[text.index("\nname:") : text.index("\nhydra:")].strip()
    parts += [f"  {line}" if line else "" for line in shown.splitlines()]
    return "\n".join(parts) + "\n"


def describe(path: Path) -> str:
    """The first comment of a conf file that is no package line."""
    for line in path.read_text().splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").strip()
    return ""
