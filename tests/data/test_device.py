"""Counts kept on the training device: exact, whatever their form."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from count_data import annotated, dense_counts
from fastvae.kernels.counts import CsrBuffers, compact
from fastvae.kernels.gather.reference import gather_csr
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae import Model, functional
from fastvae.data import CountStore, Minibatches, read
from fastvae.data.stores import residence as residence_module
from fastvae.data.stores.device import DeviceStore, compact_bytes
from fastvae.data.stores.residence import place
from fastvae.errors import InputError
from fastvae.functional import dispatch as _backend

CPU = torch.device("cpu")


def _store(counts: np.ndarray) -> CountStore:
    adata = read(annotated(sp.csr_matrix(counts)))
    return CountStore.from_anndata(adata, batch_key="batch", labels_key="cell_type")


@pytest.mark.parametrize("kind", ["small", "large", "fractional"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_minibatches_are_those_from_memory(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = dense_counts()
    counts[11] = 0
    if kind == "large":
        counts[3, 2], counts[5, 1], counts[5, 2], counts[5, 3] = 255, 254, 2**24, 70000
    if kind == "fractional":
        counts[3, 2] = 1.5
        read_warns = pytest.warns(UserWarning, match="not whole numbers")
        with read_warns:
            store = _store(counts)
    else:
        store = _store(counts)
    monkeypatch.setattr("fastvae.data.stores.device._SLAB_CELLS", 7)
    device = DeviceStore.of(store, CPU)
    assert (type(device.source).__name__ == "CompactCounts") is (kind != "fractional")
    options = {"batch_size": 13, "shuffle": True, "seed": 4}
    if backend == "triton":
        pytest.importorskip("triton")
    with functional.use_backend(backend):
        pairs = zip(Minibatches(store, **options), Minibatches(device, **options), strict=True)
        for host, here in pairs:
            np.testing.assert_array_equal(host.cells, here.cells)
            for a, b in zip(host[1:5], here[1:5], strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
            assert torch.equal(host.x.crow_indices(), here.x.crow_indices())
            assert torch.equal(host.x.col_indices(), here.x.col_indices())
            assert torch.equal(host.x.values(), here.x.values())


def test_training_gives_the_same_losses() -> None:
    adata = annotated()
    histories = []
    for residence in ("host", "device", "auto"):
        model = Model(adata, batch_key="batch", n_hidden=8, n_latent=2)
        model.fit(2, batch_size=16, seed=1, residence=residence, progress=False)
        histories.append(
            (model.history["train_loss"].tolist(), model.history["validation_loss"].tolist())
        )
        assert model.training["residence"] == ("host" if residence == "auto" else residence)
    assert histories[0] == histories[1] == histories[2]


@given(data=st.data(), n_genes=st.sampled_from([1, 5, 2**16, 2**16 + 1]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_compact_form_keeps_every_count(data: st.DataObject, n_genes: int) -> None:
    count = st.integers(0, 2**31 - 1) | st.integers(250, 260) | st.integers(0, 3)
    gene = st.integers(0, n_genes - 1)
    rows = data.draw(st.lists(st.dictionaries(gene, count, max_size=6), min_size=1, max_size=8))
    crow = torch.tensor([0, *np.cumsum([len(row) for row in rows])])
    col = torch.tensor([g for row in rows for g in row], dtype=torch.int32)
    values = torch.tensor([x for row in rows for x in row.values()], dtype=torch.float64)
    kept = compact(crow, col, values, n_genes)
    if n_genes > 2**16:
        assert torch.equal(kept.genes, col)
    else:
        assert torch.equal(kept.genes.to(torch.int32), col)
    found = kept.counts.to(torch.int64)
    found[found == 255] = kept.aside.to(torch.int64)
    assert torch.equal(found, values.to(torch.int64))
    buffers = CsrBuffers.empty(len(rows), len(col), "cpu")
    gather_csr(kept, torch.arange(len(rows)), buffers)
    assert torch.equal(buffers.crow, crow.int())
    assert torch.equal(buffers.col, col)
    assert torch.equal(buffers.values, values.float())


def test_the_reason_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Model(annotated(), n_hidden=4, n_latent=2).fit(1, seed=0, residence="device")
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("counts on the device cpu: as asked for; ")
    assert first.endswith(_backend.describe(torch.device("cpu")))


def test_a_gpu_takes_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(dense_counts())
    needed = compact_bytes(store)
    assert needed == 3 * store.counts.nnz + 48 * 40
    device = torch.device("cuda", 0)
    monkeypatch.setattr(residence_module.DeviceStore, "of", lambda *_: "on the device")
    free = needed + residence_module._RESERVE_BYTES
    for bytes_free, expected in ((free, "on the device"), (free - 1, store)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, n=bytes_free: (n, 80 << 30))
        found, reason = place(store, "auto", device)
        assert found is expected
        assert f"{needed / 1e6:.1f} MB in compact form" in reason


def test_a_residence_that_cannot_be() -> None:
    store = _store(dense_counts())
    with pytest.raises(
        InputError, match="residence='gpu' is not known; choose one of 'auto', 'device'"
    ):
        place(store, "gpu", CPU)
    with pytest.raises(InputError, match=r"residence 'host' and cannot be used from 'disk'"):
        place(store, "disk", CPU)
