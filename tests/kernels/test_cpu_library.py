"""libfastvae_cpu beyond what every backend is tested for: widths, threads, forks, odd input."""

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch
from fastvae.kernels import native
from fastvae.kernels.counts import Counts
from fastvae.kernels.likelihood import cpu as cpu_likelihood
from likelihoods import FAMILIES, LAYOUTS, call, problem, textbook

from fastvae import functional

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")
if torch.get_default_device().type != "cpu":
    pytest.skip("the library computes on the CPU", allow_module_level=True)


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setattr(native, "GRAIN", 1)  # threads for the smallest of problems
    with functional.use_backend("cpu"):
        yield
    torch.set_num_threads(1)
    native.use_instruction_set(FASTEST)


FASTEST = native.instruction_set()
INSTRUCTION_SETS = [
    name for name in ("v2", "v3", "v4", "native", "baseline") if native.use_instruction_set(name)
]
native.use_instruction_set(FASTEST)


def results(family, shape, layout="gene", sparse=True):
    """Value and all gradients by random upstream ones, the same for the same arguments."""
    torch.manual_seed(5)
    x, leaves, keywords = problem(family, shape, layout, torch.float32)
    upstream = torch.randn(shape[0])
    nll = call(family, x.to_sparse_csr() if sparse else x, leaves, keywords)
    return [nll.detach(), *torch.autograd.grad(nll, list(leaves.values()), upstream)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_change_no_bit(family, layout):
    shape = (150, 1100)
    torch.set_num_threads(1)
    one = results(family, shape, layout)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        for a, b in zip(one, results(family, shape, layout), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("genes", [*range(1, 36), 63, 64, 65, 66, 67, 1023, 1025])
def test_every_width_with_every_instruction_set(instructions, family, genes):
    native.use_instruction_set(instructions)
    got = results(family, (3, genes), sparse=genes % 2 == 0)
    torch.manual_seed(5)
    x, leaves, _ = problem(family, (3, genes), "gene", torch.float32)
    upstream = torch.randn(3).double()
    exact = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    nll = textbook(family, x.double(), *exact.values())
    want = [nll.detach(), *torch.autograd.grad(nll, list(exact.values()), upstream)]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-5)


def test_an_unknown_instruction_set_is_refused():
    assert not native.use_instruction_set("v9")
    assert native.instruction_set() == FASTEST


@pytest.mark.parametrize("hidden", [1, 15, 64, 67, 128])
@pytest.mark.parametrize("genes", [1, 127, 300])
def test_first_layer_of_every_width(hidden, genes):
    x = torch.poisson(torch.rand(130, genes)) * (torch.rand(130, genes) < 0.2)
    weight = torch.randn(hidden, genes + 3)[:, :genes].requires_grad_()  # rows with a gap
    bias = torch.randn(hidden, requires_grad=True)
    upstream = torch.randn(130, hidden)
    first = None
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        out = functional.count_linear(x.to_sparse_csr(), weight, bias)
        found = [out.detach(), *torch.autograd.grad(out, [weight, bias], upstream)]
        first = first or found
        assert all(map(torch.equal, first, found))
    want = x.double() @ weight.detach().double().t() + bias.detach().double()
    torch.testing.assert_close(first[0].double(), want, rtol=2e-5, atol=2e-5)
    by_weight = upstream.double().t() @ x.double()
    torch.testing.assert_close(first[1].double(), by_weight, rtol=2e-5, atol=5e-5)


def test_index_types_and_unaligned_memory_do_not_matter():
    x, leaves, _ = problem("zinb", (6, 50), dtype=torch.float32)
    csr = x.to_sparse_csr()
    narrow = torch.sparse_csr_tensor(
        csr.crow_indices().int(),
        csr.col_indices().int(),
        csr.values(),
        csr.shape,
        check_invariants=True,
    )
    shifted = {
        k: torch.cat([v.detach().new_zeros(1), v.detach().flatten()])[1:].view(v.shape)
        for k, v in leaves.items()
    }
    want = call("zinb", x, leaves, {})
    assert torch.equal(call("zinb", csr, leaves, {}), want)
    assert torch.equal(call("zinb", narrow, leaves, {}), want)
    assert torch.equal(call("zinb", x, shifted, {}), want)


def test_columns_in_any_order_and_duplicates_are_laid_out_first():
    crow, col = torch.tensor([0, 3, 5]), torch.tensor([4, 0, 2, 1, 1])
    values = torch.tensor([3.0, 1.0, 2.0, 4.0, 5.0])
    unsorted = torch.sparse_csr_tensor(crow, col, values, (2, 6), check_invariants=False)
    dense = torch.tensor([[1.0, 0, 2, 0, 3, 0], [0, 9, 0, 0, 0, 0]])
    logits, library = torch.randn(2, 6), torch.ones(2, 1)
    torch.testing.assert_close(
        functional.poisson_nll(unsorted, logits, library),
        functional.poisson_nll(dense, logits, library),
    )
    torch.testing.assert_close(
        functional.log_library_size(unsorted), torch.tensor([[6.0], [9]]).log()
    )


@pytest.mark.parametrize(
    ("crow", "col", "message"),
    [
        ([0, 2, 1], [0, 1], "row pointers that do not fit"),
        ([0, 1, 3], [0, 1], "row pointers that do not fit"),
        ([0, 1, 2], [0, 6], "a column outside the genes"),
        ([0, 1, 2], [0, -1], "a column outside the genes"),
    ],
)
def test_broken_csr_is_refused_before_memory_is_touched(crow, col, message):
    parts = torch.tensor(crow), torch.tensor(col), torch.ones(2)
    with pytest.raises(ValueError, match=message):
        native.counts_argument(Counts((2, 6), None, *parts))


def gradients_of(nll, leaves, upstream):
    return torch.autograd.grad(nll, list(leaves.values()), upstream, retain_graph=True)


def test_gradients_made_early_equal_those_made_late():
    x, leaves, _ = problem("zinb", (40, 60), dtype=torch.float32)
    late = gradients_of(call("zinb", x, leaves, {}), leaves, torch.full((40,), 0.3))
    assert cpu_likelihood._expected[40][0] == pytest.approx(0.3)
    nll = call("zinb", x, leaves, {})
    early = gradients_of(nll, leaves, torch.full((40,), 0.3))
    again = gradients_of(nll, leaves, torch.full((40,), 0.3))  # the graph is kept
    uneven = torch.rand(40)
    other = gradients_of(nll, leaves, uneven)
    for a, b, c in zip(late, early, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    with functional.use_backend("torch"):
        want = gradients_of(call("zinb", x, leaves, {}), leaves, uneven)
    for a, b in zip(other, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-5)


def test_no_gradients_are_made_where_none_are_wanted(monkeypatch):
    x, leaves, _ = problem("nb", (10, 20), dtype=torch.float32)
    monkeypatch.setattr(cpu_likelihood, "Early", None)
    with torch.no_grad():
        value = call("nb", x, leaves, {})
    detached = call("nb", x, {k: v.detach() for k, v in leaves.items()}, {})
    assert torch.equal(value, detached)


def compute(shape=(64, 500)):
    return results("zinb", shape)[1]


def test_a_forked_child_computes_alone():
    torch.set_num_threads(2)
    want = compute()  # the parent's threads exist now; they do not in the child
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send_bytes(compute().numpy().tobytes()))
    child.start()
    assert receive.poll(60), "the child hangs"
    assert receive.recv_bytes() == want.numpy().tobytes()
    child.join(10)
    assert child.exitcode == 0


def test_python_threads_compute_side_by_side():
    want, found = compute(), []
    x, leaves, _ = problem("zinb", (64, 500), dtype=torch.float32)

    def work():
        with torch.no_grad():
            found.append(call("zinb", x, leaves, {}))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(found[0], other) for other in found)
    assert torch.equal(compute(), want)


