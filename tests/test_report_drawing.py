"""Drawings that belong to the page: its colours, ids of their own, equal characters; and colours that are seen."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("matplotlib")

from mmard.report import palette
from mmard.report.drawing import canvas, spread
from mmard.report.palette import DARK, LIGHT, SERIES, TEXT, TINTS, mark
from mmard.report.plots import Bar, Dot, Line, bar_rows, dot_rows, histogram, line_plot

Array = NDArray[np.float64]

# Machado, Oliveira, Fernandes (2009), severity 1, on linear RGB.
DEFICIENT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# Ottosson's Oklab, whose distances are about as large as differences look.
CONES = np.array(
    [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
)
AXES = np.array(
    [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
)


def linear(colour: str) -> Array:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    light, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def oklab(rgb: Array) -> Array:
    return AXES @ np.cbrt(CONES @ np.clip(rgb, 0, 1))


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(colours: dict[str, str]) -> None:
    for text in TEXT:
        for behind in ("page", "panel"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    assert contrast(colours["alarm"], colours["alarm-panel"]) >= 4.5
    assert contrast(colours["ink"], colours["alarm-panel"]) >= 4.5
    assert contrast(colours["page"], colours["alarm"]) >= 4.5
    for tint in TINTS:
        assert contrast(colours["ink"], colours[tint]) >= 4.5, tint


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_series_stand_out_and_differ_for_every_eye(colours: dict[str, str]) -> None:
    assert all(contrast(colours[name], colours["page"]) >= 3 for name in SERIES)
    for name, matrix in {"": np.eye(3), **DEFICIENT}.items():
        seen = {s: oklab(np.array(matrix) @ linear(colours[s])) for s in SERIES}
        for one, other in itertools.combinations(SERIES, 2):
            assert np.linalg.norm(seen[one] - seen[other]) > 0.08, (name, one, other)


def test_series_differ_without_colour_and_beyond_the_colours() -> None:
    looks = [(palette.series(i), palette.dash(i), palette.marker(i)) for i in range(12)]
    assert len(set(looks)) == 12
    assert len({look[1:] for look in looks[:6]}) == 6


def test_both_schemes_name_the_same_colours() -> None:
    assert LIGHT.keys() == DARK.keys()


def drawn(slug: str = "a") -> str:
    with canvas(slug, 'said "so" & <b>') as made:
        made.axes.plot([1, 2, 3], [3, 1, 2], color=mark("series-0"), marker="o")
        made.axes.fill_between([1, 2, 3], 0, [3, 1, 2], color=mark("series-1"), alpha=0.2)
        made.axes.set_title("<i>$x_1$ & 漢字</i>")
    return str(made.svg)


def test_a_drawing_is_the_same_every_time_and_depends_on_no_settings() -> None:
    import matplotlib as mpl

    first = drawn()
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "lines.linewidth": 9}):
        assert drawn() == first


def test_a_drawing_has_the_colours_of_the_page_alone() -> None:
    svg = drawn()
    assert re.findall(r"#[0-9a-fA-F]{6}\b|rgb\(|\bblack\b", svg) == []
    assert {"var(--series-0)", "var(--series-1)", "var(--grid)"} <= set(re.findall(r"var\([a-z0-9-]+\)", svg))
    assert "font-family" not in svg


def test_a_drawing_refers_to_itself_alone() -> None:
    one, other = drawn("one"), drawn("other")
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((one, other), ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {(i, "") for i in own} | {
            ("", i) for i in own
        }
    assert "xmlns" not in one
    assert "http" not in one


def test_text_in_a_drawing_stays_text() -> None:
    svg = drawn()
    assert "&lt;i&gt;$x_1$ &amp; 漢字&lt;/i&gt;" in svg
    assert 'aria-label="said &#34;so&#34; &amp; &lt;b&gt;"' in svg


@given(
    st.lists(st.floats(0, 200), min_size=1, max_size=8),
    st.floats(1, 20),
)
def test_labels_keep_their_order_and_their_distance(wanted: list[float], gap: float) -> None:
    placed = spread(wanted, gap, 0, 200)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    steps = [placed[b] - placed[a] for a, b in itertools.pairwise(order)]
    assert all(step >= -1e-9 for step in steps)
    if gap * len(wanted) <= 100 and min(wanted) > 50 and max(wanted) < 150:
        assert all(step >= gap - 1e-9 for step in steps)
    if all(b - a >= gap for a, b in itertools.pairwise(sorted(wanted))):
        assert placed == pytest.approx(wanted)


def test_every_kind_of_plot_takes_the_least_there_is() -> None:
    plots = [
        line_plot("l", "alt", [Line([1], [0.5], 0, "one", [0.4], [0.6])], x="x", y="y", fractions=True, whole=True),
        line_plot("n", "alt", [Line([1, 2], [0.0, 0.0])], x="x", y="y"),
        line_plot(
            "g", "alt", [Line([1, 2, 3], [1e-5, 1.0, 10.0], i, f"line {i}") for i in range(9)], x="x", y="y", log=True
        ),
        dot_rows("d", "alt", ["row"], [Dot(0, 0.5)], x="x"),
        bar_rows("b", "alt", [Bar("class", 1.0, 0.0, 0.0, 0.1)], index=0, x="x"),
        histogram("h", "alt", [0, 1], [0], [0], index=7, x="x", y="y", split=(0.5, "wrong", "right")),
    ]
    assert all(plot.startswith('<svg class="plot"') and plot.endswith("</svg>") for plot in plots)
    assert all("nan" not in plot.lower() for plot in plots)


def test_a_curve_goes_through_its_points() -> None:
    svg = line_plot("c", "alt", [Line([0, 10], [0.0, 0.5], 2)], x="x", y="y", fractions=True)
    (path,) = re.findall(r'd="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)" style="[^"]*series-2', svg)
    x0, y0, x1, y1 = map(float, path)
    # The axis ends 36 above the lower edge of 220, where accuracy is 0.
    assert y0 == pytest.approx(184, abs=0.1)
    assert x1 > x0
    assert y1 < y0
