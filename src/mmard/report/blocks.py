"""What a page of the report is made of. A piece holds what is shown, ready to be set; templates say how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup

Text = str | Markup
NO_NUMBERS = 99
"""For tables of words, whose columns may be folded."""


@dataclass(frozen=True)
class TableBlock:
    """Rows of text under heads. The first cell of a row names it; columns from `numbers` on are set at the right."""

    kind: ClassVar[str] = "table"
    head: Sequence[Text]
    rows: Sequence[Sequence[Text]]
    caption: Text = ""
    numbers: int = 1


@dataclass(frozen=True)
class Picture:
    """A drawing with its title, what it says in words, and its numbers as a table."""

    slug: str
    title: Text
    svg: Markup
    note: Text = ""
    table: TableBlock | None = None
    tall: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures beside each other where there is room: three, or pairs."""

    kind: ClassVar[str] = "gallery"
    pictures: Sequence[Picture]
    pairs: bool = False


@dataclass(frozen=True)
class Note:
    """A paragraph; with an alarm, one that must not be overlooked."""

    kind: ClassVar[str] = "note"
    text: Text
    alarm: bool = False


@dataclass(frozen=True)
class Missing:
    """What was not measured, and the commands that would."""

    kind: ClassVar[str] = "missing"
    what: Text
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Commands:
    """Commands to type, and what they do."""

    kind: ClassVar[str] = "commands"
    title: Text
    lines: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[Text, Text]]
    title: Text = ""
    index: int | None = None


@dataclass(frozen=True)
class Cards:
    """Groups of facts beside each other."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Facts]


@dataclass(frozen=True)
class Heading:
    """A title within a section."""

    kind: ClassVar[str] = "heading"
    text: Text
    slug: str = ""
    index: int | None = None


@dataclass(frozen=True)
class Folded:
    """Pieces that open when asked for."""

    kind: ClassVar[str] = "folded"
    title: Text
    pieces: Sequence[Any]


@dataclass(frozen=True)
class Heat:
    """A table of numbers, each with the strength of its tint in [0, 1] and whether it is of the kind of its row."""

    kind: ClassVar[str] = "heat"
    title: Text
    corner: Text
    head: Sequence[Text]
    names: Sequence[Text]
    cells: Sequence[Sequence[tuple[Text, float, bool]]]
    note: Text = ""


@dataclass(frozen=True)
class Heats:
    """Tinted tables beside each other where there is room."""

    kind: ClassVar[str] = "heats"
    heats: Sequence[Heat]


@dataclass(frozen=True)
class Mark:
    """A suspicion beside a number: what it links to, and its words."""

    target: str
    text: Text


@dataclass(frozen=True)
class Number:
    """A figure of the results: its value, what is written small under it, and what makes it doubtful."""

    value: Text
    under: Text = ""
    best: bool = False
    marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class Results:
    """The table of one set of images."""

    kind: ClassVar[str] = "results"
    caption: Text
    head: Sequence[tuple[Text, Text]]
    rows: Sequence[tuple[int, Text, Text, Sequence[Mark], Sequence[Number | None]]]


@dataclass(frozen=True)
class VerdictBlock:
    """What a suspicion check said of a run."""

    run: Text
    verdict: str
    says: Text
    figures: Text


@dataclass(frozen=True)
class Check:
    """A suspicion check and its verdicts."""

    kind: ClassVar[str] = "check"
    slug: str
    title: Text
    verdicts: Sequence[VerdictBlock]

    @property
    def alarms(self) -> int:
        """Runs that it suspects."""
        return sum(each.verdict == "suspicious" for each in self.verdicts)


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image."""

    network: Text
    before: Text
    before_right: bool
    after: Text
    after_right: bool


@dataclass(frozen=True)
class Example:
    """An image, its perturbation and what was made of it, as data: URIs, and what the networks say."""

    title: Text
    images: Sequence[tuple[str, Text, Text]]
    predictions: Sequence[Prediction]


@dataclass(frozen=True)
class Examples:
    """Images beside each other."""

    kind: ClassVar[str] = "examples"
    items: Sequence[Example]


@dataclass(frozen=True)
class Section:
    """A part of the page with its own entry in the contents."""

    slug: str
    title: Text
    lead: Text = ""
    pieces: Sequence[Any] = field(default_factory=list)
