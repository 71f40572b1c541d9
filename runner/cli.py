"""The command ``spectral-run``: help, then Hydra, then one run per composed configuration.

Nothing heavy is imported before a run starts: help, ``--cfg job`` and completion take a fraction of a second.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONF = Path(__file__).parent.parent / "conf"
_CONFIG_DIR = ("--config-dir", "-cd")
_OWN_PROCESSES = "hydra/launcher={} starts processes of its own; leave it out with torchrun."
_WITH_VALUE = (
    *_CONFIG_DIR, "--cfg", "-c", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p",
    "--experimental-rerun",
)  # fmt: skip


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad configuration."""
    sys.exit(command(sys.argv[1:]))


def command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    from spectral_run.runner.report import asks_for_report, report_command
    from spectral_run.runner.settings import ConfigurationError

    if any(argument in ("--help", "-h") for argument in arguments):
        from spectral_run.runner.help import help_text

        print(help_text([CONF, *_own_conf(arguments)]), end="")
        return 0
    if "--version" in arguments:
        from spectral_run import __version__

        print(f"spectral-run {__version__}")
        return 0
    if asks_for_report(arguments):
        try:
            return report_command(arguments)
        except ConfigurationError as error:
            _complain(str(error))
            return 2
    if any(argument.strip("'\"") in ("results_dir=", "results_dir=''", 'results_dir=""') for argument in arguments):
        _complain("results_dir needs a folder's path.")  # Hydra would make its folder at the root of the disk
        return 2
    groups = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*/*.yaml")}
    for group, _, choice in (argument.partition("=") for argument in arguments if "=" in argument):
        if group in groups - {"experiment"} and choice in ("", "null"):
            _complain(f"{group} needs a choice; spectral-run --help lists them.")  # Hydra would show a traceback
            return 2
    # A console script does not look in the current folder; a user's `_target_: mymodule.Net` is there, and
    # launchers' workers look where PYTHONPATH says.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting with 1
    from spectral_run.runner.processes import launch, part, quiet

    launchers = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra/launcher=")]
    if launch().size > 1 and set(launchers) - {"basic"}:  # before they start
        _complain(_OWN_PROCESSES.format(*launchers))
        return 2
    with quiet() as elsewhere:
        if elsewhere is not None:  # what Hydra writes of a sweep, the first process's Hydra writes too
            arguments = [*arguments, f"hydra.sweep.dir={elsewhere}"]
        sys.argv = ["spectral-run", *_flags_first(arguments)]  # where Hydra reads them
        try:
            return _hydra()
        finally:
            part()


def _hydra() -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from spectral_run.runner import sweep

    sweep.ended.clear()
    try:
        hydra.main(version_base="1.3", config_path="pkg://spectral_run.conf", config_name="config")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        _complain(_plain(error))
        return 2
    except sweep.NoDataError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from the last checkpoint.")
        return 1
    except OSError as error:
        _complain(
            f"{error.strerror or error}: {error.filename or ''} (results_dir must be a folder that can be written)"
        )
        return 1
    return max(sweep.ended, default=0)


def task(config: Any) -> Any:
    """One job: an ``Outcome``, or for a sweeper the number that ``optimized_metric`` names."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from spectral_run.runner.console import log, set_up_log
    from spectral_run.runner.outcome import Outcome
    from spectral_run.runner.processes import join, launch
    from spectral_run.runner.settings import ConfigurationError, settings_from

    set_up_log()
    several = launch().size > 1
    hydra_config = HydraConfig.get()
    many = hydra_config.mode == RunMode.MULTIRUN
    if many:
        log.info("[%s] %s", hydra_config.job.num, " ".join(hydra_config.overrides.task))
    try:
        settings = settings_from(config)
        if several:
            _refuse_with_several(settings.run_dir, hydra_config.runtime.choices)
        from spectral_run.runner.run import execute  # torch, once the settings are in order

        if settings.run_dir is not None:
            from spectral_run.runner.revisit import revisit

            outcome = revisit(settings, list(hydra_config.overrides.task))
        else:
            outcome = execute(settings, _choices(hydra_config.runtime.choices), bar=not many)
        if outcome.folder and outcome.status == "done" and not many and launch().first:
            from spectral_run.reports.summary import summarize

            summarize([Path(outcome.folder)], Path(outcome.folder))
        if settings.optimized_metric is not None:
            from spectral_run.runner.sweep import Optimized

            metric = settings.optimized_metric
            return join().from_first(lambda: Optimized.of(outcome, metric))
    except ConfigurationError as error:
        _complain(str(error))
        return Outcome(2, "invalid")
    return outcome


def _refuse_with_several(run_dir: object, choices: Mapping[str, Any]) -> None:
    """What does not go with several processes on one run. Raises ``ConfigurationError``."""
    from spectral_run.runner.settings import ConfigurationError

    launcher = choices.get("hydra/launcher")
    if launcher not in (None, "basic"):
        raise ConfigurationError(_OWN_PROCESSES.format(launcher))
    if run_dir is not None:
        raise ConfigurationError("run_dir: a finished run is measured by one process; leave torchrun out.")


def _choices(choices: Mapping[str, Any]) -> dict[str, str]:
    """Names of what was chosen, for folders and tables."""
    named = {str(group): str(choice) for group, choice in choices.items() if choice not in (None, "None")}
    return {group: choice for group, choice in named.items() if not group.startswith("hydra/")}


def _own_conf(arguments: list[str]) -> list[Path]:
    """A user's own conf folder, where ``--config-dir`` names one."""
    folders = []
    for i, argument in enumerate(arguments):
        if argument in _CONFIG_DIR and i + 1 < len(arguments):
            folders.append(Path(arguments[i + 1]))
        elif argument.startswith("--config-dir="):
            folders.append(Path(argument.partition("=")[2]))
    return [folder for folder in folders if folder.is_dir()]


def _flags_first(arguments: list[str]) -> list[str]:
    """Hydra's parser refuses overrides on both sides of a flag; people write them where they come to mind."""
    flags, overrides = [], []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.startswith("-"):
            flags.append(argument)
            if rest and (argument in _WITH_VALUE or (argument == "--info" and "=" not in rest[0])):
                flags.append(rest.pop(0))
        else:
            overrides.append(argument)
    return flags + overrides


def _complain(message: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first of a machine's processes says it
        return
    print(f"spectral-run: {message}", file=sys.stderr)


def _plain(error: Exception) -> str:
    """Hydra's message in one line, with the nearest valid name."""
    from spectral_run.runner.settings import nearest

    text = str(error)
    cause = str(error.__cause__ or "")
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        name = key[1].rpartition("@")[0] or key[1]
        return f"there is no setting {name!r}.{nearest(name, _all_keys())}"
    choice = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    if choice:
        options = [path.stem for path in (CONF / choice[1]).glob("*.yaml")]
        known = f" Choices: {', '.join(sorted(options))}." if options else ""
        return f"{choice[1]} has no choice {choice[2]!r}.{nearest(choice[2], options)}{known}"
    lines = [line.strip() for line in f"{text}\n{cause}".splitlines() if line.strip()]
    return " ".join(dict.fromkeys(lines))


def _all_keys() -> list[str]:
    """Every key of the default configuration and every group: what a typo is compared with."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    from spectral_run.runner.settings import keys_of

    GlobalHydra.instance().clear()
    with initialize_config_module(version_base="1.3", config_module="spectral_run.conf"):
        keys = keys_of(compose("config"))
    groups = [path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")]
    return [*keys, *sorted(set(groups) - {"."})]


if __name__ == "__main__":
    main()
