"""Fully connected layers that take covariates and, in the first layer, sparse counts."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import functional
from ..errors import InputError
from .inputs import category, has_hooks


def identity(x: Tensor) -> Tensor:
    """Return `x`: the latent transformation of the normal distribution."""
    return x


def one_hot(index: Tensor, n_cat: int) -> Tensor:
    """Indicator rows of category codes.

    Parameters
    ----------
    index
        Codes 0..n_cat-1 of any numeric dtype, shape (N, 1) or (N,); one-hot rows (N, n_cat)
        are returned as they are.
    n_cat
        Number of categories.

    Returns
    -------
    Tensor
        (N, n_cat), float32.

    Raises
    ------
    InputError
        Wrong shape, or (on CPU) a code out of range.
    """
    codes = category(index, n_cat, index.shape[0], "index")
    if codes.shape[1] == n_cat and n_cat > 1:
        return codes.to(torch.float32)
    rows = torch.zeros(codes.shape[0], n_cat, device=codes.device)
    return rows.scatter_(1, codes, 1.0)


def reparameterize_gaussian(mu: Tensor, var: Tensor) -> Tensor:
    """Sample N(mu, var) as mu + sqrt(var) e, with gradient to both.

    Parameters
    ----------
    mu, var
        Mean and variance (not the standard deviation), same shape.

    Returns
    -------
    Tensor
        A sample of that shape.
    """
    return functional.reparameterize(mu, var)


class FCLayers(nn.Module):
    """Hidden layers: Linear, BatchNorm1d, ReLU, Dropout, each switched off where asked.

    Categories are one-hot encoded and appended to the input of every Linear layer.

    Parameters
    ----------
    n_in, n_out
        Width of the input and of the output.
    n_cat_list
        Number of categories of each covariate; one category or none adds nothing.
    n_layers, n_hidden
        Number of layers, and the width between them.
    dropout_rate
        Probability of zeroing a hidden unit in training.
    use_batch_norm, use_relu, bias
        Parts of a layer.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_cat_list: Iterable[int] | None = None,
        n_layers: int = 1,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        use_batch_norm: bool = True,
        use_relu: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        cats = () if n_cat_list is None else n_cat_list
        self.n_cat_list = [n_cat if n_cat > 1 else 0 for n_cat in cats]
        widths = [n_in, *[n_hidden] * (n_layers - 1), n_out]
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for k, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            # an absent part keeps its place, so that state dict keys never move
            parts: list[Any] = [
                nn.Linear(width_in + sum(self.n_cat_list), width_out, bias=bias),
                nn.BatchNorm1d(width_out, momentum=0.01, eps=0.001) if use_batch_norm else None,
                nn.ReLU() if use_relu else None,
                nn.Dropout(p=dropout_rate) if dropout_rate > 0 else None,
            ]
            blocks[f"Layer {k}"] = nn.Sequential(*parts)
        self.fc_layers = nn.Sequential(blocks)

    def forward(self, x: Tensor, *cat_list: Tensor | None, instance_id: int = 0) -> Tensor:
        """Apply the layers.

        Parameters
        ----------
        x
            (N, n_in) dense or ``torch.sparse_csr``, or (S, N, n_in) dense.
        *cat_list
            One entry per covariate: codes (N, 1) or (N,), or one-hot (N, n_cat). More entries
            than `n_cat_list` are ignored.
        instance_id
            Unused.

        Returns
        -------
        Tensor
            (N, n_out) or (S, N, n_out).

        Raises
        ------
        InputError
            A covariate is missing or malformed, or one cell alone in training mode.
        """
        indicators = self._indicators(x, cat_list)
        if x.layout != torch.sparse_csr:
            return self._dense(x, indicators)
        first = next(iter(cast(nn.Sequential, self.fc_layers[0])))
        if isinstance(first, nn.Linear):
            return self._dense(_linear(first, x, indicators), indicators, begun=True)
        return self._dense(x.to_dense(), indicators)

    def _dense(self, x: Tensor, indicators: list[Tensor], begun: bool = False) -> Tensor:
        """Apply the layers to a dense x, all but the first where that is done."""
        for block in self.fc_layers:
            for layer in cast(nn.Sequential, block):
                if begun or layer is None:
                    begun = False
                elif isinstance(layer, nn.Linear):
                    x = _linear(layer, x, indicators)
                elif isinstance(layer, nn.BatchNorm1d):
                    x = _batch_norm(layer, x)
                else:
                    x = layer(x)
        return x

    def _indicators(self, x: Tensor, cat_list: tuple[Tensor | None, ...]) -> list[Tensor]:
        if len(cat_list) < len(self.n_cat_list):
            raise InputError(
                f"{len(cat_list)} covariates given, the layers were built for "
                f"{len(self.n_cat_list)}; pass one tensor (or None) for each."
            )
        rows = []
        for k, n_cat in enumerate(self.n_cat_list):
            if n_cat > 1:
                codes = category(cat_list[k], n_cat, x.shape[-2], f"covariate {k}", device=x.device)
                rows.append(codes if codes.shape[1] == n_cat else one_hot(codes, n_cat))
        return rows


def _linear(layer: nn.Linear, x: Tensor, indicators: list[Tensor]) -> Tensor:
    if x.layout == torch.sparse_csr:
        # a parametrised layer is of a class of its own, which only makes the weight
        ordinary = type(layer).forward is nn.Linear.forward and "forward" not in layer.__dict__
        if ordinary and not has_hooks(layer):
            return _sparse_linear(layer, x, indicators)
        x = x.to_dense()
    if indicators:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        x = torch.cat([x, *(rows.to(dtype).expand(*x.shape[:-1], -1) for rows in indicators)], -1)
    return cast(Tensor, layer(x))


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer` of a dense matrix, by the fast way where it is an ordinary linear one."""
    if type(layer) is nn.Linear and "forward" not in layer.__dict__ and not has_hooks(layer):
        return functional.dense_linear(x, layer.weight, layer.bias)
    return cast(Tensor, layer(x))


def _sparse_linear(layer: nn.Linear, x: Tensor, indicators: list[Tensor]) -> Tensor:
    if not indicators:
        return functional.count_linear(x, layer.weight, layer.bias)
    first, weight = x.shape[1], layer.weight
    out = functional.count_linear(x, weight[:, :first], layer.bias)
    rows = torch.cat([one.to(out.dtype) for one in indicators], -1)
    return out + nn.functional.linear(rows, weight[:, first:])


def _batch_norm(layer: nn.BatchNorm1d, x: Tensor) -> Tensor:
    if layer.training and x.shape[-2] == 1:
        raise InputError(
            "a training minibatch of one cell cannot be batch-normalised; use at least two cells "
            "per minibatch (drop or merge the last one), or call model.eval()."
        )
    if x.dim() == 2:
        return cast(Tensor, layer(x))
    if layer.training:  # each sample is a minibatch of its own and moves the running statistics
        return torch.stack([layer(sample) for sample in x])
    return cast(Tensor, layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
