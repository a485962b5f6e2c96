"""Inputs of the likelihoods: counts like those of the simulator, logits around the truth."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

FAMILIES = ("zinb", "nb", "poisson")
HEADS = {"zinb": 2, "nb": 1, "poisson": 1}  # matrices of logits per family


@dataclass
class Problem:
    """One minibatch of counts and the decoder's output for it.

    Parameters
    ----------
    family
        "zinb", "nb" or "poisson".
    layout
        "dense" or "csr", of the counts.
    """

    family: str
    layout: str
    dense: Tensor
    scale_logits: Tensor
    log_library: Tensor
    log_theta: Tensor
    zi_logits: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.dense.shape[0], self.dense.shape[1]

    @cached_property
    def x(self) -> Tensor:
        """The counts in the layout asked for; CSR has 32-bit indices, as in training."""
        if self.layout == "dense":
            return self.dense
        return to_csr(self.dense)

    @cached_property
    def nonzeros(self) -> int:
        return int(torch.count_nonzero(self.dense))

    def leaves(self) -> list[Tensor]:
        """What training differentiates by; the observed library size has no gradient."""
        leaves = [self.scale_logits]
        if self.family != "poisson":
            leaves.append(self.log_theta)
        if self.family == "zinb":
            leaves.append(self.zi_logits)
        return leaves

    def leaf_names(self) -> list[str]:
        return ["scale_logits", "log_theta", "zi_logits"][: len(self.leaves())]

    def parameters(self) -> tuple[Tensor, ...]:
        """Everything after x in the operation's arguments."""
        after = [t for t in self.leaves() if t is not self.scale_logits]
        return (self.scale_logits, self.log_library, *after)


def to_csr(dense: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # torch's one-time notices; the indices come from torch itself
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        csr = dense.to_sparse_csr()
        return torch.sparse_csr_tensor(
            csr.crow_indices().int(),
            csr.col_indices().int(),
            csr.values(),
            csr.shape,
            check_invariants=False,
        )


SPREAD = 1.8  # of usual genes: 6 % of the nonzeros are above 7
POWER = 1.3
LARGE = 7  # larger counts take the longer way through the kernels
TILE = 512  # genes that a kernel looks at together


def spread_for(large: float) -> float:
    """The spread at which a share `large` of the nonzeros is above 7."""
    return LARGE / (-math.log(large)) ** POWER


def tiles_with_large_counts(counts: Tensor) -> float:
    """The share of tiles of 512 genes of one cell that hold a count above 7."""
    missing = -counts.shape[1] % TILE
    tiles = torch.nn.functional.pad(counts > LARGE, (0, missing)).unflatten(1, (-1, TILE))
    return float(tiles.any(-1).double().mean())


def make_counts(
    n: int,
    genes: int,
    density: float,
    device: torch.device,
    seed: int = 0,
    spread: float = SPREAD,
) -> Tensor:
    """Counts (N, G): `density` of them not zero, most 1 to 3 at the usual spread."""
    generator = torch.Generator(device).manual_seed(seed)

    def uniform() -> Tensor:
        return torch.rand(n, genes, device=device, generator=generator)

    # 1 + floor of an exponential to the power 1.3: mostly 1-3 with a long tail
    counts = uniform().clamp_(min=1e-7).log_().neg_().pow_(POWER).mul_(spread).floor_().add_(1)
    return counts.masked_fill_(uniform() > density, 0.0)


def make_problem(
    family: str,
    n: int,
    genes: int,
    layout: str,
    device: torch.device,
    density: float = 0.08,
    spread: float = SPREAD,
) -> Problem:
    """Counts with a decoder's logits for them, all float32."""
    counts = make_counts(n, genes, density, device, spread=spread)
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    return Problem(
        family=family,
        layout=layout,
        dense=counts,
        scale_logits=normal(n, genes).mul_(1.2).requires_grad_(),
        log_library=counts.sum(dim=1, keepdim=True).clamp(min=1).log(),
        log_theta=normal(genes).mul_(0.6).add_(0.7).requires_grad_(),
        zi_logits=normal(n, genes).mul_(0.7).sub_(3.0).requires_grad_(),
    )


def needed_bytes(family: str, n: int, genes: int) -> float:
    """Rough peak of a row: inputs, the float64 reference in strips, and an eager contender."""
    return n * genes * 4.0 * {"zinb": 34, "nb": 28, "poisson": 20}[family] + 2e9


def moved_bytes(problem: Problem, backward: bool) -> dict[str, float]:
    """Bytes the operation has to move.

    "least": every input read once per direction and every result written once; a backward pass
    that recomputes reads its inputs again. "budget": one more pass over the scale logits in the
    forward direction, for the softmax. With M = 4 N G bytes, H matrices of logits, and X = M for
    dense counts or 8 nonzeros + 4 (N + 1) for CSR:
    forward X + H M; backward X + H M + H M; budget + M.
    """
    n, genes = problem.shape
    matrix = 4.0 * n * genes
    x = matrix if problem.layout == "dense" else 8.0 * problem.nonzeros + 4.0 * (n + 1)
    heads = HEADS[problem.family] * matrix
    least = x + heads
    if backward:
        least += x + 2 * heads
    return {"least": least, "budget": least + matrix}
