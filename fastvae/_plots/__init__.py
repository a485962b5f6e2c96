"""Inner parts of `fastvae.plots`."""
