"""Reasoning of one dataset inside a run: its uncertain groups as puzzles, and the answers back on its cells.

Contract: the questions are a pure function of refined scores, graph, counts and settings, so an answer of an earlier
try still fits. A group's cells get what its windows agree on: a label, or none of those offered (then they are
abstained); without an answer, or in a draw, they keep what they have, and are counted. What a group is and how windows
are dealt is in ``cellray.puzzles``; who answers is ``cellray.pipeline.solving``'s business.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from cellray import schema
from cellray.errors import RefineError, boundary
from cellray.ingest import DatasetPlan, read_obs_text, read_rows
from cellray.ingest.reader import INDEX, open_dataset
from cellray.manifest import ShardRecord
from cellray.pipeline.order import WorkOrder
from cellray.puzzles.cells import UNINFORMATIVE, top_genes
from cellray.puzzles.context import columns, describe
from cellray.puzzles.groups import Group, uncertain_groups
from cellray.puzzles.puzzle import NONE, Puzzle, clean
from cellray.puzzles.windows import reconciled, windows

if TYPE_CHECKING:
    from cellray.refine.grit import Refinement

_TOP_GENES = 50
_DONOR = "donor_id"  # CELLxGENE's column
_NAMES = "feature_name"
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?")
_LONGEST_LABEL = 200


@dataclass(frozen=True)
class Question:
    """A puzzle, and the number of the group that each of its cells stands for."""

    puzzle: Puzzle
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Inquiry:
    """What a dataset asks.

    Attributes
    ----------
    groups
        Their ``cells`` are rows of the dataset.
    scores
        For each group (cells, labels) float32, refined.
    questions
        Every group is in one at least.
    """

    groups: tuple[Group, ...] = ()
    scores: tuple[np.ndarray, ...] = ()
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Verdicts:
    """What became of the groups: ``rows`` (m,) int64 ascending get ``labels`` (m,) int64, -1 for none of those offered.

    ``score`` and ``margin`` (m,) float32 are the refined ones of that label, so a margin below 0 says that the language
    model overruled refinement. ``table`` is ``schema.reasoning()``.
    """

    rows: np.ndarray
    labels: np.ndarray
    score: np.ndarray
    margin: np.ndarray
    table: pa.Table
    counts: dict[str, int] = field(default_factory=dict)


def inquire(
    order: WorkOrder,
    plan: DatasetPlan,
    shards: Sequence[ShardRecord],
    scored: np.ndarray,
    labelled: np.ndarray,
    refinement: "Refinement",
) -> Inquiry:
    """Return what to ask about the cells ``scored`` (ascending rows) of one dataset; nothing if all are certain.

    ``labelled`` (bool, a value for each scored cell) says which have a label at all.

    Raises
    ------
    RefineError
        If groups cannot be made; other dataset errors if something they need cannot be read.
    """
    told, graph = order.refining, refinement.graph
    if graph is None:
        msg = f"dataset {plan.source.dataset_id!r}: refinement kept no graph to group cells by"
        raise RefineError(msg)
    with open_dataset(plan.source) as reader:
        there = reader.keys_beside("obs")
    key = told.donor_key or (_DONOR if _DONOR in there else None)
    donors = np.full(plan.n_cells, "") if key is None else read_obs_text(plan.source, key)
    with boundary(RefineError, f"dataset {plan.source.dataset_id!r}"):
        found = uncertain_groups(
            refinement.p, graph, donors[scored], labelled, share=told.reason_share, margin=told.reason_margin
        )
    scores = tuple(refinement.p[group.cells] for group in found)
    groups = tuple(Group(scored[group.cells], group.donor, group.plausible, group.margin) for group in found)
    if not groups:
        return Inquiry()
    genes = _genes(order, plan, shards, groups)
    metadata = {name: read_obs_text(plan.source, name) for name in columns(there)}
    return Inquiry(groups, scores, tuple(_questions(order, plan, groups, genes, metadata)))


def settle(inquiry: Inquiry, answers: Mapping[str, Mapping[str, Any]], labels: Sequence[str]) -> Verdicts:
    """Put the answers (rows of ``ANSWERS`` by puzzle key) on the cells."""
    number = {label: at for at, label in enumerate(candidate_names(labels))}
    said: list[list[tuple[str, float, str]]] = [[] for _ in inquiry.groups]
    for question in inquiry.questions:
        row = answers.get(question.puzzle.key, {})
        if row.get("status") in ("solved", "repaired"):
            for at, label, support in zip(question.groups, row["answer"], row["support"], strict=True):
                said[at].append((label, support, row["reasoning"] or ""))
    entries, decided = [], [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, len(labels)), np.float32))]
    counts: Counter[str] = Counter()
    for group, scores, votes in zip(inquiry.groups, inquiry.scores, said, strict=True):
        answer = reconciled((name, support) for name, support, _ in votes)
        outcome = "undecided" if votes else "unanswered"
        if answer is not None:
            new = number.get(answer, -1)  # NONE is no label
            outcome = "none_of_these" if new < 0 else "confirmed" if new == group.plausible[0] else "relabelled"
            decided.append((group.cells, np.full(len(group.cells), new), scores))
        counts[f"groups_{outcome}"] += 1
        counts[f"cells_{outcome}"] += len(group.cells)
        entries.append(
            {
                schema.DONOR: group.donor,
                schema.CELLS: group.cells.tolist(),
                schema.PLAUSIBLE: [labels[at] for at in group.plausible],
                schema.MARGIN: group.margin,
                schema.OUTCOME: outcome,
                schema.ANSWER: labels[number[answer]] if answer in number else answer,
                schema.SUPPORT: sum(support for name, support, _ in votes if name == answer) / max(len(votes), 1),
                schema.REASONING: next((text for name, _, text in votes if name == answer), ""),
            }
        )
    rows, new_labels, kept = (np.concatenate(parts) for parts in zip(*decided, strict=True))
    by_row = np.argsort(rows)
    rows, new_labels, kept = rows[by_row], new_labels[by_row], kept[by_row]
    at = np.maximum(new_labels, 0)[:, None]
    score = np.take_along_axis(kept, at, axis=1)[:, 0]
    np.put_along_axis(kept, at, -np.inf, axis=1)
    margin = score - kept.max(axis=1)
    return Verdicts(
        rows, new_labels, score, margin, pa.Table.from_pylist(entries, schema=schema.reasoning()), dict(counts)
    )


def candidate_names(labels: Sequence[str]) -> list[str]:
    """Return labels as candidates: they may come from a user's file, and go into a prompt.

    Labels that would be the same once cleaned and cut are numbered, so that an answer means one of them.
    """
    cleaned = [clean(label.replace("|", "/"), _LONGEST_LABEL) for label in labels]
    used, again = Counter(cleaned), Counter[str]()
    taken = {name for name, count in used.items() if count == 1}
    offered = []
    for name in cleaned:
        new = name
        while used[name] > 1 and (new == name or new in taken):
            again[name] += 1
            new = f"{name[: _LONGEST_LABEL - 6]} ({again[name]})"
        taken.add(new)
        offered.append(new)
    return offered


def _questions(
    order: WorkOrder,
    plan: DatasetPlan,
    groups: Sequence[Group],
    genes: Sequence[tuple[str, ...]],
    metadata: Mapping[str, np.ndarray],
) -> list[Question]:
    found = []
    names = candidate_names(order.scoring.labels)
    donors = sorted({group.donor for group in groups})
    for number, donor in enumerate(donors):
        mine = [at for at, group in enumerate(groups) if group.donor == donor and genes[at]]
        dealt = windows([groups[at].plausible[0] for at in mine])
        for place, window in enumerate(dealt):
            members = tuple(mine[at] for at in window)
            rng = np.random.default_rng([order.refining.reason_seed, number, place])
            offered = sorted({label for at in members for label in groups[at].plausible})
            candidates = [names[label] for label in rng.permutation(offered)]
            cells = np.concatenate([groups[at].cells for at in members])
            facts = {name: Counter(values[cells].tolist()).most_common(1)[0][0] for name, values in metadata.items()}
            puzzle = Puzzle(
                context=describe(facts),
                cells=tuple(genes[at] for at in members),
                candidates=(*candidates, NONE),
                dataset=plan.source.dataset_id,
                group=donor,
            )
            found.append(Question(puzzle, members))
    return found


def _genes(
    order: WorkOrder, plan: DatasetPlan, shards: Sequence[ShardRecord], groups: Sequence[Group]
) -> list[tuple[str, ...]]:
    """Top genes of each group: of the sum of its cells' counts, each cell's divided by their total."""
    rows = np.concatenate([group.cells for group in groups])
    member = np.repeat(np.arange(len(groups)), [len(group.cells) for group in groups])
    by_row = np.argsort(rows)
    rows, member = rows[by_row], member[by_row]
    sums = sparse.csr_matrix((len(groups), plan.n_columns), dtype=np.float32)
    for shard in shards:
        first, last = np.searchsorted(rows, [shard.start, shard.stop])
        if first == last:
            continue
        start, stop = int(rows[first]), int(rows[last - 1]) + 1
        counts = read_rows(plan, start, stop).counts[rows[first:last] - start]
        totals = np.maximum(counts.sum(axis=1).A1, 1e-12)
        share = sparse.csr_matrix(
            (1 / totals, (member[first:last], np.arange(last - first))), (len(groups), last - first), dtype=np.float32
        )
        sums = sums + share @ counts
    names = _symbols(order, plan)
    shown = np.array([bool(name) and not UNINFORMATIVE.fullmatch(name) for name in names])
    return list(top_genes(sums.tocsr(), names, shown, _TOP_GENES))


def _symbols(order: WorkOrder, plan: DatasetPlan) -> list[str]:
    """Return the symbols of a dataset's genes; Ensembl ids are named by the model where it can."""
    with open_dataset(plan.source) as reader:
        key = _NAMES if _NAMES in reader.gene_keys(plan.layer) else INDEX
        names = plan.of_genes(reader.gene_names(plan.layer, key))
    if sum(bool(_ENSEMBL.fullmatch(name)) for name in names) > len(names) / 2:
        from cellray.models import checkpoints

        table = checkpoints.load(order.scoring.model).symbols
        known = dict(zip(table[schema.ENSEMBL_ID].to_pylist(), table[schema.SYMBOL].to_pylist(), strict=True))
        names = [known.get(name.split(".")[0], "") for name in names]
    return [clean(name).replace(",", "") for name in names]
