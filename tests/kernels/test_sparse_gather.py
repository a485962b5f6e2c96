"""Rows gathered from a data set on the device, from plain CSR and from compact counts."""

import importlib

import pytest
import torch
from fastvae.kernels import counts as compact_module
from fastvae.kernels.counts import (
    CellColumns,
    CompactCounts,
    Counts,
    CsrBuffers,
    DenseBuffers,
    compact,
)
from fastvae.kernels.gather.reference import largest_minibatch
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES = [(1, 1), (5, 1), (1, 700), (9, 40), (6, 1100), (4, 65536), (3, 65537)]


@pytest.fixture(params=["reference", "gpu"], ids=["torch", "triton"])
def gather(request):
    if request.param == "gpu":
        pytest.importorskip("triton")
    return importlib.import_module(f"fastvae.kernels.gather.{request.param}")


def device():
    return torch.get_default_device()


def counts(n, genes, density=0.3, large=0.2):
    """Whole counts with an empty row, and one whose entries are all too large for a byte."""
    x = torch.randint(1, 255, (n, genes)) + torch.randint(1, 10**6, (n, genes)) * (
        torch.rand(n, genes) < large
    )
    x *= torch.rand(n, genes) < min(density, 2000 / genes)
    if n > 2:
        x[0] = 0
        x[1, :1200] = torch.randint(255, 2**24, (min(genes, 1200),))
    return x


def csr(x):
    """As `Counts`, without torch's sparse tensors, for x with G columns."""
    row, col = x.nonzero(as_tuple=True)
    crow = torch.zeros(len(x) + 1, dtype=torch.int64)
    crow[1:] = torch.bincount(row, minlength=len(x)).cumsum(0)
    return Counts((x.shape[0], x.shape[1]), None, crow, col.int(), x[row, col].float())


def packed(x):
    return compact(x.crow, x.col, x.values, x.shape[1])


SOURCES = {"plain": lambda x: x, "compact": packed}


@pytest.fixture(params=SOURCES)
def source_of(request):
    return SOURCES[request.param]


def laid_out(batch):
    """The CSR minibatch as a dense matrix; what lies past the last row is not looked at."""
    out = torch.zeros(batch.shape)
    for n, (begin, end) in enumerate(zip(batch.crow[:-1], batch.crow[1:], strict=True)):
        out[n, batch.col[begin:end].long()] = batch.values[begin:end]
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_exact(gather, source_of, shape):
    dense = counts(*shape)
    source = source_of(csr(dense))
    rows = torch.randint(0, shape[0], (7,))  # repeats them
    want = dense[rows].float()
    out, totals = gather.gather_dense(source, rows)
    assert torch.equal(out, want)
    assert torch.equal(totals[:, 0], dense[rows].double().sum(dim=1).float())
    buffers = CsrBuffers.empty(7, int((want != 0).sum()), device())
    batch = gather.gather_csr(source, rows, buffers)
    assert batch.shape == (7, shape[1])
    assert torch.equal(laid_out(batch), want)
    assert torch.equal(buffers.totals, totals)
    assert int(buffers.needed) == int(batch.crow[-1]) == buffers.col.numel()


def log_library(totals):
    return totals.double().clamp(1.0, torch.finfo(torch.float32).max).log()


def test_logarithms_come_along(gather, source_of):
    """log(1 + x) in the layout of x, and the log of each total, of which one is 0."""
    dense = counts(6, 600)
    dense[3], dense[4] = 0, 0
    dense[4, 7] = 1
    source, rows = source_of(csr(dense)), torch.arange(6)
    logs = DenseBuffers.empty(8, 600, device()).logs().first(6)
    out, totals = gather.gather_dense(source, rows, logs=logs)
    assert torch.equal(out, dense.float())
    torch.testing.assert_close(logs.log1p.double(), dense.double().log1p(), rtol=3e-7, atol=0)
    want = log_library(dense.double().sum(dim=1, keepdim=True))
    torch.testing.assert_close(logs.log_library.double(), want, rtol=3e-7, atol=1e-7)

    buffers = CsrBuffers.empty(6, int((dense != 0).sum()) + 5, device())
    plain = gather.gather_csr(source, rows, buffers)
    want_csr, found = laid_out(plain), buffers.logs()
    batch = gather.gather_csr(source, rows, buffers, logs=found)
    assert torch.equal(laid_out(batch), want_csr)
    assert torch.equal(laid_out(batch._replace(values=found.log1p)), logs.log1p)
    assert torch.equal(found.log_library, logs.log_library)
    assert torch.equal(buffers.totals, totals)


