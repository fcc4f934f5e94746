"""A section of a report as data, which a console (`cli/screen.py`) and the HTML page (`page.py`) show alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmard.tables.table import Table


@dataclass(frozen=True)
class Picture:
    """A drawing with its numbers.

    Attributes:
        slug: one of its kind on the page.
        title: what it shows.
        draw: makes its HTML; called for a page alone.
        note: what stands below it.
        table: its numbers, folded on a page.
        printed: whether a console shows that table in place of the drawing.
        tall: whether it takes two rows of a gallery.
    """

    slug: str
    title: str
    draw: Callable[[], Markup]
    note: str = ""
    table: Table | None = None
    printed: bool = False
    tall: bool = False


@dataclass(frozen=True)
class Section:
    """What was found of one thing, in the order in which it is shown.

    Attributes:
        title: of the section; "" for a part that continues the one before.
        slug: what links on the page lead to; "" for a part.
        sentences: plain text, a paragraph each.
        pictures, tables: what there is to look at.
        commands: to type.
        parts: sections within.
        folded: whether it opens on a page when asked for, and a console leaves it out.
        alarm: whether the first sentence must not be overlooked.
        index: of the group of runs whose colour its title has.
    """

    title: str
    slug: str = ""
    sentences: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    commands: Sequence[str] = ()
    parts: Sequence[Section] = ()
    folded: bool = False
    alarm: bool = False
    index: int | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.sentences or self.pictures or self.tables or self.commands or self.parts)
