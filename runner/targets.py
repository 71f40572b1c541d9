"""``_target_`` nodes: checked against the constructor's signature before any work, and built in one place only."""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beartype import BeartypeConf
from beartype.door import is_bearable

from spectral_run.runner.settings import ConfigurationError, nearest

_NUMERIC = BeartypeConf(is_pep484_tower=True)  # 1 is a fine value for a float


def build(node: Mapping[str, Any], where: str, *positional: Any, **given: Any) -> Any:
    """The object that a ``_target_`` node describes.

    ``given`` are offered by the runner and passed on where the constructor takes them. With ``_partial_: true``, as
    Hydra has it, the constructor waits for its other arguments (``functools.partial``). Raises ``ConfigurationError``
    naming ``where``, what is allowed and what came.
    """
    target = node.get("_target_")
    if not isinstance(target, str):
        raise ConfigurationError(f"{where} needs a _target_: the dotted path of a class or function.")
    constructor = locate(target, where)
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise ConfigurationError(f"{where}._partial_ must be true or false, got {partial!r}.")
    arguments = {str(key): value for key, value in node.items() if key not in ("_target_", "_partial_")}
    parameters = _parameters(constructor)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key in arguments:
        if key not in parameters and not takes_any:
            raise ConfigurationError(
                f"{where}.{key}: {target} takes no argument {key!r}.{nearest(key, parameters)} "
                f"It takes {', '.join(name for name in parameters if name not in given) or 'none'}."
            )
    offered = {key: value for key, value in given.items() if key in parameters and key not in arguments}
    built = {key: build_if_target(value, f"{where}.{key}") for key, value in arguments.items()}
    built = _checked(constructor, built, where, target)
    try:
        if partial:
            inspect.signature(constructor).bind_partial(*positional, **built, **offered)
            return functools.partial(constructor, *positional, **built, **offered)
        inspect.signature(constructor).bind(*positional, **built, **offered)
        return constructor(*positional, **built, **offered)
    except ConfigurationError:
        raise
    except Exception as error:  # whatever a constructor raises over its settings, the user can change them
        kind = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
        raise ConfigurationError(f"{where}: {kind}{error}") from error


def build_if_target(value: Any, where: str) -> Any:
    """Build a nested ``_target_`` node, or those in a mapping of such; anything else stays as it is."""
    if not isinstance(value, Mapping):
        return value
    if "_target_" in value:
        return build(value, where)
    return {key: build_if_target(item, f"{where}.{key}") for key, item in value.items()}


def locate(target: str, where: str) -> Callable[..., Any]:
    """The class or function at a dotted path. Raises ``ConfigurationError`` with the nearest name."""
    module_name, _, attribute = target.rpartition(".")
    outer: list[str] = []
    while module_name:
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
                raise ConfigurationError(f"{where}._target_: importing {module_name} failed: {error}.") from error
            module_name, _, name = module_name.rpartition(".")
            outer.insert(0, name)
            continue
        except Exception as error:  # a user's module can fail in any way while it is imported
            raise ConfigurationError(f"{where}._target_: importing {module_name} failed: {error!r}.") from error
        for name in [*outer, attribute]:
            if not hasattr(found, name):
                hint = nearest(name, [n for n in dir(found) if not n.startswith("_")])
                raise ConfigurationError(f"{where}._target_: {module_name} has no {name!r}.{hint}")
            found = getattr(found, name)
        if not callable(found):
            raise ConfigurationError(f"{where}._target_: {target} is no class or function.")
        return typing.cast("Callable[..., Any]", found)
    raise ConfigurationError(
        f"{where}._target_: no module named {target.partition('.')[0]!r} can be imported "
        f"(modules of yours are looked for in the current folder and on PYTHONPATH)."
    )


def _parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(constructor).parameters)
    except ValueError:  # a builtin without a signature
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _checked(constructor: Callable[..., Any], arguments: Mapping[str, Any], where: str, target: str) -> dict[str, Any]:
    """Plain values compared with the annotations, 1 made 1.0 for a float; the rest is left to the constructor."""
    function = constructor.__init__ if isinstance(constructor, type) else constructor  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return dict(arguments)
    checked = dict(arguments)
    for key, value in arguments.items():
        hint = hints.get(key)
        if hint is None or not (value is None or isinstance(value, bool | int | float | str)):
            continue
        # To Python a bool is an int; to a person true is no number.
        # And to Python an empty text is a sequence of integers.
        wrong = isinstance(value, str) and typing.get_origin(hint) in (Sequence, list, tuple)
        wrong = wrong or (isinstance(value, bool) and "bool" not in str(hint))
        if wrong or not is_bearable(value, hint, conf=_NUMERIC):
            allowed = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise ConfigurationError(f"{where}.{key}: {target} needs {allowed}, got {value!r}.")
        if isinstance(value, int) and not is_bearable(value, hint):
            checked[key] = float(value)
    return checked
