"""A training script as written for scvi 0.6: simulate, train with KL warm-up, keep the losses."""

import numpy as np
import torch

from fastvae import VAE

n_epochs, batch_size, warm_up = 25, 40, 20

rng = np.random.RandomState(0)
batch_codes = rng.randint(0, 2, size=120)
programme = rng.gamma(2.0, 1.0, size=(3, 30)) * np.where(rng.rand(3, 30) < 0.3, 6.0, 0.3)
depth = rng.lognormal(0.0, 0.4, size=(120, 1)) * np.where(batch_codes, 1.5, 1.0)[:, None]
counts = rng.poisson(depth * programme[rng.randint(0, 3, size=120)]).astype(np.float32)

log_library = np.log(counts.sum(axis=1))
means = np.array([log_library[batch_codes == b].mean() for b in (0, 1)])[batch_codes]
variances = np.array([log_library[batch_codes == b].var() for b in (0, 1)])[batch_codes]

data = [
    torch.from_numpy(counts),
    torch.from_numpy(means.astype(np.float32)).view(-1, 1),
    torch.from_numpy(variances.astype(np.float32)).view(-1, 1),
    torch.from_numpy(batch_codes.astype(np.int64)).view(-1, 1),
    torch.zeros(120, 1, dtype=torch.int64),
]

torch.manual_seed(0)
vae = VAE(30, n_batch=2, n_hidden=32, n_latent=4, dropout_rate=0.1)
optimizer = torch.optim.Adam(
    filter(lambda p: p.requires_grad, vae.parameters()), lr=0.01, eps=0.01, weight_decay=1e-6
)

losses = []
vae.train()
for epoch in range(n_epochs):
    kl_weight = min(1.0, epoch / warm_up)
    for cells in torch.randperm(120).split(batch_size):
        sample_batch, local_l_mean, local_l_var, batch_index, label = (t[cells] for t in data)
        reconst_loss, kl_divergence, kl_divergence_global = vae(
            sample_batch, local_l_mean, local_l_var, batch_index, label
        )
        loss = torch.mean(reconst_loss + kl_weight * kl_divergence) + kl_divergence_global / 120
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

vae.eval()
with torch.no_grad():
    latent = vae.sample_from_posterior_z(data[0], give_mean=True)
    scale = vae.get_sample_scale(data[0], data[3])
    rate = vae.get_sample_rate(data[0], data[3], transform_batch=1)
