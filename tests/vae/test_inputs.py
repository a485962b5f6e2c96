"""What VAE takes: every form of covariates, counts and priors; and what it refuses, and how."""

import numpy as np
import pytest
import torch

from fastvae import LDVAE, VAE, InputError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")

N, G = 6, 9
CODES = torch.tensor([2, 0, 1, 1, 0, 2])
LABELS = torch.tensor([1, 0, 1, 1, 0, 0])
X = torch.tensor(np.random.RandomState(0).poisson(2.0, (N, G)), dtype=torch.float32)
PRIOR = torch.full((N, 1), 2.5), torch.full((N, 1), 0.7)


def model(**options):
    torch.manual_seed(1)
    return VAE(G, **{"n_batch": 3, "n_labels": 2, "n_hidden": 8, "n_latent": 3, **options}).eval()


def forward(vae, x=X, prior=PRIOR, batch=CODES[:, None], y=LABELS[:, None]):
    torch.manual_seed(2)
    first, second, _ = vae(x, *prior, batch, y)
    return torch.stack([first, second])


def inference(vae, *args, **keywords):
    torch.manual_seed(2)
    outputs = vae.inference(X, *args, **keywords)
    return torch.cat([outputs["px_rate"].flatten(), outputs["px_r"].flatten()])


def forms(codes, n_cat):
    column = codes[:, None]
    one_hot = torch.nn.functional.one_hot(codes, n_cat)
    return [codes, column.int(), column.float(), codes.numpy(), one_hot, one_hot.float()]


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
@pytest.mark.parametrize("k", range(6))
def test_forms_of_batch_index(dispersion, k):
    vae, form = model(dispersion=dispersion), forms(CODES, 3)[k]
    torch.testing.assert_close(forward(vae, batch=form), forward(vae))
    want = inference(vae, CODES[:, None], LABELS[:, None])
    torch.testing.assert_close(inference(vae, form, LABELS[:, None]), want)


@pytest.mark.parametrize("k", range(6))
def test_forms_of_labels(k):
    vae, form = model(dispersion="gene-label"), forms(LABELS, 2)[k]
    torch.testing.assert_close(forward(vae, y=form), forward(vae))
    torch.testing.assert_close(
        inference(vae, CODES, form), inference(vae, CODES[:, None], LABELS[:, None])
    )


@pytest.mark.parametrize("n_batch", [0, 1])
def test_batch_is_ignored_where_there_is_none_to_tell_apart(n_batch):
    vae = model(n_batch=n_batch)
    want = forward(vae, batch=None)
    torch.testing.assert_close(forward(vae, batch=CODES[:, None]), want)
    torch.testing.assert_close(
        inference(vae, CODES[:, None], transform_batch=np.int64(2)), inference(vae)
    )
    torch.testing.assert_close(inference(vae, None, transform_batch=2), inference(vae))


def test_one_batch_of_dispersions_needs_no_codes():
    vae = model(n_batch=1, dispersion="gene-batch")
    torch.testing.assert_close(forward(vae, batch=None), forward(vae, batch=torch.zeros(N)))


def name(value):
    return f"{type(value).__name__}{tuple(getattr(value, 'shape', ()))}"


TARGETS = [2, np.int64(2), 2.0, torch.tensor(2), torch.tensor([[2]]), torch.full((N, 1), 2)]


@pytest.mark.parametrize("target", [*TARGETS, torch.full((N,), 2)], ids=name)
@pytest.mark.parametrize("batch", [CODES[:, None], None, torch.eye(3)[CODES]], ids=name)
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
def test_transform_batch(target, batch, dispersion):
    vae = model(dispersion=dispersion)
    want = inference(vae, torch.full((N, 1), 2))
    torch.testing.assert_close(inference(vae, batch, transform_batch=target), want)
    assert not torch.allclose(inference(vae, CODES), want)


def test_transform_batch_per_cell():
    vae, other = model(), (CODES + 1) % 3
    torch.testing.assert_close(inference(vae, CODES, transform_batch=other), inference(vae, other))


