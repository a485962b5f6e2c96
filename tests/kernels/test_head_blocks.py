"""Blocks of cells of the decoder heads: their size, what they allocate, and threads."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from decoder_heads import DISPERSIONS, counts, parameters, problem
from fastvae.kernels import native
from fastvae.kernels.heads import cpu
from fastvae.kernels.heads.blocks import cells_of, cells_per_block
from fastvae.kernels.heads.parameters import HeadNeeds
from fastvae.kernels.heads.workspace import MOST, workspace
from fastvae.kernels.linear import dense

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")
if torch.get_default_device().type != "cpu":
    pytest.skip("the library computes on the CPU", allow_module_level=True)


def cells(n, genes, heads=2, item=4):
    return cells_per_block(n, genes, heads, item, cache=cpu.CACHE, least=cpu.LEAST)


def test_one_block_where_the_logits_stay_in_the_cache():
    assert cells(128, 2000) == 128
    assert cells(1000, 2000) == 1000
    assert cells(128, 60_000) == 128  # fewer would pass over the weights too often
    assert cells(0, 100) == 1
    assert cells(1, 1) == 1


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("item", [2, 4])
def test_blocks_are_even_bounded_and_multiples_of_eight(heads, item):
    for n in (7, 129, 1000, 1024, 5000):
        for genes in (1, 2000, 20_000, 60_000, 1_000_000):
            size = cells(n, genes, heads, item)
            rows = max(cpu.LEAST // heads, cpu.CACHE // (item * heads * genes))
            assert 1 <= size <= max(8, min(n, rows))
            if size < n:
                assert size % 8 == 0
                blocks = -(-n // size)
                assert n > (blocks - 1) * size
                # one block fewer would not do, and none is much smaller than the others
                assert -(-n // (blocks - 1)) > rows // 8 * 8 or blocks == 1
                assert size * blocks - n < 8 * blocks


def test_cells_of_a_minibatch():
    x = torch.poisson(torch.rand(10, 7))
    sparse = x.to_sparse_csr()
    for begin, end in ((0, 10), (0, 4), (4, 10), (3, 3)):
        for given in (x, sparse):
            part = cells_of(counts(given), begin, end)
            assert part.shape == (end - begin, 7)
            assert torch.equal(part.to_dense(torch.float32), x[begin:end])


@pytest.mark.parametrize("dispersion", DISPERSIONS)
def test_threads_change_no_bit(dispersion, monkeypatch):
    monkeypatch.setattr(native, "GRAIN", 1)
    operation = cpu.HEADS._replace(products=dense.LIBRARY, cache=1, least=200)  # 2 or 3 blocks
    torch.manual_seed(1)
    x, leaves, index = problem("zinb", (200, 1100), dispersion, torch.float32, hidden=70)
    upstream, given = torch.randn(200), (counts(x.to_sparse_csr()), parameters(leaves, index))
    found = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        with torch.no_grad():
            nll, grads = operation.heads_with_gradients(upstream, *given, HeadNeeds())
        found.append([nll, *(t for t in grads if t is not None)])
    torch.set_num_threads(1)
    assert len(found[0]) == 1 + len(leaves)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_memory_of_a_block_is_used_again_by_its_thread_alone():
    small = [workspace((2, 3, 4), torch.float32, torch.device("cpu")) for _ in range(2)]
    assert small[0].data_ptr() == small[1].data_ptr()
    half = workspace((5,), torch.bfloat16, torch.device("cpu"))
    assert half.dtype == torch.bfloat16
    assert half.data_ptr() == small[0].data_ptr()
    elsewhere = []

    def work():
        elsewhere.append(workspace((2, 3, 4), torch.float32, torch.device("cpu")))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert elsewhere[0].data_ptr() != small[0].data_ptr()
    large = [workspace((MOST,), torch.float32, torch.device("cpu")) for _ in range(2)]
    assert large[0].data_ptr() != large[1].data_ptr()


PEAK = """
import ctypes, gc, sys, pathlib, torch
torch.set_num_threads(1)
from fastvae import functional as fn
hidden, kind = 16, sys.argv[1]
def problem(n, genes):
    def head():
        return torch.randn(genes, hidden).requires_grad_(), torch.randn(genes).requires_grad_()
    columns = torch.stack([torch.randperm(genes)[:50].sort()[0] for _ in range(n)]).flatten()
    x = torch.sparse_csr_tensor(
        torch.arange(0, 50 * n + 1, 50), columns, torch.ones(50 * n), (n, genes),
        check_invariants=False,
    )
    h, scale, zi = torch.randn(n, hidden).requires_grad_(), head(), head()
    theta = head() if kind == "cell" else torch.randn(genes).requires_grad_()
    library = torch.full((n, 1), 5.0)
    leaves = [h, *scale, *zi, *(theta if kind == "cell" else [theta])]
    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            nll = fn.zinb_heads_nll(x, h, scale, library, theta, zi)
        nll.mean().backward()
    return step, leaves
def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))
problem(20, 100)[0]()  # code and threads
n, genes = 1024, 60_000
step, leaves = problem(n, genes)
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
step()
gradients = sum(t.grad.numel() * 4 for t in leaves)
print((status("VmHWM") - before - gradients) / (4 * n * genes))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak")
@pytest.mark.parametrize(
    ("kind", "most"),
    [("gene", 0.3), ("cell", 0.3), ("bf16", 0.2)],
)
def test_peak_memory_of_a_step(kind, most):
    if kind == "bf16" and not native.library.fastvae_multiplies_bf16():
        most = 0.5  # torch's products copy their factors
    warned = "-Wignore:Sparse CSR"
    run = subprocess.run(
        [sys.executable, warned, "-c", PEAK, kind], capture_output=True, text=True, check=True
    )
    share = float(run.stdout)
    print(f"peak of {share:.3f} N G numbers")
    assert 0.1 < share < most


@pytest.mark.parametrize(
    ("n", "genes", "half", "pays"),
    [
        (128, 1000, False, True),
        (128, 900, False, False),
        (128, 1000, True, False),
        (128, 2000, True, True),
        (1, 60_000, False, False),
    ],
)
def test_where_one_operation_pays(n, genes, half, pays):
    x, leaves, _ = problem("zinb", (n, 2), "gene", torch.float32)
    wide = counts(x)._replace(shape=(n, genes))
    dtype = torch.bfloat16 if half else None
    assert cpu.HEADS.pay(wide, parameters(leaves), dtype) == pays
    later = cpu.HEADS._replace(early=False)  # as on a GPU: for more than one block alone
    assert not later.pay(wide, parameters(leaves), dtype)
    assert later._replace(cache=1, least=16).pay(wide, parameters(leaves), dtype) == (n > 8)
