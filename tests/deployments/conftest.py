"""The same small base and plugins as in ``tests/plugins``."""

from tests.plugins.conftest import liver, tissues, world

__all__ = ["liver", "tissues", "world"]
