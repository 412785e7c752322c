"""Add a cell type to a plugin from tens of new cells, on Ray Train; promoted only if it did not forget.

``python -m jobs.update_plugin --tissue liver --new new_type.h5ad --label "malignant cell" --registry URI``

The version is stored in any case. Exit code 3: stored, but the gate refused to promote it, and says why.
"""

import argparse
import sys
from typing import Any

from cellray.errors import PluginError, SettingError, boundary
from cellray.plugins.gate import Limits
from cellray.plugins.making import next_version, plan_update
from cellray.plugins.reading import Reading, read_labelled
from cellray.plugins.registry import Registry, tissue_name
from cellray.plugins.router import no_plugin
from cellray.train.checkpoint import restore
from cellray.train.update import UpdateSettings, extended, update_worker
from jobs.numbers import amount, count, number, positive, share
from jobs.train_plugin import add_plugin_arguments, finished, load_base, run_name
from jobs.training import add_arguments, trained


def main(arguments: list[str] | None = None) -> int:
    """Parse, update, judge, store, promote; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.update_plugin", description=__doc__)
    parser.add_argument("--tissue", required=True)
    parser.add_argument("--new", nargs="+", required=True, help="datasets of cells of the new type, all of them of it")
    parser.add_argument("--label", required=True, help="name of the new type")
    add_plugin_arguments(parser)
    parser.add_argument("--recipe", choices=("imprint", "paper"), default="imprint")
    parser.add_argument("--epochs", type=count, default=10)
    parser.add_argument("--learning-rate", type=positive, default=None, help="default: that of the recipe")
    parser.add_argument("--hold-out", type=amount, default=0.2, help="share of the new cells that the gate looks for")
    allowed = Limits()
    parser.add_argument(
        "--margin", type=number(float, -1, 1), default=allowed.margin, help="most that accuracy on known types may fall"
    )
    parser.add_argument(
        "--type-margin",
        type=number(float, -1, 1),
        default=allowed.type_margin,
        help="most that the new type may take of a known one",
    )
    parser.add_argument(
        "--least-recall", type=share, default=allowed.least_recall, help="of held-out cells of the new type"
    )
    add_arguments(parser)
    return finished(parser.parse_args(arguments), run)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Update and store; returns what to print."""
    if not 0 <= given.hold_out < 1:
        msg = f"--hold-out is {given.hold_out}; it must be at least 0 and below 1"
        raise SettingError(msg)
    tissue, base, registry = tissue_name(given.tissue), load_base(given.base), Registry(given.registry)
    parent = registry.promoted(tissue)
    if parent is None:
        raise no_plugin(given.tissue, registry.tissues())
    with boundary(PluginError, f"registry {registry.uri}", ValueError):
        old = registry.get(tissue, parent).on(base)
    reading = Reading(layer=given.layer, gene_key=given.gene_key, seed=given.seed)
    found = read_labelled(given.new, base, reading, label=given.label)
    settings = UpdateSettings(given.recipe, given.epochs, learning_rate=given.learning_rate, seed=given.seed)
    updating, judged = plan_update(base, old, found.cells, given.label, settings, given.hold_out)
    plugin = extended(updating.plugin)
    name = run_name(tissue, parent, found.cells, vars(settings))
    with trained(update_worker, updating, name, given) as folder:
        restore(folder, {"best": plugin})
    limits = Limits(given.margin, given.type_margin, given.least_recall)
    version, verdict = next_version(old, parent, updating, judged, plugin.eval(), limits)
    digest = registry.put(version)
    if verdict.passed:
        registry.promote(tissue, digest, reason=f"added {given.label!r}", parent=parent)
    return {
        "tissue": tissue,
        "version": digest,
        "promoted": verdict.passed,
        **({} if verdict.passed else {"refused": f"stored but not promoted: {verdict.reason}"}),
        "class": len(old.labels),
        "known_before": verdict.known.before,
        "known_after": verdict.known.after,
        "new_recall": verdict.recall,
        "left_out": dict(found.left_out),
    }


if __name__ == "__main__":
    sys.exit(main())
