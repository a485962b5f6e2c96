"""What the operation takes and gives back, in one order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class HeadParameters(NamedTuple):
    """Decoder heads of N cells, H hidden units and G genes, and what else the likelihood takes.

    Attributes
    ----------
    hidden
        (N, H) output of the decoder's last hidden layer.
    scale_weight, scale_bias
        (G, H) and (G,) head of the scale logits; any bias may be None.
    zi_weight, zi_bias
        Head of the zero-inflation logits; None unless ZINB.
    theta_weight, theta_bias
        Head of a log theta of each cell; None where `log_theta` is given, and for Poisson.
    log_library
        (N, 1) logarithm of the library size.
    log_theta
        (G,), or (K, G) with `theta_index`.
    theta_index
        (N,) row of `log_theta` for each cell.
    """

    hidden: Tensor
    scale_weight: Tensor
    scale_bias: Tensor | None
    zi_weight: Tensor | None
    zi_bias: Tensor | None
    theta_weight: Tensor | None
    theta_bias: Tensor | None
    log_library: Tensor
    log_theta: Tensor | None = None
    theta_index: Tensor | None = None

    @property
    def heads(self) -> int:
        """Number of heads."""
        return 1 + (self.zi_weight is not None) + (self.theta_weight is not None)

    def product_dtype(self, wanted: torch.dtype | None) -> torch.dtype:
        """The dtype of the products: `wanted`, or the widest of the factors."""
        if wanted is not None:
            return wanted
        dtype = self.hidden.dtype
        for t in self[1:7]:
            if t is not None:
                dtype = torch.promote_types(dtype, t.dtype)
        return dtype

    def result_dtype(self, products: torch.dtype) -> torch.dtype:
        """The dtype of likelihood and sums: the widest, at least float32."""
        dtype = torch.promote_types(products, torch.float32)
        for t in (self.log_library, self.log_theta):
            if t is not None:
                dtype = torch.promote_types(dtype, t.dtype)
        return dtype


class HeadGradients(NamedTuple):
    """Gradients by the parameters of the same names, None where one was not wanted."""

    hidden: Tensor | None = None
    scale_weight: Tensor | None = None
    scale_bias: Tensor | None = None
    zi_weight: Tensor | None = None
    zi_bias: Tensor | None = None
    theta_weight: Tensor | None = None
    theta_bias: Tensor | None = None
    log_library: Tensor | None = None
    log_theta: Tensor | None = None


class HeadNeeds(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool = True
    scale_weight: bool = True
    scale_bias: bool = True
    zi_weight: bool = True
    zi_bias: bool = True
    theta_weight: bool = True
    theta_bias: bool = True
    log_library: bool = True
    log_theta: bool = True

    def of_logits(self, p: HeadParameters) -> tuple[bool, bool, bool, bool]:
        """Whether gradients by scale logits, log library, log theta and zi logits are wanted."""
        by_theta = self.log_theta
        if p.theta_weight is not None:
            by_theta = self.hidden or self.theta_weight or self.theta_bias
        by_scale = self.hidden or self.scale_weight or self.scale_bias
        by_zi = self.hidden or self.zi_weight or self.zi_bias
        return by_scale, self.log_library, by_theta, by_zi
