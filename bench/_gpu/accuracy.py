"""The likelihoods on this device against 50 digits, on the grid that the tests use."""

from __future__ import annotations

from typing import Any

import torch
from _kit.contenders import NLL, available_backends, on_backend
from _kit.results import Part, Row

PARAMETERS: dict[str, list[str]] = {
    "zinb": ["log_theta", "zi_logits"],
    "nb": ["log_theta"],
    "poisson": [],
}


def of_family(row: Row, family: str, backend: str, device: torch.device) -> None:
    """Worst error of value and gradients as a share of what the tests allow."""
    from oracle import grid
    from tolerance import GRADIENT, VALUE, log_mu_rounding, share

    points, exact = grid(family)
    x = torch.tensor(points["x"][:, None], dtype=torch.float32, device=device)
    leaves = {
        name: torch.tensor(points[name][:, None], dtype=torch.float32, device=device)
        for name in ["log_mu", *PARAMETERS[family]]
    }
    for leaf in leaves.values():
        leaf.requires_grad_()
    nll = on_backend(NLL[family], backend)(x, torch.zeros_like(x), *leaves.values())
    grads = torch.autograd.grad(nll.sum(), list(leaves.values()))
    value = -nll.detach().cpu().numpy()
    rounding = log_mu_rounding(exact["log_mu"], points["log_mu"], value.dtype)
    shares: dict[str, Any] = {
        "value": share(value, exact["log_p"], VALUE[value.dtype], rounding),
    }
    for name, gradient in zip(leaves, grads, strict=True):
        by = rounding * 0
        if name == "log_mu":
            by = log_mu_rounding(exact["curvature"], points["log_mu"], value.dtype)
        got = -gradient[:, 0].cpu().numpy()
        shares[name] = share(got, exact[name], GRADIENT[value.dtype], by)
    row["points"] = len(value)
    row["worst"] = {}
    for name, values in shares.items():
        at = int(torch.from_numpy(values).nan_to_num(float("inf")).argmax())
        where = {k: float(v[at]) for k, v in points.items()}
        row["worst"][name] = {"share_of_allowed": float(values[at]), "at": where}
        if not values[at] <= 1:
            row.update(state="failed", error=f"{name}: {float(values[at]):.3g} of the allowed")


def run(part: Part, device: torch.device, tiny: bool) -> None:
    """Every backend of this device; the grid is long, so the tiny run takes one family."""
    backends = [name for name, reason in available_backends(device).items() if reason is None]
    for family in ["poisson"] if tiny else list(PARAMETERS):
        for backend in backends:
            part.row(
                f"50 digits, {family}, {backend}",
                lambda row, f=family, b=backend: of_family(row, f, b, device),
            )
