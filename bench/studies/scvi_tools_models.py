"""Training speed of every model that the scvi-tools door has, beside scvi-tools' own class.

    python bench scvi_tools_models --out JSON [--cases SCVI SCANVI ...] [--shape 6000x2000]

Run in an environment that has scvi-tools. One process trains both with the same seed, data and
options, in turn, several times. A figure is the processor time of the median epoch after the first,
so that other programs on the machine count little; the ratio is the median of the ratios of each
turn. Nothing is written where the losses of the first epoch differ by more than a hundredth.
Both train with Lightning. "annbatch" needs scvi-tools 1.5 and a release of annbatch that it reads.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from _kit.environment import describe, device_facts
from _kit.results import write_json

NAMES = ("SCVI", "LinearSCVI", "SCANVI")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--shape", default="6000x2000", help="cells x genes")
    parser.add_argument("--density", type=float, default=0.08)
    parser.add_argument("--epochs", type=int, default=2, help="timed ones; one more comes first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else the machine did, for the record")
    return parser.parse_args()


class Data(NamedTuple):
    """What the cases train on."""

    cells: Any
    """All cells; ``obs`` has batch, cell_type and some_types, where half are unknown."""
    query: Any
    """As many cells of a batch that the references have not seen."""
    folder: Path
    """Holds the references that map the query, and the counts as .h5ad files."""


def scvi_model(classes: dict[str, Any], data: Data) -> tuple[Any, dict[str, Any]]:
    """A reference of the first kind."""
    classes["SCVI"].setup_anndata(data.cells, batch_key="batch")
    return classes["SCVI"](data.cells), {}


def linear(classes: dict[str, Any], data: Data) -> tuple[Any, dict[str, Any]]:
    """The linear decoder."""
    classes["LinearSCVI"].setup_anndata(data.cells, batch_key="batch")
    return classes["LinearSCVI"](data.cells), {}


def scanvi(classes: dict[str, Any], data: Data) -> tuple[Any, dict[str, Any]]:
    """Half of the cells are labelled."""
    kind = classes["SCANVI"]
    kind.setup_anndata(data.cells, "some_types", "unknown", batch_key="batch")
    return kind(data.cells), {}


def mapped(name: str) -> Callable[[dict[str, Any], Data], tuple[Any, dict[str, Any]]]:
    """A query mapped onto a reference, as scArches does."""

    def case(classes: dict[str, Any], data: Data) -> tuple[Any, dict[str, Any]]:
        model = classes[name].load_query_data(data.query, str(data.folder / name))
        return model, {"plan_kwargs": {"weight_decay": 0.0}}

    return case


def streamed(classes: dict[str, Any], data: Data) -> tuple[Any, dict[str, Any]]:
    """Cells that annbatch reads from disk."""
    kind = classes["SCVI"]
    module = kind.setup_annbatch(
        collection_path=str(data.folder / "cells.zarr"),
        paths=[str(data.folder / "cells.h5ad")],
        batch_key="batch",
        batch_size=128,
        preload_to_gpu=False,
    )
    return kind(registry=module.registry), {"datamodule": module}


CASES: dict[str, Callable[[dict[str, Any], Data], tuple[Any, dict[str, Any]]]] = {
    "SCVI": scvi_model,
    "LinearSCVI": linear,
    "SCANVI": scanvi,
    "query of SCVI": mapped("SCVI"),
    "query of SCANVI": mapped("SCANVI"),
    "annbatch": streamed,
}


def make_data(shape: str, density: float, folder: Path, theirs: dict[str, Any]) -> Data:
    """Simulate cells, and train references for an epoch."""
    from fastvae.datasets import simulate

    n, genes = map(int, shape.split("x"))
    whole = simulate(2 * n, genes, n_batches=2, density=density, seed=0)
    whole.obs["some_types"] = whole.obs["cell_type"].astype(str)
    whole.obs.iloc[::2, whole.obs.columns.get_loc("some_types")] = "unknown"
    cells, query = whole[:n].copy(), whole[n:].copy()
    query.obs["batch"] = "new"
    data = Data(cells, query, folder)
    for name in ("SCVI", "SCANVI"):
        model, options = CASES[name](theirs, data)
        model.train(max_epochs=1, **quiet(options))
        model.save(str(folder / name))
    for column in ("some_types", "batch", "cell_type"):
        cells.obs[column] = cells.obs[column].astype("category")
    cells.write_h5ad(folder / "cells.h5ad")
    return data


def quiet(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run on one CPU without output."""
    return {"accelerator": "cpu", "enable_progress_bar": False, **options}


def train(case: Any, classes: dict[str, Any], data: Data, epochs: int) -> dict[str, Any]:
    """Train once; return seconds of processor time per epoch, and the first loss."""
    import lightning.pytorch as pl
    import scvi

    class Clock(pl.Callback):
        ends: list[float] = []  # noqa: RUF012

        def on_train_epoch_end(self, *_: object) -> None:
            self.ends.append(time.process_time())

    scvi.settings.seed = 0
    model, options = case(classes, data)
    clock = Clock()
    clock.ends = []
    model.train(max_epochs=epochs + 1, callbacks=[clock], **quiet(options))
    seconds = [b - a for a, b in itertools.pairwise(clock.ends)]
    return {
        "seconds_per_epoch": median(seconds),
        "first_loss": float(model.history["train_loss"].to_numpy(float)[0, 0]),
    }


def measure(name: str, both: dict[str, Any], data: Data, args: argparse.Namespace) -> Any:
    """Take turns."""
    runs: dict[str, list[dict[str, Any]]] = {who: [] for who in both}
    for _ in range(args.rounds):
        for who, classes in both.items():
            runs[who].append(train(CASES[name], classes, data, args.epochs))
    seconds = {who: [run["seconds_per_epoch"] for run in of] for who, of in runs.items()}
    losses = {who: of[0]["first_loss"] for who, of in runs.items()}
    apart = abs(losses["theirs"] - losses["ours"]) / abs(losses["theirs"])
    if not apart < 1e-2:
        sys.exit(f"{name}: the two do not train alike: losses {losses}")
    ratios = [theirs / ours for theirs, ours in zip(*seconds.values(), strict=True)]
    row = {
        "case": name,
        "ratio": median(ratios),
        "ratio_of_each_turn": ratios,
        "seconds_per_epoch": {who: median(of) for who, of in seconds.items()},
        "losses_apart": apart,
    }
    print(f"{name}: {row['ratio']:.2f} times, {row['seconds_per_epoch']}", flush=True)
    return row


def main() -> None:
    args = arguments()
    if args.out.exists() and not args.overwrite:
        sys.exit(f"{args.out} exists; pass --overwrite to replace it")
    warnings.simplefilter("ignore")
    import scvi.model
    import torch

    from fastvae.integrations import scvi_tools as door

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(args.threads)
    both = {
        "theirs": {name: getattr(scvi.model, name) for name in NAMES},
        "ours": {name: getattr(door, name) for name in NAMES},
    }
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(args.shape, args.density, Path(folder), both["theirs"])
        rows = [measure(name, both, data, args) for name in args.cases]
    names = ("shape", "density", "epochs", "rounds", "threads", "note")
    result = {
        "environment": {**describe(), **device_facts()},
        "settings": {name: getattr(args, name) for name in names},
        "rows": rows,
    }
    write_json(args.out, result)


if __name__ == "__main__":
    main()
