"""A comparison written down: what is in a file can be read back, and LaTeX has nothing left to trip over."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import folder, record
from rich.console import Console

from mmard.cli import answer
from mmard.files import write_json
from mmard.screen import THEME, put
from mmard.tables.comparison import Comparison, comparison
from mmard.tables.paper import ENDINGS, FORMATS, caption, latex, markdown, table_csv, table_json, table_of
from mmard.tables.table import MARK, escaped

SPECIAL = re.compile(r"(?<!\\)[&%#_^~<>]")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two methods of three seeds, a teacher of one with a raised suspicion; names with every sign that LaTeX minds."""
    made = []
    for method, first in (("trades", 50), ("pgd_at", 40)):
        for seed in range(3):
            run = folder(tmp_path / f"{method}-{seed}", method, seed)
            record(run, first + seed, images="a_set, 100 % of {it} & more #1")
            record(run, 90 + seed, "clean", images="a_set, 100 % of {it} & more #1")
            made.append(run.path)
    big = folder(tmp_path / "big", "trades", model="cnn-32", lr=0.05)
    record(big, 60, images="a_set, 100 % of {it} & more #1")
    (big.path / "findings").mkdir()
    finding = {"check": "softmax-outputs", "verdict": "suspicious", "says": "", "figures": {}}
    head = {"which": "best", "split": "test", "n": 9, "seed": 0}
    body = {"kind": "checks", "weights": "wbig", "findings": [finding]}
    write_json(big.path / "findings" / "c.json", head | body)
    return [*made, big.path]


@pytest.fixture
def made(runs: list[Path]) -> Comparison:
    return comparison(runs, against="pgd_at")


def tabulars(text: str) -> Iterator[list[str]]:
    for body in re.findall(r"\\begin\{tabular\}\{(l\w*)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        spec, inside = body
        lines = [line.strip() for line in inside.splitlines() if line.strip().endswith(r"\\")]
        assert len(spec) == len(re.split(r"(?<!\\)&", lines[0]))
        yield lines


def test_latex_has_no_sign_that_it_would_trip_over(made: Comparison) -> None:
    text = latex(made)
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        inside = line.replace(r"\\", "")
        ampersands = inside.count(" & ")
        rest = re.sub(r" & ", " ", inside) if r"\\" in line else inside
        assert not SPECIAL.search(rest.replace(r"$^\dagger$", "")), line
        assert inside.count("{") - inside.count(r"\{") == inside.count("}") - inside.count(r"\}"), line
        assert (inside.count("$") - inside.count(r"\$")) % 2 == 0, line
        assert ampersands == 0 or line.strip().endswith(r"\\")
    assert text.isascii()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2


def test_every_row_of_a_latex_table_has_every_column(made: Comparison) -> None:
    tables = list(tabulars(latex(made)))
    assert len(tables) == 2
    for lines in tables:
        assert len({len(re.split(r"(?<!\\)&", line)) for line in lines}) == 1


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_escaping_keeps_every_letter(text: str) -> None:
    names = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
        r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotedbl{}": '"',
    }  # fmt: skip
    pattern = "|".join(map(re.escape, names)) + r"|\\[&%$#_{}]"
    assert re.sub(pattern, lambda m: names.get(m[0], m[0][-1]), escaped(text)) == text


def test_bold_marks_and_spreads_are_in_both_forms(made: Comparison) -> None:
    assert "**51.0** ± 1.0" in markdown(made)
    assert r"\textbf{51.0} $\pm$ 1.0" in latex(made)
    assert f"60.0 (50.2-69.1){MARK}" in markdown(made)
    assert r"60.0 (50.2--69.1)$^\dagger$" in latex(made)
    assert "$+10.0$ $\\pm$ " in latex(made)
    assert "softmax-outputs" in markdown(made)


