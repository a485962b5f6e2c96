"""Other tile sizes for the likelihood's kernels: is the heuristic near the best?

The kernels are found in the module and relaunched by its own launchers with other values of BLOCK
and num_warps, so that nothing here repeats their arguments.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from _kit import timing
from _kit.agreement import compare
from _kit.contenders import NLL, forward, forward_backward, on_backend
from _kit.problems import make_problem
from _kit.results import Part, Row, short

from fastvae import functional as fn

BLOCKS = [256, 512, 1024, 2048, 4096]
WARPS = [2, 4, 8, 16]
SIZES = [(4096, 8000), (128, 2000), (1024, 30000)]


class Relaunch:
    """A kernel whose launches get another tile; along genes the grid follows it."""

    def __init__(self, kernel: Any, block: int, warps: int) -> None:
        self.kernel, self.block, self.warps = kernel, block, warps
        self.names = list(inspect.signature(kernel.fn).parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> Any:
            genes = dict(zip(self.names, args, strict=False)).get("G")
            old = options["BLOCK"]
            along = grid
            if genes is not None and len(grid) > 1 and grid[0] == -(-genes // old):
                along = (-(-genes // self.block), *grid[1:])
            options.update(BLOCK=self.block, num_warps=self.warps)
            return self.kernel[along](*args, **options)

        return launch


def tiled_kernels(module: ModuleType) -> dict[str, Any]:
    """The module's own kernels that have a BLOCK."""
    found = {}
    for name, value in vars(module).items():
        inner = getattr(value, "fn", None)
        if (
            inspect.isfunction(inner)
            and inner.__module__ == module.__name__
            and hasattr(value, "__getitem__")
        ):
            names = inspect.signature(inner).parameters
            if "BLOCK" in names and name.endswith("kernel"):
                found[name] = value
    return found


@contextmanager
def relaunched(module: ModuleType, name: str, block: int, warps: int) -> Iterator[None]:
    kernel = getattr(module, name)
    setattr(module, name, Relaunch(kernel, block, warps))
    try:
        yield
    finally:
        setattr(module, name, kernel)


def run(part: Part, device: torch.device, quick: bool) -> None:
    """Each kernel alone leaves its default; results are compared with the default's."""
    try:
        from fastvae.kernels.likelihood import gpu as likelihood

        with fn.use_backend("triton"):
            fn.poisson_nll(*[torch.ones(2, 3, device=device)] * 2, torch.ones(2, 1, device=device))
    except Exception as error:
        part.facts["left_out"] = short(error)
        return
    loss = on_backend(NLL["zinb"], "triton")
    sizes = [(4, 200)] if quick else SIZES
    tiles = [(64, 1)] if quick else list(itertools.product(BLOCKS, WARPS))
    tiles = [(b, w) for b, w in tiles if quick or 32 <= b // w <= 512]
    for (n, genes), name in itertools.product(sizes, tiled_kernels(likelihood)):
        backward = "backward" in name

        def fill(
            row: Row, n: int = n, genes: int = genes, name: str = name, backward: bool = backward
        ) -> None:
            problem = make_problem("zinb", n, genes, "dense", device)
            function = (forward_backward if backward else forward)(loss, problem)
            names = ["nll", *problem.leaf_names()]
            want = forward_backward(loss, problem)()
            functions, row["failed"] = {"default": function}, {}
            for block, warps in tiles:
                if part.left() < 4:
                    row["failed"][f"{block}/{warps}"] = "no time left"
                    continue

                def other(block: int = block, warps: int = warps) -> Any:
                    with relaunched(likelihood, name, block, warps):
                        return function()

                try:
                    with relaunched(likelihood, name, block, warps):
                        got = forward_backward(loss, problem)()
                    found = compare(got, want, names)
                    if not found["agrees"]:
                        raise ArithmeticError(f"differs from the default: {found['errors']}")
                    functions[f"{block}/{warps}"] = other
                except Exception as error:
                    row["failed"][f"{block}/{warps}"] = short(error)
            row["times"] = timing.interleaved(functions, device, 0.1 if quick else 1.5)
            row["fastest"] = min(row["times"], key=lambda k: row["times"][k]["median_ms"])

        part.row(f"{name} {n} x {genes}", fill, needs=3, kernel=name, cells=n, genes=genes)
