"""An average of iterates in the network's place, for as long as it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spectral_run.datasets.base import Split
from spectral_run.optimizers.averaging import fresh_statistics
from spectral_run.optimizers.base import Averaging
from spectral_run.runner import seeding
from spectral_run.runner.parts import Parts


@contextmanager
def averaged_weights(parts: Parts, train: Split) -> Iterator[bool]:
    """Within the block the network has the optimizer's average, if there is one; gives whether there is.

    Running statistics are then of a fresh pass over the training rows. In the end all is as it was, bit for bit.
    Several processes each pass over all rows, in batches as one process has them: no message, and the same result.
    """
    average = parts.optimizer.averaged() if isinstance(parts.optimizer, Averaging) else None
    if average is None:
        yield False
        return
    kept = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    settings = parts.settings
    try:
        with torch.no_grad():
            for parameter, value in zip(parts.objective.parameters, average, strict=True):
                parameter.copy_(value)
        generator = seeding.generator(settings.seed, parts.dataset.name, "statistics")
        fresh_statistics(parts.model, train.inputs, settings.training.batch_size, generator)
        yield True
    finally:
        parts.model.load_state_dict(kept)
