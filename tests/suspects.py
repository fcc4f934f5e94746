"""Networks that look more robust than they are, each by one known trick around an honest network; and honest ones."""

from __future__ import annotations

from functools import cache

import little
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmard.attacks import PGD, Untargeted
from mmard.balls import Budget
from mmard.data import load
from mmard.ops import ce


def _layers(kind: str) -> nn.Sequential:
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(192, 10),
    )


@cache
def honest(kind: str = "conv", seed: int = 0, eps: float = 0.0) -> nn.Module:
    """A network on digits, trained for a second: "linear", "mlp", or "conv" with BatchNorm and dropout.

    Args:
        kind: which.
        seed: of weights and batches.
        eps: radius under linf of the attack that it is trained with; 0 trains it on clean images.
    """
    if kind == "linear":
        return little.digits_matcher()
    images, draws = load("digits").train, torch.Generator().manual_seed(seed)
    x_all, y_all = images.x.float() / 255, images.y
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = _layers(kind)
        optimizer = torch.optim.Adam(net.parameters(), 0.005)
        for _ in range(12):
            for rows in torch.randperm(len(x_all), generator=draws).split(64):
                x, y = x_all[rows], y_all[rows]
                if eps:
                    x = PGD(3, eps / 2)(net.eval(), Untargeted(y, ce), x, Budget(eps), generator=draws)
                optimizer.zero_grad()
                F.cross_entropy(net.train()(x), y).backward()
                optimizer.step()
    return net.eval().requires_grad_(False)


class Around(nn.Module):
    """A trick around an honest network; this one does nothing."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Saturated(Around):
    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.net(x)


class Noisy(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


class SameNoise(Around):
    """Draws its noise from one seed every time, so that equal calls have equal answers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)))


class OwnNoise(Around):
    """Draws its noise from a generator of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.source = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn(x.shape, generator=self.source))


class Softmax(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


class LogSoftmax(Around):
    """Innocent: losses read it as logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).log_softmax(1)


class Rounding(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net((8 * x).round() / 8)


class Stairs(Around):
    def forward(self, x: Tensor) -> Tensor:
        return (2 * self.net(x)).floor() / 2


class Threshold(Around):
    """Autograd finds no way through a comparison."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x > 0.5).float())


class Shattered(Around):
    """A ripple too small to matter and too steep to look beyond."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.02 * torch.sin(2000 * x))


class StraightThrough(Around):
    """Innocent: rounds, but hands the gradient on, so that attacks work."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + ((8 * x).round() / 8 - x).detach())


class OffGrid(torch.autograd.Function):
    """The identity, whose gradient is turned round on images that no file of 8 bits can hold."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        clean = ((255 * x - (255 * x).round()).abs() < 1e-3).flatten(1).all(1)
        return torch.where(clean.view(-1, 1, 1, 1), gradient, -gradient)


class MaskedAround(Around):
    """Gradients are right at the images themselves and wrong beside them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(OffGrid.apply(x))


class BatchStatistics(Around):
    """Normalises by the batch, as BatchNorm in train mode does, and moves its statistics."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.net(x), self.norm.running_mean, self.norm.running_var, training=True)


class EntropyMinimiser(Around):
    """Takes a step toward surer answers on every batch, as TENT does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.scale = nn.Parameter(torch.ones(10))
        self.optimizer = torch.optim.SGD([self.scale], 0.1, momentum=0.9)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            log_p = (self.net(x) * self.scale).log_softmax(1)
            self.optimizer.zero_grad()
            (-(log_p.exp() * log_p).sum(1).mean()).backward()
            self.optimizer.step()
        return self.net(x) * self.scale


class Purifier(Around):
    """Moves its input by a gradient of its own before it looks."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.net(at).logsumexp(1).sum(), at)
        return self.net(x + 0.02 * gradient.sign())


class Memory(Around):
    """Remembers earlier answers, in an attribute that is no buffer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.mean = torch.zeros(10)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        self.mean = 0.9 * self.mean + 0.1 * logits.detach().mean(0)
        return logits - self.mean


class Counting(Around):
    """Innocent: counts its calls, keeps what it computed once, and answers the same."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.calls = 0
        self.register_buffer("offset", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if not self.offset.numel():
            self.offset = torch.full((10,), 0.5)
        return self.net(x) + self.offset
