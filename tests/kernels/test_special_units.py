"""Errors of a GPU's special-function units, laid into the interpreter: the target still holds.

CUDA's documentation gives ex2.approx 2 units in the last place, rcp.approx one, and lg2.approx an
absolute error of 2^-22 around 1. The interpreter rounds correctly instead.
"""

import numpy as np
import pytest
import torch
from oracle import grid
from tolerance import GRADIENT, VALUE, log_mu_rounding, share

pytest.importorskip("triton")
import triton.language as tl
from fastvae.kernels import math_gpu

from fastvae import functional as fn

if torch.get_default_device().type != "cpu":
    pytest.skip("a GPU has errors of its own", allow_module_level=True)

ERRORS = {
    "exp2_approx": (2.0**-22, 0.0),
    "rcp_approx": (2.0**-23, 0.0),
    "log2_approx": (0.0, 2.0**-22),
}
SIGNS = {
    "above": lambda x: 1.0,
    "below": lambda x: -1.0,
    "either": lambda x: 1.0 - 2.0 * scattered(x),
}
FLOAT32 = np.dtype(np.float32)


def scattered(x):
    """0 or 1, by the bits of x."""
    return (((x.to(tl.int32, bitcast=True) * -1640531527) >> 13) & 1).to(tl.float32)


def with_error(function, relative, absolute, sign):
    def run(x):
        wrong = sign(x)
        return function(x) * (1.0 + wrong * relative) + wrong * absolute

    return run


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("family", ["nb", "zinb"])
def test_log_prob_meets_the_target(monkeypatch, family, sign):
    for name, (relative, absolute) in ERRORS.items():
        exact = getattr(math_gpu, name)
        monkeypatch.setattr(math_gpu, name, with_error(exact, relative, absolute, SIGNS[sign]))
    points, exact = (
        {k: v[:: 5 if family == "zinb" else 1] for k, v in c.items()} for c in grid(family)
    )
    names = ["log_theta", "zi_logits"] if family == "zinb" else ["log_theta"]
    column = {k: torch.tensor(v[:, None], dtype=torch.float32) for k, v in points.items()}
    mu = column["log_mu"].exp().requires_grad_()
    theta = column["log_theta"].exp().requires_grad_()
    rest = [column[name] for name in names[1:]]
    with fn.use_backend("triton"), np.errstate(all="ignore"):
        value = getattr(fn, f"{family}_log_prob")(column["x"], mu, theta, *rest, eps=0.0)
        grads = torch.autograd.grad(value.sum(), [mu, theta])
    rounding = log_mu_rounding(exact["log_mu"], points["log_mu"], FLOAT32)
    rounding = rounding + log_mu_rounding(exact["log_theta"], points["log_theta"], FLOAT32)
    of_value = share(value[:, 0].detach().numpy(), exact["log_p"], VALUE[FLOAT32], rounding)
    report = {"value": at_worst(of_value, points)}
    for name, t, gradient in zip(["log_mu", "log_theta"], [mu, theta], grads, strict=True):
        rounding = 0.0
        if name == "log_mu":
            rounding = log_mu_rounding(exact["curvature"], points["log_mu"], FLOAT32)
        by_log = (gradient * t).detach()[:, 0].numpy()
        report[name] = at_worst(share(by_log, exact[name], GRADIENT[FLOAT32], rounding), points)
    assert all(worst <= 1 for worst, _ in report.values()), report


def at_worst(shares, points):
    at = int(np.nanargmax(shares))
    return float(shares[at]), {name: float(values[at]) for name, values in points.items()}
