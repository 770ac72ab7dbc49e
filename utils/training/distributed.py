"""The processes that torchrun starts: join them, exchange values, and average gradients."""

import itertools
import os
import warnings
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from utils.errors import UserError
from utils.modeling.bert import BertTaskModel
from utils.modeling.packing import Batch
from utils.modeling.runtime import Runtime
from utils.tasks.base import Task

TRAINING_TIMEOUT = timedelta(seconds=45)  # a lost process ends the others within a minute
TIMEOUT = timedelta(minutes=30)  # elsewhere: rank 0 may read data or write a checkpoint longer

Value = TypeVar("Value")


def meet() -> tuple[dist.Store, int, int] | None:
    """Meet the processes of torchrun; return a store that all share, the rank and the world size.

    Return None if this process is alone. Raises UserError if torchrun's variables are wrong.
    """
    if dist.is_initialized() or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    try:
        int(os.environ.get("LOCAL_RANK", "0"))
        if not 0 <= int(os.environ.get("RANK", "0")) < int(os.environ["WORLD_SIZE"]):
            raise ValueError("the rank is not one of the processes")
        store, rank_, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    except ValueError as error:
        given = " ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        raise UserError(f"{given}: {error}; start the processes with torchrun") from error
    dist.init_process_group("gloo", store=store, rank=rank_, world_size=size, timeout=TIMEOUT)
    return dist.PrefixStore("end", store.clone()), rank_, size


def join(no_cuda: bool, precision: str = "fp32") -> Runtime:
    """Return where this process runs, after `meet`."""
    cuda = torch.cuda.is_available() and not no_cuda
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        return Runtime(device, precision)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    group = dist.new_group(backend=backend, timeout=TRAINING_TIMEOUT)
    return Runtime(device, precision, dist.get_rank(), dist.get_world_size(), group)


def leave() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def any_of(runtime: Runtime, *flags: bool) -> tuple[bool, ...]:
    """Return each flag, True if it is True in any process."""
    votes = runtime.sum(torch.tensor(flags, dtype=torch.int64))
    return tuple(vote > 0 for vote in votes.tolist())


def gather(value: Value) -> list[Value]:
    """Return the values of all processes, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Value) -> Value:
    """Return rank 0's value."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_main() -> None:
    """Wait until rank 0 arrives here, up to TIMEOUT."""
    broadcast(None)


def check_same(values: dict[str, Any]) -> None:
    """Raise UserError in every process that names the first of `values` in which they differ."""
    first, *others = gather(values)
    for name, (rank, theirs) in itertools.product(first, enumerate(others, 1)):
        if theirs.get(name, first[name]) != first[name]:
            raise UserError(
                f"process {rank} has other {name} than process 0; give all processes the same "
                "files and flags"
            )


class _Loss(nn.Module):
    """A task's loss as a module, which DistributedDataParallel wraps."""

    def __init__(self, model: BertTaskModel, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.task.loss(self.model, batch)


def loss_module(model: BertTaskModel, task: Task, runtime: Runtime) -> nn.Module:
    """Return batch -> loss; with several processes, a backward pass averages their gradients."""
    module = _Loss(model, task)
    if runtime.world_size == 1:
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch renames broadcast_buffers
        return nn.parallel.DistributedDataParallel(
            module,
            process_group=runtime.group,
            broadcast_buffers=False,
            find_unused_parameters=not model.trains_pooler,
        )
