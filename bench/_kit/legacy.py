"""The training step of scvi 0.6.8 in plain torch: a witness that does not change with this package.

Written from the formulas of that release, for its default dispersion (one theta per gene); names
of modules are those of its checkpoints, so that its recorded weights load with ``strict=True``.
The tests hold every output to what scvi 0.6.8 itself computed.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-8  # inside its logarithms


class Layers(nn.Module):
    """Linear, batch norm, ReLU, dropout; the one-hot batch goes into each layer."""

    def __init__(self, n_in: int, n_hidden: int, n_layers: int, n_cat: int, dropout: float) -> None:
        super().__init__()
        self.n_cat = n_cat if n_cat > 1 else 0
        sizes = [n_in, *[n_hidden] * n_layers]
        self.fc_layers = nn.Sequential(
            OrderedDict(
                (
                    f"Layer {i}",
                    nn.Sequential(
                        nn.Linear(sizes[i] + self.n_cat, n_hidden),
                        nn.BatchNorm1d(n_hidden, momentum=0.01, eps=0.001),
                        nn.ReLU(),
                        nn.Dropout(dropout),
                    ),
                )
                for i in range(n_layers)
            )
        )

    def forward(self, h: Tensor, batch_index: Tensor | None = None) -> Tensor:
        for layer in self.fc_layers:
            if self.n_cat:
                assert batch_index is not None
                one_hot = F.one_hot(batch_index[:, 0], self.n_cat).to(h.dtype)
                h = torch.cat([h, one_hot], dim=-1)
            h = layer(h)
        return h


class Encoder(nn.Module):
    """Mean, variance and one sample of a normal posterior."""

    def __init__(self, n_in: int, n_out: int, n_hidden: int, n_layers: int, dropout: float) -> None:
        super().__init__()
        self.encoder = Layers(n_in, n_hidden, n_layers, 0, dropout)
        self.mean_encoder = nn.Linear(n_hidden, n_out)
        self.var_encoder = nn.Linear(n_hidden, n_out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean = self.mean_encoder(h)
        variance = self.var_encoder(h).exp() + 1e-4
        return mean, variance, mean + variance.sqrt() * torch.randn_like(mean)


class Decoder(nn.Module):
    """Scale, dispersion (unused here) and zero-inflation logits of each gene."""

    def __init__(self, n_in: int, n_out: int, n_hidden: int, n_layers: int, n_cat: int) -> None:
        super().__init__()
        self.px_decoder = Layers(n_in, n_hidden, n_layers, n_cat, 0.0)
        self.px_scale_decoder = nn.Sequential(nn.Linear(n_hidden, n_out), nn.Softmax(dim=-1))
        self.px_r_decoder = nn.Linear(n_hidden, n_out)
        self.px_dropout_decoder = nn.Linear(n_hidden, n_out)


def kl_normal(mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_var: Tensor) -> Tensor:
    """KL divergence of normals, element by element."""
    ratio = variance / prior_var
    return 0.5 * (ratio + (mean - prior_mean) ** 2 / prior_var - 1 - ratio.log())


def reconstruction(
    likelihood: str, x: Tensor, rate: Tensor, theta: Tensor, zi_logits: Tensor
) -> Tensor:
    """Negative log-likelihood of each cell, a difference of lgammas."""
    if likelihood == "poisson":
        return -(torch.xlogy(x, rate) - rate - torch.lgamma(x + 1)).sum(-1)
    log_total = torch.log(theta + rate + EPS)
    none = theta * (torch.log(theta + EPS) - log_total)
    some = none + x * (torch.log(rate + EPS) - log_total)
    some = some + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    if likelihood == "nb":
        return -some.sum(-1)
    at_zero = F.softplus(none - zi_logits) - F.softplus(-zi_logits)
    above = some - zi_logits - F.softplus(-zi_logits)
    return -torch.where(x < EPS, at_zero, above).sum(-1)


class LegacyVAE(nn.Module):
    """``forward`` returns reconstruction loss plus KL of the library (N,), and KL of z (N,)."""

    def __init__(
        self,
        n_input: int,
        n_batch: int = 0,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        reconstruction_loss: str = "zinb",
    ) -> None:
        super().__init__()
        self.likelihood = reconstruction_loss
        self.px_r = nn.Parameter(torch.randn(n_input))
        self.z_encoder = Encoder(n_input, n_latent, n_hidden, n_layers, dropout_rate)
        self.l_encoder = Encoder(n_input, 1, n_hidden, 1, dropout_rate)
        self.decoder = Decoder(n_latent, n_input, n_hidden, n_layers, n_batch)

    def forward(
        self,
        x: Tensor,
        local_l_mean: Tensor,
        local_l_var: Tensor,
        batch_index: Tensor | None = None,
        y: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, float]:
        logged = torch.log(1 + x)
        qz_m, qz_v, z = self.z_encoder(logged)
        ql_m, ql_v, library = self.l_encoder(logged)
        h = self.decoder.px_decoder(z, batch_index)
        rate = library.exp() * self.decoder.px_scale_decoder(h)
        zi_logits = self.decoder.px_dropout_decoder(h)
        first = reconstruction(self.likelihood, x, rate, self.px_r.exp(), zi_logits)
        kl_z = kl_normal(qz_m, qz_v, torch.zeros_like(qz_m), torch.ones_like(qz_v)).sum(dim=1)
        kl_l = kl_normal(ql_m, ql_v, local_l_mean, local_l_var).sum(dim=1)
        return first + kl_l, kl_z, 0.0
