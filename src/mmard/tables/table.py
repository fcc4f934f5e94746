"""Tables of Markdown and LaTeX, and plain text as either sets it."""

from __future__ import annotations

import re
from collections.abc import Sequence

MARK = "†"
"""Stands beside a figure whose weights raised a suspicion check."""

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", MARK: r"$^\dagger$", "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def markdown_text(text: str) -> str:
    """Plain text as Markdown sets it."""
    return re.sub(r"([|<>*_`\[\]\\])", r"\\\1", text)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first cells, `words` of each row, are plain text set left; the others are Markdown set right."""
    lines = [[markdown_text(head) for head in heads], [*["---"] * words, *["---:"] * (len(heads) - words)]]
    lines += [[*map(markdown_text, row[:words]), *row[words:]] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escaped(text: str) -> str:
    """Plain text as LaTeX sets it; what this alphabet has no sign for is left as it is.

    >>> escaped("50 % of rslad_x & 2^3")
    '50 \\\\% of rslad\\\\_x \\\\& 2\\\\textasciicircum{}3'
    """
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def latex_table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: str, label: str, words: int = 1) -> str:
    """A table of cells that are LaTeX, the first `words` of each row set left, with a caption in plain text."""
    body = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escaped(text)}}}",
            rf"  \label{{{label}}}",
            rf"  \begin{{tabular}}{{{'l' * words}{'r' * (len(heads) - words)}}}",
            r"    \toprule",
            "    " + " & ".join(escaped(head) for head in heads) + r" \\",
            r"    \midrule",
            *("    " + line for line in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )
