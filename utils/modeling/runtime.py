"""Where a model runs: device, precision, and this process's share of the work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

Item = TypeVar("Item")


@dataclass(frozen=True)
class Runtime:
    """Device and precision of the computation, and the rank of this process among `world_size`.

    `group` connects the processes during training; it is None in a run of one process.
    """

    device: torch.device
    precision: str = "fp32"  # or "fp16", "bf16": autocast
    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0, the process that writes and prints."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass in this precision."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's share of a sequence: every `world_size`-th item."""
        return items[self.rank :: self.world_size]

    def share_of_batch(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Return this process's rows of a batch, and the divisor from summed loss to mean loss.

        A process without a row computes the first one with weight zero: every process must take
        part in the backward pass.
        """
        own = rows[self.rank :: self.world_size]
        return (own, float(len(rows))) if len(own) else (rows[:1], float("inf"))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all processes in place and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor
