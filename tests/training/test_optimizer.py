"""The optimizer follows the paper's rule, the schedule Table 1."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from utils.config import TrainingConfig
from utils.training.optimizer import PaperAdamW, linear_schedule


class Layers(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.dense = torch.nn.Linear(5, 4, dtype=dtype)
            self.LayerNorm = torch.nn.LayerNorm(4, dtype=dtype)


class LiteralAdamW:
    """The rule as the released code's optimizer writes it."""

    def __init__(self, parameters, eps):
        self.parameters, self.eps, self.steps = parameters, eps, 0
        self.means = [torch.zeros_like(p) for p in parameters]
        self.squares = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, lr, decays):
        self.steps += 1
        for p, mean, square, decay in zip(
            self.parameters, self.means, self.squares, decays, strict=True
        ):
            mean.mul_(0.9).add_(p.grad, alpha=1 - 0.9)
            square.mul_(0.999).addcmul_(p.grad, p.grad, value=1 - 0.999)
            size = lr * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
            p.addcdiv_(mean, square.sqrt().add_(self.eps), value=-size)
            if decay:
                p.add_(p, alpha=-lr * decay)


def optimizer_of(model, weight_decay=0.0):
    config = TrainingConfig(do_train=True, learning_rate=1e-3, weight_decay=weight_decay)
    return PaperAdamW(model, config)


def run(step_of, model, scale):
    """Take 20 steps on gradients of about the size `scale`; return the parameters."""
    generator = torch.Generator().manual_seed(2)
    for number in range(20):
        for p in model.parameters():
            draw = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.grad = scale * draw.to(p.dtype)
        step_of(1e-3 * (1 - number / 20))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_optimizer_follows_the_released_rule(scale, weight_decay):
    ours, literal = Layers(torch.float64), Layers(torch.float64)
    optimizer = optimizer_of(ours, weight_decay)

    def step(lr):
        optimizer.set_lr(lr)
        optimizer.step()

    reference = LiteralAdamW(list(literal.parameters()), 1e-8)
    decays = [weight_decay * (name == "dense.weight") for name, _ in literal.named_parameters()]
    found = run(step, ours, scale)
    expected = run(lambda lr: reference.step(lr, decays), literal, scale)
    start = torch.cat([p.flatten() for p in Layers(torch.float64).parameters()])
    assert (found - expected).abs().max() < 1e-14 and optimizer.steps == 20
    assert (found - start).abs().max() > 1e-4


def test_the_rule_of_torch_differs_if_gradients_are_small():
    ours, theirs = Layers(torch.float64), Layers(torch.float64)
    torch_rule = torch.optim.AdamW(theirs.parameters(), lr=1e-3, eps=1e-8, weight_decay=0.0)
    optimizer = optimizer_of(ours)

    def step(lr, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()

    found = run(lambda lr: step(lr, optimizer), ours, 1e-7)
    assert (found - run(lambda lr: step(lr, torch_rule), theirs, 1e-7)).abs().max() > 1e-4


def test_a_step_that_the_loss_scaler_skips_changes_nothing():
    def train(overflowing):
        layers, scaler = Layers(torch.float32), torch.amp.GradScaler("cpu", init_scale=2.0**8)
        optimizer = optimizer_of(layers, 0.1)
        for overflows in overflowing:
            scaled = float(scaler.scale(torch.tensor(1e-7)))
            for p in layers.parameters():
                p.grad = torch.full_like(p, math.inf if overflows else scaled)
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        weights = torch.cat([p.detach().flatten() for p in layers.parameters()])
        return weights, optimizer.steps, scaler.get_scale()

    found, steps, scale = train([True, True, False, True, False])
    expected, _, _ = train([False, False])
    assert (steps, scale) == (2, 2.0**5)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("total", [1, 10, 30, 1001])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.06, 0.1, 0.999])
def test_a_warm_up_below_1_is_the_share_that_transformers_takes(total, share):
    theirs = SimpleNamespace(warmup_steps=share)  # the class itself needs accelerate
    steps = TrainingArguments.get_warmup_steps(theirs, total)
    found, expected = (linear_schedule(1.0, total, warmup) for warmup in (share, steps))
    assert [found(step) for step in range(total + 1)] == [expected(at) for at in range(total + 1)]


def test_the_schedule_is_linear_to_zero_after_the_warm_up():
    rate = linear_schedule(2e-5, 10, warmup=0)
    expected = [2e-5, 1e-5, 2e-6, 0, 0]
    assert [rate(step) for step in (0, 5, 9, 10, 11)] == pytest.approx(expected, abs=1e-18)
    rate = linear_schedule(2e-5, 10, warmup=4)
    expected = [0, 5e-6, 2e-5, 1e-5, 0]
    assert [rate(step) for step in (0, 1, 4, 7, 10)] == pytest.approx(expected, abs=1e-18)
