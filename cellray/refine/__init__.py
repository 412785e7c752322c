"""Refinement of label scores over a graph of cells (GRIT): ``grit.refine`` is the stage, the rest are its steps."""
