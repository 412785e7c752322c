"""``cellray export``: a run's labels as text files for R or a spreadsheet."""

from typing import Annotated

import typer

from cellray.cli.shared import Json


def export(
    out: Annotated[str, typer.Argument(help="output folder of `cellray annotate`", metavar="DIR")],
    *,
    as_json: Json = False,
) -> None:
    """Write one CSV a dataset, one row a cell."""
    raise NotImplementedError
