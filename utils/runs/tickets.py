"""tickets.json: the index of the masks that IMP found in an output folder."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils import files, schema
from utils.errors import UserError
from utils.pruning import mask_files, masks
from utils.pruning.origin import read_origin
from utils.runs.records import MaskInfo


@dataclass
class Ticket:
    """A mask found by IMP; its score is None until the next round has trained it."""

    round: int  # counted from 1; `round_` in the code counts from 0
    sparsity: float
    mask: str  # file, relative to the output folder
    mask_sha256: str
    score: float | None = None


@dataclass
class Index:
    """What is read of tickets.json."""

    tickets: list[Ticket]


def read_tickets(folder: Path) -> list[Ticket] | None:
    """Return the tickets in an output folder, None without an index. Raises UserError."""
    index = schema.read(folder / files.TICKETS, Index)
    return None if index is None else index.tickets


def write_tickets(folder: Path, task: str, seed: Any, tickets: list[Ticket]) -> None:
    """Write the index, whole or not at all."""
    entries = [dataclasses.asdict(ticket) for ticket in tickets]
    files.write_json(folder / files.TICKETS, {"task": task, "seed": seed, "tickets": entries})


def restore_tickets(
    folder: Path, saved: Any, rounds: list[int], shapes: Mapping[str, torch.Size]
) -> list[Ticket]:
    """Return the tickets of `rounds` from a checkpoint; None: from tickets.json (early versions).

    Raises UserError if one is missing, or if its mask file is missing, corrupt or another one.
    """
    found = schema.from_json(list[Ticket], saved) if saved is not None else read_tickets(folder)
    tickets = [ticket for ticket in found or [] if ticket.round in rounds]
    if [ticket.round for ticket in tickets] != rounds:
        raise UserError(f"{folder / files.TICKETS}: lacks tickets of this run")
    for ticket in tickets:
        path = folder / ticket.mask
        if masks.digest(mask_files.load(path, shapes)) != ticket.mask_sha256:
            raise UserError(f"{path}: not the mask that this run found")
    return tickets


def mask_of_model(folder: Path, model_folder: Path) -> MaskInfo | None:
    """Return the mask that a saved model was trained with, None if not by IMP. Raises UserError."""
    tickets = read_tickets(folder)
    if tickets is None:
        if any((each / files.MASK).exists() for each in files.model_folders(folder)):
            raise UserError(f"{folder / files.TICKETS}: missing, but it lists the masks of the run")
        return None
    step, found = files.model_folder_step(model_folder), MaskInfo()
    for ticket in tickets:
        path = folder / ticket.mask
        if files.model_folder_step(path.parent) < step:
            origin = read_origin(path, ticket.mask_sha256)
            found = MaskInfo(ticket.sparsity, str(path), ticket.mask_sha256, origin)
    return found
