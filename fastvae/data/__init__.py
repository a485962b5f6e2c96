"""From files to minibatches: readers, checks, the store of counts."""

from .formats import read
from .minibatches import Minibatch, Minibatches
from .store import CountStore

__all__ = ["CountStore", "Minibatch", "Minibatches", "read"]
