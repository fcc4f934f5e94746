"""A table in all its forms: what a name holds is text in every one of them, whatever it looks like."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mmard.screen import THEME
from mmard.tables import table
from mmard.tables.table import MARK, Entry, Table, escaped, markdown_text, off_by
from mmard.words import printable

FIGURES = Table(
    ("network", "PGD-20", Entry("AutoAttack", below="linf 8/255")),
    (
        ("rslad", Entry("52.7", 0.527, spread="±0.5"), Entry("48.2", 0.482, spread="±0.5", strong=True)),
        ("ard", Entry("50.0", 0.5, spread="40.0-60.0", marks=("more-steps",)), Entry()),
        ("minus", Entry("-1.5", -0.015, spread="±0.4 ±0.3"), Entry("+2.0", 0.02)),
    ),
    caption="Accuracy in %, n = 1,000.",
    label="accuracy-1",
)
EVIL = {
    "LaTeX": "a\n\\input{/etc/passwd} \\\\ & $x$ %",
    "spreadsheet": '=HYPERLINK("http://evil","x")',
    "terminal": "a\x1b]0;title\x07\x1b[31mred\x9b1m",
    "HTML": "<script>alert(1)</script>&lt;b&gt;",
    "Markdown": "[click](http://evil) ![](x) `code` **bold** <b> ~~gone~~ | cell",
    "markup": "[bold]name[/bold] [/]",
    "order": "abc\u202egnp.exe",
    "lines": "a\r\nb\u2028c\x85d",
}


def terminal(made: Table, width: int = 120) -> str:
    out = Console(theme=THEME, width=width, force_terminal=True, color_system=None, highlight=False)
    with out.capture() as captured:
        for piece in made.pieces(width):
            out.print(piece)
    return captured.get()


def test_every_form_says_the_figures() -> None:
    lines = FIGURES.markdown().splitlines()
    assert lines[:2] == ["| network | PGD-20 | AutoAttack linf 8/255 |", "| --- | ---: | ---: |"]
    assert lines[2] == "| rslad | 52.7 ± 0.5 | **48.2** ± 0.5 |"
    assert lines[3] == f"| ard | 50.0 (40.0-60.0){MARK} |  |"
    assert lines[4] == "| minus | -1.5 ± 0.4 ± 0.3 | +2.0 |"
    latex = FIGURES.latex()
    assert r"\label{tab:accuracy-1}" in latex
    assert r"\begin{tabular}{lrr}" in latex
    assert r"rslad & 52.7 $\pm$ 0.5 & \textbf{48.2} $\pm$ 0.5 \\" in latex
    assert r"ard & 50.0 (40.0--60.0)$^\dagger$ &  \\" in latex
    assert r"minus & $-1.5$ $\pm$ 0.4 $\pm$ 0.3 & $+2.0$ \\" in latex
    assert list(csv.reader(io.StringIO(FIGURES.csv())))[1:3] == [["rslad", "0.527", "0.482"], ["ard", "0.5", ""]]
    held = json.loads(FIGURES.json())
    assert held["caption"] == FIGURES.caption
    assert held["rows"][0] == {"network": "rslad", "PGD-20": 0.527, "AutoAttack": 0.482}
    shown = terminal(FIGURES)
    for figure in ("52.7\u00a0±0.5", "50.0\u00a040.0-60.0†", "-1.5"):
        assert figure in shown
    html = str(FIGURES.html())
    assert '<span class="strong">48.2</span><span class="under">±0.5</span>' in html
    assert 'href="#check-more-steps"' in html
    assert 'scope="col">AutoAttack<span class="under">linf 8/255</span>' in html


@pytest.mark.parametrize("kind", EVIL)
def test_text_is_text_wherever_it_stands(kind: str) -> None:
    """In a name, a figure, a head, a caption and a note."""
    evil = EVIL[kind]
    made = Table(("a", evil), ((evil, Entry(evil, spread=evil, below=evil)),), caption=evil, label=evil)
    forms = {
        "markdown": table.markdown([made], evil, [evil]), "latex": table.latex([made], evil, [evil]),
        "csv": made.csv(), "html": str(made.html()), "terminal": terminal(made),
    }  # fmt: skip
    for form, text in forms.items():
        assert all(letter.isprintable() or letter in "\n\u00a0" for letter in text), form
    # LaTeX: every line of a cell is one line, no command of ours is theirs, and nothing leaves a comment.
    lines = forms["latex"].splitlines()
    comments = [line for line in lines if line.startswith("%")]
    assert len(comments) == 2
    typeset = "\n".join(line for line in lines if line not in comments)
    assert r"\input" not in typeset
    assert typeset.count(r"\\" + "\n") == 2
    assert len(re.findall(r"(?<!\\)&", typeset)) == 2
    # Spreadsheets: no cell begins a formula.
    cells = [text for row in csv.reader(io.StringIO(forms["csv"])) for text in row]
    assert len(cells) == 4
    assert not any(text.startswith(("=", "+", "-", "@", "\t")) for text in cells)
    # Markdown: a row is a row of two cells, and neither links nor HTML are left.
    row = forms["markdown"].splitlines()[2]
    assert len(re.split(r"(?<!\\)\|", row)) == 4
    assert not re.search(r"(?<!\\)[<>\[\]`*~]", forms["markdown"].replace("<br>", "", 1))  # one second line, ours
    # HTML: only our own elements, and the text as it was.
    seen: set[str] = set()
    data: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            seen.add(tag)

        def handle_data(self, data_: str) -> None:
            data.append(data_)

    Reader().feed(forms["html"])
    assert seen <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span"}
    assert data.count(printable(evil)) == 6
    # A terminal shows square brackets as they are.
    if kind == "markup":
        assert "[bold]name[/bold]" in forms["terminal"].replace("\u00a0", " ")


def test_numbers_are_no_formulas() -> None:
    made = Table.of_records([{"row": "-x", "difference": -0.5, "seeds": [0, 1], "none": None}])
    assert made.csv() == "row,difference,seeds,none\n'-x,-0.5,0 1,\n"


@given(st.text())
def test_printable_is_one_line_of_signs_that_can_be_seen(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown
    if text.isprintable():
        assert shown == text


def test_what_rounds_to_nothing_is_not_certain() -> None:
    assert [off_by(half) for half in (0.0, 0.0004, 0.0005001, 0.012, None)] == ["±<0.1", "±<0.1", "±0.1", "±1.2", ""]
    assert off_by(0.2, 1, 0) == "±<1"
    assert "±<0.1" in Table(("a", "b"), (("x", Entry("50.0", spread=off_by(0.0))),)).markdown().replace(
        "\\", ""
    ).replace("± ", "±")


def test_a_wide_table_is_cut_between_columns_and_keeps_its_names() -> None:
    wide = Table(
        ("network", *(f"attack {c}" for c in range(8))), [("rslad", *(Entry(f"{c}0.0 ± 0.5") for c in range(8)))]
    )
    shown = terminal(wide, 50)
    assert all(len(line) <= 50 for line in shown.splitlines())
    assert shown.count("rslad") > 1
    for c in range(8):
        assert f"{c}0.0\u00a0±\u00a00.5" in shown


def test_heads_that_are_wider_than_figures_crop_none() -> None:
    heads = ("teacher: margin", "teacher: misread %", "teacher: distance", "student: misread %")
    figures = ("3.68 ± 0.02", "+0.12 ± 0.02*", "3.9 ± 0.7", "+1.4 ± 0.3*", "2.47 ± 0.11", "+0.88 ± 0.16*", "15.7 ± 0.5")
    figures = (*figures, "+4.5 ± 1.8*")
    made = Table(("", *(each for head in heads for each in (head, "change"))), [("rslad +inner", *figures)])
    shown = terminal(made, 120)
    assert all(figure.replace(" ", "\u00a0") in shown for figure in figures)


def test_a_star_stands_where_bold_may_be_lost() -> None:
    made = Table(("a", "b"), ((Entry("x", strong=True), Entry("1.0", strong=True)),), star="*")
    assert "1.0*" in terminal(made)
    assert made.markdown().splitlines()[2] == r"| x\* | **1.0** |"


def test_plain_text_is_not_touched() -> None:
    assert markdown_text("PGD-20 (CE, step 2/255)") == "PGD-20 (CE, step 2/255)"
    assert markdown_text("a & b, 50 %") == "a & b, 50 %"
    assert escaped("PGD-20 (CE, step 2/255)") == "PGD-20 (CE, step 2/255)"
