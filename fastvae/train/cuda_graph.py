"""A training step in memory of fixed size, which a GPU can replay as one CUDA graph.

Gather, forward, backward, clipping and Adam read and write the same tensors at every step; the
host only copies the row numbers in, sets the KL weight, and launches. The capture itself has not
been run on a GPU yet: what the tests run, on a CPU, is the same step launched piece by piece.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .._covariates import CellCovariates
from .._torch import evaluating
from ..data import Minibatch, Minibatches
from ..data.labelled_minibatches import LabelledMinibatches
from ..data.stores.device import DeviceStore
from ..functional.gather import (
    LARGEST,
    CellColumns,
    CountLogs,
    CsrBuffers,
    DenseBuffers,
    csr_pays,
)
from ..vae.stock import sparse_first_layers
from ..vae.vae import VAE
from .capture import Recorder
from .epoch_rows import EpochRows
from .processes import Group
from .settings import TrainSettings
from .state import Moment
from .step import with_logs

DEVICES = {"cuda"}


class MinibatchMemory(NamedTuple):
    """Memory of fixed size for minibatches; see `DeviceStore.minibatch_into`."""

    into: CsrBuffers | DenseBuffers
    columns: CellColumns
    logs: CountLogs | None
    covariates: CellCovariates

    @staticmethod
    def empty(
        store: DeviceStore, n_cells: int, capacity: int | None, logs: bool
    ) -> MinibatchMemory:
        """Return memory for `n_cells` cells, dense or CSR arrays of `capacity` entries."""
        device = store.device
        into: CsrBuffers | DenseBuffers
        if capacity is None:
            into = DenseBuffers.empty(n_cells, store.n_genes, device)
        else:
            into = CsrBuffers.empty(n_cells, capacity, device)
        columns = CellColumns.empty(n_cells, device)
        covariates = store.covariate_memory(n_cells)
        return MinibatchMemory(into, columns, into.logs() if logs else None, covariates)

    def first(self, n_cells: int) -> MinibatchMemory:
        """Return the part of it that is for so many cells."""
        logs = None if self.logs is None else self.logs.first(n_cells)
        covariates = self.covariates.rows(slice(n_cells))
        return MinibatchMemory(
            self.into.first(n_cells), self.columns.first(n_cells), logs, covariates
        )


class StaticStep:
    """What happens to `n_cells` cells of a store on the device: a step, or an evaluation.

    Parameters
    ----------
    store
        Counts on the device of the training.
    n_cells
        Cells of every minibatch.
    memory
        For so many cells or more; steps of several sizes share it.
    sums
        (2,) float64 on the device: the two loss terms, summed over cells, are added to it.
    work
        Given a minibatch and `sums`; in training it leaves the gradients.
    apply
        The other half of a step in training.
    average, parameters
        Averages the gradients of the parameters, one vector, over the processes that train
        together, in place; None where there is one process. The halves are then two graphs, and
        this is an ordinary operation between them: no process has to capture, or to fail to, along
        with the others.

    Notes
    -----
    How many entries a sparse minibatch has depends on the cells, and its arrays do not: its rows
    end at ``crow_indices()[-1]`` and what comes after is left over from other minibatches. torch
    itself would refuse such a matrix where it checks one; the Triton kernels go by the rows.
    """

    def __init__(
        self,
        store: DeviceStore,
        n_cells: int,
        memory: MinibatchMemory,
        sums: Tensor,
        work: Callable[[Minibatch, Tensor], None],
        apply: Callable[[], None] = lambda: None,
        average: Callable[[Tensor], None] | None = None,
        parameters: Sequence[nn.Parameter] = (),
    ) -> None:
        self.store = store
        self.rows = torch.zeros(n_cells, dtype=torch.int64, device=store.device)
        self.memory = memory.first(n_cells)
        self.sums = sums
        self._work, self._apply = work, apply
        self._average = average
        self._parameters = parameters
        self._flat: Tensor | None = None
        self._from: list[Tensor] = []
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def __call__(self, rows: Tensor) -> None:
        """Do it with the cells `rows` (n_cells,) int64."""
        self.rows.copy_(rows)
        pieces = [graph.replay for graph in self._graphs] or self.pieces()
        for number, piece in enumerate(pieces):
            if number and self._average is not None and self._flat is not None:
                self._average(self._flat)
            piece()

    def pieces(self) -> list[Callable[[], None]]:
        """What is captured, each as a graph."""
        return [self.step] if self._average is None else [self._gather_gradients, self._use_average]

    def gather(self) -> Minibatch:
        """Lay the minibatch out in the memory it always has."""
        return self.store.minibatch_into(self.rows, *self.memory)

    def step(self) -> None:
        """Do what one process alone captures."""
        self._work(self.gather(), self.sums)
        self._apply()

    def _gather_gradients(self) -> None:
        """The half before the average: leave all gradients in one vector."""
        self._work(self.gather(), self.sums)
        self._from = [p.grad for p in self._parameters if p.grad is not None]
        flat = [gradient.reshape(-1) for gradient in self._from]
        if self._flat is None:
            self._flat = torch.cat(flat)
        else:
            torch.cat(flat, out=self._flat)

    def _use_average(self) -> None:
        """The half after it: give each parameter its part of the vector, and take the step."""
        assert self._flat is not None
        parts = self._flat.split([gradient.numel() for gradient in self._from])
        for gradient, part in zip(self._from, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        self._apply()

    def record(self, recorder: Recorder) -> None:
        """Let CUDA graphs do it from now on."""
        self._graphs = recorder.record(self.pieces())


@dataclass(frozen=True)
class StaticSteps:
    """The steps of a run in memory of fixed size: one for each size that its minibatches have.

    Attributes
    ----------
    training, validation
        By the number of cells.
    training_rows, validation_rows
        Which cells they are given.
    """

    training: Mapping[int, StaticStep]
    validation: Mapping[int, StaticStep]
    training_rows: EpochRows
    validation_rows: EpochRows | None

    def batches(
        self, batches: Minibatches, done: int, alike: list[bool], goes_on: bool
    ) -> Iterator[Tensor | Minibatch]:
        """Yield what is left of an epoch: rows on the device, or a minibatch for a plain step.

        `alike` says where those of all processes have the same size. If training `goes_on` after
        the epoch, the rows of the next are made once the last of this one has been launched.
        """
        epoch = batches.epoch
        rows = self.training_rows.of(epoch)
        edges = np.cumsum([0, *batches.sizes()]).tolist()
        for number, (start, stop) in enumerate(itertools.pairwise(edges[done:]), start=done):
            fixed = alike[number] and stop - start in self.training
            yield rows[start:stop] if fixed else batches.gather(batches.order(epoch)[start:stop])
        if goes_on:
            self.training_rows.prepare(epoch + 1)

    def evaluate(self, batches: Minibatches, stop: Callable[[], bool]) -> bool:
        """Add the loss terms of all minibatches to the sums; False if `stop` said to leave off."""
        assert self.validation_rows is not None
        rows, at = self.validation_rows.of(batches.epoch), 0
        for size in batches.sizes():
            if stop():
                return False
            self.validation[size](rows[at : at + size])
            at += size
        return True

    def record(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        """Record all steps as CUDA graphs; weights, optimiser and sums stay as they are.

        Their tensors stay the same objects too: the graphs read and write these.
        """
        recorder, before = Recorder(device), Moment(module, optimizer)
        before.take(0)
        steps = [*self.training.values(), *self.validation.values()]
        sums = [(step.sums, step.sums.clone()) for step in steps]
        try:
            module.train()
            for step in self.training.values():
                step.record(recorder)
            with evaluating(module, None):
                for step in self.validation.values():
                    step.record(recorder)
        finally:
            before.restore()
            for now, value in sums:
                now.copy_(value)


def why_not_static(batches: Minibatches, group: Group, settings: TrainSettings) -> str | None:
    """Return why the step cannot be captured, or None if it can."""
    if group.device.type not in DEVICES:
        return f"training is on the {group.device.type.upper()}"
    if not isinstance(batches.store, DeviceStore):
        return "the counts are not kept on the device"
    if isinstance(batches, LabelledMinibatches):
        return "labelled cells are trained on beside all cells"
    if not group.alone and settings.cuda_graph is None:
        return "several processes train together, and cuda_graph was not asked for"
    if not group.alone and settings.sync_batch_norm:
        return "several processes normalise together"
    if batches.sizes()[0] < batches.batch_size:
        return "there are fewer cells than one minibatch has"
    return "cuda_graph is off" if settings.cuda_graph is False else None


@dataclass(frozen=True)
class StaticWork:
    """What the steps of a run do, and where they add the losses.

    Attributes
    ----------
    gradients, apply
        The two halves of a step in training.
    sums
        Where it adds its losses; see `StaticStep`.
    evaluate, validation_sums
        The same of an evaluation.
    """

    gradients: Callable[[Minibatch, Tensor], None]
    apply: Callable[[], None]
    sums: Tensor
    evaluate: Callable[[Minibatch, Tensor], None]
    validation_sums: Tensor


def make_static_steps(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Minibatches,
    validation: Minibatches | None,
    group: Group,
    settings: TrainSettings,
    work: StaticWork,
) -> StaticSteps | str:
    """Return the steps, captured where there is a GPU, or why there are none: for all processes."""
    reason = why_not_static(batches, group, settings)
    if group.any(reason is not None)[0]:
        return reason or "another process cannot"
    store = batches.store
    assert isinstance(store, DeviceStore)
    evaluated = [] if validation is None or validation.store is not store else [validation]
    sizes, held_out = set(batches.sizes()), {n for some in evaluated for n in some.sizes()}
    capacity = csr_capacity(module, [batches, *evaluated], settings.precision)
    memory = MinibatchMemory.empty(store, max(sizes | held_out), capacity, with_logs(module))
    average = None if group.alone else group.average_gradients
    parameters = [p for p in module.parameters() if p.requires_grad]
    halves = work.gradients, work.apply, average, parameters
    seen = work.validation_sums, work.evaluate
    made: StaticSteps | str
    made = steps = StaticSteps(
        {n: StaticStep(store, n, memory, work.sums, *halves) for n in sorted(sizes, reverse=True)},
        {n: StaticStep(store, n, memory, *seen) for n in sorted(held_out, reverse=True)},
        EpochRows(batches),
        EpochRows(evaluated[0]) if evaluated else None,
    )
    if group.device.type == "cuda":
        try:
            steps.record(module, optimizer, group.device)
        except RuntimeError as error:
            made = f"the capture failed ({str(error).splitlines()[0]})"
    if group.any(isinstance(made, str))[0]:
        return made if isinstance(made, str) else "the capture failed in another process"
    return made


class Readback:
    """Sums read from a device now and then, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._cells = 0
        if self._cuda:
            self._host = torch.zeros(2, dtype=torch.float64, device="cpu", pin_memory=True)
            self._event = torch.cuda.Event()

    def mean(self, sums: Tensor, cells: int) -> tuple[float, int] | None:
        """Return the sum of `sums` per cell, and of how many cells; None if there is news later.

        On a GPU they are those of the call before, if they have arrived.
        """
        if not self._cuda:
            return float(sums.sum()) / cells, cells
        found = None
        if self._cells and self._event.query():
            found = float(self._host.sum()) / self._cells, self._cells
            self._cells = 0
        if not self._cells:
            self._host.copy_(sums, non_blocking=True)
            self._event.record()
            self._cells = cells
        return found


