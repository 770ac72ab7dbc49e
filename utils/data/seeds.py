"""Seeds of random draws: --seed and a seed path give one, so any round can be repeated alone."""

import numpy as np

# Last number of a seed path: it separates draws with otherwise equal paths.
ORDER = 1  # of the training rows of an epoch
TASK = 3  # of a task's training batch, such as the tokens that MLM masks


def derive_seed(seed: int, *path: int) -> int:
    """Return a 63-bit seed for the seed path (round, epoch, step, ...) of a run with `seed`."""
    high, low = np.random.SeedSequence([seed, *path]).generate_state(2)
    return (int(high) << 31) ^ int(low)