def test_markdown_tables_are_whole(made: Comparison) -> None:
    rows = [line for line in markdown(made).splitlines() if line.startswith("|")]
    assert len(rows) == (2 + 3) + (2 + 2)
    assert len({len(re.split(r"(?<!\\)\|", row)) for row in rows[:5]}) == 1


def test_csv_and_json_hold_the_table(made: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(table_csv(made))))
    assert len(lines) == len(made.cells) == 5
    by_row = {(line["row"], line["attack"]): line for line in lines}
    found = by_row["trades on cnn-4", "pgd-20"]
    assert float(found["mean"]) == pytest.approx(0.51)
    assert float(found["deviation"]) == pytest.approx(0.01)
    assert found["seeds"] == "0 1 2"
    assert float(found["difference"]) == pytest.approx(0.1)
    assert by_row["trades on cnn-32", "pgd-20"]["deviation"] == ""
    held = json.loads(table_json(made))
    assert [cell["row"] for cell in held["cells"]] == [line["row"] for line in lines]
    assert [len(cell["figures"]) for cell in held["cells"]] == [len(line["seeds"].split()) for line in lines]
    assert len(held["captions"]) == 1


@pytest.mark.parametrize(("second", "over"), [(50, "images"), (52, "seeds")])
def test_a_file_says_what_its_interval_is_over(second: int, over: str, tmp_path: Path) -> None:
    """Two seeds that agree have no interval over seeds; that over images stands in its place."""
    both = [folder(tmp_path / f"trades-{seed}", "trades", seed) for seed in range(2)]
    for run, correct in zip(both, (50, second), strict=True):
        record(run, correct)
    (cell,) = json.loads(table_json(comparison([run.path for run in both])))["cells"]
    assert cell["interval_over"] == over


def test_a_caption_can_be_read_alone(made: Comparison) -> None:
    (sample,) = made.samples
    text = caption(made, sample)
    for said in (
        "linf 8/255", "n = 100", "a_set", "dddddddd", "PGD-20 (CE, step 2/255, uniform start, 1 restart)",
        "batches of 250 from attack seed 0", "Mean ± standard deviation", "chosen on validation images", "Bold",
    ):  # fmt: skip
        assert said in text
    alone = comparison([path for row in made.rows for path in row.configuration.runs if path.name == "big"])
    assert "One seed of training" in caption(alone, alone.samples[0])
    assert "Bold" not in caption(alone, alone.samples[0])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_shows_every_figure_whole(made: Comparison, width: int) -> None:
    out = Console(theme=THEME, width=width, force_terminal=True, color_system=None, highlight=False)
    with out.capture() as captured:
        for piece in table_of(made, made.samples[0], with_differences=True).pieces(width):
            put(out, piece)
    text = captured.get()
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for figure in ("91.0", "51.0", "41.0", "60.0", "+10.0"):
        assert figure in text


# the command ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_written_in_the_form_that_its_name_asks_for(
    runs: list[Path], ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"table{ending}"
    assert answer(["compare", *map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip().endswith(ENDINGS[ending])
    assert answer(["compare", *map(str, runs), "--format", ENDINGS[ending]]) == 0
    assert capsys.readouterr().out.strip() == out.read_text(encoding="utf-8").strip()
    assert ENDINGS[ending] in FORMATS


def test_the_table_in_the_terminal(
    runs: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert answer(["compare", *map(str, runs), "--against", "pgd_at"]) == 0
    out = capsys.readouterr().out
    assert "PGD-20" in out
    assert "rows differ in lr" in out
    assert "linf 8/255" in out
    command = shlex.split(out.strip().splitlines()[-1])
    assert command[0] == "mmard"
    assert answer(command[1:]) == 0, "the command that it ends with can be typed as it stands"
    assert "\\begin{tabular}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "latx"], "did you mean 'latex'"),
        (["--out", "table.doc"], "--format"),
        (["--attack", "pgd-21"], "did you mean 'pgd-20'"),
        (["--n", "3"], "none of them"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    runs: list[Path], options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(["compare", *map(str, runs), *options]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
