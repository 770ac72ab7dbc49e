"""Seeds of random draws: --seed and a seed path give one, so any round can be repeated alone."""

import numpy as np


def derive_seed(seed: int, *path: int) -> int:
    """Return a 63-bit seed for the seed path (round, epoch, step, ...) of a run with `seed`."""
    high, low = np.random.SeedSequence([seed, *path]).generate_state(2)
    return (int(high) << 31) ^ int(low)
