"""Factors of the schedules."""

from __future__ import annotations

import pytest

from spectral_run.optimizers.schedules import SCHEDULES, schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_at_the_base_rate_and_stays_positive(name: str) -> None:
    factors = [schedule(name, 50)(epoch) for epoch in range(50)]
    assert factors[0] == 1.0
    assert all(0 < factor <= 1 for factor in factors)


def test_inverse_epoch_is_the_papers() -> None:
    assert [0.5 * schedule("inverse_epoch", 100)(epoch) for epoch in (0, 1, 4)] == [0.5, 0.25, 0.1]


def test_refuses_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"schedule must be one of constant, inverse_epoch, cosine; got 'step'"):
        schedule("step", 10)
