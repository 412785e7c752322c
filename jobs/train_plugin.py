"""Train a plugin of one tissue, or the one that tells tissues apart, on Ray Train; store and promote it.

``python -m jobs.train_plugin --tissue liver --data liver/*.h5ad --base mini-scgpt --registry URI``
``python -m jobs.train_plugin --task tissue --data blood=pbmc.h5ad liver=liver.h5ad --base mini-scgpt --registry URI``

The same command again after a crash goes on from the last checkpoint.
"""

import argparse
import json
import sys
from hashlib import sha256
from typing import Any

from cellray.errors import CellRayError, SettingError, Terminated, one_line
from cellray.models import checkpoints
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.plugins.making import first_version, plan_training
from cellray.plugins.reading import Found, Reading, read_labelled
from cellray.plugins.registry import TISSUES, Registry, tissue_name
from cellray.plugins.router import scgpt_base
from cellray.settings import Environment
from cellray.tokenize.cells import Cells
from cellray.train.checkpoint import restore
from cellray.train.loop import Course
from cellray.train.plugins import PluginSettings, new_plugin, train_worker
from jobs.numbers import count, inner_share, number, positive, seed
from jobs.training import add_arguments, trained


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, store, promote; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train_plugin", description=__doc__)
    parser.add_argument("--task", choices=("cells", "tissue"), default="cells")
    parser.add_argument("--tissue", default=None, help="name of the tissue (task cells)")
    parser.add_argument("--data", nargs="+", required=True, help="datasets; of task tissue also TISSUE=DATASET")
    add_plugin_arguments(parser)
    parser.add_argument("--label-key", default=None, help="obs column; default cell_type, or of task tissue: tissue")
    parser.add_argument("--label-id-key", default=None, help="obs column with the labels' Cell Ontology ids")
    parser.add_argument("--donor-key", default=None, help="obs column: whole donors are held out, not cells")
    parser.add_argument("--hold-out", type=inner_share, default=0.2, help="share of cells to stop and to judge by")
    parser.add_argument("--hierarchical", action="store_true", help="cross-entropy over the Cell Ontology")
    parser.add_argument("--epochs", type=count, default=8)
    parser.add_argument("--patience", type=number(int, 0), default=3)
    parser.add_argument("--learning-rate", type=positive, default=PluginSettings.learning_rate)
    parser.add_argument("--experts", type=count, default=5)
    parser.add_argument("--rank", type=count, default=8)
    parser.add_argument(
        "--alpha", type=positive, default=PluginSettings.alpha, help="what experts add is scaled by alpha / rank"
    )
    parser.add_argument(
        "--classes", type=number(int, 2), default=200, help="room of the head, reserved classes included"
    )
    parser.add_argument("--no-promote", action="store_true", help="store the version only")
    add_arguments(parser)
    return finished(parser.parse_args(arguments), run)


def add_plugin_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what training and updating share."""
    parser.add_argument("--base", default="mini-scgpt", help="scGPT model folder, or mini-scgpt")
    parser.add_argument("--registry", default=Environment().registry, help="path or s3://; default $CELLRAY_REGISTRY")
    parser.add_argument("--layer", default=None, help="layer with the raw counts; found by itself otherwise")
    parser.add_argument("--gene-key", default=None, help="var column of the genes; found by itself otherwise")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--json", action="store_true", help="machine-readable result")


def finished(given: argparse.Namespace, work: Any) -> int:
    """Do the work and print its result; a user's mistake is one line. Returns the exit code."""
    try:
        result = work(given)
    except (CellRayError, Terminated) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    text = json.dumps(result, indent=1) if given.json else "\n".join(f"{key}: {value}" for key, value in result.items())
    sys.stdout.write(f"{text}\n")
    return 0 if result.get("promoted", True) or getattr(given, "no_promote", False) else 3


def load_base(name: str) -> ScGPTCheckpoint:
    """Load the base, which must be scGPT's."""
    return scgpt_base(checkpoints.load(name), name)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Train and store; returns what to print."""
    tissue = TISSUES if given.task == "tissue" else _named(given.tissue)
    base, registry = load_base(given.base), Registry(given.registry)
    settings = PluginSettings(
        n_experts=given.experts,
        rank=given.rank,
        alpha=given.alpha,
        n_classes=given.classes,
        epochs=given.epochs,
        patience=given.patience,
        learning_rate=given.learning_rate,
        seed=given.seed,
    )
    found = _read(given, base)
    training, test = plan_training(
        base,
        found.cells,
        settings,
        hold_out=given.hold_out,
        by_group=given.donor_key is not None,
        term_ids=found.term_ids if given.hierarchical else None,
    )
    plugin, course = new_plugin(training), Course()
    name = run_name(tissue, base.digest, found.cells, vars(settings))
    with trained(train_worker, training, name, given) as folder:
        restore(folder, {"best": plugin, "course": course})
    version = first_version(
        base, training, test, plugin.eval(), found, task=given.task, tissue=tissue, facts=course.facts()
    )
    digest = registry.put(version)
    if not given.no_promote:
        registry.promote(tissue, digest, reason="trained")
    return {
        "tissue": tissue,
        "version": digest,
        "promoted": not given.no_promote,
        "classes": len(version.labels),
        "test_accuracy": version.metrics["accuracy"],
        "left_out": dict(found.left_out),
    }


def run_name(tissue: str, base: str, cells: Cells, settings: dict[str, Any]) -> str:
    """Name the run by everything that it depends on, so that only the same one is resumed."""
    content = json.dumps([base, settings, sorted(cells.names.tolist()), cells.labels.tolist()], default=str)
    return f"plugin-{tissue}-{sha256(content.encode()).hexdigest()[:12]}"


def _read(given: argparse.Namespace, base: ScGPTCheckpoint) -> Found:
    """Read the datasets; ``TISSUE=DATASET`` labels all cells of a dataset."""
    key = given.label_key or ("cell_type" if given.task == "cells" else "tissue")
    reading = Reading(key, given.label_id_key, given.donor_key, given.layer, given.gene_key, seed=given.seed)
    found = Found()
    for entry in given.data:
        tissue, named, path = entry.partition("=")
        whole = given.task == "tissue" and bool(named)
        part = read_labelled([path if whole else entry], base, reading, label=tissue_name(tissue) if whole else None)
        found.cells = Cells.concatenated([found.cells, part.cells]) if len(found.cells) else part.cells
        found.term_ids |= part.term_ids
        found.left_out += part.left_out
    return found


def _named(tissue: str | None) -> str:
    if tissue is None:
        msg = "which tissue? give --tissue NAME, or --task tissue for the plugin that tells tissues apart"
        raise SettingError(msg)
    name = tissue_name(tissue)
    if name == TISSUES:
        msg = f"tissue {tissue!r} is the name of the tissue-assignment plugin; give another, or --task tissue"
        raise SettingError(msg)
    return name


if __name__ == "__main__":
    sys.exit(main())
