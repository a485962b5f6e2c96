"""Heads whose means are a softplus, with their derivatives, beside autograd on every backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fastvae.functional.arguments import counts
from fastvae.functional.derivatives import Linear
from fastvae.functional.likelihood import nll_of, softplus_as_softmax
from fastvae.functional.softplus_heads import SoftplusHeads

N, H, G = 7, 3, 11
KINDS = {
    "poisson": ("poisson", None),
    "nb, a table": ("nb", "table"),
    "zinb, by gene": ("zinb", "gene"),
    "zinb, by cell": ("zinb", "cell"),
}


def problem(kind: str, dtype: torch.dtype) -> tuple[dict[str, Any], torch.Tensor, Any]:
    """Leaves by name, counts, and the row of the table of each cell."""
    likelihood, dispersion = KINDS[kind]
    x = torch.poisson(torch.rand(N, G) * 5) * (torch.rand(N, G) < 0.5)
    leaves = {"hidden": torch.randn(N, H), "library": torch.randn(N, 1) + 1}
    heads = ["scale", *(["zi"] if likelihood == "zinb" else [])]
    heads += ["theta"] if dispersion == "cell" else []
    for name in heads:
        leaves |= {f"{name}_weight": torch.randn(G, H), f"{name}_bias": torch.randn(G)}
    leaves["scale_bias"][:6] = torch.tensor([-1e3, -90, -80, 30, 200, 1e3])
    if dispersion in ("gene", "table"):
        leaves["log_theta"] = torch.randn((G,) if dispersion == "gene" else (2, G))
    index = torch.arange(N) % 2 if dispersion == "table" else None
    return {k: t.to(dtype).requires_grad_() for k, t in leaves.items()}, x.to(dtype), index


def by_autograd(
    kind: str, leaves: dict[str, Any], x: torch.Tensor, index: Any, upstream: torch.Tensor
) -> dict[str, torch.Tensor]:
    def head(name: str) -> Any:
        if f"{name}_weight" not in leaves:
            return None
        return leaves["hidden"] @ leaves[f"{name}_weight"].t() + leaves[f"{name}_bias"]

    scale, library = softplus_as_softmax(head("scale"), leaves["library"])
    theta = leaves.get("log_theta", head("theta"))
    nll = nll_of(KINDS[kind][0], x, scale, library, theta, head("zi"), theta_index=index)
    grads = torch.autograd.grad(nll, list(leaves.values()), upstream)
    return {"nll": nll.detach(), **dict(zip(leaves, grads, strict=True))}


def written(
    leaves: dict[str, Any], x: torch.Tensor, index: Any, upstream: torch.Tensor
) -> dict[str, torch.Tensor]:
    values = {name: t.detach() for name, t in leaves.items()}

    def head(name: str) -> Any:
        if f"{name}_weight" not in values:
            return None
        return Linear(values[f"{name}_weight"], values[f"{name}_bias"])

    heads = {name: head(name) for name in ("scale", "zi", "theta")}
    operation = SoftplusHeads(*heads.values())
    given = values["hidden"], values["library"], values.get("log_theta"), index, upstream
    nll, by_hidden, by_library, by_theta = operation.nll_and_gradients(counts(x), *given)
    assert by_library is not None
    found = {"nll": nll, "hidden": by_hidden, "library": by_library}
    if by_theta is not None:
        found["log_theta"] = by_theta
    for name, one in heads.items():
        if one is not None:
            parameters = zip(("weight", "bias"), one.parameters, strict=True)
            found |= {f"{name}_{part}": p.gradient for part, p in parameters}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_as_autograd(backend_and_dtype: Any, dtype: torch.dtype, close: Any, kind: str) -> None:
    leaves, x, index = problem(kind, dtype)
    upstream = torch.randn(N).to(dtype)
    want = by_autograd(kind, leaves, x, index, upstream)
    got = written(leaves, x, index, upstream)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert value.isfinite().all()
        close(got[name], value, name)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(backend: str, bad: float) -> None:
    names = ["hidden", "library", "scale_bias", "zi_bias", "log_theta", "scale_weight"]
    for name in names[:1] if backend == "triton" else names:  # each takes the interpreter seconds
        leaves, x, index = problem("zinb, by gene", torch.float32)
        with torch.no_grad():
            leaves[name][2] = bad
        with np.errstate(all="ignore"):
            want = by_autograd("zinb, by gene", leaves, x, index, torch.ones(N))
            got = written(leaves, x, index, torch.ones(N))
        for key in ("nll", "hidden"):
            assert torch.equal(got[key].isnan(), want[key].isnan()), (name, key)
        assert got["nll"].isnan().any() or not math.isnan(bad), name


def test_memory_may_be_lent() -> None:
    leaves, x, index = problem("zinb, by gene", torch.float32)
    values = {name: t.detach() for name, t in leaves.items()}
    heads = [Linear(values[f"{name}_weight"], values[f"{name}_bias"]) for name in ("scale", "zi")]
    lent = torch.full((G,), torch.nan)
    *_, by_library, by_theta = SoftplusHeads(*heads, None).nll_and_gradients(
        counts(x), values["hidden"], values["library"], values["log_theta"], index, torch.ones(N),
        by_library=False, table_gradient=lent,
    )  # fmt: skip
    assert by_library is None
    assert by_theta is lent
    assert torch.equal(lent, written(leaves, x, index, torch.ones(N))["log_theta"])