def test_logarithms_of_what_is_not_there_are_nan(gather, source_of):
    source, rows = source_of(csr(counts(6, 40))), torch.tensor([2, 6, -1])
    logs = DenseBuffers.empty(3, 40, device()).logs()
    gather.gather_dense(source, rows, logs=logs)
    assert logs.log1p.isnan().all(dim=1).tolist() == [False, True, True]
    assert logs.log_library.isnan().ravel().tolist() == [False, True, True]
    for given, capacity in ((rows, 200), (rows[:1], 1)):  # a row that is not there; no room
        buffers = CsrBuffers.empty(len(given), capacity, device())
        found = buffers.logs()
        batch = gather.gather_csr(source, given, buffers, logs=found)
        used = int(batch.crow[-1])
        assert used > 0
        assert found.log1p[:used].isnan().all()
        assert found.log_library.isnan().all()


def test_columns_of_the_cells(gather):
    n, batches = 300, 3
    source = CellColumns(
        torch.randint(0, batches, (n,)),
        torch.randint(0, 2**40, (n,)),
        torch.randn(batches),
        torch.rand(batches),
    )
    rows = torch.randint(0, n, (200,))
    for given in (rows, rows.int(), torch.stack([rows, rows], 1)[:, 0], rows[:0]):
        out = CellColumns.empty(203, device()).first(len(given))
        gather.gather_columns(source, given, out)
        at = given.long()
        batch = source.batch[at]
        want = batch, source.label[at], source.library_mean[batch], source.library_var[batch]
        for found, column in zip(out, want, strict=True):
            assert torch.equal(found[:, 0], column)
    out = CellColumns.empty(3, device())
    gather.gather_columns(source, torch.tensor([n, 0, -1]), out)
    assert out.batch.ravel().tolist() == [0, int(source.batch[0]), 0]
    assert out.label.ravel().tolist() == [0, int(source.label[0]), 0]
    for found in out[2:]:
        assert found.isnan().ravel().tolist() == [True, False, True]


def test_columns_that_do_not_fit_are_refused(gather):
    codes, prior = torch.zeros(4, dtype=torch.int64), torch.zeros(2)
    source, rows = CellColumns(codes, codes, prior, prior), torch.arange(3)
    with pytest.raises(ValueError, match=r"batch is .* shape \(2, 1\).* expected .* \(3, 1\)"):
        gather.gather_columns(source, rows, CellColumns.empty(2, device()))
    with pytest.raises(ValueError, match=r"label is .* shape \(3,\).* expected .* \(4,\)"):
        gather.gather_columns(
            source._replace(label=codes[:3]), rows, CellColumns.empty(3, device())
        )
    wide = source._replace(library_var=prior.double())
    with pytest.raises(ValueError, match=r"library_var is torch\.float64"):
        gather.gather_columns(wide, rows, CellColumns.empty(3, device()))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_counts_that_are_not_finite_stay_in_their_places(gather):
    dense = counts(4, 40).float()
    dense[2, 3], dense[2, 7], dense[3, 5] = torch.nan, torch.inf, -torch.inf
    source, rows = csr(dense), torch.tensor([3, 1, 2])
    logs = DenseBuffers.empty(3, 40, device()).logs()
    out, totals = gather.gather_dense(source, rows, logs=logs)
    torch.testing.assert_close(out, dense[rows], rtol=0, atol=0, equal_nan=True)
    want = dense[rows].log1p()
    torch.testing.assert_close(logs.log1p, want, rtol=3e-7, atol=0, equal_nan=True)
    assert logs.log_library.isnan().ravel().tolist() == [False, False, True]
    sums = dense[rows].double().sum(dim=1, keepdim=True).float()
    assert torch.equal(totals.nan_to_num(), sums.nan_to_num())
    assert totals.isnan().ravel().tolist() == [False, False, True]
    buffers = CsrBuffers.empty(3, 120, device())
    batch = gather.gather_csr(source, rows, buffers)
    assert torch.equal(laid_out(batch).nan_to_num(), dense[rows].nan_to_num())
    assert torch.equal(laid_out(batch).isnan(), dense[rows].isnan())