FORCED: Literal["dense", "csr"] | None = None
"""A layout for the tests; sparse only where it is possible."""

_MATRICES = 6  # float32 of the counts' size in a dense step: x, log(1 + x), two logits, gradients


def capacity_of(batches: Minibatches) -> int:
    """Entries that any minibatch of different cells fits in: those of the longest rows together.

    The lengths are known to the host; the device is not asked.
    """
    lengths = batches.store.lengths()[batches.cells]
    longest = max(batches.sizes())
    return int(np.partition(lengths, -longest)[-longest:].sum(dtype=np.int64))


def csr_capacity(module: nn.Module, batches: Sequence[Minibatches], precision: str) -> int | None:
    """Return how many entries a CSR minibatch of fixed size needs, or None for a dense one.

    CSR arrays are taken where the kernels move fewer bytes with them (``csr_pays``; a count, not
    measured) or a dense step would not fit in the free memory of a GPU. Columns and values are
    then longer than the rows say, which only the Triton kernels take: with another backend, or a
    model of which a part has been replaced that would see them, minibatches are dense.
    """
    store = batches[0].store
    assert isinstance(store, DeviceStore)
    pays = csr_pays(store.device)
    if pays is None or FORCED == "dense" or not isinstance(module, VAE):
        return None
    layers = sparse_first_layers(module)
    capacity = max(map(capacity_of, batches))
    if layers is None or capacity > LARGEST:
        return None
    size, genes = max(n for some in batches for n in some.sizes()), store.n_genes
    if FORCED == "csr" or 4 * _MATRICES * size * genes > _free_bytes(store.device):
        return capacity
    fewer_bytes = pays(
        size,
        genes,
        layers[0].out_features,
        capacity,
        encoders=len(layers),
        tf32=precision != "float32",
    )
    return capacity if fewer_bytes else None


def _free_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return math.inf
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
