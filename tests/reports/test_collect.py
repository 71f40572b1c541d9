"""``result.json`` to rows: nothing invented, nothing lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from spectral_run.reports.collect import curves, number, read_results, table

Write = Callable[..., Path]


def test_results_are_read_once_in_order(write: Write, make: SimpleNamespace) -> None:
    first, second = write(make.result(seed=1)), write(make.result(seed=0))
    assert [r["seed"] for r in read_results([first, second, first])] == [1, 0]
    assert [r["folder"] for r in read_results([second])] == [str(second)]


def test_folders_without_a_readable_result_are_left_out(write: Write, make: SimpleNamespace, tmp_path: Path) -> None:
    broken, number_only = write(make.result()), write(make.result())
    (broken / "result.json").write_text('{"status": "do')
    (number_only / "result.json").write_text("3")
    assert read_results([broken, number_only, tmp_path / "missing"]) == []


def test_unknown_keys_change_nothing(make: SimpleNamespace) -> None:
    plain, extended = make.result(), make.result()
    extended |= {"schema": 2, "new": {"deep": [1, None]}}
    extended["rho"]["unit"] = extended["generalization"]["augmentation"]["mild"]["unit"] = "?"
    assert table([extended]).equals(table([plain]))


def test_columns(make: SimpleNamespace) -> None:
    (row,) = table([make.result(0.9, seed=3, folder="results/x")]).to_dict("records")
    about = {"model": "none", "seed": 3, "status": "done", "folder": "results/x"}
    about |= {"config_hash": "ab" * 32, "data_sha256": "cd" * 32}
    numbers = {
        "test accuracy": 0.9, "test accuracy ci_low": 0.85, "test accuracy ci_high": 0.94, "test loss": 0.25,
        "train loss": 0.125, "rho": 8.0, "rho converged": 1.0,
        "augmentation mild": 0.5, "augmentation mild ci_low": 0.45, "augmentation mild ci_high": 0.55,
        "augmentation gap mild": -0.4, "augmentation gap mild ci_low": -0.45, "augmentation gap mild ci_high": -0.35,
        "training seconds": 1.5, "gradient evaluations": 40.0, "products": 1200.0,
    }  # fmt: skip
    assert row == about | numbers  # the plain test accuracy appears once
    assert list(row) == list(about | numbers)


def test_an_area_and_its_interval_stand_beside_an_accuracy(make: SimpleNamespace) -> None:
    areas = make.result(seed=1, test={"loss": 0.5, "auc": 0.8, "ci_low": 0.7, "ci_high": 0.9, "n": 100})
    frame = table([make.result(0.9), areas])
    assert [name for name in frame.columns[6:16] if "frequent" not in name] == [
        "test accuracy", "test accuracy ci_low", "test accuracy ci_high",
        "test AUC", "test AUC ci_low", "test AUC ci_high", "test loss",
    ]  # fmt: skip
    first, second = frame.to_dict("records")
    assert [first[f"test accuracy{end}"] for end in ("", " ci_low", " ci_high")] == [0.9, 0.85, 0.94]
    assert [second[f"test AUC{end}"] for end in ("", " ci_low", " ci_high")] == [0.8, 0.7, 0.9]
    assert all(math.isnan(first[f"test AUC{end}"]) for end in ("", " ci_low", " ci_high"))
    assert all(math.isnan(second[f"test accuracy{end}"]) for end in ("", " ci_low", " ci_high"))
    no_area = make.result(test={"loss": 0.5, "auc": None, "auc_by_output": {}, "left_out": {"x": "no positive"}})
    assert table([no_area])["test AUC"].isna().all()


def test_missing_numbers_are_nan(make: SimpleNamespace) -> None:
    whole = make.result(None, rho=None, generalization={"augmentation": {"mild": make.metric(None)}}, data=None)
    frame = table([whole, make.failed(seed=1)])
    for name in ("test accuracy", "rho", "rho converged", "augmentation mild"):
        assert frame[name].isna().all()
    assert frame["test loss"].isna().tolist() == [False, True]
    assert list(frame["status"]) == ["done", "failed"]


def test_time_and_products_come_last_whatever_the_first_run_has(make: SimpleNamespace) -> None:
    frame = table([make.failed(), make.result(seed=1)])
    assert list(frame.columns[-3:]) == ["training seconds", "gradient evaluations", "products"]


@pytest.mark.parametrize("value", [None, "1", True, [], {}])
def test_what_is_no_number(value: object) -> None:
    assert math.isnan(number({"a": {"b": value}}, "a", "b"))
    assert math.isnan(number({"a": value}, "a", "b"))


def test_number() -> None:
    assert number({"a": {"b": 2}}, "a", "b") == 2.0


def test_curves(write: Write, make: SimpleNamespace) -> None:
    folder = write(make.result(), make.lines(3, 6.0, validation__accuracy=[0.1, None, 0.3]))
    frame = curves(folder)
    assert list(frame.index) == [1, 2, 3]
    assert frame["train/loss"].tolist() == [6.0, 3.0, 2.0]
    assert frame["validation/accuracy"].dropna().to_dict() == {1: 0.1, 3: 0.3}


@pytest.mark.parametrize("record", [None, ""])
def test_curves_of_nothing(write: Write, make: SimpleNamespace, record: str | None) -> None:
    assert curves(write(make.result(), record)).empty


def test_a_line_that_was_cut_off_is_left_out(write: Write, make: SimpleNamespace) -> None:
    text = make.lines(2) + json.dumps({"step": 3})[:-2]
    assert list(curves(write(make.result(), text)).index) == [1, 2]
