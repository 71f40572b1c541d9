"""Finds the rules and losses: every class in a file of ``rules/`` and ``losses/``. Nothing to add here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from torch import nn

from spectral_run.curvature.objective import LossFunction
from spectral_run.curvature.rop.base import LossRule, Rule, UnsupportedError


@dataclass(frozen=True)
class Registry:
    """Which rule covers which type of layer, function and method, and which loss which function."""

    rules: list[type[Rule]]
    losses: list[type[LossRule]]
    modules: dict[type[nn.Module], type[Rule]] = field(default_factory=dict)
    functions: dict[Callable[..., Any], type[Rule]] = field(default_factory=dict)
    methods: dict[str, type[Rule]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rule in self.rules:
            for table, keys in ((self.modules, rule.modules), (self.functions, rule.functions)):
                for key in keys:
                    _enter(table, key, rule)
            for name in rule.methods:
                _enter(self.methods, name, rule)

    def loss(self, loss: LossFunction) -> LossRule:
        """A rule for the loss: a function, a partial of one with keywords, or a loss module. Or raises."""
        covered = ", ".join(f.__name__ for rule in self.losses for f in rule.functions)
        function: Any = loss
        given: dict[str, Any] = {}
        while isinstance(function, partial):
            if function.args:
                raise UnsupportedError(f"the loss {loss!r} must be a partial with keywords only.")
            function, given = function.func, {**function.keywords, **given}
        for rule in self.losses:
            if function in rule.functions or type(function) in rule.modules:
                if isinstance(function, nn.Module):
                    given = {name: getattr(function, name) for name in rule.settings}
                unknown = sorted(set(given) - set(rule.settings))
                why = f"it covers {', '.join(rule.settings)}, not {', '.join(unknown)}" if unknown else ""
                why = why or rule.refusal(given)
                if why:
                    raise UnsupportedError(f"loss {rule.functions[0].__name__}: {why}.")
                return rule(given)
        raise UnsupportedError(
            f"the loss must be one of {covered}, its module or a partial of it, "
            f"got {getattr(function, '__name__', function)!r}. "
            "Use curvature.backend=autograd, or add a rule (docs/adding_a_rule.md)."
        )


@cache
def registry() -> Registry:
    """All rules and losses there are, in the order of their files' names."""
    return Registry(list(_classes("rules", Rule)), list(_classes("losses", LossRule)))


def _classes(folder: str, kind: type) -> Iterator[Any]:
    package = importlib.import_module(f"spectral_run.curvature.rop.{folder}")
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, kind) and thing.__module__ == module.__name__:
                lacking = sorted(getattr(thing, "__abstractmethods__", ()))
                if lacking:
                    raise TypeError(f"{thing.__module__}.{thing.__name__} lacks {', '.join(lacking)}.")
                yield thing


def _enter(table: dict[Any, type[Rule]], key: Any, rule: type[Rule]) -> None:
    if key in table:
        raise TypeError(f"{rule.__module__} and {table[key].__module__} both cover {key}.")
    table[key] = rule
