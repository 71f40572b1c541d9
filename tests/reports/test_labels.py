"""Labels: as few words as tell the models apart."""

from __future__ import annotations

from typing import Any

from spectral_run.reports.labels import labels


def run(config: dict[str, Any] | None = None, *, seed: int = 0, **choices: str) -> dict[str, Any]:
    return {"choices": {"regularizer": "none"} | choices, "config": config or {}, "seed": seed}


def test_one_run_and_no_run() -> None:
    assert labels([run({"lr": 0.1})]) == ["none"]
    assert labels([]) == []


def test_seeds_only() -> None:
    assert labels([run({"lr": 0.1}, seed=s) for s in range(3)]) == ["none"] * 3


def test_choices_differ() -> None:
    runs = [run(regularizer=r, dataset=d) for d in ("digits", "usps") for r in ("none", "sam")]
    assert labels(runs) == ["none, digits", "sam, digits", "none, usps", "sam, usps"]


def test_a_choice_that_goes_along_with_another_is_left_out() -> None:
    assert labels([run(dataset="digits", optimizer="adam"), run(dataset="usps", optimizer="sgd")]) == ["digits", "usps"]


def test_experiment_and_tracker_decide_no_number() -> None:
    assert labels([run(tracker="none", experiment="a"), run(tracker="wandb", experiment="b")]) == ["none", "none"]


def test_one_setting_differs() -> None:
    runs = [run({"regularizer": {"mu": mu, "K": 1}}) for mu in (0.0, 0.005, 1e-7, 1e15, 0.123456789)]
    assert labels(runs) == ["mu=0", "mu=0.005", "mu=1e-07", "mu=1e+15", "mu=0.123456789"]


def test_several_settings_differ() -> None:
    runs = [run({"a": {"lr": lr}, "b": {"widths": widths}}) for lr in (0.1, 0.2) for widths in ([8], [8, 4])]
    assert labels(runs) == [
        "lr=0.1, widths=[8]",
        "lr=0.1, widths=[8, 4]",
        "lr=0.2, widths=[8]",
        "lr=0.2, widths=[8, 4]",
    ]


def test_settings_of_the_same_name_are_told_apart() -> None:
    runs = [run({"data": {"seed": 0}, "test": {"seed": 0}}), run({"data": {"seed": 1}, "test": {"seed": 1}})]
    assert labels(runs) == ["data.seed=0, test.seed=0", "data.seed=1, test.seed=1"]


def test_settings_that_come_with_a_choice_are_left_out() -> None:
    runs = [run({"lr": 0.1}, dataset="digits"), run({"lr": 0.2}, dataset="usps")]
    assert labels(runs) == ["digits", "usps"]


def test_choices_and_settings_mixed() -> None:
    runs = [
        run({"r": {}}),
        run({"r": {"mu": 0.1}}, regularizer="penalty"),
        run({"r": {"mu": 0.2}}, regularizer="penalty", seed=0),
        run({"r": {"mu": 0.2}}, regularizer="penalty", seed=1),
    ]
    assert labels(runs) == ["none", "penalty, mu=0.1", "penalty, mu=0.2", "penalty, mu=0.2"]


def test_a_section_that_only_some_have() -> None:
    runs = [run({"tests": {"shift": {"scale": 1, "seed": 0}}}), run({"tests": {"other": {"x": 1}}}), run({"tests": {}})]
    assert labels(runs[:1] + runs[2:]) == ["tests", "no tests"]
    assert labels(runs[:2]) == ["shift, no other", "no shift, other"]


def test_targets_are_called_by_their_last_name() -> None:
    assert labels([run({"m": {"_target_": "my.Net"}}), run({"m": {"_target_": "my.Other"}})]) == ["Net", "Other"]


def test_results_without_choices_or_config() -> None:
    assert labels([{}, {"choices": None, "config": None}]) == ["run", "run"]
