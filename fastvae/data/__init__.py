"""From files to minibatches: readers, checks, the store of counts."""

from .minibatches import Minibatches
from .reading import read
from .stores.host import CountStore
from .stores.minibatch import Minibatch

__all__ = ["CountStore", "Minibatch", "Minibatches", "read"]
