"""What `--help` prints: panels of options, whose names are never cut, and examples that can be copied."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from unlearn_metrics.cli.console import Console

COMMANDS = ("unlearn-metrics ", "accelerate ")  # what lines of an epilog begin with that are commands
OTHER = "Options"


def show(command: Any, context: Any, formatter: object) -> None:
    """Print the help of a typer command or group; stands for its format_help."""
    console = Console()
    console.print(Text(command.get_usage(context), style="bold"), soft_wrap=True)
    console.print()
    for paragraph in textwrap.dedent(command.help or "").strip().split("\n\n"):
        console.print(Text(" ".join(paragraph.split())))
        console.print()
    panels: dict[str, Table] = {}
    named = [getattr(param, "rich_help_panel", None) for param in command.params]
    last = next(filter(None, reversed(named)), OTHER)  # the panel of what every command has
    shown = [param for param in command.get_params(context) if not getattr(param, "hidden", False)]
    for param in shown:
        argument = param.param_type_name == "argument"
        name = getattr(param, "rich_help_panel", None) or ("What" if argument else last)
        names = called(param) if argument else ", ".join(sorted(param.opts, key=len))
        if name not in panels:
            panels[name] = _panel()
        panels[name].add_row(Text(names, style="cyan"), Text.assemble(*_help(param, argument)))
    for name, member in getattr(command, "commands", {}).items():
        if not member.hidden:
            first = textwrap.dedent(member.help or "").strip().split("\n\n")[0]
            if "Commands" not in panels:
                panels["Commands"] = _panel()
            panels["Commands"].add_row(Text(name, style="cyan"), Text(" ".join(first.split())))
    for name in sorted(panels, key=lambda name: name == OTHER):
        console.print(Panel(panels[name], title=Text(name), title_align="left", border_style="dim"))
    for line in _epilog(command.epilog or "", console.width):
        console.print(line, soft_wrap=True)


def called(argument: Any) -> str:
    """What help and usage call an argument."""
    return argument.metavar or argument.name.upper()


def _panel() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _help(param: Any, argument: bool) -> Iterator[tuple[str, str]]:
    if param.required and not argument:
        yield "needed. ", "red"
    if param.metavar and not argument:
        yield f"{param.metavar}  ", "yellow"
    yield param.help or "", ""
    default = param.default
    if isinstance(default, str | int | float) and not isinstance(default, bool) and default != "":
        yield f" [default: {default}]", "dim"


def _epilog(text: str, width: int) -> Iterator[Text]:
    """Lines that are commands are folded as a shell takes them; other lines stay. **word**: a heading."""
    if not text:
        return
    for line in re.sub(r"\[bold\](.*?)\[/\]", r"**\1**", text).split("\n\n"):
        _, heading, rest = line.split("**", 2) if line.startswith("**") else ("", "", line)
        command = rest.lstrip(": ")
        if not command.startswith(COMMANDS):
            yield Text.assemble("" if heading else "  ", (heading, "bold"), rest)
            continue
        if heading:
            yield Text(heading, style="bold")
        whole = re.sub(r"(?<= )(--?[\w-]+) (?!-)", "\\1\u00a0", command)  # an option and its value stay together
        lines = textwrap.wrap(whole, max(40, width - 8), break_long_words=False, break_on_hyphens=False)
        yield Text("  " + " \\\n      ".join(lines).replace("\u00a0", " "))
