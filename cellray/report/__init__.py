"""What a run achieved: numbers against a truth column, and one self-contained HTML page.

Contract: this room reads the output folder of a run and trusts only what a dataset's manifest names. It changes nothing
but ``report.html``. It does not annotate, and it never opens an expression matrix.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "evaluate": "cellray.report.evaluation",
    "evaluation_table": "cellray.report.evaluation",
    "two_dimensional": "cellray.report.view",
    "write_report": "cellray.report.html",
}

__all__ = ["evaluate", "evaluation_table", "two_dimensional", "write_report"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _PUBLIC:
        msg = f"module 'cellray.report' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_PUBLIC[name]), name)
