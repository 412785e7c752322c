"""The Cell Ontology, as packaged by ``cellxgene-ontology-guide`` (offline).

Contract: every id that is returned is of a current term. An obsolete id given stands for the term that replaces it;
without a replacement in the Cell Ontology it is refused. Text is compared without regard to case and to the amount of
white space, and otherwise exactly. It does not guess: a name that is nearly right is not found, only suggested.
"""

import difflib
import re
from functools import cached_property
from typing import Any

from cellray.errors import LabelError

_ID = re.compile(r"CL:\d{7}", re.IGNORECASE)


def normal(text: str) -> str:
    """Return the form in which two spellings of one label are equal."""
    return " ".join(text.split()).casefold()


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of a Cell Ontology id."""
    return _ID.fullmatch(text.strip()) is not None


class Ontology:
    """Names, definitions and ancestors of cell types. The data (0.1 s) is loaded at the first question and kept.

    Every method that takes a ``term_id`` raises ``LabelError`` when no current term has it or replaces it.
    """

    def name(self, term_id: str) -> str:
        """Return the term's name."""
        return self._parser.get_term_label(self._required(term_id))

    def definition(self, term_id: str) -> str:
        """Return the term's definition, ``""`` when it has none."""
        return self._parser.get_term_description(self._required(term_id)) or ""

    def ancestors(self, term_id: str) -> frozenset[str]:
        """Return the ids of the term and of everything it is a kind of."""
        return frozenset(self._parser.get_term_ancestors(self._required(term_id), include_self=True))

    def is_a(self, child: str, parent: str) -> bool:
        """Whether ``child`` is ``parent`` or a kind of it."""
        return self._required(parent) in self.ancestors(child)

    def find(self, text: str) -> str | None:
        """Return the id that ``text`` stands for: an id, else a term's name, else a synonym that only one term has."""
        if is_id(text):
            return self._current(text.strip().upper())
        return self._by_name.get(normal(text)) or self._by_synonym.get(normal(text))

    def terms(self) -> list[str]:
        """Return the ids of all current terms, sorted."""
        return sorted(self._by_name.values())

    def suggest(self, text: str) -> list[str]:
        """Return up to three names or synonyms close to ``text``, closest first; none for an id."""
        if is_id(text):
            return []
        known = {**self._by_synonym, **self._by_name}
        return difflib.get_close_matches(normal(text), known, n=3, cutoff=0.6)

    @cached_property
    def _parser(self) -> Any:
        from cellxgene_ontology_guide.ontology_parser import OntologyParser

        return OntologyParser()

    @cached_property
    def _by_name(self) -> dict[str, str]:
        names = self._parser.get_term_label_to_id_map("CL")
        return {normal(name): term for name, term in names.items() if not self._parser.is_term_deprecated(term)}

    @cached_property
    def _by_synonym(self) -> dict[str, str]:
        owners: dict[str, set[str]] = {}
        for term in self._by_name.values():
            for synonym in self._parser.get_term_synonyms(term):
                owners.setdefault(normal(synonym), set()).add(term)
        return {synonym: min(terms) for synonym, terms in owners.items() if len(terms) == 1}

    def _current(self, term_id: str) -> str | None:
        """Return the id itself, or of the last in the row of its replacements; None when it ends outside or nowhere."""
        term: str | None = term_id
        while term and self._parser.is_valid_term_id(term, "CL") and self._parser.is_term_deprecated(term):
            term = self._parser.get_term_replacement(term)
        return term if term and self._parser.is_valid_term_id(term, "CL") else None

    def _required(self, term_id: str) -> str:
        term = self._current(term_id)
        if term is None:
            msg = f"{term_id!r} is no current Cell Ontology id, nor replaced by one"
            raise LabelError(msg)
        return term
