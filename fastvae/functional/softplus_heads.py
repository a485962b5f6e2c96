"""The decoder's heads where means are a softplus of the scale logits, with their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..kernels.counts import Counts
from ..kernels.heads.workspace import workspace
from ..kernels.parameters import Parameters
from .derivatives import Heads
from .likelihood import LOWEST_SOFTPLUS_LOGIT


class SoftplusHeads(Heads):
    """`Heads` whose means are ``exp(log_library) softplus(scale logits)``.

    The likelihood takes them as a softmax of other logits, as `likelihood.softplus_as_softmax`
    says; its derivative here is

        ds = (dt / f + dl / F) sigmoid(s),    f = softplus(s),  t = log f,  F = sum of f over genes,

    where dt and dl are the gradients by the logits t and by the library size, log_library + log F.
    Heads and likelihood are not one operation: all logits of the minibatch are kept.
    """

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
        """See `Heads.nll_and_gradients`."""
        heads = [self._scale, self._zi, self._r]
        n_kept = 2 + sum(head is not None for head in heads)
        memory = iter(workspace((n_kept, *x.shape), hidden.dtype, hidden.device))
        logits, zi, theta = (
            None if head is None else head.forward(hidden, next(memory)) for head in heads
        )
        assert logits is not None
        mean, scale = next(memory), next(memory)
        torch.clamp(logits, min=LOWEST_SOFTPLUS_LOGIT, out=scale)
        mean.copy_(softplus(scale))
        torch.log(mean, out=scale)
        total = mean.sum(1, keepdim=True)
        table = log_theta if self._r is None else None
        theta = table if self._r is None else theta
        nll, (by_scale, by_total, by_theta, by_zi) = self._backend.nll_and_gradients(
            upstream,
            x,
            Parameters(scale, log_library + total.log(), theta, zi, theta_index),
            (True, True, theta is not None, zi is not None),
        )
        into = torch.empty_like(hidden)
        steep = logits.sigmoid().masked_fill_(logits < LOWEST_SOFTPLUS_LOGIT, 0.0)
        grad = by_scale.mul_(steep / mean).addcmul_(steep, by_total / total)
        self._scale.backward(grad, hidden, into)
        for head, by_head in ((self._zi, by_zi), (self._r, by_theta)):
            if head is not None:
                head.backward(by_head, hidden, into, add=True)
        of_table = by_theta if table is not None else None
        if of_table is not None and table_gradient is not None:
            of_table = table_gradient.copy_(of_table)
        return nll, into, by_total if by_library else None, of_table
