"""The released IMP on GLUE by transformers' model and single operations, in its own process.

python tests/released_replay.py RUN ASSETS OUT: replays the reference run in the folder RUN and
writes to OUT a list with the losses of each round and the mask after it.
"""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from reference_runs import ReferenceRun, glue_folder
from torch import nn
from torch.nn.utils import prune
from transformers import BertForSequenceClassification


class LiteralAdamW:
    """The released rule: eps joins the uncorrected root, decay acts on the new weight."""

    def __init__(self, parameters, eps: float):
        self.eps, self.step_count = eps, 0
        self.state = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    @torch.no_grad()
    def step(self, lr: float, decays: list[float]) -> None:
        self.step_count += 1
        for (p, first, second), decay in zip(self.state, decays, strict=True):
            first.mul_(0.9).add_(p.grad, alpha=1 - 0.9)
            second.mul_(0.999).addcmul_(p.grad, p.grad, value=1 - 0.999)
            size = lr * math.sqrt(1 - 0.999**self.step_count) / (1 - 0.9**self.step_count)
            p.addcdiv_(first, second.sqrt().add_(self.eps), value=-size)
            p.add_(p, alpha=-lr * decay)


def can_replay(run: ReferenceRun) -> bool:
    """GLUE with one batch a step and no weight decay."""
    simple = run.number("gradient_accumulation_steps") == 1 and run.number("weight_decay") == 0
    return run.finds_tickets and run.kind == "glue" and simple


def prunable(model: nn.Module) -> dict[str, nn.Linear]:
    """The matrices of encoder and pooler, by name."""
    encoder = "bert.encoder."
    found = {
        name: part
        for name, part in model.named_modules()
        if name.startswith(encoder) and isinstance(part, nn.Linear)
    }
    return {**found, "bert.pooler.dense": model.bert.pooler.dense}


def rounds(
    run: ReferenceRun, batch: Callable[[np.ndarray], dict]
) -> Iterator[tuple[list[float], dict[str, torch.Tensor]]]:
    """The losses of each round, and the mask after it. `batch`: rows to the model's inputs."""
    labels = len(run.head["classifier.bias"])
    model = BertForSequenceClassification.from_pretrained(
        str(run.assets / "model"), num_labels=labels, attn_implementation="sdpa"
    )
    head = {k.removeprefix("classifier."): torch.from_numpy(v) for k, v in run.head.items()}
    model.classifier.load_state_dict(head)
    theta = {name: p.detach().clone() for name, p in model.bert.named_parameters()}
    modules = prunable(model)
    for module in modules.values():
        prune.identity(module, "weight")
    size, steps = int(run.number("per_gpu_train_batch_size")), int(run.number("save_steps"))
    taken = [rows for epoch in run.order for rows in np.split(epoch, range(size, len(epoch), size))]
    alive, epsilon = {}, run.number("adam_epsilon")
    for round_, pruned in enumerate(run.record["rounds"]):
        model.train()
        optimizer, losses = LiteralAdamW(model.parameters(), epsilon), []
        for step in range(round_ * steps, (round_ + 1) * steps):
            loss = model(**batch(taken[step])).loss
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), run.number("max_grad_norm"))
            optimizer.step(run.steps[step]["lr"], [0.0] * len(optimizer.state))
            losses.append(loss.item())
        sizes = [(m.weight_orig * m.weight_mask).detach().abs() for m in modules.values()]
        flat = torch.cat([size.flatten() for size in sizes])
        keep = torch.ones(len(flat))
        keep[flat.argsort(stable=True)[: pruned["pruned"]]] = 0
        parts = keep.split([size.numel() for size in sizes])
        for (name, module), part in zip(modules.items(), parts, strict=True):
            module.weight_mask.copy_(part.view_as(module.weight_mask))
            alive[name + ".weight_mask"] = module.weight_mask.bool().clone()
        yield losses, dict(alive)
        with torch.no_grad():
            for name, p in model.bert.named_parameters():
                p.copy_(theta[name.removesuffix("_orig")])


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import reference_adapter

    folder, assets, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    run = ReferenceRun(folder, assets, True)
    data = glue_folder(assets, run.task)
    length = int(run.number("max_seq_length"))
    batch = reference_adapter.padded_glue_batch(run.task, data, assets / "model", length)
    torch.save(list(rounds(run, batch)), out)


if __name__ == "__main__":
    main()
