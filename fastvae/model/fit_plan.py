"""What is decided about one call of `Model.fit` before its first step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from .._status import note, print_status
from ..data import Minibatches
from ..data.labelled_minibatches import LabelledMinibatches
from ..data.stores.residence import place
from ..data.stores.store import Store
from ..errors import whole_number
from ..functional import dispatch as _backend
from ..train import TrainSettings, split_cells
from ..train.checkpoints import Checkpoints, Loaded, open_checkpoints
from ..train.processes import Group
from ..train.schedules import resolved
from ..train.settings import CheckpointOptions
from .setup import Setup


@dataclass(frozen=True, eq=False)
class FitPlan:
    """What is decided before the first step.

    Attributes
    ----------
    store
        The cells, where training reads them.
    settings
        With every "auto" replaced by a number.
    seed
        Of the first weights, the split, the order of the cells and the noise.
    train_cells, validation_cells
        Rows of `store`.
    group
        The processes that train together, on their devices.
    checkpoints
        None where none are written.
    steps_before
        Steps that the weights have taken already.
    """

    store: Store
    settings: TrainSettings
    seed: int
    train_cells: np.ndarray
    validation_cells: np.ndarray
    group: Group
    checkpoints: Checkpoints | None
    steps_before: int

    @classmethod
    def of(
        cls,
        store: Store,
        settings: TrainSettings,
        options: CheckpointOptions,
        group: Group,
        *,
        residence: str,
        seed: int | None,
        earlier: Mapping[str, Any],
        progress: bool,
    ) -> FitPlan:
        """Choose the seed, split the cells, and bring the counts to where they are read.

        Parameters
        ----------
        residence
            As `Model.fit` takes it.
        seed
            None is that of the checkpoint, else of the earlier training, else a random one.
        earlier
            Summary of the training before; empty where there was none.
        progress
            Say on standard error where the counts are, and why.
        """
        checkpoints = open_checkpoints(options, group)
        found = checkpoints.found if checkpoints else None
        if seed is None and found:
            seed = found.state["seed"]
        if seed is None:
            seed = earlier.get("seed", int(torch.randint(2**31, ())))
        seed = group.share(whole_number("seed", seed, minimum=0))
        train_cells, validation_cells = split_cells(store.n_cells, settings.train_size, seed)
        settings = resolved(settings, store.n_cells, len(train_cells), group.device)
        store, reason = place(store, residence, group.device)
        if group.leads:
            show = print_status if progress else None
            note(f"{reason}; {_backend.describe(group.device)}", show)
            if options.resume:
                note(_resumes_from(found, options), show)
        return cls(
            store=store,
            settings=settings,
            seed=seed,
            train_cells=train_cells,
            validation_cells=validation_cells,
            group=group,
            checkpoints=checkpoints,
            steps_before=found.state["first_step"] if found else earlier.get("steps", 0),
        )

    def minibatches(self, *, labelled: bool) -> tuple[Minibatches, Minibatches | None]:
        """Return the minibatches for training and for validation; None without validation cells.

        With `labelled`, those for training have labelled cells beside them.
        """
        part: dict[str, Any] = {
            "batch_size": self.settings.cells_per_minibatch,
            "device": self.group.device,
            "rank": self.group.rank,
            "world_size": self.group.size,
        }
        kind = LabelledMinibatches if labelled else Minibatches
        training = kind(self.store, self.train_cells, shuffle=True, seed=self.seed, **part)
        if not len(self.validation_cells):
            return training, None
        return training, Minibatches(self.store, self.validation_cells, **part)

    def numbers_of_cells(self) -> dict[str, int]:
        """Return how many cells train and how many validate."""
        return {"n_train": len(self.train_cells), "n_validation": len(self.validation_cells)}

    def labelled_validation_cells(self) -> np.ndarray:
        """Return the rows of the validation cells that have a label."""
        cells = self.validation_cells
        return cells[self.store.label_codes[cells] >= 0]

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain values, for `Model.training`."""
        return {
            "n_cells": self.store.n_cells,
            **self.numbers_of_cells(),
            "seed": self.seed,
            "device": str(self.group.device),
            "residence": self.store.residence,
            "processes": self.group.size,
            "settings": self.settings.as_dict(),
        }

    def fingerprint(self, setup: Setup) -> dict[str, Any]:
        """Describe the network, the data and the order of the cells, as plain values.

        The counts themselves are not read again: cells are told apart by how many genes they
        have, and by batch, label and covariates.
        """
        store = self.store
        genes = hashlib.sha256("\n".join(map(str, store.gene_names)).encode())
        cells = hashlib.sha256()
        for array in (store.lengths(), store.batch_codes, store.label_codes):
            cells.update(np.asarray(array, dtype=np.int64).tobytes())
        for values in store.covariates.given().values():
            cells.update(np.ascontiguousarray(values).tobytes())
        options = asdict(setup.options)
        # older checkpoints do not say these
        if not options["encode_covariates"]:
            del options["encode_covariates"]
        if options["deeply_inject_covariates"]:
            del options["deeply_inject_covariates"]
        blocks = store.block_edges
        if blocks is None:
            order = "whole"
        else:
            order = f"by {len(blocks) - 1} blocks on disk, {store.pool_cells} cells at a time"
        return {
            "number of cells": store.n_cells,
            "number of genes": store.n_genes,
            "names of the genes (SHA-256)": genes.hexdigest()[:16],
            "the cells (SHA-256)": cells.hexdigest()[:16],
            "batch_categories": list(setup.batch_categories),
            "label_categories": list(setup.label_categories),
            **_covariates(setup),
            **_semi_supervision(setup),
            **options,
            "seed": self.seed,
            "batch_size": self.settings.batch_size,
            "train_size": self.settings.train_size,
            "the order of the cells": order,
            "number of processes": self.group.size,
        }


def _covariates(setup: Setup) -> dict[str, Any]:
    """Describe the covariates that the network is told; those that it has not are left out."""
    keys = setup.covariates
    described = {
        "categorical_covariate_keys": list(keys.categorical),
        "covariate_categories": [list(names) for names in setup.covariate_categories],
        "continuous_covariate_keys": list(keys.continuous),
        "size_factor_key": keys.size_factor,
    }
    return {name: value for name, value in described.items() if value}


def _semi_supervision(setup: Setup) -> dict[str, Any]:
    """Describe how labels are learned; empty where they are not."""
    return {} if setup.semi_supervision is None else asdict(setup.semi_supervision)


def _resumes_from(found: Loaded | None, options: CheckpointOptions) -> str:
    """Say where a resumed run goes on."""
    if found is None:
        return f"no checkpoint in {options.checkpoint_dir}: training starts from the beginning"
    state = found.state
    place = f"after {len(state['history'].get('epoch', ()))} whole epochs"
    if state["steps"]:
        place += f" and {state['steps']} minibatches of the next"
    return f"resuming from {found.path}: {place}"
