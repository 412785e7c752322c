"""CellRay annotates every cell of a single-cell atlas: raw counts in, cell-type labels with scores out.

The public names are imported on first use, so that ``import cellray`` loads neither torch nor ray; ``dir(cellray)``
shows them alone.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellray.api import annotate as annotate
    from cellray.api import embed as embed
    from cellray.errors import CellRayError as CellRayError
    from cellray.ingest import inspect_dataset as inspect_dataset
    from cellray.report import evaluate as evaluate
    from cellray.settings import AnnotateSettings as AnnotateSettings

__version__ = "0.1.0"

_PUBLIC = {
    "annotate": "cellray.api",
    "embed": "cellray.api",
    "AnnotateSettings": "cellray.settings",
    "CellRayError": "cellray.errors",
    "inspect_dataset": "cellray.ingest",
    "evaluate": "cellray.report",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _PUBLIC:
        msg = f"module 'cellray' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(_import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
