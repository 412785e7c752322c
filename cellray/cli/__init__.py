"""The command line; see ``app``."""

from cellray.cli.app import app, main

__all__ = ["app", "main"]
