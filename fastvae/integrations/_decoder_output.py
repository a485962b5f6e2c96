"""What a decoder says of the counts: logits, or the hidden units and heads that make them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..functional.heads import Head, heads_nll_of
from ..nn import dense


class Logits(NamedTuple):
    """Output of a decoder for N cells, or for S samples of each cell.

    Attributes
    ----------
    scale : Tensor, (N, G) or (S, N, G)
        Logits of the normalised expression, before the activation over genes.
    log_library : Tensor, (N, 1) or (S, N, 1)
        Log of the factor from normalised expression to the rate.
    log_theta : Tensor or None
        (G,), (K, G) with `theta_index`, or of the shape of `scale`.
    zi : Tensor or None
        Logits of an extra zero, of the shape of `scale`.
    theta_index : Tensor or None
        (N,) row of `log_theta` of each cell.
    softmax : bool
        Whether expression is ``softmax(scale)``; ``softplus(scale)`` if not.
    """

    scale: Tensor
    log_library: Tensor
    log_theta: Tensor | None = None
    zi: Tensor | None = None
    theta_index: Tensor | None = None
    softmax: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, G) or (S, N, G)."""
        return tuple(self.scale.shape)


class Undecoded(NamedTuple):
    """A decoder's last hidden layer for N cells, and linear heads that nobody listens to.

    Attributes
    ----------
    hidden : Tensor, (N, H)
    log_library : Tensor, (N, 1)
        Log of the factor from normalised expression to the rate.
    scale, zi : torch.nn.Linear
        Heads of the logits of the same names; no `zi` without zero inflation.
    log_theta : Tensor, torch.nn.Linear or None
        (G,), (K, G) with `theta_index`, or the head that makes a row for each cell.
    theta_index : Tensor or None
        (N,) row of `log_theta` of each cell.
    versions : tuple of int
        Those of the heads' parameters when this was made.
    """

    hidden: Tensor
    log_library: Tensor
    scale: nn.Linear
    zi: nn.Linear | None = None
    log_theta: Tensor | nn.Linear | None = None
    theta_index: Tensor | None = None
    versions: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, G)."""
        return self.hidden.shape[0], self.scale.out_features

    def logits(self) -> Logits:
        """Decode.

        Raises
        ------
        RuntimeError
            The weights have changed since.
        """
        if versions_of(self.scale, self.zi, self.log_theta) != self.versions:
            raise RuntimeError(
                "the decoder's weights have changed since it made this distribution; read the "
                "distribution's parameters before the optimiser's step"
            )
        log_theta = self.log_theta
        return Logits(
            dense(self.scale, self.hidden),
            self.log_library,
            dense(log_theta, self.hidden) if isinstance(log_theta, nn.Linear) else log_theta,
            None if self.zi is None else dense(self.zi, self.hidden),
            self.theta_index,
        )

    def nll(self, family: str, x: Tensor) -> Tensor:
        """Negative log-likelihood of each cell (N,), without logits of all cells."""
        log_theta = self.log_theta
        if family == "zinb" and self.zi is None:
            family = "nb"
        return heads_nll_of(
            family,
            x,
            self.hidden,
            _head(self.scale),
            self.log_library,
            _head(log_theta) if isinstance(log_theta, nn.Linear) else log_theta,
            None if self.zi is None else _head(self.zi),
            theta_index=self.theta_index,
        )


def versions_of(*parts: object) -> tuple[int, ...]:
    """How often the parameters of each linear layer among `parts` have been written to."""
    layers = [part for part in parts if isinstance(part, nn.Linear)]
    return tuple(p._version for layer in layers for p in layer.parameters())


def _head(layer: nn.Linear) -> Head:
    return layer.weight, layer.bias
