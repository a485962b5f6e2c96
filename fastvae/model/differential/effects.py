"""From draws of two populations to probabilities of differential expression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError, listed, real_number, shortened, shown
from ..posterior.decode import ScaleDraws, chunks
from .rules import bayes_factor, choose_delta, choose_pseudocounts, describe

DESCRIPTION_SHARE = 1e-3
"""Share of the pseudocount in the log-fold changes that are described (not in those tested)."""

ChangeFn = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
DomainFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ChangeOptions:
    """Options of mode "change"; see `Model.differential_expression`."""

    delta: float | None
    pseudocounts: float | None
    threshold_counts: float
    test_mode: str
    cred_interval_lvls: tuple[float, ...]
    change_fn: ChangeFn | None
    m1_domain_fn: DomainFn | None

    @classmethod
    def checked(
        cls,
        *,
        delta: Any,
        pseudocounts: Any,
        threshold_counts: Any,
        test_mode: Any,
        cred_interval_lvls: Any,
        change_fn: ChangeFn | None,
        m1_domain_fn: DomainFn | None,
    ) -> ChangeOptions:
        """Take the options as the user gave them.

        Raises
        ------
        InputError
            Names the one that is out of range.
        """
        if not isinstance(test_mode, str) or test_mode not in ("two", "three"):
            raise InputError(f"test_mode must be 'two' or 'three', not {shown(test_mode)}")
        levels: tuple[float, ...] = ()
        if cred_interval_lvls is not None:
            name = "cred_interval_lvls"
            given = listed(name, cred_interval_lvls, "a list of shares between 0 and 1", 1000)
            levels = tuple(real_number(name, level) for level in given)
            if not all(0 < level < 1 for level in levels):
                raise InputError(f"{name} must be shares between 0 and 1, not {shown(levels)}")
        for name, function in (("change_fn", change_fn), ("m1_domain_fn", m1_domain_fn)):
            if function is not None and not callable(function):
                raise InputError(f"{name} must be a function, not {shown(function)}")
        return cls(
            delta=None if delta is None else real_number("delta", delta),
            pseudocounts=(
                None if pseudocounts is None else real_number("pseudocounts", pseudocounts)
            ),
            threshold_counts=real_number("threshold_counts", threshold_counts),
            test_mode=test_mode,
            cred_interval_lvls=levels,
            change_fn=change_fn,
            m1_domain_fn=m1_domain_fn,
        )


@dataclass(frozen=True, eq=False)
class Pairs:
    """Draws of two populations, and which are compared: (P,) positions in each."""

    first: ScaleDraws
    second: ScaleDraws
    rows1: Tensor
    rows2: Tensor

    @classmethod
    def of(
        cls,
        first: ScaleDraws,
        second: ScaleDraws,
        n_shared: int | None,
        n_permuted: int | None,
        rng: np.random.Generator,
    ) -> Pairs:
        """Pair draws at the same position, or `n_permuted` at random.

        Parameters
        ----------
        n_shared
            Batches that both populations are decoded as, in the same order: draws are then paired
            within a batch. None pairs across batches.
        """
        if n_permuted is None:
            same = torch.arange(min(len(first), len(second)))
            return cls(first, second, same, same)
        groups = n_shared or 1
        each = max(n_permuted // groups, 1)

        def rows(n_draws: int) -> Tensor:
            per_group = n_draws // groups
            start = np.repeat(np.arange(groups) * per_group, each)
            return torch.from_numpy(start + rng.integers(per_group, size=len(start)))

        return cls(first, second, rows(len(first)), rows(len(second)))

    def chunks(self) -> list[slice]:
        """Return the genes that are decoded together."""
        most = max(len(self.first), len(self.second), len(self.rows1))
        return list(chunks(self.first.n_genes, most))

    def scales(self, genes: slice) -> tuple[Tensor, Tensor]:
        """Return the frequencies of both sides of every pair, (genes, P) each."""
        both = []
        for draws, rows in ((self.first, self.rows1), (self.second, self.rows2)):
            scale = draws.scale(genes)
            whole = len(rows) == len(draws) and rows is self.rows1 and rows is self.rows2
            both.append(scale if whole else scale[:, rows.to(scale.device)])
        return both[0], both[1]


def vanilla(pairs: Pairs) -> dict[str, np.ndarray]:
    """Return the probability that the first frequency is the larger one, per gene."""
    rows = []
    for genes in pairs.chunks():
        one, two = pairs.scales(genes)
        rows.append(_share(one > two))
    proba_m1 = np.concatenate(rows)
    return {
        "proba_m1": proba_m1,
        "proba_m2": 1.0 - proba_m1,
        "bayes_factor": bayes_factor(proba_m1),
        **mean_scales(pairs),
    }


def change(
    pairs: Pairs, means: tuple[np.ndarray, np.ndarray] | None, options: ChangeOptions
) -> dict[str, np.ndarray]:
    """Return the probability that the log-fold change is beyond delta, and describe the change.

    Parameters
    ----------
    means
        Mean counts (G,) of the two populations; needed to choose the pseudocount.
    """
    pseudocounts = options.pseudocounts
    if pseudocounts is None:
        assert means is not None
        low = [mean < options.threshold_counts for mean in means]
        pseudocounts = choose_pseudocounts(*_maxima(pairs), *low)

    def effects(one: Tensor, two: Tensor, offset: float) -> Tensor:
        if options.change_fn is None:
            return log_fold_change(one, two, offset)
        return _custom_effects(options.change_fn, one, two, offset)

    delta = options.delta
    if delta is None:
        parts = [effects(*pairs.scales(g), pseudocounts).mean(dim=1) for g in pairs.chunks()]
        delta = choose_delta(torch.cat(parts).cpu().numpy())
    columns: dict[str, list[np.ndarray]] = {}
    for genes in pairs.chunks():
        one, two = pairs.scales(genes)
        up, down = _beyond(effects(one, two, pseudocounts), delta, options.m1_domain_fn)
        proba_de = up + down if options.test_mode == "two" else np.maximum(up, down)
        shown = effects(one, two, DESCRIPTION_SHARE * pseudocounts)
        row = {"proba_de": proba_de, **describe(shown, options.cred_interval_lvls)}
        for name, values in row.items():
            columns.setdefault(name, []).append(values)
    found = {name: np.concatenate(parts) for name, parts in columns.items()}
    proba_de = found.pop("proba_de")
    n_genes = len(proba_de)
    return {
        "proba_de": proba_de,
        "proba_not_de": 1.0 - proba_de,
        "bayes_factor": bayes_factor(proba_de),
        **mean_scales(pairs),
        "pseudocounts": np.full(n_genes, pseudocounts),
        "delta": np.full(n_genes, delta),
        **{f"lfc_{name}": values for name, values in found.items()},
    }


def mean_scales(pairs: Pairs) -> dict[str, np.ndarray]:
    """Return the mean frequency of each gene over all draws of each population."""
    found = {}
    for number, draws in ((1, pairs.first), (2, pairs.second)):
        parts = [draws.scale(genes).mean(dim=1) for genes in chunks(draws.n_genes, len(draws))]
        found[f"scale{number}"] = torch.cat(parts).cpu().numpy()
    return found


def log_fold_change(one: Tensor, two: Tensor, pseudocounts: float) -> Tensor:
    """Return ``log2(one + pseudocounts) - log2(two + pseudocounts)``."""
    return torch.log2(one + pseudocounts) - torch.log2(two + pseudocounts)


def _maxima(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    highest: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for genes in pairs.chunks():
        for scale, parts in zip(pairs.scales(genes), highest, strict=True):
            parts.append(scale.amax(dim=1).cpu().numpy())
    return np.concatenate(highest[0]), np.concatenate(highest[1])


def _beyond(
    effects: Tensor,
    delta: float,
    domain: DomainFn | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each row's effects that are up, and down, by more than delta."""
    if domain is None:
        up, down = effects >= delta, effects < -delta
        return _share(up), _share(down)
    marks = _called("m1_domain_fn", domain, effects.T.cpu().numpy())
    if not isinstance(marks, tuple) or len(marks) != 2:
        raise InputError(
            "m1_domain_fn must return two boolean arrays, where the effect is up and where down, "
            f"not {type(marks).__name__}"
        )
    return np.mean(marks[0], axis=0), np.mean(marks[1], axis=0)


def _share(marks: Tensor) -> np.ndarray:
    """Return the share of each row that is true, (genes,) float64."""
    share: np.ndarray = marks.sum(dim=1).cpu().numpy() / marks.shape[1]
    return share


def _called(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user's, and say which one failed."""
    try:
        return function(*arguments)
    except Exception as error:  # whatever the user's own code raises
        raise InputError(
            f"{name} failed: {type(error).__name__}: {shortened(str(error))}"
        ) from error


def _custom_effects(
    change_fn: ChangeFn,
    one: Tensor,
    two: Tensor,
    offset: float,
) -> Tensor:
    scales = one.T.cpu().numpy(), two.T.cpu().numpy()
    effects = np.asarray(_called("change_fn", change_fn, *scales, offset))
    if effects.shape != (one.shape[1], one.shape[0]):
        raise InputError(
            f"change_fn made {effects.shape} of arrays {tuple(one.T.shape)}; it must give one "
            "effect for each pair of draws and each gene"
        )
    return torch.from_numpy(np.ascontiguousarray(effects.T)).to(one.device)
