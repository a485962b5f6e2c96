"""`VAE` and `LDVAE`, in the place of the classes of ``scvi.models``."""

from .ldvae import LDVAE
from .semi_supervised import SemiSupervisedVAE
from .vae import VAE

__all__ = ["LDVAE", "VAE", "SemiSupervisedVAE"]
