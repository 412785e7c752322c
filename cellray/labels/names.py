"""Names of cell types as people write them in label files and columns, looked up in the Cell Ontology.

Contract: ``term_of`` reads one label whole. It is found as it stands (an id, a name, a synonym), as a label of another
annotation tool, in the singular, with "cell" behind it, with other joints, or by the field's abbreviations ("T cells",
"NK cells", "CD14+ Monocytes", "B-cells", "HSPC"). No word is left out, so that a finer type is never taken for a
coarser one; text that names several types, or something that is no type, has no term. What models say in free text is
``cellray.labels.spoken``'s.

The table of other tools' labels is derived from the harmonised annotation tables of Azimuth, CellTypist, popV and
others (CC-BY 4.0); ``tool_names.md`` beside it has the attribution and the rule by which it was made.
"""

import re
from functools import cache
from importlib.resources import files

from cellray.labels.ontology import Ontology, is_id, normal
from cellray.labels.spoken import whole_forms

_NO_TYPE = re.compile(
    r"\b(doublets?|multiplets?|low[ _-]quality|unassigned|unknown|debris|ambient|undetermined)\b", re.I
)
_SEVERAL = re.compile(r"\s(?:or|and|vs\.?)\s|/|\||;", re.I)
_CELL = "CL:0000000"


def term_of(text: str, ontology: Ontology) -> str:
    """Return the Cell Ontology id of a label, ``""`` if it names no single type."""
    if is_id(text):
        return ontology.find(text) or ""
    exact = ontology.find(text)
    if exact is not None:
        return exact
    name = text.strip()
    if not name or _NO_TYPE.search(name):
        return ""
    found = _tool_names().get(joined(name))
    if found is not None:
        return found
    if _SEVERAL.search(name):
        return ""
    spaced = name.replace("_", " ")
    for form in dict.fromkeys((*whole_forms(spaced), *whole_forms(spaced.replace("-", " ")))):
        term = ontology.find(form) or _tool_names().get(joined(form))
        if term and term != _CELL:
            return term
    return ""


def joined(text: str) -> str:
    """Return the form in which two spellings of one label are equal, whatever joins their words."""
    return " ".join(filter(None, re.split(r"[\s_-]+", normal(text))))


def singular(text: str) -> str:
    """Return the form in which a label and its plural are equal."""
    return " ".join(re.sub(r"(?<=[a-z]{3})(?<!s|u|i)s$", "", word) for word in joined(text).split())


@cache
def _tool_names() -> dict[str, str]:
    """Return the terms of labels that other tools use, by their ``joined`` form."""
    text = files("cellray.labels").joinpath("tool_names.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return dict(rows)
