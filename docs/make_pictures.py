"""Draw the pictures of the documentation from the records in results/. Needs the extra mmard[plots].

python docs/make_pictures.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
INK, MUTED, HOST, GROWN = "#1f2933", "#7b8794", "#7b8794", "#0b7285"


def digits_defaults() -> None:
    """Robust accuracy of every variant of the study: a dot for each seed, a bar for the mean."""
    study = json.loads((ROOT / "results" / "digits-defaults.json").read_text(encoding="utf-8"))
    cells: dict[str, list[float]] = {}
    for cell in study["cells"]:
        cells.setdefault(cell["variant"], []).append(100 * cell["robust"])
    names = sorted(cells, key=lambda name: statistics.mean(cells[name]))
    host = statistics.mean(cells["rslad"])
    figure, axes = plt.subplots(figsize=(7.6, 0.34 * len(names) + 1.3), dpi=160)
    axes.axvline(host, color=HOST, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    for row, name in enumerate(names):
        colour = HOST if name == "rslad" else GROWN
        axes.plot(cells[name], [row] * len(cells[name]), "o", color=colour, alpha=0.45, markersize=5, markeredgewidth=0)
        axes.plot([statistics.mean(cells[name])] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.4)
    axes.set_yticks(range(len(names)), [n if n == "rslad" else f"+ {n}" for n in names], color=INK, fontsize=9)
    axes.set_xlabel("robust accuracy, % (worst of PGD-40 and CW-40, linf 0.15)", color=INK, fontsize=9)
    seeds = max(map(len, cells.values()))
    axes.set_title(
        f"A student of 4,038 weights on digits: RSLAD, and MMARD's parts on it ({seeds} seeds)",
        loc="left",
        fontsize=10,
        color=INK,
    )
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "pictures" / "digits-defaults.png", facecolor="white")


if __name__ == "__main__":
    digits_defaults()
