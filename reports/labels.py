"""What tells runs apart, in few words: the names in tables and legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NO_CHOICE = ("experiment", "tracker")  # these decide no number
_ABSENT = object()


def labels(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label per run, the same for runs that differ in the seed only.

    Choices that differ (data set, regularizer, ...), save those that go along with one named before; then, among the
    runs of the same choices, the settings that differ. Runs of one model are called by their regularizer.
    """
    choices = [dict(result.get("choices") or {}) for result in results]
    names = _telling(choices)
    flat = [_flatten(result.get("config") or {}) for result in results]
    keys = [tuple(chosen.get(name) for name in names) for chosen in choices]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key, config in zip(keys, flat, strict=True):
        groups.setdefault(key, []).append(config)
    differing = {key: _differing(configs) for key, configs in groups.items()}
    texts = []
    for chosen, key, config in zip(choices, keys, flat, strict=True):
        parts = [str(choice) for choice in key if choice is not None]
        parts += [_setting(config, path, differing[key]) for path in differing[key]]
        texts.append(", ".join(parts) or str(chosen.get("regularizer", "run")))
    return texts


def _telling(choices: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the choices that, one after the other, split the runs further."""
    names: list[str] = []
    parts = 1
    there = dict.fromkeys(key for chosen in choices for key in chosen)
    for name in sorted(there, key=lambda name: name != "method"):  # a method says optimizer and regularizer by one name
        if name in _NO_CHOICE:
            continue
        split = len({tuple(str(chosen.get(key)) for key in (*names, name)) for chosen in choices})
        if split > parts:
            names.append(name)
            parts = split
    return names


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted paths of the settings that differ; where one run lacks a whole section, the section's path."""
    sections = [{path[:i] for path in config for i in range(1, len(path)) if path[i] == "."} for config in configs]
    paths: dict[str, None] = {}
    for path in dict.fromkeys(path for config in configs for path in config):
        if len({repr(config.get(path, _ABSENT)) for config in configs}) == 1:
            continue
        parents = [path[:i] for i in range(1, len(path)) if path[i] == "."]
        lacking = [parent for parent in parents if any(parent not in section for section in sections)]
        paths.setdefault(lacking[0] if lacking else path)
    return list(paths)


def _setting(config: Mapping[str, Any], path: str, all_paths: Sequence[str]) -> str:
    last = path.rpartition(".")[2]
    name = last if sum(other.rpartition(".")[2] == last for other in all_paths) == 1 else path
    if path in config:
        value = _value(config[path])
        return value.rpartition(".")[2] if last == "_target_" else f"{name}={value}"
    return name if any(key.startswith(f"{path}.") for key in config) else f"no {name}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        short = f"{value:.6g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flatten(item, f"{prefix}{key}.")
        elif not isinstance(item, Mapping):
            flat[f"{prefix}{key}"] = item
    return flat
