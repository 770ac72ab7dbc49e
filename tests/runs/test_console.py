"""The progress bar's time left."""

import time

from utils.runs import console


def test_steps_of_an_earlier_process_do_not_count_as_fast():
    with console.progress_bar(1000, shown=True) as bar:
        bar.mininterval = 0
        console.skip_steps(bar, 500)
        assert bar.n == bar.format_dict["initial"] == 500
        for _ in range(2):
            time.sleep(0.05)
            bar.update()
        assert bar.n == 502
        assert bar.format_dict["rate"] <= 50  # a step takes 50 ms or more


def test_a_hidden_bar_accepts_skipped_steps():
    with console.progress_bar(1000, shown=False) as bar:
        console.skip_steps(bar, 500)
        bar.update()
