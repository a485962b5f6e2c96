"""`Group`: the processes that train one model together, each on its share of the cells."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._torch import APPLE, resolve_device, training_device
from ..errors import InputError
from .synced_batch_norm import synced_batch_norm

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before it fails."""

AGREE_EVERY = 20
"""Number of steps after which the processes tell each other whether to stop."""


class LostProcessError(InputError):
    """Another process of the group died or does not answer."""


def leads() -> bool:
    """Whether this process is the first or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


class Group:
    """All processes of ``torch.distributed``, or this process alone without it.

    Parameters
    ----------
    device
        The device of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module, captured: bool = False) -> nn.Module:
        """Return `module` such that its gradients are averaged over the processes.

        All start with the weights of the first. `average_buffers` handles the buffers.

        Parameters
        ----------
        module
            In this process.
        captured
            Whether its step is to be captured as CUDA graphs too.
        """
        if self.alone:
            return module
        parallel = nn.parallel.DistributedDataParallel
        known = inspect.signature(parallel).parameters
        buffers = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
        # Heads that a likelihood does not use have no gradient.
        options: dict[str, Any] = {"find_unused_parameters": True, buffers: False}
        if not captured or self.device.type != "cuda":
            return parallel(module, **options)
        # On the default stream it would keep autograd nodes that a CUDA graph cannot capture. Those
        # of another stream are waited for in a step that is not captured, which torch warns of.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            wrapped = parallel(module, **options)
        current.wait_stream(side)
        return wrapped

    def add(self, values: Tensor) -> Tensor:
        """Sum `values` over the processes, in place; every process has the same bits."""
        if not self.alone:
            dist.all_reduce(values)
            dist.broadcast(values, 0)
        return values

    def average_gradients(self, values: Tensor) -> None:
        """Replace `values` by their mean over the processes, as `wrap` does for its module."""
        dist.all_reduce(values.div_(self.size))

    def any(self, *flags: bool) -> list[bool]:
        """Return whether each flag is set in any process."""
        if self.alone:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def agrees_after(self, step: int) -> bool:
        """Whether the processes exchange flags after step number `step`."""
        return self.alone or step % AGREE_EVERY == 0

    def share(self, value: Any) -> Any:
        """Return the first process's `value`."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every process's `value`, in the order of their ranks."""
        values = [value] * self.size
        if not self.alone:
            dist.all_gather_object(values, value)
        return values

    def average_buffers(self, module: nn.Module) -> None:
        """Give every process the mean of their running statistics."""
        if self.alone:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                self.add(buffer).div_(self.size)

    @contextmanager
    def working(self, module: nn.Module, sync_batch_norm: bool) -> Iterator[None]:
        """Train `module` together inside the block.

        Raises
        ------
        LostProcessError
            Another process is gone; replaces torch's own error.
        """
        if self.alone:
            yield
            return
        try:
            with synced_batch_norm(module, sync_batch_norm):
                yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
            if not lost:
                raise
            raise LostProcessError(
                f"process {self.rank} of {self.size} lost touch with another one, which has died "
                f"or does not answer ({str(error).splitlines()[0][:200]}); see its own messages, "
                "and go on from the last checkpoint with --resume (resume=True)"
            ) from error


@contextmanager
def launched(device: str) -> Iterator[str]:
    """Join the processes that torchrun started; yield the device of this one.

    Without torchrun, or with one process, there is nothing to join. NCCL connects GPUs, gloo CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield device
        return
    if not dist.is_available():
        raise InputError("this torch was built without torch.distributed; start one process")
    where = training_device(device)
    if where.type in APPLE:
        raise InputError("several processes train on CPUs or CUDA devices; start one process")
    if where.type == "cuda":
        where = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(where)
    backend = "nccl" if where.type == "cuda" else "gloo"
    # DistributedDataParallel imports it, and a group that is there by then lives until the process
    # ends. Its threads may then ask for the interpreter as that shuts down, which aborts.
    importlib.import_module("torch._dynamo")
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield str(where)
    finally:
        gc.collect()  # the wrapped module, which holds the group, is in reference cycles
        dist.destroy_process_group()
