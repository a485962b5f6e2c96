"""A reference made wider: its setup, weights and codes with the batches of a query added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..data.keys import Key, in_words
from ..data.sources.slots import Slot
from ..data.stores.store import Store
from ..errors import InputError
from .setup import Setup

UNNAMED = "reference"
"""The batch of the cells of a reference that had no batch key."""


def extended_setup(setup: Setup, store: Store, batch_key: Key | None, slot: Slot) -> Setup:
    """Return the setup of a reference with the new batches of a query after its own.

    Parameters
    ----------
    setup
        Of the reference.
    store
        The query, with its own batch codes.
    batch_key, slot
        Of the query.

    Raises
    ------
    InputError
        The reference has batches and the query has no column for them, or a batch of the query
        has the name that stands for all cells of a reference without batches.
    """
    if batch_key is None:
        return replace(setup, slot=slot)
    known = setup.batch_categories if setup.batch_key is not None else (UNNAMED,)
    if setup.batch_key is None and UNNAMED in store.batch_categories:
        raise InputError(
            f"{in_words(batch_key)} has the batch {UNNAMED!r}, the name that the cells of a "
            "reference without batches get; rename it"
        )
    new = [code for code, name in enumerate(store.batch_categories) if name not in known]
    means, variances = store.log_library_mean.reshape(-1), store.log_library_var.reshape(-1)
    return replace(
        setup,
        batch_key=batch_key,
        slot=slot,
        batch_categories=(*known, *(store.batch_categories[code] for code in new)),
        log_library_mean=(*setup.log_library_mean, *(float(means[code]) for code in new)),
        log_library_var=(*setup.log_library_var, *(float(variances[code]) for code in new)),
    )


def widened(old: Setup, new: Setup, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the network of `new`, with every weight of the old one bit-equal.

    The column of a new batch is the mean of the old columns, and follows them: before those of
    other covariates. The network of a reference with one batch has no column for it: that column
    and the new ones are zeros, which changes no answer.
    """
    n_after = columns_after_batches(old)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in new.build().state_dict().items()}
    result = {}
    for name, weight in state.items():
        n_more = shapes[name][-1] - weight.shape[-1] if weight.dim() else 0
        if n_more == 0:
            result[name] = weight.detach().clone()
            continue
        n_old = len(old.batch_categories)
        end = weight.shape[1] - (0 if name == "px_r" else n_after)
        columns = weight[:, end - n_old : end] if n_old > 1 or name == "px_r" else None
        if columns is None:
            more = weight.new_zeros(weight.shape[0], n_more)
        else:
            more = columns.mean(dim=1, keepdim=True).expand(-1, n_more)
        parts = weight[:, :end], more, weight[:, end:]
        result[name] = torch.cat([part.detach() for part in parts], dim=1)
    return result


def columns_after_batches(setup: Setup) -> int:
    """Number of columns that follow those of the batches in the weights of a layer."""
    numbers = [len(names) for names in setup.covariate_categories]
    return sum(number for number in numbers if number > 1)


def recoded(store: Store, setup: Setup) -> Store:
    """Return the same cells with the batch codes and library statistics of `setup`."""
    position = {name: code for code, name in enumerate(setup.batch_categories)}
    codes = store.batch_codes
    if store.batch_categories:
        table = np.array([position[name] for name in store.batch_categories], dtype=np.int64)
        codes = table[codes]
    return replace(
        store,
        batch_codes=codes,
        batch_categories=setup.batch_categories,
        log_library_mean=np.asarray(setup.log_library_mean, dtype=np.float32),
        log_library_var=np.asarray(setup.log_library_var, dtype=np.float32),
    )
