"""``python -m cellray.cli``."""

from cellray.cli.app import main

main()
