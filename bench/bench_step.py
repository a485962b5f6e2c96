"""A whole training step: loss, gradients and Adam on one minibatch that lies ready.

    pytest bench/bench_step.py [--quick] [--bench-out=DIR]

Two kinds. "observed library": fastvae.VAE as `fastvae.Model` trains it, beside scvi-tools' module
at its defaults and beside it within scvi-tools (`integrations.scvi_tools`). "learned library": the
model of scvi 0.6.8, as fastvae.VAE and as `legacy`, its step in plain torch. Each has its own
library's Adam. All have the same weights, dropout and noise, so their losses and gradients have to
agree; the Triton kernels draw other noise and are held to the loss within 2 %. "bf16" multiplies
the decoder's heads in bfloat16, as ``precision="bf16"`` does on a CPU, and is held to 5 %.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _kit import contenders, problems
from _kit.agreement import error
from _kit.contest import Case, Contest, Step
from _kit.environment import devices
from _kit.legacy import LegacyVAE
from _kit.turns import Turns
from torch import Tensor, nn

from fastvae import VAE
from fastvae import functional as fn
from fastvae.train.step import Gradients, written_gradients

DENSITY, N_BATCH = 0.08, 2
LOSS_LIMIT, GRADIENT_LIMIT, DRAWN_LIMIT, HALF_LIMIT = 1e-4, 1e-3, 0.02, 0.05
SIZES = [(128, genes) for genes in (1000, 2000, 8000, 20_000, 30_000)]
SIZES += [(512, 2000), (2048, 2000)]
QUICK_SIZES = [(64, 300)]
HALF = "fastvae cpu bf16"
OBSERVED = (
    *contenders.OURS,
    HALF,
    "fastvae within scvi-tools",
    "scvi-tools",
    "scvi-tools compiled",
)
LEARNED = (*contenders.OURS, "legacy", "legacy compiled")
ADAM: dict[str, Any] = {"lr": 1e-3, "eps": 0.01, "weight_decay": 1e-6}
Loss = Callable[[], Tensor]


class Minibatch:
    """Counts of `n` cells, in every form that somebody takes."""

    def __init__(self, n: int, genes: int, device: torch.device) -> None:
        self.dense = problems.make_counts(n, genes, DENSITY, device)
        self.csr = problems.to_csr(self.dense)
        library = self.dense.sum(1, keepdim=True).clamp(min=1).log()
        self.mean, self.var = (f.expand(n, 1).contiguous() for f in (library.mean(), library.var()))
        self.batch = (torch.arange(n, device=device) % N_BATCH)[:, None]
        self.genes = genes


def our_loss(module: nn.Module, data: Minibatch, backend: str) -> Loss:
    def loss() -> Tensor:
        with fn.use_backend(backend):
            first, kl, _ = module(data.csr, data.mean, data.var, data.batch)
            return (first + kl).mean()

    return loss


def peer_module(data: Minibatch, device: torch.device, ours: bool) -> nn.Module:
    """scvi-tools' module or ours in its place."""
    from scvi.module import VAE as TheirVAE

    kind: Any = TheirVAE
    if ours:
        from fastvae.integrations.scvi_tools import SCVI

        kind = SCVI._module_cls
    return kind(data.genes, n_batch=N_BATCH).to(device)


def door_step(module: nn.Module, data: Minibatch) -> tuple[Step, Loss]:
    """The step of our class within scvi-tools under Lightning, without Lightning's own work."""
    from scvi import REGISTRY_KEYS as KEYS

    from fastvae.integrations.scvi_tools._written_loss import WrittenLoss

    labels = torch.zeros_like(data.batch)
    tensors = {KEYS.X_KEY: data.csr, KEYS.BATCH_KEY: data.batch, KEYS.LABELS_KEY: labels}
    weight, written = torch.ones((), device=data.mean.device), WrittenLoss()

    def loss() -> Tensor:
        found = written(module, tensors, weight)
        if found is None:  # on a GPU
            plain: Tensor = module(tensors, loss_kwargs={"kl_weight": weight})[2].loss
            return plain
        return found.loss

    return training_step(module, loss, fused=True), loss


def peer_loss(module: nn.Module, data: Minibatch, compiled: bool) -> Loss:
    from scvi import REGISTRY_KEYS as KEYS

    labels = torch.zeros_like(data.batch)
    tensors = {KEYS.X_KEY: data.dense, KEYS.BATCH_KEY: data.batch, KEYS.LABELS_KEY: labels}
    call = torch.compile(module, dynamic=False) if compiled else module
    return lambda: call(tensors, loss_kwargs={"kl_weight": 1.0})[2].loss


def written_step(gradients: Gradients, module: nn.Module, data: Minibatch, backend: str) -> Step:
    """The step of `Model.fit`: gradients without autograd, and Adam."""
    optimizer = torch.optim.Adam(module.parameters(), fused=True, **ADAM)
    call = written_loss(gradients, data, backend)

    def step() -> None:
        call()
        optimizer.step()

    return step


def written_loss(gradients: Gradients, data: Minibatch, backend: str) -> Loss:
    """The mean loss; the gradients are in the parameters when it returns."""
    weight = torch.ones((), device=data.mean.device)
    given = data.csr, data.mean, data.var, data.batch, None, weight

    def loss() -> Tensor:
        with fn.use_backend(backend):
            first, kl = gradients(*given)
        return (first + kl).mean()

    return loss


