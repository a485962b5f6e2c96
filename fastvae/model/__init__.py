"""`fastvae.Model`: data in, training, answers out."""

from .model import Model

__all__ = ["Model"]
