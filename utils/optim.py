"""The optimizer and learning-rate schedule of the paper (Table 1), by the rule of the released code's AdamW."""

import math
from collections.abc import Callable

import torch
from torch import nn

BETA2 = 0.999


class ReleasedAdamW(torch.optim.AdamW):
    """AdamW as the released code's optimizer computed it: eps is added before the bias correction, decay comes last.

    `sqrt(v) + eps`, then both corrections in the step size; torch's own rule adds eps to the corrected root, which
    differs where gradients are small. torch's step with eps / sqrt(1 - beta2**t) is the released step exactly.
    """

    def __init__(self, model: nn.Module, lr: float, eps: float, weight_decay: float):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        plain = [p for name, p in named if name.endswith("bias") or "LayerNorm.weight" in name]
        plain_ids = {id(p) for p in plain}
        decayed = [p for _, p in named if id(p) not in plain_ids]
        super().__init__([{"params": decayed}, {"params": plain}], lr=lr, eps=eps, weight_decay=0.0, fused=True)
        self.released_eps, self.released_decay, self.steps = eps, weight_decay, 0
        self._step_supports_amp_scaling = False  # a step that GradScaler skips is not taken at all: no count, no decay

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            group["eps"] = self.released_eps / math.sqrt(1 - BETA2**self.steps)
        super().step(closure)
        if self.released_decay:
            group = self.param_groups[0]
            touched = [p for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(touched, 1 - group["lr"] * self.released_decay)

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next step."""
        for group in self.param_groups:
            group["lr"] = lr


def linear_schedule(peak: float, total: int, warmup: int = 0) -> Callable[[int], float]:
    """Step (from 0) -> learning rate: up over `warmup` steps, then linear from `peak` to zero at step `total`."""

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step / warmup)
        return peak * max(0.0, (total - step) / max(1, total - warmup))

    return rate
