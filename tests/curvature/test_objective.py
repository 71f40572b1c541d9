"""A network's mode while it is evaluated."""

from __future__ import annotations

import pytest
from torch import nn

from spectral_run.curvature.objective import evaluating


def test_evaluating_gives_every_module_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()  # frozen by its user
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):  # noqa: PT012
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == before == [True, True, False, True, True]
