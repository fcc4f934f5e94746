"""Every attack of AutoAttack on a model whose worst case in the ball and the box is known, alone and in batches."""

from __future__ import annotations

import numpy as np
import torch
from laws import over
from nets import generator, images
from test_fab import way_by_bisection
from torch import Tensor, nn

from mmard.attacks.apgd import APGD
from mmard.attacks.fab import FAB
from mmard.attacks.square import Square
from mmard.balls import NORMS, Budget

SHAPE = (1, 6, 6)
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
ATTACKS = {
    "apgd-ce": APGD("ce", steps=60),
    "apgd-dlr": APGD("dlr", steps=60),
    "apgd-t": APGD("targeted-dlr", steps=60, targets=3),
    "fab-t": FAB(steps=40, targets=3),
    "square": Square(queries=600),
}
REACH = {
    # How far beyond the boundary the ball must reach. FAB walks to it; APGD keeps to a smallest step, and under l1 the
    # box, which cuts the ball into many corners, leaves it some way off. Square knows no gradient, and its patches are
    # rectangles where the worst case has a sign for every pixel.
    "apgd": {"linf": 1.02, "l2": 1.05, "l1": 1.3},
    "fab-t": {"linf": 1.01, "l2": 1.02, "l1": 1.02},
    "square": {"linf": 2.5, "l2": 3.5, "l1": 3.5},
}


class Two(nn.Module):
    """Linear logits of one direction: class 1 against class 0, and two that never win."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.randn(SHAPE, generator=generator(5), dtype=torch.float64)
        self.slope = nn.Parameter(drawn + 0.3 * drawn.sign())

    def forward(self, x: Tensor) -> Tensor:
        lead = ((x - 0.5) * self.slope).flatten(1).sum(1)
        return torch.stack((lead / 2, -lead / 2, -lead.abs() - 9, -lead.abs() - 11), 1)


def distances(model: Two, x: Tensor, y: Tensor, norm: str) -> np.ndarray:
    """How far the boundary is within the box, for every image."""
    w = model.slope.detach().flatten().numpy()
    found = []
    for point, label in zip(x.flatten(1).numpy(), y.tolist(), strict=True):
        sign = 1 if label == 0 else -1
        way = way_by_bisection(point, sign * w, sign * float(w.sum()) / 2, norm)
        found.append(np.linalg.norm(way, ord=ORDERS[norm]))
    return np.array(found)


@over("norm", NORMS)
@over("name", ATTACKS)
@over("batch", [1, 3, 8])
def test_who_falls_is_known(name: str, norm: str, batch: int) -> None:
    model, x = Two(), images(24, seed=3, shape=SHAPE)
    y = model(x).argmax(1)
    far = distances(model, x, y, norm)
    order = np.argsort(far)[6:]
    reach = REACH[name.split("-")[0] if name.startswith("apgd") else name][norm]
    budget = Budget(float(np.quantile(far, 0.8 if name == "square" else 0.6)), norm)
    chosen = order[np.linspace(0, len(order) - 1, batch).astype(int)] if batch > 1 else order[:1]
    x, y, far = x[chosen], y[chosen], far[chosen]
    x_adv = ATTACKS[name](model, x, y, budget, generator=generator(1))
    fallen = (model(x_adv).argmax(1) != y).numpy()
    assert fallen[far * reach <= budget.eps].all(), (far / budget.eps)[~fallen]
    assert not fallen[far > budget.eps * (1 + 1e-9)].any()
    assert (far * reach <= budget.eps).any() or name == "square"
    assert (budget.distance(x_adv, x) <= budget.eps * (1 + 1e-9)).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
