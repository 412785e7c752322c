"""Measurements: ``python -m jobs.bench.NAME [--json]``. Ratios are taken within one run."""
