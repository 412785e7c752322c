"""How verbs print, and how loud they are."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from cellray import log
from cellray.errors import SettingError

Json = Annotated[bool, typer.Option("--json", help="machine-readable result on standard output")]

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="show all logs, Ray's too, and the trace of every bug")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="show the result and errors alone")]

_RESUMING: Final = (("annotate",), ("embed",), ("refine",), ("reason",), ("puzzles", "solve"))


def speak(*, verbose: bool, quiet: bool) -> None:
    """Show logs on standard error, or not; call it first in a verb."""
    if verbose and quiet:
        msg = "--verbose and --quiet exclude each other; give one"
        raise SettingError(msg)
    log.show(verbose=verbose)


def resumes(arguments: Sequence[str]) -> bool:
    """Whether the verb of ``arguments`` goes on where it was stopped when the same command is given again."""
    words = tuple(word for word in arguments if not word.startswith("-"))
    return any(words[: len(verb)] == verb for verb in _RESUMING)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2))


def lines(facts: dict[str, Any]) -> str:
    """Return facts, one a line."""
    width = max(map(len, facts))
    return "\n".join(f"{key:<{width}}  {text(value)}" for key, value in facts.items())


def text(value: Any) -> str:
    """Return a value as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item:,}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
