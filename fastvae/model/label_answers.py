"""Labels of cells by a model that has learned them: `Model.predict`, `Model.with_labels`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._torch import device_of, seeded
from ..data.keys import checked_key, encode
from ..errors import InputError, seed_number, true_or_false
from ..vae.semi_supervised import SemiSupervisedVAE
from .base import EVALUATION_BATCH, State
from .labels import SemiSupervision
from .new_data import READING, Reading
from .posterior import encode as posterior
from .scvi_names import with_scvi_names
from .selection import cell_rows

if TYPE_CHECKING:
    from typing import Self

    import pandas as pd
    from typing_extensions import Unpack


class LabelAnswers(State):
    """Labels that the model has learned of some cells."""

    @with_scvi_names()
    def with_labels(
        self,
        unlabeled_category: str,
        labels_key: str | Sequence[str] | None = None,
        *,
        linear_classifier: bool = False,
        seed: int | None = None,
    ) -> Self:
        """Make a semi-supervised model of the same cells that starts from these weights.

        It is ``SCANVI.from_scvi_model`` of scvi-tools: encoders and decoder are copied, the
        classifier and the networks of the second latent variable are new, and `fit` trains all.
        This model does not change.

        Parameters
        ----------
        unlabeled_category
            The value that stands for an unknown label.
        labels_key
            Column of obs with the labels; None is the model's.
        linear_classifier
            As in `Model`.
        seed
            Of the first weights that are new; None draws from torch's generator.

        Returns
        -------
        Model
            Not trained yet. Without `max_epochs` its first `fit` takes a third of the usual epochs,
            at least 2 and at most 10; without `seed` it keeps this model's validation cells.

        Raises
        ------
        InputError
            The model is not trained, has no data, or learns labels already; there is no such
            column, or it has fewer than two labels; or an option of the model does not fit.
        """
        self._check_trained()
        store, frames = self._own_store(), self._frames
        setup = self._setup
        assert frames is not None
        if setup.semi_supervision is not None:
            raise InputError("this model learns labels already; call fit() to train it further")
        key = checked_key(setup.labels_key if labels_key is None else labels_key, "labels_key")
        how = SemiSupervision.checked(unlabeled_category, linear_classifier, key)
        if how is None or key is None:
            raise InputError("unlabeled_category is None; name the value of an unknown label")
        _, categories = encode(frames.obs, key, None, "label")
        labels = how.labels_among(categories, key)
        known = replace(setup, labels_key=key, label_categories=labels, semi_supervision=how)
        model = type(self)(known)
        with seeded(torch.device("cpu"), seed_number(seed)):
            module = model.module
        module.load_state_dict({**module.state_dict(), **self.module.state_dict()})
        module.to(device_of(self.module))
        model.origin = {"weights_without_labels": True}
        if "seed" in self.training:
            model.origin["seed"] = self.training["seed"]
        model._attach(store, frames)
        model._residence = self._residence
        return model

    @property
    def label_categories(self) -> list[str]:
        """Names of the labels that `predict` gives; empty for a model that has learned none."""
        learned = self._setup.semi_supervision is not None
        return list(self._setup.label_categories) if learned else []

    @with_scvi_names(READING)
    def predict(
        self,
        data: Any = None,
        cells: Any = None,
        soft: bool = False,
        batch_size: int = EVALUATION_BATCH,
        *,
        use_posterior_mean: bool = True,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> np.ndarray | pd.DataFrame:
        """Return the label of each cell, or the probability of each label.

        Parameters
        ----------
        data, cells, batch_size, seed, **reading
            As in the notes of `Model`. Labels of the cells are not read, and unknown batches do not
            matter unless the encoder is told the batch (``encode_covariates``).
        soft
            Probabilities.
        use_posterior_mean
            Classify the mean of q(z | x); otherwise one draw of it.

        Returns
        -------
        ndarray or DataFrame
            (N,) names of labels (object dtype), of the most probable ones; with `soft` (N, C)
            float32 with the names of cells and labels, rows sum to 1.

        Raises
        ------
        InputError
            Also if the model was made without `unlabeled_category`.
        """
        import pandas as pd

        soft = true_or_false("soft", soft)
        mean = true_or_false("use_posterior_mean", use_posterior_mean)
        seed = seed_number(seed)
        self._check_learns_labels()
        store, _ = self._opened_to_encode(data, reading)
        rows = cell_rows(cells, store)
        batches = self._minibatches(store, rows, batch_size)
        latent = posterior.latent(self.module, batches, len(rows), give_mean=mean, seed=seed)
        probabilities = probabilities_at(self.module, latent)
        labels = self._setup.label_categories
        if not soft:
            return np.array(labels, dtype=object)[probabilities.argmax(axis=1)]
        return pd.DataFrame(probabilities, index=store.cell_names[rows], columns=list(labels))

    def _check_learns_labels(self) -> None:
        if self._setup.semi_supervision is None:
            raise InputError(
                "the model has learned no labels: make it with labels_key and unlabeled_category, "
                "or start from it (Model.with_labels); Model.transfer_labels lets the neighbours "
                "in a reference vote"
            )


def probabilities_at(module: torch.nn.Module, latent: np.ndarray) -> np.ndarray:
    """Return the probability of each label, (N, C) float32, at positions (N, L)."""
    assert isinstance(module, SemiSupervisedVAE)
    return module.label_probabilities(torch.from_numpy(latent)).numpy()
