"""Layers with their derivatives as plain calls, for a training step that autograd has no part in.

Each layer holds its parameters and memory for their gradients, which every backward pass writes
anew. What the forward pass leaves for the backward pass is handed over explicitly. Nothing here is
recorded by autograd, and nothing checks its arguments: a step does that once, where they come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..kernels.autograd import first_derivative_only
from ..kernels.backend import Backend
from ..kernels.counts import Counts
from ..kernels.heads.parameters import HeadGradients, HeadNeeds, HeadParameters
from ..kernels.hidden.reference import BatchNorm, Hidden
from ..kernels.lent import Lender
from .arguments import counts as _parts
from .dispatch import select
from .linear import _log_total

__all__ = [
    "BatchNorm",
    "CountLinear",
    "Counts",
    "Handover",
    "Heads",
    "Latent",
    "Layer",
    "Layers",
    "Linear",
    "Parameter",
    "Passed",
    "Sample",
    "log_library_size",
    "ordered_counts",
]


def ordered_counts(x: Tensor) -> Counts:
    """Take apart counts (N, G), dense or CSR, and look at their columns once."""
    counts = _parts(x)
    if counts.values is None:
        return counts
    found: Counts = select(counts.values).ordered(counts)
    return found


class Parameter:
    """A parameter, and the memory of its gradient.

    Parameters
    ----------
    value
        Its gradient, where there is one, lends the memory.

    Attributes
    ----------
    gradient
        What the next backward pass writes; may be replaced by other memory of that shape.
    """

    __slots__ = ("gradient", "value")

    def __init__(self, value: Tensor) -> None:
        self.value = value
        there = value.grad is not None and value.grad.layout == torch.strided
        self.gradient = cast(Tensor, value.grad) if there else torch.empty_like(value)

    def hand_over(self) -> Tensor:
        """Return the gradient and keep no reference to it."""
        gradient, self.gradient = self.gradient, self.value.new_empty(0)
        return gradient


class _MeanWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: Tensor, gradients: list[Tensor], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return losses.mean()

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "this loss has been differentiated once, which is as often as it can be: its "
                "gradients were computed with it and are handed over; compute the loss anew"
            )
        if not (grad.is_cpu and grad.item() == 1.0):
            torch._foreach_mul_(gradients, grad)
        return None, None, *gradients


class Handover:
    """Gradients that a loss brings along for autograd, which computes nothing but hands them out.

    Each pass writes them to memory that nobody refers to: autograd keeps what it is given, so that
    gradients add up over several losses, and hooks and clipping see them as they see others.

    Parameters
    ----------
    parameters
        On the CPU. Whatever computes their gradients is called between `renew` and `mean`.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = list(parameters)
        size = sum(p.value.nbytes for p in self._parameters)
        # the optimiser has those of the step before until they are there
        self._lender = Lender(2 * size)

    def renew(self) -> None:
        """Give the parameters memory for the next gradients."""
        for p in self._parameters:
            p.gradient = self._lender.empty(*p.value.shape, dtype=p.value.dtype)

    def mean(self, losses: Tensor) -> Tensor:
        """Return the mean of `losses` (N,), whose gradients the parameters' memory has.

        Raises
        ------
        RuntimeError
            From a second ``backward`` through the result, and from one with ``create_graph=True``.
        """
        # autograd copies what somebody else refers to
        gradients = [p.hand_over() for p in self._parameters]
        values = [p.value for p in self._parameters]
        mean: Tensor = _MeanWithGradients.apply(losses, gradients, *values)
        return mean


class Linear:
    """``x @ weight.T + bias`` of dense x (N, H).

    Parameters
    ----------
    weight, bias
        (G, H) and (G,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.parameters = [Parameter(weight), Parameter(bias)]
        self._products = select(weight).products

    @property
    def n_in(self) -> int:
        """H."""
        return int(self.parameters[0].value.shape[1])

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return (N, G), in the memory `out` where that is given."""
        weight, bias = (p.value for p in self.parameters)
        if out is None:
            out = x.new_empty(x.shape[0], weight.shape[0])
        self._products.layer(x, weight, bias, out)
        return out

    def backward(self, grad: Tensor, x: Tensor, into: Tensor | None, add: bool = False) -> None:
        """Write the gradients of the parameters, and that by x to `into` or add it there."""
        weight, bias = self.parameters
        self._products.weight_gradient(grad, x, weight.gradient, bias.gradient, False)
        if into is not None:
            self._products.input_gradient(grad, weight.value, into, add)


