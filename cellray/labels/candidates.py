"""The candidate labels of a run and the texts that stand for them in the text encoder.

Contract: a label set has at least two labels, none twice (neither by name nor by ontology term), each with a text of
at most ``MAX_CHARS`` printable characters. A label file that cannot give such a set is a ``LabelError`` naming the
file and the line. Prompts have LangCell's format to the character. It does not read files or encode texts.
"""

import difflib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from cellray.errors import LabelError
from cellray.labels.names import joined, singular, term_of
from cellray.labels.ontology import Ontology, is_id, normal

MAX_CHARS = 2000


@dataclass(frozen=True)
class Label:
    """A candidate: ``name`` goes to the output, ``text`` to the encoder, ``term_id`` is its ontology id or ``""``."""

    name: str
    term_id: str
    text: str


def prompt(name: str, definition: str) -> str:
    """Return LangCell's text for a cell type; ``definition`` may be ``""``."""
    return f"cell type: {name}. " + (f"{definition}; " if definition else "")


def read_labels(text: str, source: str, known: Sequence[Label] = ()) -> list[Label]:
    r"""Parse the content of a label file.

    One label a line: a name or synonym of a cell type (as ``names.term_of`` reads it), a Cell Ontology id, the name of
    one of the ``known`` labels, or ``label<TAB>text`` with the text for the encoder, taken verbatim. Blank lines and
    lines that start with ``#`` are skipped. A label without a text takes the known label's text where one has its name
    or term, else the ontology's. The user's spelling is kept as the name, except for an id, which becomes the name it
    stands for.

    Parameters
    ----------
    text
        The file's content; a byte order mark is dropped, lines end in ``\n`` or ``\r\n``.
    source
        What messages call the file.
    known
        The model's own labels.

    Raises
    ------
    LabelError
        If a line cannot be understood, a label comes twice, or there are fewer than two.
    """
    ontology = Ontology()
    labels: list[Label] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        label = _label(line, f"{source} line {number}", known, ontology)
        for key in filter(None, (normal(label.name), label.term_id)):
            if key in seen:
                msg = (
                    f"{source} line {number}: {label.name!r} is the label of line {seen[key]} again; remove one of them"
                )
                raise LabelError(msg)
            seen[key] = number
        labels.append(label)
    if len(labels) < 2:
        msg = f"{source} holds {len(labels)} label(s); at least two are needed to choose between"
        raise LabelError(msg)
    return labels


def class_labels(names: Sequence[str]) -> list[dict[str, str]]:
    """Return the labels of a classifier's classes, in their order, as a model folder holds them; no text is needed."""
    ontology = Ontology()
    labels = []
    for number, name in enumerate((name.strip() for name in names), start=1):
        _check(name, "label", f"class {number}")
        labels.append({"name": name, "term_id": term_of(name, ontology), "text": ""})
    return labels


def match_truth(
    values: Sequence[str], ids: Sequence[str] | None, labels: Sequence[Label], ontology: Ontology
) -> list[int]:
    """Say for each cell which label its true cell type is.

    Parameters
    ----------
    values
        The true cell types as their author wrote them.
    ids
        Their ontology ids where known, else ``""``; or None.
    labels
        The candidate labels.
    ontology
        Resolves ids, names and synonyms.

    Returns
    -------
    list of int
        Index of the label with the value's name, else of the label with its ontology term (the given id, or what
        ``names.term_of`` reads in the value), else of the only label that differs in joints or plural alone, else -1.
        A finer or coarser type is not the same.
    """
    by_name = {normal(label.name): index for index, label in reversed(list(enumerate(labels)))}
    by_form = {form: index for form, index in _forms(labels).items() if index >= 0}
    by_term = {label.term_id: index for index, label in reversed(list(enumerate(labels))) if label.term_id}
    pairs = list(zip(values, ids if ids is not None else [""] * len(values), strict=True))
    matched = {}
    for value, term_id in set(pairs):
        term = (ontology.find(term_id) if is_id(term_id) else None) or term_of(value, ontology)
        found = by_name.get(normal(value), by_term.get(term, -1) if term else -1)
        if found < 0:
            found = next((by_form[form] for form in (joined(value), singular(value)) if form in by_form), -1)
        matched[value, term_id] = found
    return [matched[pair] for pair in pairs]


def close_labels(value: str, labels: Sequence[Label], n: int = 3) -> list[str]:
    """Return the names of up to ``n`` labels that are written most like ``value``, closest first."""
    names = {singular(label.name): label.name for label in labels}
    return [names[name] for name in difflib.get_close_matches(singular(value), names, n=n, cutoff=0.5)]


def _forms(labels: Sequence[Label]) -> dict[str, int]:
    """Return labels by their forms without joints and plural; -1 where several have the same form."""
    forms: dict[str, int] = {}
    for index, label in enumerate(labels):
        for form in {joined(label.name), singular(label.name)}:
            forms[form] = index if forms.get(form, index) == index else -1
    return forms


def _label(line: str, where: str, known: Sequence[Label], ontology: Ontology) -> Label:
    name, has_text, text = line.partition("\t")
    name = name.strip()
    _check(name, "label", where)
    if has_text:
        _check(text, "text", where)
        return Label(name, term_of(name, ontology), text)
    term_id = term_of(name, ontology)
    entry = next((label for label in known if normal(name) in (normal(label.name), normal(label.term_id))), None)
    entry = entry or next((label for label in known if term_id and label.term_id == term_id), None)
    if entry:
        return Label(entry.name if is_id(name) else name, entry.term_id, entry.text)
    if term_id:
        term_name = ontology.name(term_id)
        return Label(term_name if is_id(name) else name, term_id, prompt(term_name, ontology.definition(term_id)))
    if "," in name:
        msg = (
            f"{where}: {name!r} holds several labels or columns parted by commas; write one label a line "
            "(label<TAB>text to give the encoder a text of your own)"
        )
        raise LabelError(msg)
    close = ", ".join(ontology.suggest(name))
    msg = (
        f"{where}: {name!r} is neither a label of the model nor in the Cell Ontology"
        f"{f' (close: {close})' if close else ''}. Write label<TAB>text to give the encoder a text of your own"
    )
    raise LabelError(msg)


def _check(value: str, what: str, where: str) -> None:
    if not value.strip():
        msg = f"{where}: the {what} is empty"
        raise LabelError(msg)
    if len(value) > MAX_CHARS:
        msg = f"{where}: the {what} has {len(value)} characters; at most {MAX_CHARS} are allowed"
        raise LabelError(msg)
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            msg = f"{where}: the {what} holds the control character U+{ord(character):04X}; remove it"
            raise LabelError(msg)
