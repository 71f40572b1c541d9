import numpy as np
import pytest
import torch

from spectral_run.generalization import digit_classifier as module
from spectral_run.generalization.digit_classifier import classifier_key, digit_classifier, train
from spectral_run.generalization.gan_training import TrainingImages


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def squares(seed, rows=64):
    """Dark and bright squares in a range that is not [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(rows) % 2
    images = -1 + targets[:, None, None, None] + torch.rand(rows, 1, 8, 8, generator=generator)
    return TrainingImages(images=images, targets=targets)


def test_it_learns_and_judges_by_block_in_evaluation_mode():
    rows, fresh = squares(0, rows=256), squares(1, rows=600)
    classifier = digit_classifier(rows, 20)
    low, high = rows.range
    features, logits = classifier.judge((fresh.images - low) / (high - low))
    assert features.shape == (600, 128)
    assert float((logits.argmax(1) == fresh.targets).double().mean()) > 0.97
    alone = classifier.judge((fresh.images[:3] - low) / (high - low))
    torch.testing.assert_close(alone[0], features[:3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone[1], logits[:3], rtol=1e-4, atol=1e-5)


def test_same_bits_and_nothing_left_behind():
    first = train(squares(0), 2)
    torch.manual_seed(99)
    torch.set_num_threads(2)
    state = torch.random.get_rng_state()
    second = train(squares(0), 2)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first if name != "seconds")


def test_trained_once_per_rows_and_epochs(monkeypatch):
    rows = squares(0)
    first = digit_classifier(rows, 1).state_dict()

    def must_not_train(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train", must_not_train)
    again = digit_classifier(rows, 1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(AssertionError, match="trained again"):
        digit_classifier(rows, 2)
    assert len({classifier_key(rows, 1), classifier_key(rows, 2), classifier_key(squares(1), 1)}) == 3
