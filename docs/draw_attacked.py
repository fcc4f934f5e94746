"""Draw the picture on top of README.md: the first test digits, attacked, and what two networks read in them.

mmard demo
python docs/draw_attacked.py runs/demo/natural-* runs/demo/ard+mmard-*
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import mmard

OUT = Path(__file__).resolve().parent.parent / "results" / "pictures" / "attacked.png"
FIRST = 10
ATTACK, BUDGET = mmard.PGD(steps=40, step_size=0.0375, start="uniform"), mmard.Budget(0.15)


def rows(undefended: str, student: str) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Lines of the picture: what it shows, images (n, 1, 8, 8) in [0, 1], and the class read in each (n,)."""
    images = mmard.load("digits").test
    x, y = images.x[:FIRST].float() / 255, images.y[:FIRST]
    made = []
    for name, run in (("undefended", undefended), ("trained with\nARD+MMARD", student)):
        net = mmard.load_network(run, which="last").module.eval()

        def objective(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(logits, y, reduction="none")

        x_adv = ATTACK(net, objective, x, BUDGET, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            made += [(f"{name},\nas it is", x, net(x).argmax(1)), (f"{name},\nattacked", x_adv, net(x_adv).argmax(1))]
    return made


def main(undefended: str, student: str) -> None:
    """Write the picture."""
    lines = rows(undefended, student)
    truth = mmard.load("digits").test.y[:FIRST]
    figure = Figure(figsize=(8.2, 4.3), facecolor="white")
    axes = figure.subplots(len(lines), FIRST)
    for row, (name, x, read) in zip(axes, lines, strict=True):
        for place, (axis, image, said, y) in enumerate(zip(row, x, read.tolist(), truth.tolist(), strict=True)):
            axis.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            wrong = said != y
            axis.set_title(f"reads {said}", fontsize=9, pad=3, color="#b3201a" if wrong else "#1a6f5f", weight="bold")
            for spine in axis.spines.values():
                spine.set(edgecolor="#b3201a" if wrong else "#d5dadf", linewidth=1.6 if wrong else 0.8)
            if place == 0:
                axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)
    figure.tight_layout(h_pad=0.6, w_pad=0.4)
    figure.savefig(OUT, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main(*sys.argv[1:3])
