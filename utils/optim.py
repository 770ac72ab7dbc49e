"""The optimizer and learning-rate schedule of the paper (Table 1), by the rule of the released code's AdamW."""

import math
from collections.abc import Callable

import torch
from torch import nn

BETA1, BETA2 = 0.9, 0.999


class ReleasedAdamW(torch.optim.AdamW):
    """AdamW as the released code's optimizer computed it: eps is added before the bias correction, decay comes last.

    `sqrt(v) + eps`, then both corrections in the step size; torch's own rule adds eps to the corrected root, which
    differs where gradients are small. torch's step with eps / sqrt(1 - beta2**t) is the released step exactly, and fused it
    is one kernel. `fused` False takes the released operations one by one, which round as theirs did.
    """

    def __init__(
        self, model: nn.Module, lr: float, eps: float, weight_decay: float, fused: bool = True
    ):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        plain = [p for name, p in named if name.endswith("bias") or "LayerNorm.weight" in name]
        plain_ids = {id(p) for p in plain}
        decayed = [p for _, p in named if id(p) not in plain_ids]
        groups = [{"params": decayed}, {"params": plain}]
        super().__init__(
            groups, lr=lr, betas=(BETA1, BETA2), eps=eps, weight_decay=0.0, fused=fused
        )
        self.released_eps, self.released_decay, self.steps = eps, weight_decay, 0
        self._step_supports_amp_scaling = (
            False  # a step that GradScaler skips is not taken at all: no count, no decay
        )

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        if self.defaults["fused"]:
            for group in self.param_groups:
                group["eps"] = self.released_eps / math.sqrt(1 - BETA2**self.steps)
            super().step(closure)
        else:
            for group in self.param_groups:
                self._step_by_operations(
                    [p for p in group["params"] if p.grad is not None], group["lr"]
                )
        if self.released_decay:
            group = self.param_groups[0]
            touched = [p for p in group["params"] if p.grad is not None]
            torch._foreach_add_(touched, touched, alpha=-group["lr"] * self.released_decay)

    def _step_by_operations(self, parameters: list[nn.Parameter], lr: float) -> None:
        size = lr * math.sqrt(1 - BETA2**self.steps) / (1 - BETA1**self.steps)
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())  # torch's load_state_dict looks for it
                state["exp_avg"], state["exp_avg_sq"] = (
                    torch.zeros_like(parameter),
                    torch.zeros_like(parameter),
                )
            state["step"] += 1
            state["exp_avg"].mul_(BETA1).add_(gradient, alpha=1 - BETA1)
            state["exp_avg_sq"].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            parameter.addcdiv_(
                state["exp_avg"], state["exp_avg_sq"].sqrt().add_(self.released_eps), value=-size
            )

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
