"""Subclasses in the manner of scvi's own: AutoZIVAE, SCANVI, VAEC."""

import pytest
import torch
from tiny import BATCH, LABELS, OPTIONS, PRIOR, G, N, build, forward

from fastvae import VAE, functional
from fastvae.nn import DecoderSCVI, Encoder, one_hot, reparameterize_gaussian


@pytest.fixture
def x():
    return torch.poisson(torch.rand(N, G) * 4)


class OwnZeroInflation(VAE):
    """As AutoZIVAE: more draws in inference, a loss with a required argument, own forward."""

    def inference(self, x, batch_index=None, y=None, n_samples=1, eps=1e-8):
        outputs = super().inference(x, batch_index=batch_index, y=y, n_samples=n_samples)
        outputs["bernoulli"] = torch.rand(G) + eps
        return outputs

    def get_reconstruction_loss(self, x, px_rate, px_r, px_dropout, bernoulli, **kwargs):
        zinb = functional.zinb_log_prob(x, px_rate, px_r, px_dropout)
        nb = functional.nb_log_prob(x, px_rate, px_r)
        return -(bernoulli * zinb + (1 - bernoulli) * nb).sum(-1)

    def forward(self, x, local_l_mean, local_l_var, batch_index=None, y=None):
        out = self.inference(x, batch_index, y)
        loss = self.get_reconstruction_loss(
            x, out["px_rate"], out["px_r"], out["px_dropout"], out["bernoulli"]
        )
        return loss, functional.kl_normal(out["qz_m"], out["qz_v"]), torch.tensor(1.5)


def test_like_autozi(x):
    vae = OwnZeroInflation(G, reconstruction_loss="autozinb", **OPTIONS)
    loss, kl, extra = vae(x, *PRIOR, BATCH)
    (loss.sum() + kl.sum()).backward()
    assert extra == 1.5
    assert loss.isfinite().all()
    assert vae.decoder.px_dropout_decoder.weight.grad.abs().max() > 0


class TwoLevels(VAE):
    """As SCANVI: labels set afterwards, latents of two levels, a loss that is added to."""

    def __init__(self, n_input, n_batch=0, n_labels=0, **options):
        super().__init__(n_input, n_batch=n_batch, **options)
        self.n_labels = n_labels
        self.upper = Encoder(self.n_latent, self.n_latent, n_cat_list=[n_labels], n_hidden=4)

    def get_latents(self, x, y=None):
        latents = super().get_latents(x)
        return [latents[0], self.upper(latents[0], y)[0]]

    def forward(self, x, local_l_mean, local_l_var, batch_index=None, y=None):
        out = self.inference(x, batch_index, y)
        _, _, upper = self.upper(out["z"], y)
        loss = self.get_reconstruction_loss(x, out["px_rate"], out["px_r"], out["px_dropout"])
        loss += upper.pow(2).sum(-1)
        return loss, functional.kl_normal(out["qz_m"], out["qz_v"]), 0.0


def test_like_scanvi(x):
    vae = build(TwoLevels).train()
    first, second, _ = vae(x, *PRIOR, BATCH, LABELS)
    (first + second).sum().backward()
    assert vae.upper.mean_encoder.weight.grad.abs().max() > 0
    assert vae.z_encoder.mean_encoder.weight.grad.abs().max() > 0
    assert [z.shape for z in vae.get_latents(x, LABELS)] == [(N, 3), (N, 3)]


class Conditional(VAE):
    """As VAEC: y goes to the z encoder and, one-hot and repeated, to the decoder."""

    def __init__(self, n_input, n_batch=0, n_labels=0, **options):
        super().__init__(n_input, n_batch, n_labels, **options)
        self.z_encoder = Encoder(n_input, self.n_latent, n_cat_list=[n_labels], n_hidden=8)
        self.decoder = DecoderSCVI(self.n_latent, n_input, [n_batch, n_labels], n_hidden=8)

    def forward(self, x, local_l_mean, local_l_var, batch_index=None, y=None):
        every = one_hot(torch.arange(self.n_labels).repeat_interleave(len(x)), self.n_labels)
        xs, batches = x.repeat(self.n_labels, 1), batch_index.repeat(self.n_labels, 1)
        out = self.inference(xs, batches, every)
        loss = self.get_reconstruction_loss(xs, out["px_rate"], out["px_r"], out["px_dropout"])
        return loss.view(self.n_labels, -1).mean(0), torch.zeros(len(x)), 0.0


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
def test_like_vaec(dispersion, x):
    vae = build(Conditional, dispersion=dispersion).eval()
    loss, _, _ = vae(x, *PRIOR, BATCH)
    loss.sum().backward()
    assert vae.z_encoder.encoder.fc_layers[0][0].weight.grad[:, G:].abs().max() > 0
    every = torch.eye(2).repeat_interleave(N, 0)
    torch.manual_seed(3)
    labelled = vae.inference(x.repeat(2, 1), BATCH.repeat(2, 1), every)
    torch.manual_seed(3)
    coded = vae.inference(x.repeat(2, 1), BATCH.repeat(2, 1), every.argmax(1))
    for key, value in labelled.items():
        torch.testing.assert_close(value, coded[key])


def test_redrawn_latent(x):
    """A subclass may redraw z itself with the public function."""

    class Redrawn(VAE):
        def inference(self, x, batch_index=None, y=None, n_samples=1, transform_batch=None):
            out = super().inference(x, batch_index, y)
            out["z"] = reparameterize_gaussian(out["qz_m"], out["qz_v"])
            out["px_scale"], _, out["px_rate"], out["px_dropout"] = self.decoder(
                self.dispersion, out["z"], out["library"], batch_index, y
            )
            return out

    vae = build(Redrawn)
    forward(vae, x)[0].sum().backward()
    assert vae.z_encoder.var_encoder.weight.grad.abs().max() > 0
