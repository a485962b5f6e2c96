"""What is measured, in a process that has one of the commits; imports nothing of the bench.

Reads the name of a case per line, writes a line of JSON with the milliseconds of some runs of it.
Only what users call is called, so that commits far apart can be compared.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP = 3


def use(target: Path) -> None:
    """Import fastvae from there, whatever else is installed, editable or not."""
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if "editable" not in f"{type(finder).__module__} {type(finder).__name__}".lower()
    ]
    sys.path.insert(0, str(target))
    import fastvae

    found = Path(str(fastvae.__file__)).resolve()
    assert found.is_relative_to(target.resolve()), f"fastvae comes from {found}, not {target}"


def counts(n: int, genes: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    values = torch.poisson(torch.full((n, genes), 0.1), generator)
    return values * (1 + torch.poisson(torch.full((n, genes), 0.8), generator))


def likelihood(n: int, genes: int) -> Callable[[], float]:
    import torch

    from fastvae import functional as fn

    x = counts(n, genes)
    generator = torch.Generator().manual_seed(1)
    scale = torch.randn(n, genes, generator=generator).requires_grad_()
    zi = torch.randn(n, genes, generator=generator).sub_(2.0).requires_grad_()
    log_theta = torch.randn(genes, generator=generator).requires_grad_()
    library = x.sum(1, keepdim=True).clamp(min=1).log()
    x = x.to_sparse_csr()
    leaves = (scale, log_theta, zi)

    def run() -> float:
        loss = fn.zinb_nll(x, scale, library, log_theta, zi).sum()
        grads = torch.autograd.grad(loss, leaves)
        return float(loss) + sum(float(g.square().sum()) for g in grads)

    return run


def training_step(n: int, genes: int) -> Callable[[], float]:
    import torch

    from fastvae import VAE

    torch.manual_seed(0)
    x = counts(n, genes)
    library = x.sum(1, keepdim=True).clamp(min=1).log()
    mean, var = library.mean().expand(n, 1), library.var().expand(n, 1)
    batch = (torch.arange(n) % 2)[:, None]
    module = VAE(genes, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-5, fused=True)
    x = x.to_sparse_csr()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        first, kl, _ = module(x, mean, var, batch)
        loss = (first + kl).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def loader(n: int, genes: int) -> Callable[[], float]:
    """An epoch of shuffled minibatches from memory; the value is the sum of all counts."""
    import anndata
    import scipy.sparse as sp

    from fastvae.data import CountStore, Minibatches

    matrix = sp.csr_matrix(counts(n, genes).numpy())
    store = CountStore.from_anndata(anndata.AnnData(matrix))

    def run() -> float:
        return sum(
            float(b.x.values().sum()) for b in Minibatches(store, batch_size=128, shuffle=True)
        )

    return run


CASES: dict[str, tuple[Callable[[int, int], Callable[[], float]], tuple[int, int]]] = {
    "likelihood 128 x 2000": (likelihood, (128, 2000)),
    "likelihood 1024 x 4000": (likelihood, (1024, 4000)),
    "training step 128 x 2000": (training_step, (128, 2000)),
    "loader, an epoch of 10000 x 2000": (loader, (10_000, 2000)),
}


def main() -> None:
    import warnings

    warnings.simplefilter("ignore")
    use(Path(sys.argv[1]))
    import torch

    torch.set_num_threads(int(sys.argv[2]))
    ready: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked["case"]
        answer: dict[str, Any] = {}
        try:
            if name not in ready:
                make, shape = CASES[name]
                ready[name] = make(*shape)
                answer["value"] = ready[name]()  # the first: later steps differ by rounding
                for _ in range(WARM_UP):
                    ready[name]()
            times: list[float] = []
            end = time.perf_counter() + asked["seconds"]
            while len(times) < 3 or time.perf_counter() < end:
                started = time.perf_counter()
                ready[name]()
                times.append(1e3 * (time.perf_counter() - started))
            answer["milliseconds"] = times
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
