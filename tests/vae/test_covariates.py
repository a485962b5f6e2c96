"""Codes of batches and labels are parsed and checked once for each call."""

import pytest
import torch
from tiny import BATCH, LABELS, PRIOR, G, N, build
from torch.utils._python_dispatch import TorchDispatchMode

from fastvae import LDVAE, InputError
from fastvae._covariates import Codes, Covariates
from fastvae.nn import DecoderSCVI

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")
K = int(BATCH.max()) + 1


class Reads(TorchDispatchMode):
    """Counts how often codes are looked at, and how often they are made one-hot."""

    def __init__(self):
        super().__init__()
        self.checks = self.one_hots = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.checks += name == "aminmax" and args[0].dtype == torch.int64 and args[0].numel() == N
        self.one_hots += name in ("scatter", "scatter_")
        return func(*args, **(kwargs or {}))


def reads(call):
    with Reads() as seen:
        call()
    return seen.checks, seen.one_hots


@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("sparse", [False, True])
def test_codes_are_looked_at_once(encode, observed, dispersion, likelihood, sparse):
    vae = build(
        encode_covariates=encode,
        use_observed_lib_size=observed,
        dispersion=dispersion,
        reconstruction_loss=likelihood,
        n_layers=2,
    )
    x = torch.poisson(torch.full((N, G), 2.0))
    form = x.to_sparse_csr() if sparse else x
    columns = 2 if dispersion == "gene-label" else 1
    assert reads(lambda: vae(form, *PRIOR, BATCH, LABELS)) == (columns, 1)
    vae.inference = vae.inference  # the loss comes from the rate
    assert reads(lambda: vae(form, *PRIOR, BATCH, LABELS)) == (columns, 1)
    # another batch to decode as is one more column of codes, where the encoders read their own
    other = columns + encode, 1 + encode
    assert reads(lambda: vae.inference(x, BATCH, LABELS, transform_batch=1)) == other


def test_the_two_heads_of_a_linear_decoder_share_them():
    vae = build(LDVAE, dispersion="gene-batch")
    x = torch.poisson(torch.full((N, G), 2.0))
    assert reads(lambda: vae(x, *PRIOR, BATCH)) == (1, 1)
    assert reads(lambda: vae.inference(x, BATCH)) == (1, 1)


def test_labels_that_networks_read():
    vae = build(dispersion="gene-label")
    vae.decoder = DecoderSCVI(3, G, [K, 2], n_hidden=5).eval()
    x = torch.poisson(torch.full((N, G), 2.0))
    assert reads(lambda: vae(x, *PRIOR, BATCH, LABELS)) == (2, 2)


def test_whoever_listens_is_told_codes():
    """Hooks, and decoders of other classes, are given what was handed over, one code per cell."""
    vae, seen = build(), []

    class Another(DecoderSCVI):
        def logits(self, dispersion, z, *cats, **options):
            seen.append(cats[0])
            return super().logits(dispersion, z, *cats, **options)

    x = torch.poisson(torch.full((N, G), 2.0))
    vae.decoder.px_decoder.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    vae(x, *PRIOR, BATCH)
    vae.decoder = Another(3, G, [K]).eval()
    vae(x, *PRIOR, BATCH)
    assert [told.tolist() for told in seen] == [BATCH.reshape(-1, 1).tolist()] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, None])
def test_one_hot_rows_are_made_once(dtype):
    codes = Codes(torch.tensor([2, 0, 1]), 3, "batch_index")
    rows = codes.one_hot(3, dtype)
    assert rows is codes.one_hot(3, dtype)
    assert rows.dtype == (dtype or torch.float32)
    assert rows.tolist() == torch.eye(3)[[2, 0, 1]].tolist()
    assert codes.index(3) is codes.index(3)
    assert codes.index(4).tolist() == [2, 0, 1]
    given = Codes(rows, 3, "batch_index")
    assert given.one_hot(3) is rows
    assert given.index(3).tolist() == [2, 0, 1]


def test_each_number_of_categories_is_checked():
    codes = Codes([2, 0, 1], 3, "batch_index")
    assert codes.column(3).tolist() == [[2], [0], [1]]
    with pytest.raises(InputError, match=r"batch_index holds the code 2, outside 0\.\.1"):
        codes.column(2)
    with pytest.raises(InputError, match=r"covariate 1 holds the code 2, outside 0\.\.1"):
        codes.one_hot(2, name="covariate 1")
    with pytest.raises(InputError, match="y is missing: 2 categories"):
        Codes(None, 3, "y").index(2)
    with pytest.raises(InputError, match="y is neither codes nor one-hot"):
        Codes(torch.full((3, 2), 0.5), 3, "y").index(2)


def test_decoding_as_another_batch():
    own = Covariates.of(torch.zeros(3, 4), torch.tensor([0, 1, 1]), None)
    assert own.decoded_as(None) is own
    assert own.decoded_as(1).batch.index(2).tolist() == [1, 1, 1]
    assert own.decoded_as([1, 0, 0]).batch.index(2).tolist() == [1, 0, 0]
    assert own.decoded_as(1).labels is own.labels
    with pytest.raises(InputError, match=r"transform_batch holds the code 2, outside 0\.\.1"):
        own.decoded_as(2).batch.column(2)
    with pytest.raises(InputError, match=r"transform_batch='a' is not a batch code"):
        own.decoded_as("a")


def test_codes_on_a_device_are_looked_at_only_where_that_is_forced(monkeypatch):
    """Looking at them waits for the device."""
    far = torch.full((4, 1), 7)
    monkeypatch.setattr("fastvae._covariates.readable", lambda _, force: bool(force))
    assert reads(lambda: Codes(far, 4, "batch_index").one_hot(8))[0] == 0
    Codes(far, 4, "batch_index").index(2)
    with pytest.raises(InputError, match="holds the code 7"):
        Codes(far, 4, "batch_index", force=True).index(2)
