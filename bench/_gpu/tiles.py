"""Other sizes of the likelihood kernel's programs: is the heuristic near the best?

The launcher runs with other answers to how many warps a program has and how many programs there
are, so that nothing here repeats its arguments.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from _kit import timing
from _kit.agreement import compare
from _kit.contenders import NLL, forward, forward_backward, on_backend
from _kit.problems import make_problem
from _kit.results import Part, Row, short

from fastvae import functional as fn

PROGRAMS = [256, 512, 1024, 2048, 4096]
WARPS = [2, 4, 8, 16]
SIZES = [(4096, 8000), (128, 2000), (1024, 30000)]


@contextmanager
def sized(launcher: ModuleType, memory: ModuleType, programs: int, warps: int) -> Iterator[None]:
    """The launcher with at most so many programs, which `memory` has, of so many warps each."""
    with (
        mock.patch.object(memory, "PROGRAMS", programs),
        mock.patch.object(launcher, "warps_of", return_value=warps),
    ):
        yield


def run(part: Part, device: torch.device, tiny: bool) -> None:
    """Value alone, and with gradients; results are compared with the default's."""
    try:
        from fastvae.kernels.likelihood import gpu as launcher
        from fastvae.kernels.likelihood import gpu_memory as memory

        with fn.use_backend("triton"):
            fn.poisson_nll(*[torch.ones(2, 3, device=device)] * 2, torch.ones(2, 1, device=device))
    except Exception as error:
        part.facts["left_out"] = short(error)
        return
    loss = on_backend(NLL["zinb"], "triton")
    sizes = [(4, 200)] if tiny else SIZES
    tiles = [(2, 2)] if tiny else list(itertools.product(PROGRAMS, WARPS))
    for (n, genes), (name, step) in itertools.product(
        sizes, {"value": forward, "gradients": forward_backward}.items()
    ):

        def fill(row: Row, n: int = n, genes: int = genes, step: Any = step) -> None:
            problem = make_problem("zinb", n, genes, "dense", device)
            function = step(loss, problem)
            names = ["nll", *problem.leaf_names()]
            want = forward_backward(loss, problem)()
            functions, row["failed"] = {"default": function}, {}
            for programs, warps in tiles:
                if part.left() < 4:
                    row["failed"][f"{programs}/{warps}"] = "no time left"
                    continue

                def other(programs: int = programs, warps: int = warps) -> Any:
                    with sized(launcher, memory, programs, warps):
                        return function()

                try:
                    with sized(launcher, memory, programs, warps):
                        got = forward_backward(loss, problem)()
                    found = compare(got, want, names)
                    if not found["agrees"]:
                        raise ArithmeticError(f"differs from the default: {found['errors']}")
                    functions[f"{programs}/{warps}"] = other
                except Exception as error:
                    row["failed"][f"{programs}/{warps}"] = short(error)
            row["times"] = timing.interleaved(functions, device, 0.1 if tiny else 1.5)
            row["fastest"] = min(row["times"], key=lambda k: row["times"][k]["median_ms"])

        part.row(f"{name} {n} x {genes}", fill, needs=3, kernel=name, cells=n, genes=genes)
