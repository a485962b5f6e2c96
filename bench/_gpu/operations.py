"""Sampling with KL, and the first layer on sparse counts against densifying them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvae import functional as fn

from . import timing
from .agreement import compare
from .contenders import available_backends, on_backend
from .problems import make_counts, to_csr
from .results import Part, Row, short

LATENT = [(128, 10), (4096, 10), (1024, 30), (65536, 10)]
LINEAR = [(128, 2000), (4096, 2000), (1024, 8000), (4096, 8000), (1024, 30000), (4096, 30000)]
DENSITIES = [0.08, 0.02, 0.2]
HIDDEN = 128
TF32_LIMIT = 2e-3  # its products keep 10 bits


def textbook_sample(q_mean: Tensor, q_log_var: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q_var = torch.exp(q_log_var) + 1e-4
    posterior = torch.distributions.Normal(q_mean, q_var.sqrt(), validate_args=False)
    prior = torch.distributions.Normal(
        torch.zeros_like(q_mean), torch.ones_like(q_mean), validate_args=False
    )
    kl = torch.distributions.kl_divergence(posterior, prior).sum(dim=1)
    return posterior.rsample(), q_mean, q_var, kl


def sampling_row(
    row: Row, n: int, latent: int, device: torch.device, backends: list[str], seconds: float
) -> None:
    """Variance, KL and its gradients are compared; the noise differs by backend."""
    q_mean = torch.randn(n, latent, device=device, requires_grad=True)
    q_log_var = torch.randn(n, latent, device=device, requires_grad=True)
    contenders: dict[str, Callable[..., Any]] = {
        name: on_backend(fn.sample_and_kl, name) for name in backends
    }
    contenders["textbook"] = textbook_sample

    def of_kl(function: Callable[..., Any], *heads: Tensor) -> list[Tensor]:
        _, _, q_var, kl = function(*heads)
        grads = torch.autograd.grad(kl.sum() + q_var.sum(), heads)
        return [kl.detach(), q_var.detach(), *grads]

    exact = of_kl(
        textbook_sample, *(t.detach().double().requires_grad_() for t in (q_mean, q_log_var))
    )
    names = ["kl", "q_v", "q_mean", "q_log_var"]
    row["agreement"] = {
        name: compare(of_kl(function, q_mean, q_log_var), exact, names)
        for name, function in contenders.items()
    }

    def step(function: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> Any:
            z, _, _, kl = function(q_mean, q_log_var)
            return torch.autograd.grad(z.sum() + kl.sum(), (q_mean, q_log_var))

        return run

    timed(row, {name: step(function) for name, function in contenders.items()}, device, seconds)


def timed(row: Row, functions: dict[str, Any], device: torch.device, seconds: float) -> None:
    """Time those that agree; name the fastest."""
    good = {k: f for k, f in functions.items() if row["agreement"][k]["agrees"]}
    row["times"] = timing.interleaved(good, device, seconds)
    row["fastest"] = min(row["times"], key=lambda k: row["times"][k]["median_ms"], default=None)
    bad = sorted(set(functions) - set(good))
    if bad:
        row.update(state="disagreement", error=f"beyond the tolerance: {', '.join(bad)}")


def densify_matmul(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.to_dense().log1p_(), weight, bias)


def with_tf32(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return function(*args)
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def linear_row(
    row: Row,
    n: int,
    genes: int,
    density: float,
    device: torch.device,
    backends: list[str],
    seconds: float,
) -> None:
    """log1p(x) @ W.T + b from CSR with the gradients by W and b."""
    counts = make_counts(n, genes, density, device)
    x = to_csr(counts)
    weight = (torch.randn(HIDDEN, genes, device=device) / genes**0.5).requires_grad_()
    bias = torch.randn(HIDDEN, device=device, requires_grad=True)
    sparse = lambda x, w, b: fn.count_linear(x, w, b, log1p=True)  # noqa: E731
    layers: dict[str, Callable[..., Tensor]] = {
        f"count_linear, {name}": on_backend(sparse, name) for name in backends
    }
    layers["densify + matmul"] = densify_matmul
    upstream = torch.randn(n, HIDDEN, device=device)

    def both(layer: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
        out = layer(*args)
        return (out.detach(), *torch.autograd.grad(out, args[1:], upstream.to(out.dtype)))

    steps: dict[str, Callable[..., Any]] = {
        name: lambda *args, layer=layer: both(layer, *args) for name, layer in layers.items()
    }
    if device.type == "cuda":
        name = "densify + matmul, tf32"
        layers[name], steps[name] = with_tf32(densify_matmul), with_tf32(steps["densify + matmul"])
    leaves = [t.detach().double().requires_grad_() for t in (weight, bias)]
    exact = both(lambda x, w, b: F.linear(x.log1p(), w, b), counts.double(), *leaves)
    row["agreement"] = {}
    for name, step in steps.items():
        try:
            found = compare(step(x, weight, bias), exact, ["out", "weight", "bias"])
        except Exception as error:
            found = {"agrees": False, "error": short(error)}
        if "tf32" in name and "errors" in found:
            found["agrees"] = all(e["norm"] <= TF32_LIMIT for e in found["errors"].values())
        row["agreement"][name] = found
    del exact, counts
    forward: Row = {"agreement": row["agreement"], "state": ""}
    with torch.no_grad():
        timed(
            forward, {k: lambda f=f: f(x, weight, bias) for k, f in layers.items()}, device, seconds
        )
    row["forward"] = {k: forward[k] for k in ("times", "fastest")}
    timed(row, {k: lambda f=f: f(x, weight, bias) for k, f in steps.items()}, device, seconds)


def run(part: Part, device: torch.device, quick: bool) -> None:
    """Sizes by how much they tell."""
    backends = [name for name, reason in available_backends(device).items() if reason is None]
    seconds = 0.05 if quick else 0.3
    for n, latent in [(16, 5)] if quick else LATENT:
        part.row(
            f"sample_and_kl {n} x {latent}",
            lambda row, n=n, latent=latent: sampling_row(row, n, latent, device, backends, seconds),
            operation="sample_and_kl",
            cells=n,
            latent=latent,
        )
    sizes = [(16, 60, 0.1)] if quick else [(*size, d) for d in DENSITIES for size in LINEAR]
    for n, genes, density in sizes:
        part.row(
            f"count_linear {n} x {genes} at {density:g}",
            lambda row, n=n, genes=genes, density=density: linear_row(
                row, n, genes, density, device, backends, seconds
            ),
            operation="count_linear",
            cells=n,
            genes=genes,
            density=density,
        )
