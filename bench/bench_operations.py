"""The operations: likelihood, decoder heads with it, sampling with KL, the first layer from CSR.

    pytest bench/bench_operations.py [--quick] [--bench-out=DIR] [-k "zinb and cpu"]

Counts are 8 % dense. Everybody has to agree with float64 first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _kit import agreement, contenders, decoder_heads, first_layer, problems, sampling
from _kit.contest import Case, Contest, Step
from _kit.environment import devices
from _kit.turns import Turns

from fastvae import functional as fn

DENSITY = 0.08
SIZES = [(128, 2000), (1024, 8000)]
HEADS_SIZES = [(128, 2000), (128, 8000), (128, 20_000), (1024, 20_000)]
QUICK_SIZES = [(128, 500)]
LATENT = 10
LIKELIHOOD = (
    *contenders.OURS,
    "fastvae torch compiled",
    "textbook",
    "textbook compiled",
    "scvi-tools",
    "scvi-tools compiled",
)


def loss_of(name: str, family: str) -> contenders.Loss:
    compiled = name.endswith("compiled")
    who = name.removesuffix(" compiled")
    if who == "textbook":
        return (
            contenders.compiled(who, family)
            if compiled
            else contenders.densified(contenders.textbook)
        )
    if who == "scvi-tools":
        peer = contenders.scvi_tools(family)
        # their argument checks are for every call; a compiler cannot trace all of them
        return contenders.densified(torch.compile(peer, dynamic=False) if compiled else peer)
    if compiled:
        return contenders.densified(contenders.compiled("reference", family))
    return contenders.on_backend(contenders.NLL[family], who.removeprefix("fastvae "))


def likelihood(
    family: str, layout: str, n: int, genes: int, device: torch.device, compiled: bool
) -> Contest:
    contenders.forget()
    problem = problems.make_problem(family, n, genes, layout, device, DENSITY)
    exact = agreement.exact(problem)
    names = ["nll", *problem.leaf_names()]

    def make(name: str) -> Step:
        return contenders.forward_backward(loss_of(name, family), problem)

    missing = contenders.unavailable(device)
    if not compiled:
        compilers = [name for name in LIKELIHOOD if name.endswith("compiled")]
        missing.update(dict.fromkeys(compilers, "--quick compiles for one case only"))
    return Contest(
        {name: partial(make, name) for name in LIKELIHOOD},
        lambda name, step: agreement.compare(step(), exact, names),
        missing,
    )


def sampling_contest(n: int, device: torch.device) -> Contest:
    heads = [torch.randn(n, LATENT, device=device, requires_grad=True) for _ in range(2)]
    double = [head.detach().double().requires_grad_() for head in heads]
    exact = sampling.kl_with_gradients(sampling.textbook_sample, *double)

    def sampler(name: str) -> Callable[..., Any]:
        return sampling.sampler(name.removeprefix("fastvae "))

    def check(name: str, step: Step) -> dict[str, Any]:
        found = sampling.kl_with_gradients(sampler(name), *heads)
        return agreement.compare(found, exact, sampling.SAMPLE_RESULTS)

    names = (*contenders.OURS, "textbook")
    make: dict[str, Callable[[], Step]] = {
        name: partial(sampling.sampling_step, sampler(name), *heads) for name in names
    }
    return Contest(make, check, contenders.unavailable(device))


def first_layer_contest(n: int, genes: int, device: torch.device) -> Contest:
    counts = problems.make_counts(n, genes, DENSITY, device)
    weight = (torch.randn(first_layer.HIDDEN, genes, device=device) / genes**0.5).requires_grad_()
    bias = torch.randn(first_layer.HIDDEN, device=device, requires_grad=True)
    upstream = torch.randn(n, first_layer.HIDDEN, device=device)
    x = problems.to_csr(counts)
    double = [t.detach().double().requires_grad_() for t in (weight, bias)]
    exact = first_layer.with_gradients(first_layer.dense_layer, upstream, counts.double(), *double)

    def make(name: str) -> Step:
        layer = first_layer.first_layer(
            "densify + matmul" if name == "textbook" else name.removeprefix("fastvae ")
        )
        return partial(first_layer.with_gradients, layer, upstream, x, weight, bias)

    return Contest(
        {name: partial(make, name) for name in (*contenders.OURS, "textbook")},
        lambda name, step: agreement.compare(step(), exact, first_layer.LINEAR_RESULTS),
        contenders.unavailable(device),
    )


def heads_contest(n: int, genes: int, device: torch.device) -> Contest:
    problem = decoder_heads.Problem(n, genes, DENSITY, device)
    with fn.use_backend("torch"):
        exact = decoder_heads.with_gradients(decoder_heads.together, problem.double())

    def make(name: str) -> Step:
        return partial(decoder_heads.with_gradients, decoder_heads.heads_of(name), problem)

    return Contest(
        {name: partial(make, name) for name in decoder_heads.HEADS},
        lambda name, step: agreement.compare(step(), exact, decoder_heads.RESULTS),
        contenders.unavailable(device),
    )


def cases(quick: bool) -> list[Case]:
    found = []
    seconds = 0.3 if quick else 8.0
    for device in devices():
        where = torch.device(device)
        for n, genes in QUICK_SIZES if quick else SIZES:
            size = {"cells": n, "genes": genes, "device": device}
            for family in problems.FAMILIES:
                for layout in ("csr", "dense"):
                    labels = {"operation": "likelihood", "family": family, "layout": layout, **size}
                    compiled = not quick or (family, layout) == ("zinb", "csr")
                    prepare = partial(likelihood, family, layout, n, genes, where, compiled)
                    found.append(Case(labels, LIKELIHOOD, prepare, seconds))
            others = (*contenders.OURS, "textbook")
            labels = {"operation": "sampling and KL", **size, "genes": LATENT}
            found.append(Case(labels, others, partial(sampling_contest, n, where), seconds / 4))
            labels = {"operation": "first layer", **size}
            prepare = partial(first_layer_contest, n, genes, where)
            found.append(Case(labels, others, prepare, seconds / 2))
        for n, genes in QUICK_SIZES if quick else HEADS_SIZES:
            labels = {"operation": "decoder heads and likelihood, zinb csr"}
            labels |= {"cells": n, "genes": genes, "device": device}
            prepare = partial(heads_contest, n, genes, where)
            found.append(Case(labels, decoder_heads.HEADS, prepare, seconds))
    return found


def test_operations(benchmark: Any, turns: Turns, case: Case, provider: str) -> None:
    turns.show(benchmark, case, provider, __name__)