WITHOUT = """
import sys, torch
from fastvae import functional
from fastvae.functional import dispatch
import ctypes, importlib.resources, pathlib
folder, change = pathlib.Path(sys.argv[1]), sys.argv[2]
if change != "present":
    importlib.resources.files = lambda package: folder
if change == "of another version":
    ctypes.CDLL = lambda path: type("Old", (), {"fastvae_abi": staticmethod(lambda: 0)})
one = torch.ones(1, 2)
for _ in range(2):
    assert torch.isfinite(functional.poisson_nll(one, one, one[:, :1])).all()
print(dispatch.select(one).name)
try:
    with functional.use_backend("cpu"):
        functional.poisson_nll(one, one, one[:, :1])
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("change", "content", "reason"),
    [
        ("present", None, None),
        ("missing", None, "was not built with this installation"),
        ("of another version", b"", "has interface 0, this fastvae needs"),
        ("damaged", b"not a library", "cannot be used"),
    ],
)
def test_without_the_library_torch_computes_and_one_line_says_so(tmp_path, change, content, reason):
    if content is not None:
        (tmp_path / native.NAME).write_bytes(content)
    command = [sys.executable, "-c", WITHOUT, str(tmp_path), change]
    env = {k: v for k, v in os.environ.items() if k != "FASTVAE_CPU_LIBRARY"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    if reason is None:
        assert run.stdout.split() == ["cpu"]
        assert not run.stderr
        return
    used, error = run.stdout.strip().splitlines()
    assert used == "torch"
    assert reason in error
    assert "reinstall fastvae where a C++ compiler is found" in error
    assert run.stderr.count("fastvae computes in torch, which is slower") == 1
    assert reason in run.stderr
