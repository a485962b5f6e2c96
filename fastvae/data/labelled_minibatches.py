"""Minibatches of all cells, each with a minibatch of cells whose label is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import InputError
from .minibatches import Minibatches
from .stores.minibatch import Minibatch
from .stores.store import Store


class LabelledMinibatches(Minibatches):
    """Minibatches over cells of a store, each with as many of its labelled cells beside it.

    The labelled cells are gone through again and again, in a new order each time; which of them
    come next depends on the seed and on how many minibatches there were before.

    Parameters
    ----------
    store
        Where the counts are; its label codes are below 0 for cells without a label.
    cells
        Rows to use, with and without labels.
    **options
        As in `Minibatches`.

    Raises
    ------
    InputError
        As `Minibatches`; or fewer than two of these cells have a label.
    """

    def __init__(self, store: Store, cells: np.ndarray, **options: Any) -> None:
        super().__init__(store, cells, **options)
        known = cells[store.label_codes[cells] >= 0]
        if len(known) < 2:
            raise InputError(
                f"{len(known)} of {len(cells)} cells to train on have a label, and at least two "
                "must: look at labels_key and unlabeled_category, or train without the latter"
            )
        self.labelled = Minibatches(store, known, **options)

    def __iter__(self) -> Iterator[Minibatch]:
        labelled = self._labelled_after(self.epoch * len(self) + self._resume_at)
        for batch in super().__iter__():
            yield batch._replace(labelled=next(labelled))

    def _labelled_after(self, number: int) -> Iterator[Minibatch]:
        """Yield minibatches of labelled cells without end, as they come after so many others."""
        epoch, position = divmod(number, len(self.labelled))
        while True:
            self.labelled.set_epoch(epoch)
            self.labelled.load_state_dict({"epoch": epoch, "position": position})
            yield from self.labelled
            epoch, position = epoch + 1, 0
