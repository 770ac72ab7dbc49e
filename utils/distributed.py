"""The processes of one run under torchrun: who this one is, its share of the work, what they tell each other."""

import os
import warnings
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

TIMEOUT = timedelta(
    seconds=45
)  # in training: a process that is lost or hangs ends the others within a minute
PATIENCE = timedelta(
    minutes=30
)  # elsewhere: one may import, read data or write a checkpoint longer than the others
_training = None  # the group of all processes with the short timeout


def join(no_cuda: bool) -> torch.device:
    """Join the processes that torchrun started, if it did; the device of this one."""
    cuda = torch.cuda.is_available() and not no_cuda
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    )
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        global _training
        dist.init_process_group("gloo", timeout=PATIENCE)
        _training = dist.new_group(
            backend="cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT
        )
    return device


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def mine(items):
    """This process's share of a sequence: every size-th item."""
    return items[rank() :: size()]


def my_rows(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """This process's rows of a batch, and what its summed loss is divided by for the batch's mean.

    A process that the batch has no row for works on the first one, at weight zero: all must take part in the backward.
    """
    own = mine(rows)
    return (own, float(len(rows))) if len(own) else (rows[:1], float("inf"))


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor, group=_training)
    return tensor


def total_array(array: np.ndarray) -> np.ndarray:
    """The sum of a float32 array over all processes."""
    if size() == 1:
        return array
    return total(torch.from_numpy(array)).numpy()


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Each flag, True if it is True in any process."""
    if size() == 1:
        return flags
    return tuple(bool(vote) for vote in total(torch.tensor(flags, dtype=torch.int64)).tolist())


def gathered(value) -> list:
    """`value` of every process, by rank."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def from_first(value):
    """What the first process holds as `value`."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def wait_for_first() -> None:
    """Wait for what the first process has done alone, however long it takes."""
    from_first(None)


def check_same(value: str, what: str) -> None:
    """Raises RuntimeError if the processes disagree on `value`."""
    values = gathered(value)
    if len(set(values)) > 1:
        raise RuntimeError(f"the processes disagree on the {what}: {values}")


class _Loss(nn.Module):
    """A task's loss as a module, the form that DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module, task):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch) -> torch.Tensor:
        return self.task.loss(self.model, batch)


def loss_module(model: nn.Module, task) -> nn.Module:
    """`task`'s loss on `model`; with several processes, its gradients are averaged over them after each backward."""
    module = _Loss(model, task)
    if size() == 1:
        return module
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # newer versions of torch have another name for broadcast_buffers
        return nn.parallel.DistributedDataParallel(
            module,
            process_group=_training,
            broadcast_buffers=False,
            find_unused_parameters=not model.trains_pooler,
        )
