"""CellRay annotates every cell of a single-cell atlas: raw counts in, cell-type labels with scores out.

The public names are imported on first use, so that ``import cellray`` loads neither torch nor ray.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "annotate": "cellray.pipeline",
    "AnnotateSettings": "cellray.settings",
    "CellRayError": "cellray.errors",
    "inspect_dataset": "cellray.ingest",
    "evaluate": "cellray.report",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _PUBLIC:
        msg = f"module 'cellray' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_PUBLIC[name]), name)
