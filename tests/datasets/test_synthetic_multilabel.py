"""Labels of a logistic model: prevalences, patients and the model itself, within what chance allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from spectral_run.datasets.base import DataHome, check_data
from spectral_run.datasets.synthetic_multilabel import SyntheticMultilabel
from spectral_run.generalization.auc import point_aucs

HOME = DataHome(Path("nowhere"), download=False)
PREVALENCES = (0.4, 0.1, 0.03)


@pytest.fixture(scope="module")
def many() -> Any:
    """So many patients that chance says little."""
    return SyntheticMultilabel(prevalences=PREVALENCES, patients=20_000, rows_each=2, seed=3).load(HOME)


def test_prevalences(many: Any) -> None:
    wanted = torch.tensor(PREVALENCES, dtype=torch.float64)
    error = (wanted * (1 - wanted) / 40_000).sqrt() * 2**0.5  # a patient's two rows say at least what one does
    assert ((many.train.targets.mean(0) - wanted).abs() < 3 * error).all()


@pytest.mark.parametrize("strength", [0.0, 2.0, 10.0])
def test_prevalences_at_any_strength(strength: float) -> None:
    data = SyntheticMultilabel(prevalences=(0.02, 0.7), patients=20_000, rows_each=1, strength=strength).load(HOME)
    wanted = torch.tensor((0.02, 0.7), dtype=torch.float64)
    assert ((data.train.targets.mean(0) - wanted).abs() < 4 * (wanted * (1 - wanted) / 20_000).sqrt()).all()


def test_variance_and_what_patients_share(many: Any) -> None:
    x = many.train.inputs.view(-1, 2, 12)
    assert x.var().item() == pytest.approx(1, abs=0.01)
    assert (x[:, 0] * x[:, 1]).mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_linear_model_ranks_as_well_as_can_be(many: Any) -> None:
    """On its own data a logistic regression finds logits of the strength given."""
    fitted = LogisticRegression(C=1e6).fit(many.train.inputs, many.train.targets[:, 0])
    assert np.linalg.norm(fitted.coef_) == pytest.approx(2.0, abs=0.1)
    scores = fitted.decision_function(many.test.inputs)[:, None]
    assert point_aucs(scores, many.test.targets[:, :1].numpy())[0] == pytest.approx(0.86, abs=0.015)


def test_no_patient_is_in_two_splits() -> None:
    dataset = SyntheticMultilabel(prevalences=PREVALENCES, shape=(1, 4, 4), patients=40, rows_each=3)
    data = dataset.load(HOME)
    check_data(data, dataset)
    assert data.rows == {"train": 120, "validation": 30, "test": 30}
    patients = [set(split.groups.tolist()) for split in (data.train, data.validation, data.test)]
    assert [len(those) for those in patients] == [40, 10, 10]
    assert len(set().union(*patients)) == 60
    assert data.train.inputs.shape == (120, 1, 4, 4)
    assert dataset.outputs == ("label_1", "label_2", "label_3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prevalences": ()}, "prevalences must be one or more numbers in (0, 1), got ()"),
        ({"prevalences": (0.5, 1.0)}, "prevalences must be one or more numbers in (0, 1), got (0.5, 1.0)"),
        ({"shape": ()}, "shape must be integers >= 1, got ()"),
        ({"patients": 3}, "patients must be an integer >= 4, got 3"),
        ({"rows_each": 0}, "rows_each must be >= 1, got 0"),
        ({"share": 1.0}, "share must be in [0, 1), got 1.0"),
        ({"strength": -1.0}, "strength must be in [0, 10], got -1.0"),
        ({"seed": -1}, "seed must be an integer in [0, 2**32), got -1"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="SyntheticMultilabel: ") as refused:
        SyntheticMultilabel(**{"prevalences": PREVALENCES} | settings)
    assert message in str(refused.value)
