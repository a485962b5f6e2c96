"""Heads and likelihood by blocks of cells, for any backend.

    for each block of cells c:
        s = h_c Ws' + bs;  pi = h_c Wpi' + bpi;  r = h_c Wr' + br where theta differs by cell
        one sweep: nll_c;  ds, dpi, dr times the upstream gradient, which may take their place
        dW += d' h_c;  db += column sums of d;  dh_c = sum of d W, over the heads

Everything of a row is local to its block, so that nothing is computed twice. The logits of one
block are all that is kept of size cells x genes, in memory that every block uses again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..counts import Counts
from ..lent import lent
from ..parameters import Parameters
from ..products import Products, column_sums
from .blocks import cells_of, cells_per_block
from .parameters import HeadGradients, HeadNeeds, HeadParameters
from .reference import handed_over
from .workspace import workspace

Grads = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Sweep = Callable[
    [Tensor | None, Counts, Parameters, tuple[bool, bool, bool, bool]], tuple[Tensor, Grads]
]


def sweep_of(forward: Callable[..., Any], and_gradients: Callable[..., Any]) -> Sweep:
    """Value alone, or value and gradients, by a backend's functions for these."""

    def sweep(
        grad: Tensor | None, x: Counts, p: Parameters, needs: tuple[bool, bool, bool, bool]
    ) -> tuple[Tensor, Grads]:
        if grad is None:
            return forward(x, p)[0], (None, None, None, None)
        found: tuple[Tensor, Grads] = and_gradients(
            grad, x, p, needs, out=(p.scale_logits, p.zi_logits)
        )
        return found

    return sweep


WORTH = 500_000  # bytes of one head's logits below which calls cost more than memory saves


class Head(NamedTuple):
    """One head: its parameters as the products take them, and memory for its logits."""

    name: str
    weight: Tensor
    bias: Tensor | None
    logits: Tensor


class Block(NamedTuple):
    """Cells `begin` to `end`, decoded."""

    begin: int
    end: int
    x: Counts
    hidden: Tensor
    parameters: Parameters


