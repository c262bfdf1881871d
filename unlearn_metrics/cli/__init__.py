"""The command line: wires the rest, and is the only place that prints."""

from __future__ import annotations

import codecs
import io
import sys
from typing import Annotated

import typer
from rich.text import Text

from unlearn_metrics import __version__
from unlearn_metrics.cli import attacks, import_logs, judging, models, records, sweeps
from unlearn_metrics.cli.console import err
from unlearn_metrics.errors import InputError

app = typer.Typer(
    name="unlearn-metrics",
    help="Evaluate unlearned language models, under control.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(models.app)
app.add_typer(attacks.app)
app.add_typer(sweeps.app)
app.add_typer(records.app)
app.add_typer(judging.app)
app.add_typer(import_logs.app, name="import")


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# for terminals and pipes that are not UTF-8
SPELLED = {"↑": "^", "↓": "v", "—": "-", "–": "-", "·": "*", "…": "...", "±": "+/-", "×": "x", "≥": ">=", "≤": "<="}


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(SPELLED.get(c, "?") for c in error.object[error.start : error.end]), error.end


codecs.register_error("spelled", _spelled)


def main() -> None:
    """Entry point. Bad input, a full disk: one line and exit code 2. Ctrl-C: exit code 130 (by typer)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")
    try:
        app()
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.errno is None:  # not the system's: a library's, or a bug
            raise
        message = " ".join(str(error).split())
        err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        sys.exit(2)
