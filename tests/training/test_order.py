"""The order of training rows depends on seed, round and epoch alone."""

import pytest
import torch
from small_tasks import CPU, training

from utils.modeling.runtime import Runtime
from utils.training.order import DataOrder, generator_state, seed_round, set_generator_state


def rows_of(order, round_, steps):
    return [[batch.tolist() for batch in order.batches(round_, step)] for step in steps]


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_an_epoch_takes_no_row_twice_and_drops_incomplete_accumulations_only(accumulation, steps):
    order = DataOrder(17, 5, accumulation, seed=3)
    assert order.steps_per_epoch == steps
    found = rows_of(order, 0, range(steps))
    assert all(len(batches) <= accumulation for batches in found)
    rows = [row for batches in found for batch in batches for row in batch]
    assert rows == order.permutation(0, 0)[: len(rows)].tolist()
    assert len(rows) == {1: 17, 2: 17, 3: 15, 9: 17}[accumulation]


def test_a_step_does_not_depend_on_the_steps_before():
    order = DataOrder(17, 5, 1, seed=3)
    expected = rows_of(order, 1, range(9))
    assert rows_of(DataOrder(17, 5, 1, seed=3), 1, [6, 2, 8, 6]) == [
        expected[step] for step in (6, 2, 8, 6)
    ]
    assert expected[0] != expected[4], "another epoch"
    assert expected[0] != rows_of(order, 2, [0])[0], "another round"
    assert expected[0] != rows_of(DataOrder(17, 5, 1, seed=4), 1, [0])[0], "another seed"


def test_a_batch_spans_all_processes():
    config = training(per_gpu_train_batch_size=4, gradient_accumulation_steps=2, seed=9)
    order = DataOrder.from_config(40, config, Runtime(CPU, world_size=3))
    assert (order.batch_size, order.accumulation, order.seed) == (12, 2, 9)
    assert order.steps_per_epoch == 2
    assert [order.total_steps(*given) for given in ((-1, 3.0), (5, 3.0), (-1, 0.1))] == [6, 5, 1]


def test_ranks_draw_different_numbers_and_generators_are_restored():
    draws = []
    for round_, rank in ((0, 0), (0, 1), (1, 0), (0, 0)):
        seed_round(5, round_, rank)
        draws.append(torch.rand(4).tolist())
    assert draws[0] == draws[3] and len({tuple(draw) for draw in draws}) == 3
    state = generator_state()
    expected = torch.rand(4)
    set_generator_state(state)
    assert torch.equal(torch.rand(4), expected)