class BlockedHeads(NamedTuple):
    """The operation of one backend.

    Attributes
    ----------
    sweep
        ``sweep(grad, x, parameters, needs)``: likelihood of each cell and, where `grad` is given,
        gradients, which may take the place of the logits.
    products
        Who multiplies.
    cache, least
        See `cells_per_block`.
    early
        Whether gradients are made along with the value.
    """

    sweep: Sweep
    products: Products
    cache: int
    least: int
    early: bool

    def pay(self, x: Counts, p: HeadParameters, dtype: torch.dtype | None) -> bool:
        """Whether the operation is better than layers and likelihood one after the other.

        It is where backward need not decode again (`early`) and the work is worth its calls, and
        where there is more than one block, for its memory.
        """
        n, genes = x.shape
        worth = n * genes * p.product_dtype(dtype).itemsize >= WORTH
        return (self.early and worth) or self.cells(x, p, dtype) < n

    def cells(self, x: Counts, p: HeadParameters, dtype: torch.dtype | None) -> int:
        """Number of cells that are decoded at once."""
        n, genes = x.shape
        item = p.product_dtype(dtype).itemsize
        return cells_per_block(n, genes, p.heads, item, cache=self.cache, least=self.least)

    def heads_forward(
        self, x: Counts, p: HeadParameters, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Negative log-likelihood per cell (N,); see the reference."""
        products = p.product_dtype(dtype)
        n = x.shape[0]
        nll = torch.empty(n, dtype=p.result_dtype(products), device=p.hidden.device)
        heads = self._heads(x, p, products)
        for block in self._blocks(x, p, heads, products):
            value, _ = self.sweep(None, block.x, block.parameters, (False, False, False, False))
            nll[block.begin : block.end] = value
        return nll

    def heads_with_gradients(
        self,
        grad: Tensor,
        x: Counts,
        p: HeadParameters,
        needs: HeadNeeds,
        dtype: torch.dtype | None = None,
        into: HeadGradients | None = None,
    ) -> tuple[Tensor, HeadGradients]:
        """Likelihood and gradients times an upstream one (N,); see the reference."""
        products = p.product_dtype(dtype)
        sums = p.result_dtype(products)
        nll = torch.empty(x.shape[0], dtype=sums, device=p.hidden.device)
        heads, wanted = self._heads(x, p, products), needs.of_logits(p)
        found = _memory(p, needs, sums, into)
        if x.shape[0] == 0:
            for t in found.values():
                t.zero_()
        for block in self._blocks(x, p, heads, products):
            cells = slice(block.begin, block.end)
            value, grads = self.sweep(grad[cells], block.x, block.parameters, wanted)
            if value.shape == nll.shape and value.dtype == sums:  # all cells: no copy
                nll = value
            else:
                nll[cells] = value
            by_scale, by_library, by_theta, by_zi = grads
            if "log_library" in found and by_library is not None:
                found["log_library"][cells] = by_library
            if "log_theta" in found and by_theta is not None:
                _put(found["log_theta"], by_theta, block.begin > 0)
            by_head = {"scale": by_scale, "zi": by_zi, "theta": by_theta}
            self._gradients(block, heads, by_head, found)
        return nll, handed_over(found, p, needs, into)

    def _heads(self, x: Counts, p: HeadParameters, dtype: torch.dtype) -> list[Head]:
        shape = p.heads, self.cells(x, p, dtype), x.shape[1]
        logits = iter(workspace(shape, dtype, p.hidden.device))
        given = {
            "scale": (p.scale_weight, p.scale_bias),
            "zi": (p.zi_weight, p.zi_bias),
            "theta": (p.theta_weight, p.theta_bias),
        }
        return [
            Head(
                name,
                self.products.factor(weight, dtype),
                None if bias is None else self.products.factor(bias, dtype),
                next(logits),
            )
            for name, (weight, bias) in given.items()
            if weight is not None
        ]

    def _blocks(
        self, x: Counts, p: HeadParameters, heads: list[Head], dtype: torch.dtype
    ) -> Iterator[Block]:
        n, step = x.shape[0], heads[0].logits.shape[0]
        hidden = self.products.factor(p.hidden, dtype).contiguous()
        for begin in range(0, n, step):
            end = min(begin + step, n)
            logits: dict[str, Tensor] = {}
            for head in heads:
                logits[head.name] = head.logits[: end - begin]
                self.products.layer(hidden[begin:end], head.weight, head.bias, logits[head.name])
            index = None if p.theta_index is None else p.theta_index[begin:end]
            parameters = Parameters(
                logits["scale"],
                p.log_library[begin:end],
                logits.get("theta", p.log_theta),
                logits.get("zi"),
                index,
            )
            yield Block(begin, end, cells_of(x, begin, end), hidden[begin:end], parameters)

    def _gradients(
        self,
        block: Block,
        heads: list[Head],
        by_head: dict[str, Tensor | None],
        found: dict[str, Tensor],
    ) -> None:
        """Add what one block has to the gradients by hidden units, weights and biases."""
        again = block.begin > 0
        by_hidden, another = found.get("hidden"), False
        for head in heads:
            d = by_head[head.name]
            if d is None:
                continue
            d = d.to(head.logits.dtype)
            weight, bias = found.get(f"{head.name}_weight"), found.get(f"{head.name}_bias")
            if weight is not None:
                self.products.weight_gradient(d, block.hidden, weight, bias, again)
            elif bias is not None:
                _put(bias, column_sums(d, bias.dtype), again)
            if by_hidden is not None:
                out = by_hidden[block.begin : block.end]
                self.products.input_gradient(d, head.weight, out, another)
                another = True


def _put(out: Tensor, value: Tensor, add: bool) -> None:
    if add:
        out += value
    else:
        out.copy_(value)


def _memory(
    p: HeadParameters, needs: HeadNeeds, sums: torch.dtype, into: HeadGradients | None
) -> dict[str, Tensor]:
    """Memory for every gradient that is wanted, in the dtype that it is summed in."""
    found = {}
    for name, need in needs._asdict().items():
        parameter = getattr(p, name)
        if parameter is None or not need:
            continue
        given = None if into is None else getattr(into, name)
        if given is not None and given.dtype == sums and given.is_contiguous():
            found[name] = given
        elif parameter.is_cpu:
            found[name] = lent(*parameter.shape, dtype=sums)
        else:
            found[name] = torch.empty(parameter.shape, dtype=sums, device=parameter.device)
    return found
