"""What a renewal changed: ``report.json`` for machines, ``report.html`` for people, the changed cells as Parquet.

Contract: one folder a run, ``ATLAS/runs/<run>``. The page is self-contained and runs no script; whatever comes from
data is escaped.
"""

from importlib.resources import files
from typing import Final

import pyarrow.parquet as pq

from cellray import storage
from cellray.catalog.renew import Renewal

MOST_MOVES: Final = 50
"""Moves from one type to another that the page shows of a dataset; ``report.json`` has all."""


def write_report(renewal: Renewal) -> str:
    """Write the report; returns the URI of its page."""
    folder = storage.join(renewal.atlas, "runs", renewal.run_id)
    for outcome in renewal.outcomes:
        if outcome.changed is not None:
            with storage.writing(storage.join(folder, "changed", f"{outcome.id}.parquet")) as path:
                pq.write_table(outcome.changed, path, compression="zstd")
    storage.put_json(storage.join(folder, "report.json"), renewal.facts())
    page = storage.join(folder, "report.html")
    storage.put(page, render(renewal).encode())
    return page


def render(renewal: Renewal) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(**renewal.facts(), most_moves=MOST_MOVES)
