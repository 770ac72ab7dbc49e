"""Training's forward and backward passes as CUDA graphs: one launch for the thousands that small batches spend their time on."""

import collections
import contextlib
import gc
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from tqdm import tqdm

from utils.rows import Batch

MOST = 200  # recordings, each of which takes some megabytes of the GPU's memory; batches of further shapes go without


class Graphs:
    """Loss and gradients of batches: recorded the second time that a shape of batch occurs, replayed from then on.

    `loss(batch, *constants)` returns the loss to differentiate and, detached, the one to report. A recording reads parameters
    and masks where they stood and leaves gradients in buffers of this object: whoever changes them has to do so in place.
    Recordings keep memory of their own for what a pass computes; where the GPU has not enough for that, they are given up.
    """

    def __init__(
        self,
        loss: Callable[..., tuple[torch.Tensor, torch.Tensor]],
        parameters: Iterable[torch.nn.Parameter],
    ):
        self._loss = loss
        self._parameters = [p for p in parameters if p.requires_grad]
        self._gradients: list[torch.Tensor | None] | None = (
            None  # None for a parameter that the loss does not depend on
        )
        self._reported: torch.Tensor | None = None
        self._given_up = False
        self._occurred: collections.Counter = collections.Counter()
        self._recorded: dict[tuple, tuple[Batch, torch.cuda.CUDAGraph]] = {}
        self._pool = None  # of memory, which all recordings may share: none leaves anything in it
        on_gpu = self._parameters[0].device.type == "cuda"
        self._stream = torch.cuda.Stream(self._parameters[0].device) if on_gpu else None

    def backward(self, batch: Batch, *constants: float) -> torch.Tensor:
        """Set the parameters' gradients where they are None, else add to them; the loss to report, [], until the next call."""
        adding = self._parameters[0].grad is not None
        with self._aside():
            if not self._fits(batch, adding, constants):  # what the error held is free by now
                self._give_up()
                self._compute(batch, adding, constants)
                tqdm.write(
                    "warning: the GPU has not enough memory to replay CUDA graphs; going on without",
                    file=sys.stderr,
                )
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._reported

    def _fits(self, batch: Batch, adding: bool, constants: tuple) -> bool:
        """Replay, record or compute, if memory suffices. Raises OutOfMemoryError where recordings are given up already."""
        try:
            self._replay_or_compute(batch, adding, constants)
        except torch.OutOfMemoryError:
            if self._given_up:
                raise
            return False
        return True

    def _replay_or_compute(self, batch: Batch, adding: bool, constants: tuple) -> None:
        key = (batch.shape(), adding, constants)
        self._occurred[key] += 1
        if key not in self._recorded:
            if self._given_up or self._occurred[key] == 1 or len(self._recorded) == MOST:
                self._compute(
                    batch, adding, constants
                )  # at first kernels are loaded and compiled: not to be recorded
                return
            graph = record(lambda: self._compute(batch, adding, constants), self._pool)
            self._recorded[key], self._pool = (batch, graph), graph.pool()
        self._replay(*self._recorded[key], batch)

    def _give_up(self) -> None:
        """Free what the recordings keep, and make no more."""
        self._given_up = True
        self._recorded.clear()
        self._pool = None
        torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream of its own, between what this process has asked of the GPU before and what it asks for next.

        autograd ties a parameter to the stream that first used it; were that not the stream of the recording, it would
        make the one wait for the other, which cannot be recorded.
        """
        if self._stream is None:
            yield
            return
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    @staticmethod
    def _replay(recorded: Batch, graph: torch.cuda.CUDAGraph, batch: Batch) -> None:
        for place, value in zip(recorded.tensors(), batch.tensors(), strict=True):
            place.copy_(value)
        graph.replay()

    def _compute(self, batch: Batch, adding: bool, constants: tuple) -> None:
        loss, reported = self._loss(batch, *constants)
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        if self._gradients is None:
            pairs = zip(self._parameters, found, strict=True)
            self._gradients = [
                None if new is None else torch.empty_like(parameter) for parameter, new in pairs
            ]
            self._reported = torch.empty_like(reported)
        kept, new = (
            [g for g in gradients if g is not None] for gradients in (self._gradients, found)
        )
        (torch._foreach_add_ if adding else torch._foreach_copy_)(kept, new)
        self._reported.copy_(reported)


def record(work: Callable[[], None], pool) -> torch.cuda.CUDAGraph:
    """What `work` launches on the current stream, kept to be launched again by `replay()`; nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()  # torch.cuda.graph would also hand back all free memory, to be fetched anew each time
    with uncollected():
        graph.capture_begin(pool)
        try:
            work()
        except BaseException:
            with contextlib.suppress(
                RuntimeError
            ):  # what was recorded up to here may be of no use; the error tells why
                graph.capture_end()
            raise
        graph.capture_end()
    return graph


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's garbage collector, which might free a graph or a kernel of another's: that would spoil a recording."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
