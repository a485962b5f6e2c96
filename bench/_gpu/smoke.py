"""Does training run on this device, and is the captured step the eager one?

Each configuration trains twice from one seed: with the step captured as a CUDA graph and without.
Losses of every epoch and all weights are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from _kit.results import Part, Row

CELLS, GENES, BATCH, EPOCHS = 1500, 400, 128, 2
TINY_CELLS, TINY_GENES, TINY_BATCH = 22, 12, 8
LIMIT = 10.0  # seconds that one configuration is expected to take at most, with its compiling
LOSS, WEIGHTS = 1e-4, 1e-3  # relative; the random numbers are the same
BF16 = 10.0  # times as much in bfloat16

Options = dict[str, Any]
CONFIGURATIONS: dict[str, tuple[Options, Options]] = {  # of the model, of the training
    "zinb": ({}, {}),
    "nb, gene-batch": ({"reconstruction_loss": "nb", "dispersion": "gene-batch"}, {}),
    "poisson, learned library": (
        {"reconstruction_loss": "poisson", "use_observed_lib_size": False},
        {},
    ),
    "zinb, bf16": ({}, {"precision": "bf16"}),
    "zinb, CSR minibatches": ({}, {}),
    "zinb, clipped, labels": (
        {"dispersion": "gene-label", "labels_key": "cell_type"},
        {"max_grad_norm": 20.0, "n_epochs_kl_warmup": 2},
    ),
}


@contextmanager
def layout(name: str) -> Iterator[None]:
    """Sparse minibatches where the configuration asks for them."""
    from fastvae.train import cuda_graph

    forced = "csr" if "CSR" in name else None
    with mock.patch.object(cuda_graph, "FORCED", forced):
        yield


@contextmanager
def counted_replays() -> Iterator[list[int]]:
    """How many CUDA graphs are launched in the block."""
    count, replay = [0], torch.cuda.CUDAGraph.replay

    def counting(graph: torch.cuda.CUDAGraph) -> None:
        count[0] += 1
        replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", counting):
        yield count


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Norm of the difference over the norm, in float64; NaN where a number is not finite."""
    off, whole = (got.double() - want.double()).norm(), want.double().norm()
    return float(off / whole.clamp(min=1e-30)) if torch.isfinite(whole) else float("nan")


def compare(row: Row, name: str, device: torch.device, tiny: bool) -> None:
    """Train twice and compare; the row fails where they differ or nothing was captured."""
    import fastvae
    from fastvae.datasets import simulate

    cells, genes, batch = (TINY_CELLS, TINY_GENES, TINY_BATCH) if tiny else (CELLS, GENES, BATCH)
    data = simulate(cells, genes, density=0.3 if tiny else 0.15, seed=0)
    of_model, of_training = CONFIGURATIONS[name]
    fixed: Options = {"seed": 0, "progress": False, "device": device, "precision": "float32"}
    losses, weights = {}, {}
    for step, captured in (("captured", None), ("eager", False)):
        model = fastvae.Model(data, **{"batch_key": "batch", **of_model})
        with layout(name), counted_replays() as replays:
            model.fit(EPOCHS, batch, cuda_graph=captured, **{**fixed, **of_training})
        row[f"{step}_replays"] = replays[0]
        table = model.history[["train_elbo", "validation_elbo"]].to_numpy()
        losses[step] = torch.from_numpy(table.copy())
        state = model.module.state_dict().values()
        weights[step] = torch.cat([t.detach().double().reshape(-1).cpu() for t in state])
    row["train_elbo"] = losses["captured"][:, 0].tolist()
    row["off"] = {
        "losses": relative(losses["captured"], losses["eager"]),
        "weights": relative(weights["captured"], weights["eager"]),
    }
    row["same_bits"] = bool(torch.equal(weights["captured"], weights["eager"]))
    more = BF16 if of_training.get("precision") == "bf16" else 1.0
    if not (row["off"]["losses"] <= LOSS * more and row["off"]["weights"] <= WEIGHTS * more):
        row.update(state="disagreement", error=f"captured against eager: {row['off']}")
    if device.type == "cuda" and not (row["captured_replays"] and not row["eager_replays"]):
        row.update(state="failed", error="the step was not captured, or not only where asked for")


def run(part: Part, device: torch.device, tiny: bool) -> None:
    """All configurations; the first pays for starting the device."""
    part.facts.update(limits={"losses": LOSS, "weights": WEIGHTS, "in bf16": f"x {BF16:g}"})
    for name in CONFIGURATIONS:
        part.row(
            name,
            lambda row, name=name: compare(row, name, device, tiny),
            limit=600 if tiny else 60,
            needs=0 if tiny else LIMIT / 4,
        )
