"""Mains submitted to a cluster or run by hand: ``python -m jobs.NAME``."""
