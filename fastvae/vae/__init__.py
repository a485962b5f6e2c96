"""`VAE` and `LDVAE`, in the place of the classes of ``scvi.models``."""

from .ldvae import LDVAE
from .vae import VAE

__all__ = ["LDVAE", "VAE"]
