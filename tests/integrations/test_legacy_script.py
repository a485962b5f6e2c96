"""A training script written for scvi 0.6 runs unchanged, and learns what it learned there."""

import runpy

import pytest
import torch
from witness import INDEX, LEGACY, arrays


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(LEGACY / "train_script.py"))


@pytest.fixture(scope="module")
def recorded():
    return arrays(INDEX["training_script"])


def test_loss_curve_is_that_of_scvi(script, recorded):
    losses, want = torch.tensor(script["losses"]), recorded["losses"]
    assert losses.shape == want.shape
    torch.testing.assert_close(losses[:10], want[:10], rtol=1e-5, atol=0)
    # rounding grows with the steps; the path stays the same
    torch.testing.assert_close(losses, want, rtol=1e-3, atol=0)


def test_loss_goes_down(script):
    losses = script["losses"]
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])


def test_results_are_those_of_scvi(script, recorded):
    torch.testing.assert_close(script["counts"], recorded["counts"].numpy(), rtol=0, atol=0)
    for name in ("latent", "scale", "rate"):
        got, want = script[name], recorded[name]
        assert (got - want).abs().max() < 0.01 * want.abs().max(), name
