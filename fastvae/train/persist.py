"""A run of training as tensors and plain values, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoint_files import Loaded
from .moment import (
    Within,
    below,
    pack_history,
    pack_optimizer,
    random_states,
    set_learning_rate,
    set_random_states,
    unpack_history,
    unpack_optimizer,
    with_prefix,
)

if TYPE_CHECKING:
    from .run import Run


def pack(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return everything that decides how `run` goes on; to be called by all processes at once."""
    within, group = run.within, run.group
    done = torch.tensor([*within.sums.tolist(), within.cells], dtype=torch.float64)
    *sums, cells = group.add(done.to(run.device)).tolist()
    tensors = {
        **with_prefix("model", run.module.state_dict()),
        **with_prefix("optimizer", pack_optimizer(run.optimizer)),
    }
    for rank, states in enumerate(group.gather(random_states(run.device))):
        tensors |= with_prefix(f"random{rank}", states)
    state: dict[str, Any] = {
        "seed": run.seed,
        "settings": run.settings.as_dict(),
        "first_epoch": run.first_epoch,
        "first_step": run.first_step,
        "step": run.step,
        "steps": within.steps,
        "cells": int(cells),
        "seconds": within.seconds,
        "sums": sums,
        "learning_rate": float(run.optimizer.param_groups[0]["lr"]),
        "history": pack_history(run.history),
    }
    if run.plateau:
        state["plateau"] = run.plateau.state_dict()
    if run.stopper:
        state["stopping"] = run.stopper.state_dict()
        tensors |= with_prefix("best", run.stopper.best_state)
    return tensors, state


def unpack(run: Run, found: Loaded) -> None:
    """Take `run` back to the moment at which `pack` was called."""
    tensors, state = found.tensors, found.state
    run.module.load_state_dict(below("model", tensors))
    unpack_optimizer(run.optimizer, below("optimizer", tensors))
    set_random_states(below(f"random{run.group.rank}", tensors), run.device)
    unpack_history(state["history"], run.history)
    run.first_epoch, run.first_step = state["first_epoch"], state["first_step"]
    run.step = state["step"]
    # The sums of all processes together are the first one's to carry on.
    sums = torch.tensor(state["sums"], dtype=torch.float64, device=run.device)
    cells = state["cells"]
    if not run.group.leads:
        sums, cells = sums.zero_(), 0
    run.within = Within(sums, state["steps"], cells, state["seconds"])
    if run.settings.learning_rate == state["settings"]["learning_rate"]:
        set_learning_rate(run.optimizer, state["learning_rate"])
    if run.plateau and "plateau" in state:
        run.plateau.load_state_dict(state["plateau"])
    if run.stopper and "stopping" in state:
        best = {k: v.to(run.device) for k, v in below("best", tensors).items()}
        run.stopper.load_state_dict(state["stopping"], best)
        run.ended = "early stopping" if run.stopper.exhausted else None
