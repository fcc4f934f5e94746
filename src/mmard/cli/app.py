"""The program itself: its front page, its version, and what its commands are registered with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from mmard._version import __version__
from mmard.errors import unknown
from mmard.screen import INTERRUPTED, complain

WIDEST = 100
"""Columns beyond which a sentence is tiring to read."""


class Page(TyperCommand):
    """A command whose help is laid out here."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page of a command."""
        formatter.write(_page(self, ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C where it has no word of its own for it ends it with one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None


class FrontPage(TyperGroup):
    """The table of commands, which offers the nearest one for a name that is none."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page of the program."""
        formatter.write(_page(self, ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant.

        Raises:
            Refused: for a name that is no command.
        """
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


def _page(command: Any, ctx: Any) -> str:
    out = Console(width=min(WIDEST, Console().width), highlight=False, force_terminal=_colours() or None)
    with out.capture() as captured:
        paragraphs = (command.help or "").split("\n\n")
        out.print(Text.assemble((ctx.command_path, "bold"), " " + _usage(command, ctx)))
        out.print()
        out.print(Padding(Text(" ".join(paragraphs[0].split())), (0, 0, 0, 2)))
        _examples(out, command.epilog or "")
        panels: list[tuple[str, list[tuple[Text, Text]]]] = []
        if isinstance(command, TyperGroup):
            for panel, members in _grouped(command.commands.values(), "Commands"):
                panels.append((panel, [(Text(each.name or "", "cyan"), Text(_first(each.help))) for each in members]))
        for panel, members in _grouped(command.get_params(ctx), "Options"):
            panels.append((panel, [(_names(each), _says(each)) for each in members]))
        width = max(len(names) for _, rows in panels for names, _ in rows)
        for panel, rows in panels:
            _rows(out, panel, rows, width)
        for more in paragraphs[1:]:
            out.print()
            out.print(Padding(Text(" ".join(more.split()), "dim"), (0, 0, 0, 2)))
    return "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))


def _usage(command: Any, ctx: Any) -> str:
    if isinstance(command, TyperGroup):
        return "COMMAND [options]"
    arguments = [p for p in command.get_params(ctx) if p.param_type_name == "argument"]
    return " ".join([*(p.metavar if p.required else f"[{p.metavar}]" for p in arguments), "[options]"])


def _colours() -> bool:
    """Whether the page goes to a terminal; it is captured on the way, so the console cannot tell by itself."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _examples(out: Console, text: str) -> None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines:
        out.print()
        out.print(Text("Examples", "bold"))
    for line in lines:
        out.print(Text("  " + line, "cyan"), soft_wrap=True)


def _grouped(members: Iterable[Any], without: str) -> list[tuple[str, list[Any]]]:
    """Members by panel, in the order in which panels first occur; those without a panel last."""
    panels: dict[str, list[Any]] = {}
    for each in members:
        if not getattr(each, "hidden", False):
            panels.setdefault(getattr(each, "rich_help_panel", None) or without, []).append(each)
    return sorted(panels.items(), key=lambda item: item[0] == without)


def _rows(out: Console, title: str, rows: list[tuple[Text, Text]], width: int) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=width, no_wrap=True)
    grid.add_column()
    for names, says in rows:
        grid.add_row(names, says)
    out.print()
    out.print(Text(title, "bold"))
    out.print(Padding(grid, (0, 0, 0, 2)))


def _names(param: Any) -> Text:
    if param.param_type_name == "argument":
        return Text(param.metavar or param.name.upper(), "cyan")
    flags = ", ".join(
        f"--[no-]{flag[2:]}" if param.secondary_opts else flag for flag in sorted(param.opts, key=len, reverse=True)
    )
    return Text.assemble((flags, "cyan"), f" {param.metavar}" if param.metavar else "")


def _says(param: Any) -> Text:
    default = param.show_default if isinstance(getattr(param, "show_default", None), str) else ""
    if param.required and param.param_type_name == "option":
        default = "required"
    return Text.assemble(_first(param.help), (f" [{default}]" if default else "", "dim"))


def _first(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


app = typer.Typer(
    cls=FrontPage,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="""
    mmard demo
    mmard train --method trades --model wide_resnet-16-4 --data cifar10 --data-dir D --out runs/t
    mmard distill --method rslad+mmard --teacher runs/t --student resnet18 --data cifar10 --data-dir D --out runs/s
    mmard evaluate runs/s --attack pgd-20,cw-30
    """,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"mmard {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def front(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    trust_code: Annotated[
        list[str] | None,
        typer.Option("--trust-code", metavar="NAME", help="Let weights and runs name this package.module:function."),
    ] = None,
) -> None:
    """Adversarial robustness distillation: train a robust teacher, distil a small student, attack the result.

    A command's own page: mmard COMMAND --help.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
