"""From labelled cells to a plugin version, and from a version and new cells to the next.

Contract: everything but the training itself, which the caller runs where it likes. Cells that travel with a version
are at most ``PER_TYPE`` of each class to replay and as many held-out ones, drawn by hash of their names. Thresholds are
the score that 19 of 20 rightly labelled held-out cells of a class reach; that of all for a class with fewer than 20.
"""

from collections.abc import Sequence

import numpy as np

from cellray.errors import SettingError
from cellray.labels.ontology import Ontology
from cellray.models.moe_lora import Plugin
from cellray.models.scgpt_folder import ScGPTCheckpoint
from cellray.plugins.gate import Limits, Verdict, judge
from cellray.plugins.reading import Found
from cellray.plugins.version import PluginCheckpoint
from cellray.tokenize.cells import Cells
from cellray.train.corpus import draws
from cellray.train.plugins import PluginInput, PluginSettings, called, predict, split
from cellray.train.update import UpdateInput, UpdateSettings

PER_TYPE = 60
_FEWEST = 20
_DOUBTFUL = 0.05


def plan_training(
    base: ScGPTCheckpoint,
    cells: Cells,
    settings: PluginSettings,
    *,
    hold_out: float,
    by_group: bool,
    term_ids: dict[str, str] | None = None,
) -> tuple[PluginInput, Cells]:
    """Split cells and name classes; returns what ``cellray.train.plugins.train`` takes, and the cells to judge by.

    With ``term_ids`` the loss knows the Cell Ontology.

    Raises
    ------
    SettingError
        If there are too few classes or too many, or a part is left without cells.
    """
    validation, test = split(cells, hold_out, by_group=by_group)
    learned = cells.take(~(validation | test))
    classes = sorted(set(learned.labels.tolist()))
    if not 2 <= len(classes) <= settings.n_classes:
        msg = f"the training cells have {len(classes)} labels; a plugin takes 2 to {settings.n_classes}"
        raise SettingError(msg)
    known = np.isin(cells.labels, classes)
    if not (validation & known).any() or not (test & known).any():
        msg = f"of {len(cells)} cells none are left to stop or to judge by (hold-out {hold_out:g}); give more cells"
        raise SettingError(msg)
    below = None if term_ids is None else _below([term_ids.get(name, "") for name in classes])
    given = PluginInput(base.build(), learned, cells.take(validation & known), classes, settings, below)
    return given, cells.take(test & known)


def first_version(
    base: ScGPTCheckpoint,
    given: PluginInput,
    test: Cells,
    plugin: Plugin,
    found: Found,
    *,
    task: str,
    tissue: str,
    facts: dict[str, float],
) -> PluginCheckpoint:
    """Return the trained plugin as a version, with the metrics of its test cells."""
    held_out = Cells.concatenated([given.validation, test])
    predicted = called(given.base, plugin, test, given.classes)
    by_class = {name: float(np.mean(predicted[test.labels == name] == name)) for name in sorted(set(test.labels))}
    metrics = {
        "accuracy": float(np.mean(predicted == test.labels)),
        "n_test": len(test),
        "recall": by_class,
        "n_training": len(given.training),
        "left_out": dict(found.left_out),
        "epoch": facts["epoch"],
        "validation_accuracy": facts["score"],
        "settings": vars(given.settings),
    }
    return PluginCheckpoint(
        task,
        tissue,
        base.name,
        base.digest,
        plugin.config,
        plugin.state_dict(),
        [{"name": name, "term_id": found.term_ids.get(name, "")} for name in given.classes],
        thresholds(predict(given.base, plugin, held_out), held_out.labels, given.classes),
        metrics,
        few(given.training),
        few(held_out),
    )


