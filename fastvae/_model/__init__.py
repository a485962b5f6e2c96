"""Inner parts of `fastvae.Model`."""
