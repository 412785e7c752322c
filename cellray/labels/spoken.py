"""Cell types as people and language models write them, made into names and Cell Ontology ids.

Contract: ``spoken`` reads one line of free text. It takes off what is no name (tags, emphasis, remarks in brackets, an
introduction), splits alternatives ("A or B", "A / B": a hedge) and looks each up: as it stands, in the singular, with
"cell" behind it, by the field's abbreviations, and at last without its first words ("tumor-associated macrophages" is a
macrophage, which is right and coarser). Text that names no cell type gives a name without an id or nothing at all; it
never fails. Names are cleaned and cut: they come from models and are not trusted.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from cellray.labels.ontology import Ontology, is_id

LONGEST = 120
_MOST_NAMES = 8

_TAG = re.compile(r"</?[A-Za-z][^>\n]{0,40}>|[*`#\"“”]+")
_REMARK = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_INTRODUCTION = re.compile(
    r"^\W*(?:(?:the\s+)?(?:final\s+|predicted\s+|most\s+likely\s+)*(?:answer|annotation(?:\s+result)?|cell\s+type|label|result)"
    r"\s*(?:is|are|:|=)+\s*)+|^(?:these|this|the)\s+(?:cells?\s+)?(?:is|are|appears? to be|could be)\s+",
    re.IGNORECASE,
)
_DOUBT = re.compile(r"^(?:(?:most\s+)?(?:likely|possibly|probably|presumably)|either|an?|the)\s+", re.IGNORECASE)
_NOTHING = re.compile(
    r"(?:unknown|undetermined|unclear|uncertain|unassigned|not\s+(?:sure|known|possible)|cannot|n/?a|none)\b",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(r"\s*,?\s+(?:and/)?or\s+|\s+(?:vs\.?|versus)\s+|\s+/\s+|(?<=[A-Za-z])/(?=[A-Za-z])|\s*;\s*")
_UNSAFE = re.compile(r"[^A-Za-z0-9 .,:/()'+\-_α-ωΑ-Ω]+")
_NUMBERED = re.compile(r"[ _-]\d+$")
_MARKED = re.compile(r"(.+) (?:[A-Z0-9][A-Z0-9-]{3,}|[A-Z]+\d+)$")
_JOINED = re.compile(r"\b(cd[48])(t)")
_T_CELL = re.compile(
    r"\bcd([48])[ab]?\b.*\b(?:t|tconv|tex|t-?lymphocytes?|tcm|tem|temra|lymphocytes?|naive)\b|^cd([48])[ab]?$"
)

_SHORT = {
    "b": "B cell",
    "caf": "fibroblast",
    "cd14 mono": "CD14-positive monocyte",
    "cd14 monocyte": "CD14-positive monocyte",
    "cd16 mono": "CD14-low, CD16-positive monocyte",
    "cd16 monocyte": "CD14-low, CD16-positive monocyte",
    "fcgr3a mono": "CD14-low, CD16-positive monocyte",
    "fcgr3a monocyte": "CD14-low, CD16-positive monocyte",
    "cdc": "conventional dendritic cell",
    "ctl": "cytotoxic T cell",
    "cytotoxic t lymphocyte": "cytotoxic T cell",
    "dc": "dendritic cell",
    "ductal": "duct epithelial cell",
    "ec": "endothelial cell",
    "erythroid": "erythroid lineage cell",
    "gdt": "gamma-delta T cell",
    "gmp": "granulocyte monocyte progenitor cell",
    "hsc": "hematopoietic stem cell",
    "hspc": "hematopoietic precursor cell",
    "ilc": "innate lymphoid cell",
    "immune": "leukocyte",
    "lsec": "endothelial cell of hepatic sinusoid",
    "mac": "macrophage",
    "macro": "macrophage",
    "mait": "mucosal invariant T cell",
    "microglia": "microglial cell",
    "mono": "monocyte",
    "nk": "natural killer cell",
    "nkt": "mature NK T cell",
    "opc": "oligodendrocyte precursor cell",
    "pdc": "plasmacytoid dendritic cell",
    "plasmocyte": "plasma cell",
    "rbc": "erythrocyte",
    "smc": "smooth muscle cell",
    "t": "T cell",
    "t reg": "regulatory T cell",
    "th": "helper T cell",
    "treg": "regulatory T cell",
}
_T_KINDS = (
    (("reg", "treg", "regulatory"), "regulatory T cell"),
    (("naive",), "naive thymus-derived CD{}-positive, alpha-beta T cell"),
    (("memory", "tcm", "tem", "temra"), "CD{}-positive, alpha-beta memory T cell"),
    (("cytotoxic",), "CD{}-positive, alpha-beta cytotoxic T cell"),
    (("",), "CD{}-positive, alpha-beta T cell"),
)
_T_WORDS = {"cd4", "cd8", "cd4t", "cd8t", "t", "tconv", "cell", "cells", "lymphocyte", "lymphocytes", "positive"}
_T_WORDS |= {"naive", "memory", "cytotoxic", "reg", "treg", "regulatory"}
_T_ENDS = ("alpha-beta T cell", "alpha-beta memory T cell", "alpha-beta cytotoxic T cell", "regulatory T cell")
_NOT = ("non", "not", "no")
_CELL = "CL:0000000"


@dataclass(frozen=True)
class Spoken:
    """The cell types that a text names, first one first, and for each its ontology id or ``""``."""

    names: tuple[str, ...] = ()
    term_ids: tuple[str, ...] = ()

    @property
    def hedged(self) -> bool:
        """Whether there are several."""
        return len(self.names) > 1


def spoken(text: str) -> Spoken:
    """Read one line of free text."""
    return _spoken(text[: 4 * LONGEST])


@lru_cache(maxsize=1 << 16)
def _spoken(text: str) -> Spoken:
    if is_id(text):
        term = _ontology().find(text) or ""
        return Spoken((_ontology().name(term),), (term,)) if term else Spoken()
    line = _REMARK.sub(" ", _TAG.sub(" ", text.replace("⁺", "+").replace("‐", "-").replace("–", "-")))
    line = _INTRODUCTION.sub("", " ".join(line.split()))
    names = []
    for piece in _ALTERNATIVE.split(line)[:_MOST_NAMES]:
        name = _DOUBT.sub("", _UNSAFE.sub(" ", piece).strip(" .,:-/'"))[:LONGEST].strip(" .,:/'")
        if name and not _NOTHING.match(name):
            names.append(name)
    terms = [_term(name) for name in names]
    if names and len(names) > 1 and terms[-1]:
        # "naive or memory B cells": what the first lacks stands behind the last.
        behind = names[-1].split(" ")
        for at, term in enumerate(terms[:-1]):
            if not term:
                longer = [f"{names[at]} {' '.join(behind[skip:])}" for skip in range(1, len(behind))]
                names[at], terms[at] = next(((one, _term(one)) for one in longer if _term(one)), (names[at], ""))
    return Spoken(tuple(names), tuple(terms))


def _term(name: str) -> str:
    """Return the id of the first form of a name that the ontology knows, else ``""``."""
    name = _NUMBERED.sub("", name).replace("_", " ")
    marked = _MARKED.fullmatch(name)  # "Treg FOXP3"
    for shorter in filter(None, (name, marked and marked[1])):
        words = shorter.split()
        for skip in range(len(words)):
            if skip and words[skip - 1].casefold() in _NOT:
                break
            for form in _forms(" ".join(words[skip:])):
                if (term := _ontology().find(form)) and term != _CELL:
                    return term
    return ""


def whole_forms(name: str) -> list[str]:
    """Return the forms in which a label may be known, all of its words in each."""
    folded = re.findall(r"[a-z0-9]+", name.casefold())
    forms = list(_forms(name))
    # The form of T cells leaves out the words that it does not know.
    return forms if set(folded) <= _T_WORDS else [form for form in forms if not form.endswith(_T_ENDS)]


def _forms(name: str) -> Iterator[str]:
    yield name
    one = " ".join(_singular(word) for word in name.split())
    yield one
    yield f"{one} cell"
    yield one.replace("-", " ")
    folded = _JOINED.sub(r"\1 \2", one.replace("+", " ").replace("-positive", " ").replace("-", " ").casefold())
    bare = " ".join(word for word in folded.split() if word not in ("cell", "lymphocyte"))
    for key in (" ".join(folded.split()), bare):
        if key in _SHORT:
            yield _SHORT[key]
    if found := _T_CELL.search(" ".join(folded.split())):
        number, words = found[1] or found[2], folded.split()
        yield next(form for kinds, form in _T_KINDS if kinds == ("",) or set(kinds) & set(words)).format(number)


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@cache
def _ontology() -> Ontology:
    return Ontology()
