"""Error of the likelihoods against 50 digits, beside the textbook form: tables for kernels/README.

python bench accuracy             prints the tables
python bench accuracy --write     also puts them between the markers in kernels/README.md
python bench accuracy --out JSON  writes error by theta of everybody here, scvi-tools included
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastvae import functional as fn

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
ROOT = Path(__file__).resolve().parents[2]
from oracle import PI, grid  # noqa: E402
from tolerance import GRADIENT, VALUE, log_mu_rounding, share  # noqa: E402

START, END = "<!-- accuracy: start -->", "<!-- accuracy: end -->"
Columns = dict[str, np.ndarray]


def textbook(
    x: Tensor, log_mu: Tensor, log_theta: Tensor | None, zi: Tensor | None, eps: float = 0.0
) -> Tensor:
    """The usual elementwise form, a difference of lgammas.

    Its eps, 1e-8 in scvi, is left out here: it would move the function itself where mu is small.
    """
    mu = log_mu.exp()
    if log_theta is None:
        return torch.xlogy(x, mu) - mu - torch.lgamma(x + 1)
    theta = log_theta.exp()
    log_total = torch.log(theta + mu + eps)
    zero = theta * (torch.log(theta + eps) - log_total)
    nb = zero + x * (torch.log(mu + eps) - log_total)
    nb = nb + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    if zi is None:
        return nb
    case_zero = F.softplus(zero - zi) - F.softplus(-zi)
    return torch.where(x <= eps, case_zero, nb - zi - F.softplus(-zi))


def on_backend(name: str) -> Callable[..., Tensor]:
    """The package's operations: cells of one gene, so that log mu is the log library."""

    def log_p(x: Tensor, log_mu: Tensor, log_theta: Tensor | None, zi: Tensor | None) -> Tensor:
        logits = torch.zeros_like(x)
        with fn.use_backend(name):
            if log_theta is None:
                return -fn.poisson_nll(x, logits, log_mu)[:, None]
            if zi is None:
                return -fn.nb_nll(x, logits, log_mu, log_theta)[:, None]
            return -fn.zinb_nll(x, logits, log_mu, log_theta, zi)[:, None]

    return log_p


ours = on_backend("torch")


def fused(x: Tensor, log_mu: Tensor, log_theta: Tensor | None, zi: Tensor | None) -> Tensor:
    """The Triton kernels, through the elementwise form: all points in few programs."""
    with fn.use_backend("triton"), np.errstate(over="ignore", invalid="ignore"):
        if log_theta is None:
            return fn.poisson_log_prob(x, log_mu.exp())
        if zi is None:
            return fn.nb_log_prob(x, log_mu.exp(), log_theta.exp(), eps=0.0)
        return fn.zinb_log_prob(x, log_mu.exp(), log_theta.exp(), zi, eps=0.0)


def evaluate(function: Callable[..., Tensor], points: Columns, dtype: torch.dtype) -> Columns:
    """Value and gradients of `function` on the grid."""
    columns = {k: torch.tensor(v[:, None], dtype=dtype) for k, v in points.items()}
    leaves = {k: v.requires_grad_() for k, v in columns.items() if k != "x"}
    value = function(
        columns["x"], leaves["log_mu"], leaves.get("log_theta"), leaves.get("zi_logits")
    )
    grads = torch.autograd.grad(value.sum(), list(leaves.values()))
    out = {"log_p": value, **dict(zip(leaves, grads, strict=True))}
    return {k: v.detach()[:, 0].double().numpy() for k, v in out.items()}


def by_theta() -> list[str]:
    """Largest error of log NB and of its gradient by log theta, in float32."""
    points, exact = grid("nb")
    runs = [evaluate(f, points, torch.float32) for f in (textbook, ours)]
    lines = [
        "| theta | log NB, x <= 8: textbook | fastvae "
        "| gradient by log theta, x <= 100: textbook | fastvae |",
        "|---|---|---|---|---|",
    ]
    theta = np.round(np.exp(points["log_theta"].astype(np.float64)), 6)
    for value in np.unique(points["log_theta"]):
        rows = points["log_theta"] == value
        label = f"{theta[rows][0]:.0e}"
        cells = []
        for name, most in (("log_p", 8), ("log_theta", 100)):
            chosen = rows & (points["x"] <= most) & (points["log_mu"] <= np.log(101))
            cells += [worst_error(run[name][chosen], exact[name][chosen]) for run in runs]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def worst_error(got: np.ndarray, exact: np.ndarray) -> str:
    return f"{(np.abs(got - exact) / np.maximum(1, np.abs(exact))).max():.1e}"


