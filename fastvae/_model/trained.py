"""What training left behind: history, split and summary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import InputError
from ..train import History, split_cells
from .state import State


class Trained(State):
    """The part of `Model` that says how it was trained."""

    def _summarise(
        self, summary: dict[str, Any], ending: str, steps: int, best_epoch: int | None
    ) -> None:
        history = self._history
        kept = -1 if best_epoch is None else history["epoch"].index(best_epoch)
        self.training = {
            **summary,
            "ending": ending,
            "steps": steps,
            "epochs": len(history["epoch"]),
            "best_epoch": best_epoch,
            "seconds": sum(history["seconds"]),
        }
        for name in ("train_elbo", "validation_elbo"):
            value = history[name][kept] if history[name] else math.nan
            self.training[name] = None if math.isnan(value) else value
        self.is_trained = self.is_trained or steps > 0

    @property
    def history(self) -> History:
        """One list per column of ``history.csv``, one entry per epoch.

        The columns ``*_elbo`` hold the negative ELBO per cell: lower is better.
        """
        return {name: list(values) for name, values in self._history.items()}

    @property
    def train_cells(self) -> np.ndarray:
        """Rows of the training data that the last `fit` trained on."""
        return self._split()[0]

    @property
    def validation_cells(self) -> np.ndarray:
        """Rows of the training data that the last `fit` kept for validation."""
        return self._split()[1]

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.training:
            raise InputError("the model has not been trained yet; call fit() first")
        done = self.training
        return split_cells(done["n_cells"], done["settings"]["train_size"], done["seed"])

    def _training_line(self) -> str:
        if not self.is_trained:
            return "not trained: call fit()"
        done = self.training
        if not done:
            return "marked as trained"
        line = f"trained for {done['epochs']} epochs ({done['ending']})"
        for name, label in (("train_elbo", "training"), ("validation_elbo", "validation")):
            if done[name] is not None:
                line += f", {label} -ELBO {done[name]:.2f}"
        return line
