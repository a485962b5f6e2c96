"""`QuickHooks`: Lightning's own bookkeeping on a training plan, without the price of a Module's.

Lightning writes the name of the hook that runs into ``_current_fx_name`` of the plan, some 40 times
per step. A plan is a ``torch.nn.Module``, whose ``__setattr__`` looks through parameters, buffers
and submodules first: 7.5 microseconds for each write where a plain attribute takes 0.1, so 0.3
milliseconds per step (measured on a busy CPU with Lightning 2.6). Lightning offers no other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Behind = Any
else:
    _Behind = object


class QuickHooks(_Behind):
    """Put in front of a ``LightningModule``, this sets the hook's name as a plain attribute."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)
