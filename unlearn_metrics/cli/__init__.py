"""The command line: wires the rest, and is the only place that prints."""

from __future__ import annotations

import codecs
import io
import sys
from functools import partial
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.main import get_command

from unlearn_metrics import __version__
from unlearn_metrics.cli import attacks, import_logs, judging, models, records, sampling, semantic, showing, sweeps
from unlearn_metrics.cli.console import asked, be, err, out
from unlearn_metrics.cli.help import called
from unlearn_metrics.cli.help import show as show_help
from unlearn_metrics.errors import InputError

app = typer.Typer(
    name="unlearn-metrics",
    help="Evaluate unlearned language models, under control.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    # lm-eval spells its options with _, which does as well here
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)
app.add_typer(models.app)
app.add_typer(attacks.app)
app.add_typer(sweeps.app)
app.add_typer(showing.app)
app.add_typer(records.app)
app.add_typer(judging.app)
app.add_typer(semantic.app)
app.add_typer(sampling.app)
app.add_typer(import_logs.app, name="import")


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_common = typer.Typer()


@_common.command()
def _options(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            callback=lambda given: be("quiet", given),
            expose_value=False,
            help="No steps and no bar on stderr.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            callback=lambda given: be("json", given),
            expose_value=False,
            help="Print JSON instead of tables and sentences.",
        ),
    ] = False,
) -> None:
    """What every command takes."""


def command() -> Any:
    """The whole command: each command with the options of all, and our help."""
    shared = [param for param in get_command(_common).params if param.name in ("quiet", "as_json")]
    whole = get_command(app)

    def usage(argument: Any, context: Any) -> list[str]:
        return [argument.metavar if argument.required else f"[{argument.metavar}]"]

    def adapt(part: Any) -> None:
        part.format_help = partial(show_help, part)
        for param in part.params:
            if param.param_type_name == "argument":
                param.metavar = called(param)
                param.get_usage_pieces = partial(usage, param)
        for member in getattr(part, "commands", {}).values():
            adapt(member)
        own = part.context_settings.get("help_option_names", ()) == []  # lm-eval's own options, not ours
        if not hasattr(part, "commands") and not own:
            part.params.extend(shared)

    adapt(whole)
    return whole


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
    asked.clear()
    out.quiet = False
    try:
        command()(prog_name="unlearn-metrics")
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.errno is None:  # not the system's: a library's, or a bug
            raise
        message = " ".join(str(error).split())
        err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        sys.exit(2)
