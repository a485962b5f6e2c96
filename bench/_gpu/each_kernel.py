"""Every operation once, forward and backward, for a tool that watches each kernel."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _kit.problems import FAMILIES, make_problem

import fastvae
from fastvae import functional as fn
from fastvae.datasets import simulate
from fastvae.functional.gather import CsrBuffers, DenseBuffers, compact, gather_into

HIDDEN, LATENT = 128, 10


def run(n: int, genes: int, device: torch.device) -> None:
    """The operations on n cells; whatever backend the device has."""
    losses = {"zinb": fn.zinb_nll, "nb": fn.nb_nll, "poisson": fn.poisson_nll}
    for family in FAMILIES:
        for layout in ("dense", "csr"):
            problem = make_problem(family, n, genes, layout, device)
            losses[family](problem.x, *problem.parameters()).sum().backward()
    heads = [torch.randn(n, LATENT, device=device, requires_grad=True) for _ in range(2)]
    sampled = fn.sample_and_kl(*heads)
    (sampled[0].sum() + sampled[-1].sum()).backward()
    x = problem.x
    weight = torch.randn(HIDDEN, genes, device=device, requires_grad=True)
    bias = torch.zeros(HIDDEN, device=device, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):  # a dense product; the sum over nonzeros
        fn.count_linear(x, weight.to(dtype), bias.to(dtype)).sum().backward()
    fn.log_library_size(x)
    source = compact(x.crow_indices(), x.col_indices(), x.values(), genes)
    rows = torch.arange(n, device=device).flip(0)
    gather_into(source, rows, DenseBuffers.empty(n, genes, device))
    gather_into(source, rows, CsrBuffers.empty(n, source.counts.numel(), device))
    log_probabilities(n, genes, device)
    train(n, genes, device)
    if device.type == "cuda":
        torch.cuda.synchronize()


def log_probabilities(n: int, genes: int, device: torch.device) -> None:
    """Of each family, elementwise."""
    x = torch.poisson(torch.full((n, genes), 0.3, device=device))
    mu, theta, pi = (torch.rand(n, genes, device=device, requires_grad=True) for _ in range(3))
    fn.zinb_log_prob(x, mu, theta, pi).sum().backward()
    fn.nb_log_prob(x, mu, theta).sum().backward()
    fn.poisson_log_prob(x, mu).sum().backward()


def train(n: int, genes: int, device: torch.device) -> None:
    """One step: hidden layers, heads, sums of losses, and what is known of the cells."""
    model = fastvae.Model(simulate(n, genes, density=0.3, seed=0))
    model.fit(1, n, 1.0, seed=0, device=device, progress=False, cuda_graph=False)


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), torch.device(sys.argv[3]))
    print("every operation ran")
