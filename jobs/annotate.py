"""Annotate on a cluster what a file of settings says: ``python -m jobs.annotate --address auto``.

The file is YAML with the fields of ``cellray.settings.AnnotateSettings``; ``--config`` or ``$CELLRAY_CONFIG`` names it.
The same command again goes on where the last one stopped; so does one that was stopped by SIGTERM, after the shards in
hand (exit code 143). Exit codes otherwise are those of ``cellray annotate``.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import yaml

from cellray import storage
from cellray.errors import CellRayError, SettingError, Terminated, one_line
from cellray.settings import AnnotateSettings, Environment


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    found = argparse.ArgumentParser(
        prog="python -m jobs.annotate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--config", default=Environment().config, help="YAML file of settings, path or s3://; default $CELLRAY_CONFIG"
    )
    found.add_argument("--address", default=None, help="Ray cluster to join; default: Ray on this machine")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, annotate, print what was done as JSON; returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        settings = read_settings(given.config, given.address)
        from cellray.pipeline import annotate
        from cellray.pipeline.progress import showing

        with showing() as progress:
            result = annotate(settings, progress)
    except (CellRayError, Terminated) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(result.summary(), indent=2) + "\n")
    return result.exit_code


def read_settings(uri: str, address: str | None = None) -> AnnotateSettings:
    """Read settings; whatever is wrong with them is a ``SettingError`` that names the file."""
    try:
        known = yaml.safe_load(storage.read_bytes(uri))
        if not isinstance(known, dict):
            msg = "there is no mapping of settings in it"
            raise ValueError(msg)
        return AnnotateSettings.checked(**{**known, **({"address": address} if address else {})})
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        msg = f"settings {uri!r}: {one_line(error)}"
        raise SettingError(msg) from error
    except SettingError as error:
        error.add_note(uri)
        raise


if __name__ == "__main__":
    sys.exit(main())
