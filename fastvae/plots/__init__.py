"""Pictures: training curves, latent space, differential expression."""

from .figures import (
    history_figure,
    latent_figure,
    plot_history,
    plot_latent,
    plot_volcano,
    volcano_figure,
)

__all__ = [
    "history_figure",
    "latent_figure",
    "plot_history",
    "plot_latent",
    "plot_volcano",
    "volcano_figure",
]
