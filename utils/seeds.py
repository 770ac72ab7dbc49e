"""Every random draw's seed, derived from --seed and the place it is drawn at, so that any round can be repeated alone."""

import numpy as np
import torch


def derive(seed: int, *place: int) -> int:
    """A 63-bit seed for `place` (round, epoch, step, ...) of the run with `seed`."""
    high, low = np.random.SeedSequence([seed, *place]).generate_state(2)
    return (int(high) << 31) ^ int(low)


def seed_round(seed: int, round_: int, rank: int = 0) -> None:
    """Start the global generators (dropout) of a round; `rank` keeps the processes of one run apart."""
    torch.manual_seed(derive(seed, round_, rank))


def generator_state() -> dict[str, torch.Tensor]:
    """The global generators' states, for a checkpoint."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # not with --no_cuda
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_generator_state(state: dict[str, torch.Tensor]) -> None:
    """Put the global generators back to where `generator_state` found them."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Order:
    """The order of training rows: a new permutation each epoch, the last batch of an epoch short (no row dropped).

    A step's batches depend on (seed, round, epoch) alone, so a run can go on at any step without replaying the others.
    """

    def __init__(self, rows: int, batch_size: int, accumulation: int, seed: int):
        self.rows, self.batch_size, self.accumulation, self.seed = (
            rows,
            batch_size,
            accumulation,
            seed,
        )
        self._place, self._permutation = None, None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the rows."""
        batches = -(-self.rows // self.batch_size)
        return max(1, batches // self.accumulation)

    def permutation(self, round_: int, epoch: int) -> np.ndarray:
        """Row numbers in the order of `epoch` of `round_`, int64 [rows]."""
        return np.random.default_rng(derive(self.seed, round_, epoch, 1)).permutation(self.rows)

    def batches(self, round_: int, step: int) -> list[np.ndarray]:
        """Row numbers of each batch that optimizer step `step` of `round_` takes (several with accumulation)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._place != (round_, epoch):
            self._place, self._permutation = (round_, epoch), self.permutation(round_, epoch)
        begin, size = place * self.accumulation * self.batch_size, self.batch_size
        taken = [
            self._permutation[begin + k * size : begin + (k + 1) * size]
            for k in range(self.accumulation)
        ]
        return [rows for rows in taken if len(rows)]
