"""How well predicted labels agree with the truth: accuracy, macro-F1, confusion, and shares by ontology relation.

Contract: pure functions of two equally long, non-empty sequences of labels, one entry a cell. Cells that count
(annotated, truth among the candidates) are chosen by the caller. A mismatch of lengths or no cell at all is a
``ValueError``.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cellray.labels.ontology import Ontology, normal
from cellray.labels.spoken import Spoken

BROAD_BRANCHES = (
    "CL:0000542",  # lymphocyte
    "CL:0000763",  # myeloid cell (with platelets and erythrocytes)
    "CL:0000451",  # dendritic cell
    "CL:0008001",  # hematopoietic precursor cell
    "CL:0000066",  # epithelial cell
    "CL:0000115",  # endothelial cell
    "CL:0002320",  # connective tissue cell (fibroblasts, stroma, fat, bone)
    "CL:0000187",  # muscle cell
    "CL:0002319",  # neural cell
    "CL:0000586",  # germ cell
)


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the share of cells with the right label."""
    return float(np.mean(np.equal(*_pair(truth, predicted))))


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean F1 over the classes present in truth or prediction; a class never hit counts 0."""
    _, matrix = confusion(truth, predicted)
    return float(np.mean(2 * np.diag(matrix) / (matrix.sum(axis=0) + matrix.sum(axis=1))))


def confusion(truth: Sequence[str], predicted: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Count cells by true and predicted label.

    Returns
    -------
    labels
        The classes present in truth or prediction, sorted.
    matrix
        (classes, classes) int64; rows are the truth.
    """
    labels, codes = np.unique(np.concatenate(_pair(truth, predicted)), return_inverse=True)
    rows, columns = codes.reshape(2, -1)
    matrix = np.bincount(rows * len(labels) + columns, minlength=len(labels) ** 2)
    return labels.tolist(), matrix.reshape(len(labels), len(labels)).astype(np.int64)


def graded(truth_ids: Sequence[str], predicted_ids: Sequence[str], ontology: Ontology) -> dict[str, float]:
    """Return the shares of cells by how the predicted cell type relates to the true one; they add up to 1.

    Parameters
    ----------
    truth_ids, predicted_ids
        Cell Ontology ids; ``""``, or anything that is no current id, is unknown.
    ontology
        Gives the relations.

    Returns
    -------
    dict
        ``exact``; ``ancestor``: the prediction is right but coarser than the truth; ``descendant``: it is finer,
        which the truth neither confirms nor denies; ``same_branch``: neither, but both are in one of
        ``BROAD_BRANCHES``; ``other``: in none together; ``unknown``: one of the two has no id.
    """
    truth_array, predicted_array = _pair(truth_ids, predicted_ids)
    counts: Counter[str] = Counter()
    for (truth, predicted), n_cells in Counter(
        zip(truth_array.tolist(), predicted_array.tolist(), strict=True)
    ).items():
        counts[_relation(ontology.find(truth), ontology.find(predicted), ontology)] += n_cells
    return {relation: counts[relation] / len(truth_array) for relation in _RELATIONS}


def graded_score(truth: Spoken, predicted: Spoken, ontology: Ontology) -> float:
    """Return how right a cell type in words is, from 0 to 1; NaN if the truth names no cell type.

    1: the same cell type, by ontology term or by name. 0.5: it is right but coarser, or finer, within one of
    ``BROAD_BRANCHES``. 0.25: several are named and one of them would have scored. 0: anything else, no answer
    included. Of several true names the best counts. After CellReasoner's table of graded pairs, which covers its own
    predictions only.
    """
    if not truth.names:
        return float("nan")
    best = max((_grade(one, other, ontology) for one in _named(truth) for other in _named(predicted)), default=0.0)
    return min(best, 0.25) if predicted.hedged else best


def _named(spoken: Spoken) -> list[tuple[str, str]]:
    return list(zip(spoken.names, spoken.term_ids, strict=True))


def _grade(truth: tuple[str, str], predicted: tuple[str, str], ontology: Ontology) -> float:
    if normal(truth[0]) == normal(predicted[0]):
        return 1.0
    relation = _relation(truth[1] or None, predicted[1] or None, ontology)
    if relation in ("ancestor", "descendant"):
        shared = ontology.ancestors(truth[1]) & ontology.ancestors(predicted[1])
        return 0.0 if shared.isdisjoint(BROAD_BRANCHES) else 0.5
    return float(relation == "exact")


def hierarchical_f1(truth_ids: Sequence[str], predicted_ids: Sequence[str], ontology: Ontology) -> float:
    """Return the F1 of terms with all they are a kind of, summed over cells (Kiritchenko et al. 2006).

    An id that is unknown (``""``) has no terms; the root of all cell types counts for none.
    """
    sets = [
        [ontology.ancestors(term) - {_ROOT} if ontology.find(term) else frozenset() for term in side.tolist()]
        for side in _pair(truth_ids, predicted_ids)
    ]
    both = sum(len(true & told) for true, told in zip(*sets, strict=True))
    return 2 * both / max(sum(map(len, sets[0])) + sum(map(len, sets[1])), 1)


_ROOT = "CL:0000000"
_RELATIONS = ("exact", "ancestor", "descendant", "same_branch", "other", "unknown")


def _relation(truth: str | None, predicted: str | None, ontology: Ontology) -> str:
    if truth is None or predicted is None:
        return "unknown"
    if truth == predicted:
        return "exact"
    if ontology.is_a(truth, predicted):
        return "ancestor"
    if ontology.is_a(predicted, truth):
        return "descendant"
    shared = ontology.ancestors(truth) & ontology.ancestors(predicted)
    return "other" if shared.isdisjoint(BROAD_BRANCHES) else "same_branch"


def _pair(truth: Sequence[str], predicted: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    if len(truth) != len(predicted) or len(truth) == 0:
        msg = f"{len(truth)} true and {len(predicted)} predicted labels; give as many of both, and at least one"
        raise ValueError(msg)
    return np.asarray(truth, dtype=object).astype(str), np.asarray(predicted, dtype=object).astype(str)
