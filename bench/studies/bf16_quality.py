"""Does rounding to bfloat16 cost quality: ELBO and integration, with float32 beside it.

    python bench bf16_quality DATA --batch-key batch --labels-key cell_type --out JSON

Trains on a CPU, the same seeds in each of three ways:

- float32;
- bf16: ``precision="bf16"``, in which the products of the decoder's heads have bfloat16 factors and
  both the logits and the gradients by them are rounded to bfloat16;
- bf16 counts: log(1 + x) and the other factors of the encoder's first products are rounded too,
  as a step with a bfloat16 matrix of them would have it. fastvae does not offer this: it is
  emulated here.

The weight of the KL divergence rises over the first half of the epochs. The ELBO per cell is
evaluated in float32 on the cells that training has not seen. Integration is measured as in
`integration_quality`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from _kit.environment import describe
from _kit.results import write_json
from torch import Tensor

import fastvae
from fastvae.data import read
from fastvae.functional.derivatives import CountLinear, Counts
from fastvae.report.neighbours import chance_share, neighbours, same_share, vote_accuracy
from fastvae.vae import gradients

WAYS = ("float32", "bf16", "bf16 counts")
FIGURES = ("elbo", "same_batch_share", "label_accuracy")


def rounded(t: Tensor) -> Tensor:
    """The nearest bfloat16 numbers, as float32."""
    return t.to(torch.bfloat16).to(t.dtype)


class RoundedCountLinear(CountLinear):
    """A first layer on rounded counts whose products have bfloat16 factors, summed in float32."""

    def forward(self, x: Counts, indicators: Tensor | None) -> Tensor:
        weight = self.parameters[0].value
        exact = weight.clone()
        weight.copy_(rounded(weight))
        try:
            return super().forward(x, indicators)
        finally:
            weight.copy_(exact)

    def backward(self, grad: Tensor, x: Counts, indicators: Tensor | None) -> None:
        super().backward(rounded(grad), x, indicators)


def rounded_counts(*given: Any) -> Counts:
    """What the encoders see, rounded."""
    seen = encoder_counts(*given)
    if seen.dense is not None:
        return seen._replace(dense=rounded(seen.dense))
    return seen._replace(values=rounded(seen.values))


encoder_counts = gradients.encoder_counts


def train(data: Any, way: str, seed: int, args: argparse.Namespace) -> fastvae.Model:
    model = fastvae.Model(data, batch_key=args.batch_key, n_top_genes=args.genes)
    fit: dict[str, Any] = {"precision": way.split()[0], "seed": seed, "progress": False}
    fit |= {"device": "cpu", "n_epochs_kl_warmup": args.epochs // 2}
    if way != "bf16 counts":
        return model.fit(args.epochs, **fit)
    with (
        mock.patch.object(gradients, "encoder_counts", rounded_counts),
        mock.patch.object(gradients, "CountLinear", RoundedCountLinear),
    ):
        return model.fit(args.epochs, **fit)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--unknown", nargs="*", default=["Unknown", "unknown"], help="no label")
    parser.add_argument("--genes", type=int, default=2000, help="the most variable ones")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    adata = read(args.data)
    batch = np.unique(adata.obs[args.batch_key].astype(str), return_inverse=True)[1]
    names = adata.obs[args.labels_key].astype(str).to_numpy()
    label = np.unique(names, return_inverse=True)[1]
    known = np.flatnonzero(~np.isin(names, args.unknown))
    rows = []
    for seed in range(args.seeds):
        for way in WAYS:
            started = time.perf_counter()
            model = train(args.data, way, seed, args)
            seconds = time.perf_counter() - started
            space = model.get_latent_representation()
            row = {
                "way": way,
                "seed": seed,
                "elbo": float(model.get_elbo(cells=model.validation_cells)),
                "same_batch_share": same_share(neighbours(space, args.k), batch),
                "label_accuracy": vote_accuracy(neighbours(space[known], args.k), label[known]),
                "seconds": seconds,
            }
            rows.append(row)
            print(row, flush=True)
    print(f"chance of the same batch: {chance_share(batch):.3f}")
    for way in WAYS:
        line = f"{way:<14}"
        for figure in FIGURES:
            values = [row[figure] for row in rows if row["way"] == way]
            line += f"  {figure} {np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"
        print(line)
    if args.out:
        result = {
            "data": args.data.name,
            "cells": adata.n_obs,
            "genes": args.genes,
            "epochs": args.epochs,
            "k": args.k,
            "chance": chance_share(batch),
            "rows": rows,
            "fastvae": fastvae.__version__,
            "torch": importlib.metadata.version("torch"),
            "threads": args.threads,
        }
        write_json(args.out, {"environment": describe(), **result})


if __name__ == "__main__":
    main()
