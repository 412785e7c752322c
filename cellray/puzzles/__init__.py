"""Puzzles of Cell-o1: cells of one donor to label jointly; built, asked, answered and scored.

Contract: a ``Puzzle`` is plain data. What a model says counts only as far as it is one of the offered candidates. The
language model is behind ``engine`` and nothing else here needs one; nothing here runs on Ray.
"""

from cellray.puzzles.puzzle import Puzzle

__all__ = ["Puzzle"]