def test_sums_of_long_rows(gather):
    """60,000 entries whose float32 sum one after the other would be off by 1e-3."""
    values = torch.rand(2, 60000) * torch.tensor([[1.0], [3e4]]) + 1e-3
    values[:, 0] = 1e7
    _, totals = gather.gather_dense(csr(values), torch.tensor([1, 0]))
    want = values.flip(0).double().sum(dim=1, keepdim=True)
    torch.testing.assert_close(totals.double(), want, rtol=1.2e-7, atol=0)


def test_numbers_of_rows_of_either_width_and_layout(gather, source_of):
    dense = counts(6, 50)
    source = source_of(csr(dense))
    rows = torch.tensor([[4, 0], [1, 0], [5, 0]])[:, 0]  # not contiguous
    for given in (rows, rows.int()):
        assert torch.equal(gather.gather_dense(source, given)[0], dense[rows].float())


def test_32_bit_offsets_of_the_source(gather):
    dense = counts(6, 50)
    source = csr(dense)
    source = source._replace(crow=source.crow.int(), col=source.col.long())
    out, _ = gather.gather_dense(source, torch.arange(6))
    assert torch.equal(out, dense.float())


@pytest.mark.parametrize("n", [0, 4])
def test_nothing_to_gather(gather, source_of, n):
    source = source_of(csr(torch.zeros(n, 3)))
    rows = torch.arange(n)
    out, totals = gather.gather_dense(source, rows)
    assert torch.equal(out, torch.zeros(n, 3))
    assert torch.equal(totals, torch.zeros(n, 1))
    buffers = CsrBuffers.empty(n, 0, device())
    gather.gather_csr(source, rows, buffers)
    assert torch.equal(buffers.crow, torch.zeros(n + 1, dtype=torch.int32))
    assert int(buffers.needed) == 0


@pytest.mark.parametrize("n", [0, 4])
def test_rows_that_are_not_there(gather, source_of, n):
    dense = counts(n, 30)
    source = source_of(csr(dense))
    rows = torch.tensor([-1, n, 2**40])
    rows = torch.cat([rows, torch.arange(n)])
    out, totals = gather.gather_dense(source, rows)
    assert bool(out[:3].isnan().all() and totals[:3].isnan().all())
    assert torch.equal(out[3:], dense.float())
    buffers = CsrBuffers.empty(len(rows), int(source.crow[-1]), device())
    gather.gather_csr(source, rows, buffers)
    assert int(buffers.needed) == -1
    assert bool(buffers.values.isnan().all() and buffers.totals.isnan().all())


@pytest.mark.parametrize("short_by", [1, 30, None])
def test_too_small_a_minibatch_says_so_and_writes_nowhere_else(gather, source_of, short_by):
    dense = counts(8, 60, density=0.5)
    source = source_of(csr(dense))
    needed = int(source.crow[-1])
    capacity = 0 if short_by is None else needed - short_by
    guard = 50
    memory = [torch.full((needed + 2 * guard,), 77, dtype=t) for t in (torch.int32, torch.float32)]
    col, values = (m[guard : guard + capacity] for m in memory)
    buffers = CsrBuffers.empty(8, 0, device())._replace(col=col, values=values)
    batch = gather.gather_csr(source, torch.arange(8), buffers)
    assert int(buffers.needed) == needed
    assert bool(values.isnan().all() and buffers.totals.isnan().all())
    assert int(batch.crow[-1]) == capacity
    assert torch.equal(batch.crow, source.crow.clamp(max=capacity).int())
    for m in memory:
        assert bool((m[:guard] == 77).all() and (m[guard + capacity :] == 77).all())