def against_target() -> list[str]:
    """Worst share of the allowed error over the whole grid: at most 1 meets the target."""
    lines = [
        "| family | quantity | points | textbook float32 | torch float32 | cpu float32 "
        "| triton float32 | torch float64 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in ("poisson", "nb", "zinb"):
        points, exact = grid(family)
        runs = [
            (np.dtype(np.float32), evaluate(textbook, points, torch.float32)),
            (np.dtype(np.float32), evaluate(ours, points, torch.float32)),
            (np.dtype(np.float32), evaluate(on_backend("cpu"), points, torch.float32)),
            (np.dtype(np.float32), evaluate(fused, points, torch.float32)),
            (np.dtype(np.float64), evaluate(ours, points, torch.float64)),
        ]
        for name in runs[0][1]:
            label = "log p" if name == "log_p" else f"gradient by {name}"
            cells = []
            for dtype, run in runs:
                relative = (VALUE if name == "log_p" else GRADIENT)[dtype]
                sensitivity = {"log_p": "log_mu", "log_mu": "curvature"}.get(name)
                rounding = 0.0
                if sensitivity:
                    rounding = log_mu_rounding(exact[sensitivity], points["log_mu"], dtype)
                shares = share(run[name], exact[name], relative, rounding)
                bad = int(np.isnan(shares).sum())
                cells.append(f"{np.nanmax(shares):.2g}" + (f" ({bad} NaN)" if bad else ""))
            lines.append(f"| {family} | {label} | {len(points['x'])} | {' | '.join(cells)} |")
    return lines


def scvi_tools(x: Tensor, log_mu: Tensor, log_theta: Tensor | None, zi: Tensor | None) -> Tensor:
    """Their distributions as their loss asks them, from mu and theta; eps 1e-8 as they have it."""
    from scvi import distributions

    if log_theta is None:
        return distributions.Poisson(rate=log_mu.exp()).log_prob(x)
    parameters = {"mu": log_mu.exp(), "theta": log_theta.exp()}
    if zi is None:
        return distributions.NegativeBinomial(**parameters).log_prob(x)
    return distributions.ZeroInflatedNegativeBinomial(**parameters, zi_logits=zi).log_prob(x)


def everybody() -> dict[str, Callable[..., Tensor]]:
    """All that can compute here, by the names that the other benchmarks use."""
    found = {"fastvae cpu": on_backend("cpu"), "fastvae torch": ours}
    if importlib.util.find_spec("triton"):
        found["fastvae triton"] = fused
    found["textbook"] = textbook
    if importlib.util.find_spec("scvi"):
        found["scvi-tools"] = scvi_tools
    return found


def ordinary(points: Columns) -> np.ndarray:
    """Whole counts and means up to 100, means from 0.3: what every data set has.

    Below, the eps that scvi-tools adds to mu is part of its function, not an error of arithmetic.
    """
    mu = np.exp(points["log_mu"].astype(np.float64))
    x = points["x"]
    return (x <= 100) & (x == np.floor(x)) & (mu > 0.29) & (mu < 101)


def errors_by_theta(family: str, run: Columns, points: Columns, exact: Columns) -> dict[str, Any]:
    """Largest error over max(1, |exact|) at each theta, of ordinary counts; None for NaN."""
    thetas = np.unique(points["log_theta"])
    errors: dict[str, list[float | None]] = {name: [] for name in run}
    for value in thetas:
        chosen = ordinary(points) & (points["log_theta"] == value)
        for name, got in run.items():
            off = np.abs(got[chosen] - exact[name][chosen])
            worst = float((off / np.maximum(1, np.abs(exact[name][chosen]))).max())
            errors[name].append(worst if np.isfinite(worst) else None)
    rounded = [float(f"{t:.3g}") for t in np.exp(thetas.astype(np.float64))]
    return {"family": family, "theta": rounded, "errors": errors}


def as_json() -> dict[str, Any]:
    """What bench/report.py quotes and draws."""
    from _kit.environment import describe

    rows = []
    for family in ("nb", "zinb"):
        points, exact = grid(family)
        for name, function in everybody().items():
            run = evaluate(function, points, torch.float32)
            row = errors_by_theta(family, run, points, exact)
            rows.append({"provider": name, "dtype": "float32", **row})
    return {
        "environment": describe(),
        "what": "largest error / max(1, |exact|) against 50 digits, by theta; log p and gradients",
        "points": " ".join((ordinary.__doc__ or "").split()),
        "triton": None if torch.cuda.is_available() else "in triton's interpreter on a CPU",
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="update kernels/README.md")
    parser.add_argument("--out", type=Path, help="JSON for bench/report.py; nothing else is done")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if args.out:
        if args.out.exists() and not args.overwrite:
            sys.exit(f"{args.out} exists; pass --overwrite to replace it")
        from _kit.results import write_json

        with warnings.catch_warnings():  # scvi-tools warns of counts that are not whole
            warnings.simplefilter("ignore")
            write_json(args.out, as_json())
        return
    text = "\n".join(
        [
            "Largest error over max(1, |exact|) in float32, mu up to 100:",
            "",
            *by_theta(),
            "",
            "Worst error over the whole grid as a share of what the target allows"
            f" ({len(PI)} values of pi for ZINB; at most 1 meets it; triton through its"
            " interpreter, from mu and theta, which are rounded once more):",
            "",
            *against_target(),
        ]
    )
    print(text)
    if args.write:
        page = ROOT / "kernels" / "README.md"
        before, rest = page.read_text().split(START)
        page.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
