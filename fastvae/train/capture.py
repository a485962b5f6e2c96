"""Work on a GPU recorded as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

WARMUP = 3
"""Runs before the capture, so that libraries have made what they make at first use."""


class Recorder:
    """Records work as CUDA graphs, which share one stream and one pool of memory.

    They are replayed one after another: one may overwrite what another has left there.

    Parameters
    ----------
    device
        The GPU, which is the current device where `record` is called.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, pieces: Sequence[Callable[[], None]]) -> list[torch.cuda.CUDAGraph]:
        """Run `pieces` a few times in turn, then record each as a graph.

        Random numbers go on as if nothing had run. What else the pieces change is for the caller
        to put back.

        Raises
        ------
        RuntimeError
            A piece cannot be captured. Stream and generator are as before, so that the same work
            can be done without a graph.
        """
        before = torch.cuda.current_stream(self._device)
        generator = torch.cuda.default_generators[self._device.index]
        # a capture that fails leaves the generator's state unusable outside of captures
        spare = generator.clone_state()
        try:
            graphs = self._warm_up_and_record(pieces, before)
            generator.set_state(spare.get_state())
        except BaseException:
            torch.cuda.set_stream(before)
            generator.graphsafe_set_state(spare)
            raise
        return graphs

    def _warm_up_and_record(
        self, pieces: Sequence[Callable[[], None]], before: torch.cuda.Stream
    ) -> list[torch.cuda.CUDAGraph]:
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARMUP):
                    for piece in pieces:
                        piece()
        finally:
            before.wait_stream(self._stream)
        graphs = []
        for piece in pieces:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                piece()
            graphs.append(graph)
        return graphs
