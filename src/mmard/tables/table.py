"""One table, however it is written: for a terminal, as Markdown, LaTeX, CSV, JSON or HTML.

    table = Table(
        heads=("network", "PGD-20", "AutoAttack"),
        rows=(("rslad", Entry("52.7", 0.527, spread="±0.5"), Entry("48.2", 0.482, spread="±0.5", strong=True)),),
        caption="Accuracy in %.",
        label="accuracy-1",
    )
    table.markdown(), table.latex(), table.csv(), table.json(), table.html(), table.pieces(width)

Whoever makes a table gives plain text. What a form would take for something else is escaped here and nowhere besides:
commands of LaTeX, links and HTML of Markdown, tags of HTML, formulas of a spreadsheet, and in every form line ends and
whatever steers a terminal (`words.printable`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup, escape

from mmard.words import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

MARK = "†"
"""Stands beside a figure whose weights raised a suspicion check."""
MINUS = "\N{MINUS SIGN}"
NAME_WIDTH = 34
"""Letters of the first column of a table in a terminal before it is folded, where that column names rows."""
GAP = 2
"""Blanks between columns of a terminal."""

Emphasis = Literal["", "quiet", "alarm", "good"]
STYLES = {"": "", "quiet": "quiet", "alarm": "bold red", "good": "good"}
"""How a terminal shows an emphasis."""


@dataclass(frozen=True)
class Entry:
    """One cell, or one head.

    Attributes:
        text: as it is read, plain: "52.7".
        value: what CSV and JSON hold, e.g. an unrounded share in [0, 1]; the text where it is None.
        spread: what the figure may be off by, set apart from it: "±0.5", or an interval "40.0-60.0".
        below: a second line, under the figure; in LaTeX behind it.
        strong: bold, as the best of a column or a difference beyond noise.
        emphasis: in a terminal and in HTML: of no weight, a warning, or good.
        marks: slugs of the suspicion checks that stand behind it, shown as `MARK`.
        markup: instead of the text in HTML, where that can say more.
        tint: how strong the ground of the cell is in HTML, in [0, 1].
    """

    text: str = ""
    value: object = None
    spread: str = ""
    below: str = ""
    strong: bool = False
    emphasis: Emphasis = ""
    marks: tuple[str, ...] = ()
    markup: Markup | None = None
    tint: float | None = None

    @property
    def plain(self) -> str:
        """All that it says, on one line."""
        return " ".join(filter(None, (self.text, self.spread, self.below))) + MARK * bool(self.marks)


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads; plain text may stand for a cell.

    Attributes:
        heads: of its columns.
        rows: as many cells each; the first one names its row.
        caption: what a reader of the table alone must know.
        words: how many columns, from the left, are words: set left, and never bold. The others are figures, set right.
        label: what LaTeX refers to it by, after "tab:".
        star: stands behind a strong cell wherever bold may be lost, in a terminal and in columns of words.
        main: whether it tells the result; others hold what stands behind it.
        kind: a class of its own in HTML.
    """

    heads: Sequence[str | Entry]
    rows: Sequence[Sequence[str | Entry]]
    caption: str = ""
    words: int = 1
    label: str = ""
    star: str = ""
    main: bool = True
    kind: str = ""

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]]) -> Table:
        """A row for each record, whose keys are the heads: for CSV and JSON."""
        heads = tuple(records[0]) if records else ()
        return cls(heads, [[Entry(_shown(record[key]), record[key]) for key in heads] for record in records])

    def markdown(self) -> str:
        """Without its caption; see `markdown`."""
        heads = [markdown_text(entry(head).plain) for head in self.heads]
        rule = [*["---"] * self.words, *["---:"] * (len(heads) - self.words)]
        rows = [[self._markdown(entry(each), c) for c, each in enumerate(row)] for row in self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *rows))

    def _markdown(self, one: Entry, column: int) -> str:
        text = markdown_text(one.text)
        if one.strong and text:
            text = text + markdown_text(self.star) if column < self.words else f"**{text}**"
        first = " ".join(filter(None, (text, markdown_text(_paper_spread(one))))) + MARK * bool(one.marks)
        return "<br>".join(filter(None, (first, markdown_text(one.below))))

    def latex(self, label: str = "", below: str = "") -> str:
        """A floating table with its caption, which needs the package booktabs.

        Args:
            label: instead of its own.
            below: what stands behind its caption.
        """
        body = [" & ".join(_latex(entry(each)) for each in row) + r" \\" for row in self.rows]
        label = re.sub(r"[^A-Za-z0-9:.+-]+", "-", label or self.label or "table")
        return "\n".join(
            [
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{escaped(' '.join(filter(None, (self.caption, below))))}}}",
                rf"  \label{{tab:{label}}}",
                rf"  \begin{{tabular}}{{{'l' * self.words}{'r' * (len(self.heads) - self.words)}}}",
                r"    \toprule",
                "    " + " & ".join(escaped(entry(head).plain) for head in self.heads) + r" \\",
                r"    \midrule",
                *("    " + line for line in body),
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
            ]
        )

    def csv(self) -> str:
        """Values separated by commas, a line for each row, heads first."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([_no_formula(entry(head).text) for head in self.heads])
        writer.writerows([[_csv_value(entry(each)) for each in row] for row in self.rows])
        return text.getvalue()

    def json(self) -> str:
        """Caption and rows, each an object by head."""
        heads = [entry(head).text for head in self.heads]
        rows = [dict(zip(heads, (_value(entry(each)) for each in row), strict=True)) for row in self.rows]
        return json.dumps({"caption": self.caption, "rows": rows}, indent=2, ensure_ascii=False)

    def html(self, *, compact: bool = False) -> Markup:
        """A table in a box that scrolls; how it looks is the page's."""
        look = "words" if self.words == len(self.heads) else f"from-{self.words}"
        classes = " ".join(filter(None, (look, self.kind, "compact" if compact else "")))
        name = self.caption or ", ".join(entry(head).text for head in self.heads)
        heads = Markup("").join(self._html(entry(head), "col", c) for c, head in enumerate(self.heads))
        # On a phone each cell is a line of its own, which says its head.
        beside = ["" if compact or self.kind == "heat" else entry(head).plain for head in self.heads]
        rows = [
            Markup("<tr>{}</tr>\n").format(
                Markup("").join(self._html(entry(each), "" if c else "row", c, beside[c]) for c, each in enumerate(row))
            )
            for row in self.rows
        ]
        return Markup(
            '<div class="scroll" tabindex="0" role="region" aria-label="{}">\n<table class="{}">\n{}'
            "<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table>\n</div>"
        ).format(
            printable(name),
            classes,
            Markup("<caption>{}</caption>\n").format(printable(self.caption)) if self.caption else "",
            heads,
            Markup("").join(rows),
        )

    def _html(self, one: Entry, scope: str, column: int, head: str = "") -> Markup:
        inner = escape(printable(one.text)) if one.markup is None else one.markup
        look = " ".join(filter(None, ("strong" if one.strong and one.tint is None else "", one.emphasis)))
        if look:
            inner = Markup('<span class="{}">{}</span>').format(look, inner)
        if one.marks and column >= self.words:
            said = ", ".join(slug.replace("-", " ") for slug in one.marks)
            inner = (
                Markup(
                    '<a class="flag" href="#check-{}" title="suspicious: {}">'
                    '!<span class="unseen"> suspicious: {}</span></a> '
                ).format(one.marks[0], said, said)
                + inner
            )
        elif one.marks:
            links = (
                Markup('<a class="alarm" href="#check-{}">{}</a> ').format(m, m.replace("-", " ")) for m in one.marks
            )
            inner += Markup("").join(links)
        for small in filter(None, (one.spread, one.below)):
            inner += Markup('<span class="under">{}</span>').format(printable(small))
        if scope:
            return Markup('<th scope="{}">{}</th>').format(scope, inner)
        where = Markup(' data-head="{}"').format(printable(head)) if head else Markup("")
        if one.tint is not None:
            where += Markup('{} style="--tint: {}"').format(Markup(' class="own"' * one.strong), f"{one.tint:.2f}")
        return Markup("<td{}>{}</td>").format(where, inner)

    def pieces(self, width: int | None = None) -> list[RichTable]:
        """For a terminal: one table, or several below each other where it would be wider than so many letters."""
        whole = [self._width(c) for c in range(len(self.heads))]
        fits = width is not None and sum(whole) + GAP * (len(whole) - 1) <= width
        widths = whole if fits else [min(wide, NAME_WIDTH) if c == 0 else wide for c, wide in enumerate(whole)]
        named = sum(widths[: self.words]) + GAP * self.words
        found: list[list[int]] = [[]]
        for c in range(self.words, len(self.heads)):
            wide = sum(widths[each] + GAP for each in found[-1]) + named + widths[c]
            if width is not None and found[-1] and wide > width:
                found.append([])
            found[-1].append(c)
        return [self._piece([*range(self.words), *columns], widths, width) for columns in found]

    def _piece(self, columns: Sequence[int], widths: Sequence[int], width: int | None) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="quiet", show_edge=False)
        heads = [max(widths[c], len(printable(entry(self.heads[c]).text))) + GAP for c in columns]
        crowded = width is not None and sum(heads) - GAP > width
        for c in columns:
            head = Text(printable(entry(self.heads[c]).text))
            if c < self.words:
                narrow = widths[0] if c == 0 and len(self.heads) > 1 else None
                made.add_column(head, overflow="fold", max_width=narrow)
            else:
                # Where heads have no room on one line, rich would crop figures at the right edge.
                wide = widths[c] if crowded else None
                made.add_column(head, justify="right", overflow="fold", min_width=widths[c], width=wide)
        for row in self.rows:
            made.add_row(*(self._text(row[c], c) for c in columns))
        return made

    def _text(self, one: str | Entry, column: int) -> Text:
        """For a terminal, without its markup; no-break spaces keep a figure on one line."""
        from rich.text import Text

        one = entry(one)
        text = Text(printable(one.text), "strong" if one.strong else STYLES[one.emphasis])
        if one.strong and self.star:
            text.append(self.star)
        if one.spread:
            text.append(f" {printable(one.spread)}", "quiet")
        if one.marks:
            text.append(MARK, "bold red")
        if one.below:
            text.append(f"\n{printable(one.below)}", "quiet")
        if column >= self.words:
            text.plain = text.plain.replace(" ", "\u00a0")
        return text

    def _width(self, c: int) -> int:
        """Of a column in a terminal: its widest cell, or its head, which above figures may take three lines."""
        head = printable(entry(self.heads[c]).text)
        longest = max((len(word) for word in head.split()), default=0)
        heads = len(head) if c < self.words else max(longest, -(-len(head) // 3))
        texts = (line for row in self.rows for line in self._text(row[c], c).plain.split("\n"))
        return max(heads, *(len(text) for text in texts), 0)


def entry(one: str | Entry) -> Entry:
    """Plain text as an entry."""
    return Entry(one) if isinstance(one, str) else one


def off_by(half: float | None, times: float = 100.0, digits: int = 1) -> str:
    """What a figure may be off by, e.g. "±0.5"; "" where it is unknown.

    What rounds to nothing is not certain: it is less than the last digit says.

    >>> off_by(0.0123), off_by(0.0), off_by(None)
    ('±1.2', '±<0.1', '')
    """
    if half is None:
        return ""
    text = f"{half * times:.{digits}f}"
    return f"±{text}" if float(text) else f"±<{10.0**-digits:.{digits}f}"


def markdown(tables: Iterable[Table], below: str = "", notes: Iterable[str] = ()) -> str:
    """Tables with their captions, what holds for all of them, and notes as a list."""
    parts = [part for table in tables for part in (table.markdown(), markdown_text(table.caption)) if part]
    parts += [markdown_text(below)] if below else []
    parts += ["\n".join(lines)] if (lines := [f"- {markdown_text(note)}" for note in notes]) else []
    return "\n\n".join(parts) + "\n"


def latex(tables: Iterable[Table], below: str = "", notes: Iterable[str] = (), name: str = "") -> str:
    """The same; `below` stands behind every caption, notes as comments. Without labels tables are numbered by name."""
    made = [
        table.latex(table.label or f"{name or 'table'}-{place}", below) for place, table in enumerate(tables, start=1)
    ]
    return "\n".join(["% Needs \\usepackage{booktabs}.", *made, *(f"% {printable(note)}" for note in notes)]) + "\n"


_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", MARK: r"$^\dagger$", "|": r"\textbar{}", '"': r"\textquotedbl{}", MINUS: "$-$",
}  # fmt: skip
_NUMBER = re.compile(r"[+-]\d+(\.\d+)?")
_FORMULA = ("=", "+", "-", "@")


def markdown_text(text: str) -> str:
    """Plain text as Markdown sets it: no link, no HTML, no entity, no heading and no list.

    >>> markdown_text("[a](b) <b> &lt; 50%"), markdown_text("# a"), markdown_text("- b")
    ('\\\\[a\\\\](b) \\\\<b\\\\> \\\\&lt; 50%', '\\\\# a', '\\\\- b')
    """
    text = re.sub(r"([|<>*_`\[\]\\~]|&(?=#?\w+;)|^(?:#|[-+]\s))", r"\\\1", printable(text))
    return re.sub(r"^(\d+)([.)]\s)", r"\1\\\2", text)


def escaped(text: str) -> str:
    """Plain text as LaTeX sets it; what this alphabet has no sign for is left as it is.

    >>> escaped("50 % of rslad_x & 2^3")
    '50 \\\\% of rslad\\\\_x \\\\& 2\\\\textasciicircum{}3'
    """
    return "".join(_SPECIAL.get(letter, letter) for letter in printable(text))


def _paper_spread(one: Entry) -> str:
    """What stands behind a figure as papers set it: a space after ±, an interval in brackets."""
    return one.spread.replace("±", "± ") if not one.spread or "±" in one.spread else f"({one.spread})"


def _latex(one: Entry) -> str:
    # Between dollars a hyphen is a minus; between figures of an interval it is a dash.
    text = f"${one.text}$" if _NUMBER.fullmatch(one.text) and not one.strong else escaped(one.text)
    text = rf"\textbf{{{text}}}" if one.strong and text else text
    behind = [re.sub(r"(?<=\d)-(?=\d)", "--", escaped(part)) for part in (_paper_spread(one), one.below)]
    return " ".join(filter(None, (text, *behind))) + escaped(MARK) * bool(one.marks)


def _value(one: Entry) -> object:
    return one.text if one.value is None and one.text else one.value


def _csv_value(one: Entry) -> object:
    value = _value(one)
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return _no_formula(value) if isinstance(value, str) else value


def _no_formula(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _shown(value: object) -> str:
    return "" if value is None else str(value)
