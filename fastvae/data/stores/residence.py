"""Where the counts are kept while a model trains: on the device, in memory, or on disk."""

from __future__ import annotations

import torch

from ..._torch import APPLE
from ...errors import InputError, one_of, size_text
from .device import DeviceStore, compact_bytes
from .store import Store

RESIDENCES = ("auto", "device", "host", "disk")

_RESERVE_BYTES = 2 << 30  # of the device's memory: network, activations, the library's own
_RESERVE_SHARE = 0.3


def place(store: Store, residence: str, device: torch.device) -> tuple[Store, str]:
    """Move counts to where training reads them from.

    Parameters
    ----------
    store
        In memory or on disk.
    residence
        "auto": the device's own memory if that is a GPU's and they fit, else where they are.
        "device": there, whether they fit or not. "host", "disk": where they must be already.
    device
        Of the training.

    Returns
    -------
    Store
        The same one, or a `DeviceStore`.
    str
        Which it is and why, for the user.

    Raises
    ------
    InputError
        They are on disk and are asked for in memory, or the other way round, or the device has
        too little memory.
    """
    one_of("residence", residence, RESIDENCES)
    needed = compact_bytes(store)
    if residence == "auto":
        residence, reason = _choose(store, needed, device)
    else:
        reason = "as asked for"
    if residence == "device":
        return _to_device(store, needed, device), f"counts on the device {device}: {reason}"
    if residence != store.residence:
        raise InputError(
            f"the counts are in residence {store.residence!r} and cannot be used from "
            f"{residence!r}; pass residence={residence!r} where the data is read "
            "(Model(..., residence=...))"
        )
    where = "in this machine's memory" if residence == "host" else "on disk"
    return store, f"counts {where}: {reason}"


def _choose(store: Store, needed: int, device: torch.device) -> tuple[str, str]:
    if device.type != "cuda":
        return store.residence, f"training is on the {device.type.upper()}"
    free, _ = torch.cuda.mem_get_info(device)
    usable = max(0, min(free - _RESERVE_BYTES, int(free * (1 - _RESERVE_SHARE))))
    fits = needed <= usable
    said = f"they take {size_text(needed)} in compact form, {size_text(usable)} of the GPU's memory"
    if fits:
        return "device", f"{said} can be spared"
    return store.residence, f"{said} can be spared, too little"


def _to_device(store: Store, needed: int, device: torch.device) -> DeviceStore:
    if device.type in APPLE:
        raise InputError(
            f"residence='device' is not possible on {device}, whose memory is the host's; use "
            "'auto' or 'host'"
        )
    try:
        return DeviceStore.of(store, device)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the counts do not fit into the memory of {device}: they take {size_text(needed)} in "
            "compact form; use residence='host' or 'disk', or fewer genes"
        ) from error