def training_step(module: nn.Module, loss: Loss, fused: bool) -> Step:
    optimizer = torch.optim.Adam(module.parameters(), fused=fused, **ADAM)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


class Trained:
    """Modules of one kind with the same weights, and what their first step gives."""

    def __init__(self, kind: str, n: int, genes: int, device: torch.device) -> None:
        self.kind, self.device = kind, device
        self.data = Minibatch(n, genes, device)
        self.first = self.module_of("fastvae torch")
        self.want = self.results(self.first, our_loss(self.first, self.data, "torch"))
        self.made: dict[str, tuple[nn.Module, Loss]] = {}
        self.written: set[str] = set()

    def module_of(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        genes = self.data.genes
        if name.startswith("legacy"):
            module: nn.Module = LegacyVAE(genes, n_batch=N_BATCH)
        elif "scvi-tools" in name:
            module = peer_module(self.data, self.device, ours=name.startswith("fastvae"))
        else:
            observed = self.kind.startswith("observed")
            module = VAE(genes, N_BATCH, use_observed_lib_size=observed)
        return module.to(self.device).train()

    def loss_of(self, name: str, module: nn.Module) -> Loss:
        compiled = name.endswith("compiled")
        if name.startswith("legacy"):
            call = torch.compile(module, dynamic=False) if compiled else module
            data = self.data

            def loss() -> Tensor:
                first, kl, _ = call(data.dense, data.mean, data.var, data.batch)
                return (first + kl).mean()

            return loss
        if "scvi-tools" in name:
            return peer_loss(module, self.data, compiled)
        return our_loss(module, self.data, name.split()[1])

    def make(self, name: str) -> Step:
        contenders.forget()
        module = self.module_of(name)
        own = module.state_dict()
        state = {k: v for k, v in self.first.state_dict().items() if k in own}
        module.load_state_dict({**own, **state})
        assert len(state) >= len(dict(self.first.named_parameters())), f"{name}: other weights"
        self.made[name] = module, self.loss_of(name, module)
        ours = name.startswith("fastvae")
        if name == "fastvae within scvi-tools":
            step, loss = door_step(module, self.data)
            self.made[name] = module, loss
            return step
        if name in ("fastvae cpu", "fastvae triton", HALF):
            backend = name.split()[1]
            with fn.use_backend(backend):  # the kernels are chosen here
                gradients = written_gradients(module, torch.bfloat16 if name == HALF else None)
            if gradients is not None:
                self.written.add(name)
                self.made[name] = module, written_loss(gradients, self.data, backend)
                return written_step(gradients, module, self.data, backend)
        return training_step(*self.made[name], fused=ours)

    def results(self, module: nn.Module, loss: Loss, written: bool = False) -> dict[str, Tensor]:
        """The loss and the gradients, from the same dropout and noise for everybody."""
        torch.manual_seed(1)
        value = loss()
        if not written:
            value.backward()
        found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        module.zero_grad(set_to_none=True)
        return {"loss": value.detach()[None], **found}

    def check(self, name: str, step: Step) -> dict[str, Any]:
        got = self.results(*self.made[name], name in self.written)
        drawn = "triton" in name or name.endswith("compiled")  # compiled code draws its own noise
        names = ["loss"] if drawn else [k for k in self.want if not before_norm(k)]
        errors = {k: error(got[k], self.want[k])["norm"] for k in names}
        limits = {k: GRADIENT_LIMIT for k in names}
        if name == HALF:
            limits = dict.fromkeys(names, HALF_LIMIT)
        limits["loss"] = DRAWN_LIMIT if drawn or name == HALF else LOSS_LIMIT
        agrees = all(errors[k] <= limits[k] for k in names)
        largest = max(names, key=lambda k: errors[k] / limits[k])
        return {"errors": {k: errors[k] for k in {"loss", largest}}, "agrees": agrees}


def before_norm(name: str) -> bool:
    """A bias before batch normalisation: its gradient is 0 but for rounding."""
    return name.endswith("0.bias") and "fc_layers" in name


def contest(kind: str, n: int, genes: int, device: torch.device, compiled: bool) -> Contest:
    providers = OBSERVED if kind.startswith("observed") else LEARNED
    missing = contenders.unavailable(device)
    if device.type != "cpu":
        missing[HALF] = "on a CPU only"
    if not compiled:
        compilers = [name for name in providers if name.endswith("compiled")]
        missing.update(dict.fromkeys(compilers, "--quick compiles no step"))
    trained = Trained(kind, n, genes, device)
    make: dict[str, Callable[[], Step]] = {name: partial(trained.make, name) for name in providers}
    return Contest(make, trained.check, missing)


def cases(quick: bool) -> list[Case]:
    found = []
    for device in devices():
        for kind, providers in (("observed library", OBSERVED), ("learned library", LEARNED)):
            for n, genes in QUICK_SIZES if quick else SIZES:
                labels: dict[str, Any] = {
                    "operation": "training step",
                    "family": "zinb",
                    "kind": kind,
                }
                labels |= {"cells": n, "genes": genes, "device": device}
                prepare = partial(contest, kind, n, genes, torch.device(device), not quick)
                seconds = 0.5 if quick else 8.0
                found.append(Case(labels, providers, prepare, seconds, memory=True, runs=3))
    return found


def test_step(benchmark: Any, turns: Turns, case: Case, provider: str) -> None:
    turns.show(benchmark, case, provider, __name__)
