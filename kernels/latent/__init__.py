"""Reparameterised sampling and the KL divergence of normals."""
