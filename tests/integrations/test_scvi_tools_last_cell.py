"""One cell alone in the last minibatch, under Lightning through the scvi-tools door."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

scvi = pytest.importorskip("scvi")
from scvi_native import QUIET, SIZE, adata, made, same_history, same_weights, train  # noqa: E402

from fastvae.errors import InputError  # noqa: E402
from fastvae.integrations import scvi_tools as door  # noqa: E402
from fastvae.integrations.scvi_tools import _training_plan as _plan  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # a fixture

N = 2 * SIZE + 1


@pytest.fixture
def minibatches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The counts of the training minibatches, dense."""
    seen: list[torch.Tensor] = []
    whole = _plan.Plan.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        x = batch["X"]
        seen.append(x.clone() if x.layout == torch.strided else x.to_dense())
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(_plan.Plan, "training_step", step)
    return seen


FORMS = {"csr": {}, "dense": {}, "workers": {"datasplitter_kwargs": {"num_workers": 1}}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", [door.SCVI, door.LinearSCVI])
def test_it_joins_the_minibatch_before(
    adata: Any, minibatches: list[torch.Tensor], cls: Any, form: str
) -> None:
    """The others are those of scvi-tools, which raises."""
    data = adata[:N].copy()
    if form == "dense":
        data.X = data.X.toarray() + 1.0
    options = {"train_size": 1.0, **FORMS[form]}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        train(made(data.copy(), cls=cls.__mro__[1]), None, 1, **options)
    model = train(made(data.copy(), cls=cls), "lightning", 2, **options)
    assert [len(batch) for batch in minibatches] == [SIZE, SIZE + 1] * 2
    assert model.trainer.global_step == 4
    assert list(model.history["elbo_train"].index) == [0, 1]
    if cls is door.LinearSCVI:  # whose encoder always normalises
        return
    joined = torch.cat(minibatches[:2])
    minibatches.clear()
    # without batch normalisation they are scvi-tools', cell for cell
    train(made(data.copy(), use_batch_norm="none"), "lightning", 1, **options)
    assert [len(batch) for batch in minibatches] == [SIZE, SIZE, 1]
    torch.testing.assert_close(joined, torch.cat(minibatches), rtol=0, atol=0)


def test_it_is_dropped_where_that_is_asked_for(adata: Any, minibatches: list[torch.Tensor]) -> None:
    options = {"train_size": 1.0, "datasplitter_kwargs": {"drop_last": True}}
    own = train(made(adata[:N].copy()), "lightning", 2, **options)
    assert [len(batch) for batch in minibatches] == [SIZE, SIZE] * 2
    other = train(made(adata[:N].copy(), cls=scvi.model.SCVI), None, 2, **options)
    same_history(own, other, rtol=2e-4)


@pytest.mark.parametrize("n_cells", [2 * SIZE, 2 * SIZE + 2])
def test_other_sizes_are_scvi_tools_own(adata: Any, n_cells: int) -> None:
    own, other = (
        train(made(adata[:n_cells].copy(), cls=cls), None, 2, train_size=1.0)
        for cls in (door.SCVI, scvi.model.SCVI)
    )
    same_history(own, other, rtol=2e-4)


def test_frozen_batch_normalisation_takes_it_alone(
    adata: Any, minibatches: list[torch.Tensor]
) -> None:
    """As in a second training and in scArches: equal to scvi-tools, which takes it there."""
    found = []
    for cls in (door.SCVI, scvi.model.SCVI):
        model = made(adata[:N].copy(), cls=cls)
        train(model, None, 1, train_size=1.0, batch_size=N)
        train(model, None, 1, train_size=1.0)
        found.append(model)
    assert [len(batch) for batch in minibatches] == [N, SIZE, SIZE, 1]
    same_weights(*found, atol=2e-4)


@pytest.mark.parametrize("kind", ["minibatches of one", "SCANVI"])
def test_where_it_cannot_join_the_remedy_is_said(adata: Any, kind: str) -> None:
    data, options = adata[:N].copy(), {**QUIET, "train_size": 1.0}
    if kind == "SCANVI":
        data.obs["label"] = np.array(["a", "b", "c"])[np.arange(N) % 3]
        model = made(data, {"labels_key": "label", "unlabeled_category": "c"}, cls=door.SCANVI)
    else:
        model = made(data)
        options["batch_size"] = 1
    with pytest.raises(InputError, match=r"another batch_size, .*kwargs=\{'drop_last': True\}"):
        model.train(1, **options)
