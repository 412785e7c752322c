"""How verbs print."""

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="machine-readable result on standard output")]


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
