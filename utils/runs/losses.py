"""Losses of the optimizer steps: fetched from the device in groups, checked and averaged."""

import collections
import math

import numpy as np
import torch

from utils.errors import UserError


class LossReader:
    """Reads loss and gradient norm of each step, and keeps the `recent` losses, at most `window`.

    Reading a GPU's values waits for it, so `add` stores tensors and `read` fetches them together.
    `skips_steps`: a loss scaler skips steps with infinite gradients.
    """

    def __init__(self, window: int, skips_steps: bool) -> None:
        self._skips_steps = skips_steps
        self.recent: collections.deque[float] = collections.deque(maxlen=max(1, window))
        self.unread: list[tuple[int, torch.Tensor, list[np.ndarray]]] = []

    def add(
        self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor, batches: list[np.ndarray]
    ) -> None:
        """Add step `step` of a round, trained on the rows in `batches`."""
        self.unread.append((step, torch.stack((loss.float(), grad_norm.float())), batches))

    def read(self, round_name: str) -> None:
        """Fetch the unread steps, at least one. Raises UserError if a value is not finite."""
        values = torch.stack([pair for _, pair, _ in self.unread]).tolist()
        for (step, _, batches), (loss, norm) in zip(self.unread, values, strict=True):
            wrong = None if math.isfinite(loss) else f"the loss is {loss}"
            if wrong is None and not math.isfinite(norm) and not self._skips_steps:
                wrong = f"the gradient norm is {norm}"
            if wrong:
                rows = ", ".join(str(row) for batch in batches for row in batch)
                where = f" of {round_name}" if round_name else ""
                remedy = "lower --learning_rate"
                if step == 1:  # computed before the first update
                    remedy = "no update came before: check the weights that the run starts from"
                remedy += ", or leave out --fp16" if self._skips_steps else ""
                raise UserError(
                    f"{wrong} at step {step}{where} (training rows {rows}); {remedy}; the last "
                    "good checkpoint is kept"
                )
            self.recent.append(loss)
        self.unread.clear()