@pytest.mark.parametrize("log_variational", [True, False])
@pytest.mark.parametrize("kind", [VAE, LDVAE])
def test_sparse_counts(log_variational, kind):
    vae = kind(G, 3, n_hidden=8, n_latent=3, log_variational=log_variational).eval()
    sparse = X.to_sparse_csr()
    torch.testing.assert_close(forward(vae, sparse), forward(vae), rtol=1e-5, atol=1e-5)
    outputs = vae.inference(X, CODES)
    parts = outputs["px_rate"], outputs["px_r"], outputs["px_dropout"]
    torch.testing.assert_close(
        vae.get_reconstruction_loss(sparse, *parts), vae.get_reconstruction_loss(X, *parts)
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float64])
def test_dtypes_of_counts(dtype):
    vae = model()
    torch.testing.assert_close(forward(vae, X.to(dtype)), forward(vae), check_dtype=False)
    values = vae.sample_from_posterior_z(X.to(dtype), give_mean=True)
    torch.testing.assert_close(values, vae.sample_from_posterior_z(X, give_mean=True))
    sparse = X.to(dtype).to_sparse_csr()
    torch.testing.assert_close(forward(vae, sparse), forward(vae), check_dtype=False)


def test_counts_need_not_be_whole():
    """Corrected counts are allowed, also under poisson."""
    for likelihood in ("zinb", "nb", "poisson"):
        assert forward(model(reconstruction_loss=likelihood), X * 0.7).isfinite().all()


@pytest.mark.parametrize("shape", [(N, 1), (N,), (1, 1), ()])
def test_forms_of_the_prior(shape):
    vae = model()
    prior = torch.full(shape, 2.5), torch.full(shape, 0.7)
    torch.testing.assert_close(forward(vae, prior=prior), forward(vae))
    torch.testing.assert_close(forward(vae, prior=(2.5, 0.7)), forward(vae))


def bad_counts(value):
    x = X.clone()
    x[3, 4] = value
    return x


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("sparse", [False, True])
def test_values_that_are_no_counts(value, sparse):
    vae, x = model(), bad_counts(value)
    x = x.to_sparse_csr() if sparse else x
    found = {-1.0: "-1"}.get(value, "NaN|infinity")
    calls = [
        lambda: forward(vae, x),
        lambda: vae.inference(x, CODES),
        lambda: vae.sample_from_posterior_z(x),
        lambda: vae.sample_from_posterior_l(x),
        lambda: vae.get_sample_rate(x, CODES),
        lambda: vae.get_reconstruction_loss(x, X + 1, torch.ones(G), torch.zeros(N, G)),
    ]
    for call in calls:
        with pytest.raises(InputError, match=rf"x contains ({found}).*raw counts"):
            call()


def test_check_counts_can_be_switched_off_and_on():
    vae, x = model(check_counts=False), bad_counts(float("nan"))
    assert forward(vae, x).isnan().any()
    vae.check_counts = True
    with pytest.raises(InputError, match="x contains NaN"):
        forward(vae, x)


