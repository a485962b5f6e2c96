"""Pictures: training curves, latent space, differential expression."""

from .figures import (
    dot_figure,
    history_figure,
    latent_figure,
    plot_dots,
    plot_history,
    plot_latent,
    plot_volcano,
    volcano_figure,
)

__all__ = [
    "dot_figure",
    "history_figure",
    "latent_figure",
    "plot_dots",
    "plot_history",
    "plot_latent",
    "plot_volcano",
    "volcano_figure",
]
