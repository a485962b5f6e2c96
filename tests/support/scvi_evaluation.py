"""What scvi-tools' models compute after training, and how to compare it with theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scvi_native import made, train

from fastvae.integrations import scvi_tools as door
from fastvae.integrations.scvi_tools import _module

CSR, DENSE = {torch.sparse_csr}, {torch.strided}
METHODS: dict[str, Callable[[Any], Any]] = {
    "latent": lambda m: m.get_latent_representation(),
    "latent in batches": lambda m: m.get_latent_representation(batch_size=57),
    "latent parameters": lambda m: np.stack(m.get_latent_representation(return_dist=True)),
    "latent draw": lambda m: m.get_latent_representation(give_mean=False),
    "elbo": lambda m: m.get_elbo(),
    "elbo of each": lambda m: m.get_elbo(return_mean=False),
    "reconstruction": lambda m: m.get_reconstruction_error()["reconstruction_loss"],
    "marginal": lambda m: m.get_marginal_ll(n_mc_samples=3, return_mean=False),
    "marginal in passes": lambda m: m.get_marginal_ll(
        n_mc_samples=4, n_mc_samples_per_pass=2, return_mean=False
    ),
    "expression": lambda m: m.get_normalized_expression(return_numpy=True),
    "expression drawn": lambda m: m.get_normalized_expression(
        indices=np.arange(90, 20, -1), n_samples=3, library_size="latent", return_numpy=True
    ),
    "expression in a batch": lambda m: m.get_normalized_expression(
        transform_batch=m.adata.obs["batch"].iloc[0], return_numpy=True
    ),
    "likelihood": lambda m: np.concatenate(list(m.get_likelihood_parameters().values())),
    "library": lambda m: m.get_latent_library_size(give_mean=False),
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """Layouts of the counts that fastvae's modules have been given."""
    layouts: set[Any] = set()
    whole = _module.Fused._regular_inference

    def noted(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        layouts.add(x.layout)
        return whole(self, x, *args, **kwargs)

    monkeypatch.setattr(_module.Fused, "_regular_inference", noted)
    return layouts


def pair(data: Any, **options: Any) -> tuple[Any, Any]:
    """A model of ours after an epoch, and scvi-tools' own with the same weights."""
    cls = options.pop("cls", door.SCVI)
    own = train(made(data, cls=cls, **options), epochs=1)
    other = made(data.copy(), cls=cls.__bases__[0], **options)
    other.module.load_state_dict(own.module.state_dict())
    other.module.eval()
    other.is_trained_ = True
    return own, other


def same(own: Any, other: Any, method: Callable[[Any], Any], rtol: float = 2e-5) -> None:
    """The same numbers from the same seed, which then is as far as with theirs."""
    found = []
    for model in (own, other):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - scvi-tools draws from it
        found.append((np.asarray(method(model)), torch.get_rng_state()))
    (mine, state), (theirs, their_state) = found
    assert mine.shape == theirs.shape
    scale = np.abs(theirs[np.isfinite(theirs)]).max()
    np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=2e-6 * max(scale, 1.0))
    assert torch.equal(state, their_state)
