"""Solve puzzles in bulk on a cluster: ``python -m jobs.solve_puzzles PUZZLES --model DIR --out DIR``.

The options are those of ``cellray puzzles solve``, which it is; running the same command again goes on.
"""

import sys

from cellray.errors import CellRayError, Terminated, one_line


def main(arguments: list[str] | None = None) -> int:
    """Solve; returns the exit code."""
    import typer

    from cellray.cli.puzzles import puzzles_app

    command = typer.main.get_command(puzzles_app)
    try:
        given = sys.argv[1:] if arguments is None else arguments
        return int(command.main(["solve", *given], standalone_mode=False) or 0)
    except (CellRayError, Terminated) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
