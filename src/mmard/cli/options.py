"""What options of the commands have in common."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def option(text: str, metavar: str | None = None, *flags: str, panel: str | None = None, shown: str = "") -> Any:
    """An option: its help, what stands for its value, its flags, the heading over it, its default in words."""
    return typer.Option(*flags, help=text, metavar=metavar, rich_help_panel=panel, show_default=shown or False)


AsJson = Annotated[bool, option("Print records as JSON.", None, "--json")]
