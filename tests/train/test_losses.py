"""Losses, with labels that count nowhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.errors import DataError
from dofa.train.losses import cross_entropy, soft_margin


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@given(seed=st.integers(0, 999), ignore=st.sampled_from([None, -1, 255, 1]), number=st.sampled_from(["int16", "int64"]))
@settings(deadline=None)
def test_cross_entropy_is_the_mean_surprise_of_the_labels_that_count(seed, ignore, number):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, 4, 3, 5))
    labels = rng.integers(0, 4, (2, 3, 5))
    if ignore is not None:
        labels[rng.random((2, 3, 5)) < 0.4] = ignore
    p = softmax(logits, 1)
    surprises = [-np.log(p[b, labels[b, i, j], i, j]) for b, i, j in np.argwhere(labels != ignore)]
    found = cross_entropy(torch.tensor(logits), torch.tensor(labels.astype(number)), ignore)
    assert found.item() == pytest.approx(np.mean(surprises), rel=1e-5)


def test_where_every_label_is_ignored_the_loss_is_0_and_so_is_its_gradient():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 4, 4), 255), ignore=255)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_whole_images_have_one_label_each_and_half_precision_is_summed_in_float32():
    logits, labels = torch.randn(4000, 3).bfloat16(), torch.randint(0, 3, (4000,))
    found = cross_entropy(logits, labels)
    assert found.dtype == torch.float32
    p = softmax(logits.double().numpy(), 1)
    assert found.item() == pytest.approx(-np.log(p[np.arange(4000), labels]).mean(), rel=1e-5)


def test_soft_margin_is_the_mean_binary_surprise():
    logits, labels = torch.randn(5, 3), torch.randint(0, 2, (5, 3))
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    expected = -np.where(labels == 1, np.log(p), np.log(1 - p)).mean()
    assert soft_margin(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_labels_that_are_no_class_are_named():
    logits = torch.zeros(1, 3, 2, 2)
    with pytest.raises(DataError, match=r"labels hold -1, 7; classes are 0 to 2 or 255 \(ignored\)"):
        cross_entropy(logits, torch.tensor([[[0, 255], [7, -1]]]), ignore=255)
    with pytest.raises(DataError, match=r"labels hold 255; classes are 0 to 2$"):
        cross_entropy(logits, torch.tensor([[[0, 255], [1, 1]]]))
    with pytest.raises(DataError, match="labels of shape"):
        cross_entropy(logits, torch.zeros(1, 3, 3, dtype=torch.long))
    with pytest.raises(DataError, match="labels of shape"):
        soft_margin(torch.zeros(2, 3), torch.zeros(2))