class CountLinear:
    """A first layer on counts, whose last columns are those of covariates.

    Parameters
    ----------
    weight, bias
        (H, G + K) and (H,).
    n_genes
        G.
    """

    def __init__(self, weight: Tensor, bias: Tensor, n_genes: int) -> None:
        self.parameters = [Parameter(weight), Parameter(bias)]
        self._n_genes = n_genes
        self._backend = select(weight)

    def forward(self, x: Counts, indicators: Tensor | None) -> Tensor:
        """Return (N, H) for counts and indicators (N, K)."""
        weight, bias = (p.value for p in self.parameters)
        by_gene = weight[:, : self._n_genes]
        if x.dense is None:
            out: Tensor = self._backend.linear_forward(x, by_gene, bias, False)
        else:
            out = torch.addmm(bias, x.dense, by_gene.t())
        return out if indicators is None else out.addmm_(indicators, weight[:, self._n_genes :].t())

    def backward(self, grad: Tensor, x: Counts, indicators: Tensor | None) -> None:
        """Write the gradients of the parameters."""
        weight, bias = (p.gradient for p in self.parameters)
        by_gene = weight[:, : self._n_genes]
        if x.dense is None:
            self._backend.linear_weight_grad(grad, x, False, by_gene)
        else:
            torch.mm(grad.t(), x.dense, out=by_gene)
        if indicators is not None:
            torch.mm(grad.t(), indicators, out=weight[:, self._n_genes :])
        torch.sum(grad, 0, out=bias)


class Layer(NamedTuple):
    """One hidden layer: its product, its normalisation, and how often a unit is dropped."""

    linear: Linear | CountLinear
    norm: BatchNorm
    by_norm: tuple[Parameter, Parameter]
    rate: float


class Passed(NamedTuple):
    """What a hidden layer leaves for its backward pass."""

    x: Any  # with its indicators beside it, where the layer is given those
    z: Tensor
    hidden: Hidden
    scale: float


class Layers:
    """Hidden layers of linear layer, batch normalisation, ReLU and dropout, in training.

    Columns of covariates are appended to the input of the first layer; a later layer is given as
    many of the last of them as it has weights for.

    Parameters
    ----------
    layers
        From the input on; only the first may be a `CountLinear`.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = list(layers)
        self._backend: Backend = select(layers[0].norm.weight)

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters."""
        return [p for one in self._layers for p in (*one.linear.parameters, *one.by_norm)]

    def forward(self, x: Any, indicators: Tensor | None) -> tuple[Tensor, list[Passed]]:
        """Return the last layer's output (N, H), and what `backward` needs.

        `x` is `Counts` where the first layer takes those, else (N, H).
        """
        passed = []
        for layer in self._layers:
            if isinstance(layer.linear, CountLinear):
                z = layer.linear.forward(x, indicators)
            else:
                n_appended = layer.linear.n_in - x.shape[1]
                if indicators is not None and n_appended:
                    x = torch.cat([x, indicators[:, -n_appended:]], dim=1)
                z = layer.linear.forward(x)
            keep, scale = _dropped(z, layer.rate)
            hidden: Hidden = self._backend.hidden_forward(z, layer.norm, keep, scale)
            passed.append(Passed(x, z, hidden, scale))
            x = hidden.out
        return x, passed

    def backward(
        self, grad: Tensor, passed: list[Passed], indicators: Tensor | None, by_input: bool
    ) -> Tensor | None:
        """Write the gradients of all parameters; return that by the input (N, H) where wanted."""
        for number in reversed(range(len(self._layers))):
            layer, (x, z, hidden, scale) = self._layers[number], passed[number]
            by_norm = layer.by_norm[0].gradient, layer.by_norm[1].gradient
            d_z = self._backend.hidden_backward(grad, z, layer.norm, hidden, scale, by_norm)[0]
            if isinstance(layer.linear, CountLinear):
                layer.linear.backward(d_z, x, indicators)
                return None
            into = torch.empty_like(x) if number or by_input else None
            layer.linear.backward(d_z, x, into)
            if into is None:
                return None
            if number:
                n_own = passed[number - 1].z.shape[1]
            else:
                n_own = x.shape[1] - (0 if indicators is None else indicators.shape[1])
            grad = into[:, :n_own]  # without the appended columns
        return grad


def _dropped(z: Tensor, rate: float) -> tuple[Tensor | None, float]:
    """Which units are kept, drawn as ``torch.nn.Dropout`` draws them, and what they count."""
    if rate == 0.0:
        return None, 1.0
    if rate == 1.0:
        return torch.zeros_like(z), 1.0  # nothing is drawn
    return torch.empty_like(z).bernoulli_(1.0 - rate), 1.0 / (1.0 - rate)