def test_more_rows_than_one_pass_of_the_offsets(gather):
    dense = counts(40, 6, density=0.6)
    source = packed(csr(dense))
    rows = torch.randint(0, 40, (1030,))
    buffers = CsrBuffers.empty(1030, 1030 * 6, device())
    gather.gather_csr(source, rows, buffers)
    want = (dense[rows] != 0).sum(dim=1).cumsum(0)
    assert torch.equal(buffers.crow[1:].long(), want)
    assert int(buffers.needed) == int(want[-1])


def test_offsets_past_32_bits(gather, tmp_path):
    """A source of 2^31 + 8 entries, almost all of them holes of a file."""
    if device().type != "cpu":
        pytest.skip("a file mapped into memory")
    first, size = 2**31 + 2, 2**31 + 8

    def mapped(name, dtype):
        return torch.from_file(str(tmp_path / name), shared=True, size=size, dtype=dtype)

    col, x = mapped("genes", torch.int16), mapped("counts", torch.uint8)
    col[first:], x[first:] = torch.tensor([3, 1, 4, 0, 2, 9]), torch.tensor([5, 255, 7, 1, 2, 255])
    crow = torch.tensor([0, 0, first, first + 3, size])
    aside = torch.tensor([999, 300], dtype=torch.int32)
    source = CompactCounts(
        (4, 10), crow, col.view(torch.uint16), x, torch.tensor([0, 0, 0, 1, 2]), aside
    )
    out, totals = gather.gather_dense(source, torch.tensor([3, 2, 0]))
    want = torch.tensor([[1, 0, 2, 0, 0, 0, 0, 0, 0, 300], [0, 999, 0, 5, 7, 0, 0, 0, 0, 0]])
    assert torch.equal(out[:2], want.float())
    assert totals[:, 0].tolist() == [303, 1011, 0]
    buffers = CsrBuffers.empty(2, 10, device())
    batch = gather.gather_csr(source, torch.tensor([3, 2]), buffers)
    assert int(buffers.needed) == 6
    assert torch.equal(laid_out(batch), want.float())


class Operations(TorchDispatchMode):
    """Names of the torch operations, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_the_kernels_wait_for_nothing(monkeypatch, source_of):
    """Nothing but memory is asked of torch, so the host never learns a number of the device's."""
    pytest.importorskip("triton")
    from fastvae.kernels.backends.triton import BACKEND as fused

    class NoLaunch:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: None

    for name in ("dense_kernel", "offsets_kernel", "csr_kernel"):
        monkeypatch.setattr(f"fastvae.kernels.gather.gpu.{name}", NoLaunch())
    source, rows = source_of(csr(counts(5, 20))), torch.arange(5)
    buffers = CsrBuffers.empty(5, 9, device())
    with Operations() as seen:
        fused.gather_dense(source, rows)
        fused.gather_csr(source, rows, buffers)
    assert set(seen.names) == {"empty"}


