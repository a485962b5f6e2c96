"""Inner parts of `fastvae.vae` and `fastvae.nn`."""