class Sample(NamedTuple):
    """A latent sample, and what its backward pass needs.

    Attributes
    ----------
    z, kl
        (N, L), and the divergence of each cell from the prior (N,).
    """

    z: Tensor
    kl: Tensor
    given: tuple[Tensor | None, ...]


class Latent:
    """The two heads of an encoder, a sample of the posterior, and its divergence from the prior.

    Parameters
    ----------
    mean, log_var
        The heads.
    softmax
        Whether the sample is mapped to the simplex.
    var_eps
        Added to the variance.
    """

    def __init__(self, mean: Linear, log_var: Linear, softmax: bool, var_eps: float) -> None:
        self._heads = mean, log_var
        self._softmax, self._var_eps = softmax, var_eps
        self._backend = select(mean.parameters[0].value)

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters."""
        return [p for head in self._heads for p in head.parameters]

    def forward(self, hidden: Tensor, prior: tuple[Tensor, Tensor] | None) -> Sample:
        """Draw from the posterior of `hidden` (N, H); a standard normal prior where None."""
        mean, log_var = (head.forward(hidden) for head in self._heads)
        given = mean, log_var, *(prior or (None, None))
        z, _, kl, noise = self._backend.sample_and_kl_forward(*given, self._var_eps, self._softmax)
        return Sample(z, kl, (*given, noise))

    def backward(self, by_z: Tensor, by_kl: Tensor, hidden: Tensor, sample: Sample) -> Tensor:
        """Write the gradients of the heads; return that by `hidden`."""
        by_heads = self._backend.sample_and_kl_backward(
            by_z, None, by_kl, *sample.given, self._var_eps, self._softmax
        )[:2]
        into = torch.empty_like(hidden)
        for number, (head, grad) in enumerate(zip(self._heads, by_heads, strict=True)):
            head.backward(grad, hidden, into, add=number > 0)
        return into


class Heads:
    """The decoder's heads, and the likelihood of the counts under what they give.

    Parameters
    ----------
    scale, zero_inflation, dispersion
        The heads of the scale logits, of the zero-inflation logits and of the log dispersion of
        each cell; None where there is none.
    products
        The dtype of the matrix products, where it is not that of the weights.
    """

    def __init__(
        self,
        scale: Linear,
        zero_inflation: Linear | None,
        dispersion: Linear | None,
        products: torch.dtype | None = None,
    ) -> None:
        self._scale, self._zi, self._r = scale, zero_inflation, dispersion
        self._products = products
        self._backend = select(scale.parameters[0].value)

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters."""
        heads = [head for head in (self._scale, self._zi, self._r) if head is not None]
        return [p for head in heads for p in head.parameters]

    def nll_and_gradients(
        self,
        x: Counts,
        hidden: Tensor,
        log_library: Tensor,
        log_theta: Tensor | None,
        theta_index: Tensor | None,
        upstream: Tensor,
        by_library: bool = True,
        table_gradient: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Write the gradients of the heads for the upstream gradient (N,).

        `table_gradient` may lend memory for the gradient by `log_theta`.

        Returns
        -------
        tuple of Tensor
            -log p of each cell (N,), and the gradients by `hidden` (N, H), by `log_library` (N, 1)
            if `by_library` asks for it, and by `log_theta`, None where that is None or a head's.
        """
        scale, zi, theta = (
            (None, None) if head is None else head.parameters
            for head in (self._scale, self._zi, self._r)
        )
        names = "scale_weight", "scale_bias", "zi_weight", "zi_bias", "theta_weight", "theta_bias"
        there = {
            name: parameter
            for name, parameter in zip(names, (*scale, *zi, *theta), strict=True)
            if parameter is not None
        }
        given: dict[str, Any] = dict.fromkeys(names) | {name: p.value for name, p in there.items()}
        table = None if self._r is not None else log_theta
        nll, found = self._backend.heads_with_gradients(
            upstream,
            x,
            HeadParameters(
                hidden=hidden,
                log_library=log_library,
                log_theta=table,
                theta_index=theta_index,
                **given,
            ),
            HeadNeeds(log_library=by_library),
            self._products,
            HeadGradients(
                **{name: p.gradient for name, p in there.items()},
                log_theta=None if table is None else table_gradient,
            ),
        )
        return nll, found.hidden, found.log_library, found.log_theta


def log_library_size(x: Counts, floor: float = 1.0) -> Tensor:
    """Natural log of the total of each cell (N, 1); see `functional.log_library_size`."""
    return _log_total(x, floor)
