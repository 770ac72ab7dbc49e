"""Forward and backward passes as CUDA graphs: one launch instead of thousands."""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from utils.files import warn
from utils.modeling.packing import Batch

MAX_GRAPHS = 200  # each takes some megabytes of GPU memory; batches of further shapes run without


class CudaGraphs:
    """Loss and gradients of batches: captured when a shape of batch occurs again, then replayed.

    `loss(batch, *constants)` returns the loss to differentiate and the loss to report (detached).
    A graph reads parameters and masks at fixed addresses and writes gradients to buffers of this
    object: change them only in place. If the GPU runs out of memory, the graphs are freed and no
    more are captured.
    """

    def __init__(
        self,
        loss: Callable[..., tuple[torch.Tensor, torch.Tensor]],
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self._loss, self._parameters = loss, parameters
        # None for a parameter that the loss does not depend on
        self._gradients: list[torch.Tensor | None] = []
        self._reported = torch.empty(())
        self._disabled = False
        self._seen: set[Any] = set()  # shapes of batches
        self._captured: dict[Any, tuple[Batch, torch.cuda.CUDAGraph]] = {}
        self._pool: Any = None  # memory that all graphs share: none leaves anything in it
        device = parameters[0].device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def backward(self, batch: Batch, *constants: float) -> torch.Tensor:
        """Set the parameters' gradients if they are None, else add to them.

        Returns the loss to report, [], which the next call overwrites. Raises OutOfMemoryError if
        the pass does not fit without a graph either.
        """
        adding = self._parameters[0].grad is not None
        compute = functools.partial(self._compute, batch, adding, constants)
        fits = True
        with self._side_stream():
            try:
                self._replay_or_compute(compute, batch, (batch.shape(), adding, constants))
            except torch.OutOfMemoryError:
                if self._disabled:
                    raise
                fits = False
            if not fits:  # not within `except`, where the error still holds the tensors of the pass
                self._disabled = True
                self._captured.clear()
                self._pool = None
                torch.cuda.empty_cache()
                warn("not enough GPU memory to replay CUDA graphs; continuing without")
                compute()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._reported

    def _replay_or_compute(
        self, compute: Callable[[], None], batch: Batch, key: tuple[Any, ...]
    ) -> None:
        """Replay the graph of `key`, captured if need be and allowed, or else call `compute`."""
        if key not in self._captured:
            # The first pass loads and compiles kernels, which cannot be captured.
            first = key not in self._seen
            self._seen.add(key)
            if self._disabled or first or len(self._captured) == MAX_GRAPHS:
                compute()
                return
            graph = capture(compute, self._pool)
            self._captured[key], self._pool = (batch, graph), graph.pool()
        captured, graph = self._captured[key]
        for static, value in zip(captured.tensors(), batch.tensors(), strict=True):
            static.copy_(value)
        graph.replay()

    @contextlib.contextmanager
    def _side_stream(self) -> Iterator[None]:
        """Work on one stream of our own, after earlier and before later work of this process.

        autograd ties a parameter to the stream that first uses it. If that is not the stream of the
        capture, autograd makes one wait for the other, which cannot be captured.
        """
        if self._stream is None:
            yield
            return
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            yield
        outer.wait_stream(self._stream)

    def _compute(self, batch: Batch, adding: bool, constants: tuple[float, ...]) -> None:
        loss, reported = self._loss(batch, *constants)
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        if not self._gradients:
            self._gradients = [None if new is None else torch.empty_like(new) for new in found]
            self._reported = torch.empty_like(reported)
        buffers = [gradient for gradient in self._gradients if gradient is not None]
        new = [gradient for gradient in found if gradient is not None]
        # Private, without a public equivalent: one kernel for all parameters instead of 200.
        (torch._foreach_add_ if adding else torch._foreach_copy_)(buffers, new)
        self._reported.copy_(reported)


def capture(work: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
    """Capture what `work` launches on the current stream; only `replay()` computes it."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()  # torch.cuda.graph() would also release all cached memory
    gc.disable()  # collecting another graph would invalidate the capture
    try:
        graph.capture_begin(pool)
        try:
            work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the capture is incomplete
                graph.capture_end()
            raise
        graph.capture_end()
    finally:
        gc.enable()
    return graph