def plan_update(
    base: ScGPTCheckpoint, old: PluginCheckpoint, new: Cells, label: str, settings: UpdateSettings, hold_out: float
) -> tuple[UpdateInput, Cells]:
    """Check a new class and split its cells; returns what ``train.update.update`` takes, and held-out new cells.

    Raises
    ------
    SettingError
        If the label is empty or known already, no class is reserved any more, or there are too few cells.
    """
    label = " ".join(label.split())
    spelled = {name.casefold(): name for name in old.names}
    if not label or label.casefold() in spelled:
        known = spelled.get(label.casefold(), "")
        msg = f"label {label!r} is {'empty' if not label else f'known to the plugin as {known!r}'}; give a new one"
        raise SettingError(msg)
    if len(old.labels) >= old.config.n_classes:
        msg = f"all {old.config.n_classes} classes of plugin {old.tissue!r} are in use; train it anew with --classes"
        raise SettingError(msg)
    order = np.argsort(draws(new.names.tolist()), kind="stable")
    apart = round(hold_out * len(new))
    if len(new) - apart < 2:
        msg = f"{len(new)} new cells are too few to learn a type from; give 10 or more"
        raise SettingError(msg)
    learned, judged = new.take(np.sort(order[apart:])), new.take(np.sort(order[:apart]))
    return UpdateInput(base.build(), old.build(), old.names, old.replay, learned, label, settings), judged


def next_version(
    old: PluginCheckpoint,
    digest: str,
    given: UpdateInput,
    judged: Cells,
    plugin: Plugin,
    limits: Limits,
) -> tuple[PluginCheckpoint, Verdict]:
    """Return the updated plugin as a version, and what the gate says of it; ``digest`` is the old version's."""
    classes = [*given.classes, given.label]
    judged = judged.relabelled(given.label)
    before, after = (called(given.base, one, old.held_out, classes) for one in (given.plugin, plugin))
    found = called(given.base, plugin, judged, classes) == given.label
    verdict = judge(old.held_out.labels, before, after, found, given.label, limits)
    held_out = Cells.concatenated([old.held_out, judged])
    term = Ontology().find(given.label) or ""
    version = old.changed(
        state=plugin.state_dict(),
        labels=[*old.labels, {"name": given.label, "term_id": term}],
        thresholds=thresholds(predict(given.base, plugin, held_out), held_out.labels, classes),
        metrics={
            "gate": verdict.facts(),
            "added": given.label,
            "n_new": len(given.new),
            "settings": vars(given.settings),
            "before": old.metrics,
        },
        replay=Cells.concatenated([old.replay, few(given.new.relabelled(given.label))]),
        held_out=held_out,
        parent=digest,
    )
    return version, verdict


def thresholds(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[float]:
    """Return the score of each class below which a label is doubtful."""
    winner, score = probabilities.argmax(1), probabilities.max(1, initial=0)
    right = np.array(classes, dtype=str)[winner] == labels
    whole = float(np.quantile(score[right], _DOUBTFUL)) if right.any() else 0.0
    return [
        float(np.quantile(score[own], _DOUBTFUL)) if (own := right & (winner == number)).sum() >= _FEWEST else whole
        for number in range(len(classes))
    ]


def few(cells: Cells) -> Cells:
    """Return at most ``PER_TYPE`` cells of each label, by hash of their names, in their order."""
    drawn = draws(cells.names.tolist())
    rows = [np.flatnonzero(cells.labels == label) for label in np.unique(cells.labels)]
    chosen = [own[np.argsort(drawn[own], kind="stable")[:PER_TYPE]] for own in rows]
    return cells.take(np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64))


def _below(terms: Sequence[str]) -> np.ndarray:
    """Say which class is a kind of which: (c, c) bool, the column's of the row's; equal terms are not each other's."""
    ontology = Ontology()
    lines = [ontology.ancestors(term) - {term} if term else frozenset() for term in terms]
    below = np.array([[parent in lines[kind] for kind in range(len(terms))] for parent in terms], bool)
    np.fill_diagonal(below, val=True)
    return below
