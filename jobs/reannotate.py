"""Bring an atlas up to date with its catalogue: ``python -m jobs.reannotate --catalog catalog.yaml``.

Only datasets whose content, model, label set, plugins or settings changed are annotated; each gets a new version, and
the version is used from then on unless the catalogue's guard refuses it. See ``cellray.catalog``.

``--dry-run`` prints the plan; ``--history ID`` the versions that were used; ``--rollback ID`` goes back to the one
before, and stays there until ``--promote ID`` or until the dataset's inputs change.

Exit codes: 0 done; 1 every dataset failed; 2 the catalogue or a setting is wrong, or another run has the atlas; 3 some
datasets failed or were refused.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from cellray.catalog.catalogue import Catalogue, read_catalogue
from cellray.errors import CellRayError, SettingError, Terminated, one_line


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    found = argparse.ArgumentParser(
        prog="python -m jobs.reannotate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--catalog", required=True, help="YAML file, path or s3://; see cellray.catalog.catalogue")
    found.add_argument("--address", default=None, help="Ray cluster to join; default: Ray on this machine")
    found.add_argument("--reason", default="", help="noted in the history (of --rollback)")
    found.add_argument("--json", action="store_true", help="machine-readable result on standard output")
    found.add_argument(
        "--promote", nargs="*", metavar="ID", help="promote whatever the guard says, or a rollback held: all, or these"
    )
    what = found.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print what would be done, and why")
    what.add_argument("--history", metavar="ID", help="print which versions of a dataset were in use")
    what.add_argument("--rollback", metavar="ID", help="use the version of a dataset that was in use before")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, renew, print; returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        catalogue = read_catalogue(given.catalog)
        for name in (given.history, given.rollback, *(given.promote or ())):
            _check(catalogue, name)
        if given.dry_run:
            return _plan(catalogue, as_json=given.json)
        if given.history or given.rollback:
            return _versions(catalogue, given)
        return _renew(catalogue, given)
    except (CellRayError, Terminated) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code


def _check(catalogue: Catalogue, name: str | None) -> None:
    known = [entry.id for entry in catalogue.datasets]
    if name is not None and name not in known:
        msg = f"dataset {name!r} is not in the catalogue (has: {', '.join(known[:20])})"
        raise SettingError(msg)


def _plan(catalogue: Catalogue, *, as_json: bool) -> int:
    from cellray.catalog.plan import make_plan

    rows = [step.facts() for step in make_plan(catalogue)]
    _print(
        {"atlas": catalogue.atlas, "datasets": rows},
        [_line(row["id"], row["action"], row["reasons"]) for row in rows],
        as_json=as_json,
    )
    return 0


def _versions(catalogue: Catalogue, given: argparse.Namespace) -> int:
    from cellray.catalog.versions import Versions

    versions = Versions(catalogue.atlas, given.history or given.rollback)
    if given.rollback:
        back = versions.rollback(given.reason)
        _print({"id": given.rollback, "version": back}, [f"{given.rollback}: back to {back}"], as_json=given.json)
        return 0
    changes = [vars(change) for change in versions.latest.history()]
    lines = ["{number:>4}  {at}  {action:<8}  {digest:.12}  {reason}".format(**change) for change in changes]
    facts = {"id": given.history, "in_use": versions.latest.now(), "history": changes, "versions": versions.known()}
    _print(facts, lines or [f"{given.history}: no version yet"], as_json=given.json)
    return 0


def _renew(catalogue: Catalogue, given: argparse.Namespace) -> int:
    from cellray.catalog.renew import renew

    promoted: list[str] | None = given.promote
    found = renew(
        catalogue,
        promote=lambda name: promoted is not None and (not promoted or name in promoted),
        address=given.address,
    )
    lines = [_line(one.id, one.state, [*one.reasons, *one.messages]) for one in found.outcomes]
    _print(found.facts(), lines, as_json=given.json)
    return found.exit_code


def _line(name: str, state: str, reasons: Sequence[str]) -> str:
    return f"{name:<24}  {state:<9}  {'; '.join(reasons)}".rstrip()


def _print(facts: dict[str, Any], lines: Sequence[str], *, as_json: bool) -> None:
    sys.stdout.write((json.dumps(facts, indent=2) if as_json else "\n".join(lines)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
