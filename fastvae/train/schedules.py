"""What changes over the epochs: how many there are, and the weight of the KL term."""

from __future__ import annotations

from .settings import TrainSettings


def default_max_epochs(n_cells: int) -> int:
    """Return ``min(round(20000 / n_cells * 400), 400)``, at least 1.

    The number of epochs that scvi-tools takes for `n_cells` cells: about 8 million cells seen.
    """
    return max(1, min(round(20_000 / max(n_cells, 1) * 400), 400))


def kl_weight_at(settings: TrainSettings, epoch: int, step: int) -> float:
    """Return the weight of the KL term, in [0, 1].

    Parameters
    ----------
    settings
        ``n_steps_kl_warmup`` is used when given, else ``n_epochs_kl_warmup``; 0 or None is 1.
    epoch
        Epochs completed before this one: the first epoch has weight 0, as in scvi.
    step
        Minibatches completed before this one.
    """
    if settings.n_steps_kl_warmup is not None:
        done, length = step, settings.n_steps_kl_warmup
    else:
        done, length = epoch, settings.n_epochs_kl_warmup or 0
    return min(1.0, done / length) if length > 0 else 1.0
