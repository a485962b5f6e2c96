"""Labels of cells for semi-supervised training: which cells have one, and its code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.keys import Key, encode, in_words
from ..errors import InputError, shown, true_or_false
from .selection import name_of

if TYPE_CHECKING:
    import pandas as pd

    from ..data.stores.store import Store


@dataclass(frozen=True)
class SemiSupervision:
    """How a model is trained with the labels of some cells.

    Attributes
    ----------
    unlabeled_category
        The value of the column of labels that stands for an unknown label.
    linear_classifier
        Whether the classifier is one linear layer.
    """

    unlabeled_category: str
    linear_classifier: bool = False

    @classmethod
    def checked(
        cls, unlabeled_category: Any, linear_classifier: Any, labels_key: Key | None
    ) -> SemiSupervision | None:
        """Take the arguments of `Model`; None where no labels are to be learned.

        Raises
        ------
        InputError
            One is given without the other that it needs, or is of another type.
        """
        linear = true_or_false("linear_classifier", linear_classifier)
        if unlabeled_category is None:
            if linear:
                raise InputError(
                    "linear_classifier=True needs unlabeled_category, the value of labels_key "
                    "that stands for an unknown label"
                )
            return None
        if labels_key is None:
            raise InputError(
                f"unlabeled_category={shown(unlabeled_category)} needs labels_key, the column of "
                "obs with the label of each cell"
            )
        return cls(name_of("unlabeled_category", unlabeled_category, "a name"), linear)

    def labels_among(self, categories: tuple[str, ...], key: Key) -> tuple[str, ...]:
        """Return the labels that can be learned: `categories` without the unlabelled one.

        Raises
        ------
        InputError
            There are fewer than two.
        """
        known = tuple(name for name in categories if name != self.unlabeled_category)
        if len(known) < 2:
            raise InputError(
                f"{in_words(key)} has {len(known)} labels beside {self.unlabeled_category!r}; a "
                "classifier needs at least two"
            )
        return known

    def codes(self, obs: pd.DataFrame, key: Key, labels: tuple[str, ...]) -> np.ndarray:
        """Return the label code of each cell, (N,) int64, -1 where it is unknown.

        Raises
        ------
        InputError
            No such column, missing values, or a label that the model does not have.
        """
        codes, _ = encode(obs, key, (*labels, self.unlabeled_category), "label")
        return np.where(codes == len(labels), -1, codes)


def with_labels_of(
    store: Store, obs: pd.DataFrame, key: Key, labels: tuple[str, ...], how: SemiSupervision
) -> Store:
    """Return the same cells with label codes from `obs`, -1 where the label is unknown."""
    codes = how.codes(obs, key, labels)
    return replace(store, label_codes=codes, label_categories=labels)
