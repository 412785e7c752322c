"""How cells are put into sentences: the form, its length and, for ``hvg_rank``, the ranked list of genes.

Contract: a model folder may say in ``cell_sentence.json`` what its weights were trained with; what the user names goes
before. A list has one gene symbol a line, the most telling first.
"""

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cellray import storage
from cellray.errors import InputError, ModelError, boundary, one_line
from cellray.puzzles.engine import locate
from cellray.puzzles.puzzle import clean
from cellray.settings import checked
from cellray.tokenize.sentence import Form, list_places

FORM_FILE = "cell_sentence.json"
GENES = 1000
_MOST_LISTED = 200_000


class SentenceForm(BaseModel):
    """Form, genes of a sentence at most, and the ranked list (empty in form ``expr_rank``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Form = "expr_rank"
    genes: Annotated[int, Field(ge=1, description="of a sentence, at most")] = GENES
    ranked: Annotated[tuple[str, ...], Field(max_length=_MOST_LISTED)] = ()

    @model_validator(mode="after")
    def _listed(self) -> Self:
        if (self.form == "hvg_rank") != bool(self.ranked):
            msg = f"form {self.form!r} with {len(self.ranked)} ranked genes: hvg_rank needs a list, expr_rank has none"
            raise ValueError(msg)
        return self

    @classmethod
    def of(
        cls, model: str, *, form: str | None = None, genes: int | None = None, ranked_genes: str | None = None
    ) -> Self:
        """Return what the user names, else what the model folder says, else the cell's own 1,000 highest genes.

        ``ranked_genes`` is the file of a list; naming one without a ``form`` asks for ``hvg_rank``.
        """
        uri = storage.join(locate(model), FORM_FILE)
        told = cls()
        if storage.exists(uri):
            try:
                told = cls.model_validate_json(storage.read_bytes(uri))
            except ValidationError as error:
                msg = f"{uri}: {one_line(error)[:200]}"
                raise ModelError(msg) from error
        ranked = told.ranked if ranked_genes is None else read_ranked_genes(ranked_genes)
        chosen = form or ("hvg_rank" if ranked_genes else told.form)
        listed = ranked if chosen == "hvg_rank" else ()
        return checked(cls, form=chosen, genes=genes or told.genes, ranked=listed)

    def write(self, folder: str) -> None:
        """Write ``cell_sentence.json`` into a model folder."""
        storage.put(storage.join(folder, FORM_FILE), self.model_dump_json(indent=1).encode())

    def places(self, names: Sequence[str]) -> np.ndarray | None:
        """Return the places of ``names`` in the list, or None in form ``expr_rank``."""
        return list_places(names, self.ranked) if self.ranked else None


def read_ranked_genes(uri: str) -> tuple[str, ...]:
    """Read a ranked list; a symbol that comes again is dropped.

    Raises
    ------
    InputError
        If the file cannot be read, or holds no list of genes.
    """
    with boundary(InputError, f"ranked genes {uri!r}", ValueError):
        text = storage.read_bytes(uri).decode()
    genes = tuple(dict.fromkeys(filter(None, map(str.strip, text.splitlines()))))
    wrong = next((gene for gene in genes if clean(gene) != gene or "," in gene), None)
    if not genes or wrong is not None or len(genes) > _MOST_LISTED:
        what = "is empty" if not genes else f"line {wrong!r} is no gene" if wrong else f"has {len(genes):,} lines"
        msg = f"ranked genes {uri!r}: it {what}; give a file with one gene symbol a line"
        raise InputError(msg)
    return genes