def test_replays_in_a_graph(source_of):
    if device().type != "cuda":
        pytest.skip("needs a GPU")
    from fastvae.kernels.backends.triton import BACKEND as fused

    dense = counts(30, 700)
    source, rows = source_of(csr(dense)), torch.arange(8)
    buffers = CsrBuffers.empty(8, largest_minibatch(source.crow, 8), device())
    out, totals = fused.gather_dense(source, rows)
    fused.gather_csr(source, rows, buffers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused.gather_dense(source, rows, out=out, totals=totals)
        batch = fused.gather_csr(source, rows, buffers)
    rows.copy_(torch.randperm(30)[:8])
    graph.replay()
    assert torch.equal(out, dense[rows].float())
    assert torch.equal(laid_out(batch), out)
    assert torch.equal(buffers.totals, totals)


def test_lent_memory_is_used_or_refused(gather):
    source, rows = csr(counts(5, 20)), torch.arange(3)
    out, totals = torch.empty(3, 20), torch.empty(3, 1)
    got = gather.gather_dense(source, rows, out=out, totals=totals)
    assert [t.data_ptr() for t in got] == [out.data_ptr(), totals.data_ptr()]
    with pytest.raises(ValueError, match=r"out is .* shape \(20, 3\).* expected .* \(3, 20\)"):
        gather.gather_dense(source, rows, out=torch.empty(20, 3))
    with pytest.raises(ValueError, match=r"totals is torch\.float64"):
        gather.gather_dense(source, rows, totals=totals.double())
    with pytest.raises(ValueError, match="expected contiguous"):
        gather.gather_dense(source, rows, out=torch.empty(20, 3).t())
    with pytest.raises(ValueError, match=r"crow is .* shape \(3,\).* expected .* \(4,\)"):
        gather.gather_csr(source, rows, CsrBuffers.empty(2, 9, device()))
    with pytest.raises(ValueError, match="these are dense"):
        gather.gather_dense(Counts((3, 20), out), rows)
    with pytest.raises(ValueError, match="32-bit row offsets"):
        CsrBuffers.empty(2, 2**31, device())


def test_largest_minibatch_is_the_longest_rows():
    x = csr((torch.rand(6, 9) < 0.5).int())
    lengths = sorted(x.crow.diff().tolist())
    assert largest_minibatch(x.crow, 2) == sum(lengths[-2:])
    assert largest_minibatch(x.crow, 50) == sum(lengths)


@pytest.mark.parametrize("chunk", [1, 7, 2**22])
def test_compact_form_takes_3_bytes_per_nonzero(monkeypatch, chunk):
    monkeypatch.setattr(compact_module, "CHUNK", chunk)
    dense = counts(6, 40, large=0.3)
    x = csr(dense)
    c = packed(x)
    assert (c.genes.dtype, c.counts.dtype, c.crow.dtype) == (torch.uint16, torch.uint8, torch.int64)
    kept = dense[dense >= 255]
    assert torch.equal(c.aside, kept.int())
    assert torch.equal(c.aside_crow.diff(), (dense >= 255).sum(dim=1))
    assert torch.equal(c.counts.long(), x.values.clamp(max=255).long())


def test_counts_keep_all_their_digits():
    largest = 2**31 - 1
    x = torch.tensor([254, 255, 256, 2**24 + 1, largest])
    c = compact(torch.tensor([0, 5]), torch.arange(5), x, 5)
    assert c.counts.tolist() == [254, 255, 255, 255, 255]
    assert c.aside.tolist() == [255, 256, 2**24 + 1, largest]
    assert c.to("cpu").aside.tolist() == c.aside.tolist()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.5, "1.5"), (-1.0, "-1"), (2.0**31, "2147483648"), (float("nan"), "nan"), (1e300, "1e")],
)
def test_counts_that_do_not_fit_are_refused_by_place(monkeypatch, value, shown):
    monkeypatch.setattr(compact_module, "CHUNK", 2)
    values = torch.tensor([1.0, 2, 3, value, 5], dtype=torch.float64)
    crow, col = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 8, 1, 6, 3])
    with pytest.raises(ValueError, match=rf"row 2, gene 6 has {shown}.*keep the counts as plain"):
        compact(crow, col, values, 9)


def test_arrays_that_are_no_matrix_are_refused():
    crow, col, x = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 1]), torch.ones(3)
    with pytest.raises(ValueError, match="row 1 has column 2; there are 2 genes"):
        compact(crow, col, x, 2)
    with pytest.raises(ValueError, match="row 0 has column -1"):
        compact(crow, torch.tensor([-1, 0, 1]), x, 2)
    for wrong in ([0, 1, 2], [1, 1, 3], [0, 4, 3], []):
        with pytest.raises(ValueError, match="crow must rise from 0 to the 3 columns"):
            compact(torch.tensor(wrong, dtype=torch.int64), col, x, 3)
