"""The optimizer and the learning-rate schedule of the paper (Table 1)."""

import math
from collections.abc import Callable

import torch
from torch import nn

from utils.config import TrainingConfig

BETA1, BETA2 = 0.9, 0.999


class PaperAdamW(torch.optim.AdamW):
    """AdamW by the rule of the paper's code: eps before the bias correction, weight decay last.

    The rule divides by `sqrt(v) + eps` and applies both bias corrections to the step size; torch
    adds eps to the corrected root. torch's step with `eps / sqrt(1 - beta2**t)` is exactly this
    rule. Biases and LayerNorm weights do not decay.
    """

    fused = True  # one kernel

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        groups: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": []}
        for name, parameter in model.named_parameters():
            is_plain = name.endswith("bias") or "LayerNorm.weight" in name
            groups["plain" if is_plain else "decayed"].append(parameter)
        super().__init__(
            [{"params": group} for group in groups.values()],
            lr=config.learning_rate,
            betas=(BETA1, BETA2),
            weight_decay=0.0,  # torch decays the weight before its update
            fused=self.fused,
        )
        self.eps, self.decay, self.steps = config.adam_epsilon, config.weight_decay, 0
        # Private, no public equivalent: a step that GradScaler skips must not count or decay.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        self.steps += 1
        self._update()
        if self.decay:
            group = self.param_groups[0]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter, alpha=-group["lr"] * self.decay)

    def _update(self) -> None:
        """Take Adam's step number `self.steps`, without weight decay."""
        for group in self.param_groups:
            group["eps"] = self.eps / math.sqrt(1 - BETA2**self.steps)
        super().step()

    def set_lr(self, learning_rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.param_groups:
            group["lr"] = learning_rate


def linear_schedule(peak: float, total: int, warmup: float) -> Callable[[int], float]:
    """Return step (from 0) -> learning rate.

    It rises linearly to `peak` over `warmup` steps (below 1: that share of `total`, rounded up, as
    in transformers), then falls linearly to 0 at step `total`.
    """
    if warmup < 1:
        warmup = math.ceil(total * warmup)

    def learning_rate(step: int) -> float:
        if step < warmup:
            return peak * (step / warmup)
        return peak * max(0.0, (total - step) / max(1, total - warmup))

    return learning_rate
