"""A model small enough to check by hand, and one way to call it."""

import torch

from fastvae import VAE

N, G = 6, 9
OPTIONS = {"n_batch": 3, "n_labels": 2, "n_hidden": 8, "n_latent": 3}
BATCH, LABELS = torch.tensor([2, 0, 1, 1, 0, 2])[:, None], torch.tensor([1, 0, 1, 1, 0, 0])[:, None]
PRIOR = torch.full((N, 1), 2.5), torch.full((N, 1), 0.7)


def build(kind=VAE, **options):
    torch.manual_seed(1)
    return kind(G, **{**OPTIONS, **options}).eval()


def forward(vae, x, y=LABELS):
    torch.manual_seed(2)
    first, second, _ = vae(x, *PRIOR, BATCH, y)
    return torch.stack([first, second])
