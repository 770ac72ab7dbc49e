"""Training one subnetwork (or the dense model) on a task, as the paper scores its tickets."""

from dataclasses import dataclass
from pathlib import Path

from utils import distributed, files, masks, models, seeds
from utils.optim import linear_schedule
from utils.training import Plan, Trainer
from utils.watch import Watch


@dataclass(frozen=True)
class Ticket:
    """The subnetwork in training: its mask's row in the results, and its mask (None: dense)."""

    row: dict
    mask: masks.Mask | None


def describe_mask(path: Path | None, mask: masks.Mask | None, info: dict | None) -> dict:
    """What a results row says of a mask: measured sparsity, file, digest, where it comes from."""
    if mask is None:
        return {"sparsity": 0.0, "mask": None, "mask_sha256": None, "mask_info": None}
    return {
        "sparsity": round(masks.sparsity(mask), 9),
        "mask": str(path),
        "mask_sha256": masks.digest(mask),
        "mask_info": info,
    }


def fine_tune(trainer: Trainer, total: int, planned: int, order: seeds.Order, watch: Watch) -> None:
    """Train for `total` steps with the learning rate linear to zero over `planned`; goes on from a checkpoint if any."""
    _, done = watch.resume() or (0, 0)
    watch.begin_round(0, 0, done)
    if done == 0:
        seeds.seed_round(order.seed, 0, distributed.rank())
    rate = linear_schedule(trainer.recipe.learning_rate, planned, trainer.recipe.warmup_steps)
    trainer.train(
        Plan(total, rate, lambda step: order.batches(0, step)), done, (order.seed, 0), watch
    )
    watch.flush()


def save_checkpoint(model, tokenizer, folder: Path, step: int, keep: int | None) -> None:
    """Save the plain model in checkpoint-STEP, and drop the oldest beyond `keep`."""
    if distributed.first():
        with files.folder_written_whole(folder / files.checkpoint_name(step)) as temporary:
            models.save_pretrained(model, tokenizer, temporary)
        found = files.checkpoints(folder)
        for old in found[: 0 if keep is None else max(0, len(found) - keep)]:
            files.remove_folder(old)
    distributed.wait_for_first()


def save_final(model, tokenizer, folder: Path) -> None:
    """Put the trained model into the output folder itself, each file whole."""
    if distributed.first():
        with files.folder_written_whole(folder / files.checkpoint_name(0)) as temporary:
            models.save_pretrained(model, tokenizer, temporary)
        for file in (folder / files.checkpoint_name(0)).iterdir():
            file.replace(folder / file.name)
        (folder / files.checkpoint_name(0)).rmdir()
    distributed.wait_for_first()
