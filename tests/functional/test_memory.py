"""What the fused likelihood keeps and allocates, counted in matrices of cells x genes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastvae import functional as fn

N, G = 128, 640


class Allocations(TorchDispatchMode):
    """New storages, as a number of float32 matrices of cells x genes; smaller ones count too."""

    def __init__(self, cells, genes, *given):
        super().__init__()
        self.matrix = 4 * cells * genes
        self.kept = {}
        self.given = {t.untyped_storage()._cdata for t in given}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor) and t.layout == torch.strided:
                storage = t.untyped_storage()
                if storage._cdata not in self.given:
                    self.kept[storage._cdata] = storage
        return out

    @property
    def matrices(self):
        return sum(storage.nbytes() for storage in self.kept.values()) / self.matrix


class NoLaunch:
    """A kernel that is asked for and does nothing: the interpreter's own copies stay out."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


def arguments(sparse):
    x = torch.poisson(torch.rand(N, G)) * (torch.rand(N, G) < 0.3)
    leaves = [torch.randn(N, G), torch.full((N, 1), 4.0), torch.randn(G), torch.randn(N, G)]
    return x.to_sparse_csr() if sparse else x, [t.requires_grad_() for t in leaves]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_only_inputs_and_row_statistics_are_saved(backend, sparse):
    x, leaves = arguments(sparse)
    given = {t.untyped_storage().data_ptr() for t in leaves if t.dim() == 2}
    parts = [x.crow_indices(), x.col_indices(), x.values()] if sparse else [x]
    given |= {t.untyped_storage().data_ptr() for t in [*parts, leaves[2]]}
    saved = []

    def pack(t):
        if t.untyped_storage().data_ptr() not in given:
            saved.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fn.zinb_nll(x, *leaves)
    assert sum(saved) <= 4 * N  # a few numbers per cell


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize(("sparse", "forward", "backward"), [(False, 2, 0), (True, 1, 2)])
def test_matrices_the_kernels_are_given(monkeypatch, sparse, forward, backward):
    pytest.importorskip("triton")
    for kernel in (
        "likelihood.gpu.nll_kernel",
        "likelihood.gpu.compare_kernel",
        "gather.gpu.dense_kernel",
    ):
        monkeypatch.setattr(f"fastvae.kernels.{kernel}", NoLaunch())
    n, genes = 65536, 320  # more cells than programs, whose scratch memory is a few rows each
    x = torch.zeros(n, genes)
    shapes = (n, genes), (n, 1), (genes,), (n, genes)
    leaves = [torch.empty(shape, requires_grad=True) for shape in shapes]
    x = x.to_sparse_csr() if sparse else x
    upstream = torch.ones(n)
    given = [x.crow_indices(), x.col_indices(), x.values()] if sparse else []
    few = 0.1  # numbers per cell, and the scratch memory of 1,024 programs
    with fn.use_backend("triton"):
        with Allocations(n, genes, *given) as seen, torch.no_grad():
            fn.zinb_nll(x, *leaves)
        assert (1 if sparse else 0) <= seen.matrices <= (1 if sparse else 0) + few
        with Allocations(n, genes, *given) as seen:
            nll = fn.zinb_nll(x, *leaves)
        assert forward <= seen.matrices <= forward + few
        with Allocations(n, genes, *given) as seen:
            torch.autograd.grad(nll, leaves, upstream)
        assert backward <= seen.matrices <= backward + few


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_the_cpu_library_is_given_two_matrices(sparse):
    x, leaves = arguments(sparse)
    if leaves[0].device.type != "cpu":
        pytest.skip("the library computes on the CPU")
    from fastvae.kernels.likelihood import cpu as cpu_likelihood

    cpu_likelihood._expected.clear()  # it expects ones first, then what came last
    upstream = torch.ones(N)
    given = [x.crow_indices(), x.col_indices(), x.values()] if sparse else []
    few = 0.25  # a row per thread, and a partial sum per block of cells for the dispersion
    with fn.use_backend("cpu"):
        with Allocations(N, G, *given) as seen, torch.no_grad():
            fn.zinb_nll(x, *leaves)
        assert seen.matrices <= few
        with Allocations(N, G, *given) as seen:
            nll = fn.zinb_nll(x, *leaves)
        assert 2 <= seen.matrices <= 2 + few
        with Allocations(N, G, *given) as seen:
            torch.autograd.grad(nll, leaves, upstream)
        assert seen.matrices <= few
