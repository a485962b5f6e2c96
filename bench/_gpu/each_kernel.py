"""Every operation once, forward and backward, for a tool that watches each kernel."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _kit.problems import FAMILIES, make_problem

from fastvae import functional as fn
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
    fn.count_linear(x, weight, bias).sum().backward()
    fn.log_library_size(x)
    source = compact(x.crow_indices(), x.col_indices(), x.values(), genes)
    rows = torch.arange(n, device=device).flip(0)
    gather_into(source, rows, DenseBuffers.empty(n, genes, device))
    gather_into(source, rows, CsrBuffers.empty(n, source.counts.numel(), device))
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), torch.device(sys.argv[3]))
    print("every operation ran")
