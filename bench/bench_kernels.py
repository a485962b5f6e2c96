"""Throughput of the operations on this machine, one group per operation and device.

    pytest bench/ [--benchmark-json=FILE] [-k "zinb and cpu"]

Each group compares this package's backends with the textbook form, eager and compiled; every
contender has to agree with float64 before it is timed. Sizes are small: gpu_suite.py measures a
GPU in full.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _gpu import agreement, contenders, operations, problems, timing

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.compile warns of what it leaves eager

CELLS, GENES, LATENT = 128, 2000, 10
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CONTENDERS = [*contenders.BACKENDS, "textbook", "compiled textbook"]


def loss_of(name: str, family: str, device: torch.device) -> contenders.Loss:
    if name == "textbook":
        return contenders.densified(contenders.textbook)
    if name == "compiled textbook":
        contenders.forget()
        return contenders.compiled("textbook", family)
    return contenders.on_backend(contenders.NLL[family], name)


def require(name: str, device: torch.device) -> None:
    """Skip a backend that this machine does not have, with its own words."""
    if name in contenders.BACKENDS:
        reason = contenders.available_backends(device)[name]
        interpreted = name == "triton" and device.type == "cpu"
        if reason or interpreted:
            pytest.skip(reason or "the interpreter's speed says nothing")


def time_it(benchmark: Any, function: Callable[[], Any], device: torch.device) -> None:
    def run() -> None:
        function()
        timing.synchronize(device)

    benchmark.pedantic(run, warmup_rounds=timing.WARM_UP, rounds=20)


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("family", problems.FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_likelihood_with_gradients(
    benchmark: Any, device: str, family: str, layout: str, name: str
) -> None:
    where = torch.device(device)
    require(name, where)
    problem = problems.make_problem(family, CELLS, GENES, layout, where)
    try:
        loss = loss_of(name, family, where)
        function = contenders.forward_backward(loss, problem)
        result = function()
    except Exception as error:
        if not name.startswith("compiled"):
            raise
        pytest.skip(f"does not compile here: {str(error)[:200]}")
    found = agreement.compare(result, agreement.exact(problem), ["nll", *problem.leaf_names()])
    assert found["agrees"], found
    benchmark.group = f"{family} {layout} {CELLS} x {GENES}, {device}"
    time_it(benchmark, function, where)
    benchmark.extra_info["cells_per_second"] = CELLS / benchmark.stats.stats.median


@pytest.mark.parametrize("name", [*contenders.BACKENDS, "textbook"])
@pytest.mark.parametrize("device", DEVICES)
def test_sample_and_kl(benchmark: Any, device: str, name: str) -> None:
    where = torch.device(device)
    require(name, where)
    heads = [torch.randn(CELLS, LATENT, device=where, requires_grad=True) for _ in range(2)]
    function = operations.sampler(name)
    exact = [head.detach().double().requires_grad_() for head in heads]
    want = operations.kl_with_gradients(operations.textbook_sample, *exact)
    found = agreement.compare(
        operations.kl_with_gradients(function, *heads), want, operations.SAMPLE_RESULTS
    )
    assert found["agrees"], found
    benchmark.group = f"sample_and_kl {CELLS} x {LATENT}, {device}"
    time_it(benchmark, operations.sampling_step(function, *heads), where)


@pytest.mark.parametrize("name", [*contenders.BACKENDS, "densify + matmul"])
@pytest.mark.parametrize("device", DEVICES)
def test_count_linear(benchmark: Any, device: str, name: str) -> None:
    where = torch.device(device)
    require(name, where)
    counts = problems.make_counts(CELLS, GENES, 0.08, where)
    weight = (torch.randn(operations.HIDDEN, GENES, device=where) / GENES**0.5).requires_grad_()
    bias = torch.randn(operations.HIDDEN, device=where, requires_grad=True)
    upstream = torch.randn(CELLS, operations.HIDDEN, device=where)
    layer, x = operations.first_layer(name), problems.to_csr(counts)
    double = [t.detach().double().requires_grad_() for t in (weight, bias)]
    want = operations.with_gradients(operations.dense_layer, upstream, counts.double(), *double)
    got = operations.with_gradients(layer, upstream, x, weight, bias)
    found = agreement.compare(got, want, operations.LINEAR_RESULTS)
    assert found["agrees"], found
    benchmark.group = f"count_linear {CELLS} x {GENES} -> {operations.HIDDEN}, {device}"
    time_it(benchmark, lambda: operations.with_gradients(layer, upstream, x, weight, bias), where)
