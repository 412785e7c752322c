"""``cellray export``: a run's labels as text files for R or a spreadsheet."""

from typing import Annotated

import typer

from cellray.cli.shared import Json, Quiet, Verbose, print_json, speak
from cellray.errors import SettingError


def export(
    out: Annotated[str, typer.Argument(help="output folder of `cellray annotate`", metavar="DIR")],
    *,
    csv: Annotated[bool, typer.Option("--csv", help="write <id>.csv, separated by commas; the default")] = False,
    tsv: Annotated[bool, typer.Option("--tsv", help="write <id>.tsv, separated by tabs")] = False,
    compress: Annotated[bool, typer.Option("--gz", help="compress the files: <id>.csv.gz")] = False,
    to: Annotated[str | None, typer.Option("--to", "--out", help="folder for the files; default: DIR")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the labels of every dataset as a table, one row a cell."""
    from cellray.report.export import export as run

    speak(verbose=verbose, quiet=quiet)
    if csv and tsv:
        msg = "--csv and --tsv exclude each other; give one"
        raise SettingError(msg)
    result = run(out, to, form="tsv" if tsv else "csv", compress=compress)
    if as_json:
        print_json({"files": result.files, "failed": result.failed})
    else:
        for dataset_id, file in result.files.items():
            typer.echo(f"{dataset_id}: {file}")
        for dataset_id, message in result.failed.items():
            typer.echo(f"{dataset_id} failed: {message}")
    raise typer.Exit(result.exit_code)