BAD_OPTIONS = [
    ({"dispersion": "cell"}, r"dispersion='cell'.*'gene', 'gene-batch', 'gene-label', 'gene-cell'"),
    ({"reconstruction_loss": "gauss"}, r"reconstruction_loss='gauss'.*'zinb', 'nb', 'poisson'"),
    ({"latent_distribution": "log"}, r"latent_distribution='log'.*'normal', 'ln'"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_options_that_are_not_known(options, message):
    with pytest.raises(InputError, match=message):
        VAE(G, **options)
    with pytest.raises(ValueError, match=message):
        LDVAE(G, **options)


@pytest.mark.parametrize("name", ["n_input", "n_hidden", "n_latent", "n_batch", "n_labels"])
def test_sizes_that_are_too_small(name):
    with pytest.raises(InputError, match=f"{name}=-1 is too small"):
        VAE(**{"n_input": G, name: -1})


def test_no_layers_are_one_layer():
    """As in scvi."""
    assert len(VAE(G, n_layers=0).z_encoder.encoder.fc_layers) == 1


BAD_CALLS = {
    "numpy counts": (lambda: forward(model(), X.numpy()), r"torch tensor.*ndarray"),
    "genes": (lambda: forward(model(), X[:, :5]), r"shape \(6, 5\), expected \(n_cells, 9\)"),
    "one cell as a vector": (lambda: forward(model(), X[0]), r"shape \(9,\)"),
    "coo": (lambda: forward(model(), X.to_sparse()), "sparse_coo.*to_sparse_csr"),
    "no batch": (lambda: forward(model(), batch=None), r"batch_index is missing.*codes 0\.\.2"),
    "short batch": (lambda: forward(model(), batch=CODES[:4]), r"batch_index has shape \(4, 1\)"),
    "wide batch": (lambda: forward(model(), batch=torch.zeros(N, 2)), r"shape \(6, 2\)"),
    "large batch": (lambda: forward(model(), batch=CODES + 1), r"the code 3, outside 0\.\.2"),
    "negative batch": (lambda: forward(model(), batch=CODES - 1), "the code -1"),
    "batch of words": (lambda: forward(model(), batch=["a"] * N), "batch_index is not numeric"),
    "no label": (
        lambda: forward(model(dispersion="gene-label"), y=None),
        r"y is missing: 2 categories need codes 0\.\.1",
    ),
    "large label": (
        lambda: inference(model(dispersion="gene-label"), CODES, LABELS + 1),
        "y holds the code 2",
    ),
    "no labels": (
        lambda: forward(model(dispersion="gene-label", n_labels=0)),
        "n_labels=0.*n_labels >= 1",
    ),
    "soft one-hot": (
        lambda: forward(model(dispersion="gene-batch"), batch=torch.full((N, 3), 1 / 3)),
        "neither codes nor one-hot",
    ),
    "target": (lambda: inference(model(), CODES, transform_batch=3), "transform_batch.*code 3"),
    "target list": (lambda: inference(model(), CODES, transform_batch=[0, 1]), r"shape \(2, 1\)"),
    "target word": (lambda: inference(model(), CODES, transform_batch="a"), "not a batch code"),
    "no prior": (lambda: forward(model(), prior=(None, None)), "use_observed_lib_size=True"),
    "prior shape": (lambda: forward(model(), prior=(torch.ones(4), 1.0)), r"\(4, 1\), expected"),
    "prior variance": (lambda: forward(model(), prior=(1.0, torch.zeros(N, 1))), "must be > 0"),
    "gene-cell": (
        lambda: forward(LDVAE(G, 3, dispersion="gene-cell").eval()),
        "LinearDecoderSCVI does not have",
    ),
    "one cell": (
        lambda: forward(model().train(), X[:1], (2.5, 0.7), CODES[:1], LABELS[:1]),
        "at least two cells",
    ),
    "rate": (
        lambda: model().get_reconstruction_loss(X, torch.ones(N, G), None, torch.ones(N, G)),
        "px_r is None.*'zinb'",
    ),
    "logits": (
        lambda: model().get_reconstruction_loss(X, torch.ones(N, G), torch.ones(G), None),
        "px_dropout is None",
    ),
    "gradient": (lambda: forward(model(), X.clone().requires_grad_()), "x requires a gradient"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    call, message = BAD_CALLS[name]
    with pytest.raises(InputError, match=message):
        call()


def test_an_option_changed_to_nonsense_is_refused_when_used():
    vae = model()
    vae.reconstruction_loss = "autozinb"
    with pytest.raises(InputError, match="reconstruction_loss='autozinb'"):
        forward(vae)
    vae = model()
    vae.dispersion = "gene-batch"
    with pytest.raises(InputError, match=r"does not fit px_r of shape \(9,\)"):
        forward(vae)


def test_no_cells_give_no_losses():
    empty = torch.zeros(0, 1)
    assert forward(model(), X[:0], (empty, empty + 1), CODES[:0], LABELS[:0]).shape == (2, 0)
