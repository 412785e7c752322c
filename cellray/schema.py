"""Every name and type that leaves a process: Arrow schemas, AnnData keys, statuses, reject codes, file names.

Contract: a column, key or output file is named here and nowhere else, and ``SCHEMA_VERSION`` changes when any of them
does. This module imports nothing of ours and holds no behaviour beyond building schemas.
"""

from enum import StrEnum
from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1
EMBEDDING_DIM: Final = 256

# Columns
ROW: Final = "row"
CELL_ID: Final = "cell_id"
N_COUNTS: Final = "n_counts"
N_GENES: Final = "n_genes"
REJECT_CODE: Final = "reject_code"
TOKENS: Final = "tokens"
BINS: Final = "bins"
PROBABILITIES: Final = "probabilities"
EMBEDDING: Final = "embedding"
CELL_TYPE: Final = "cell_type"
CELL_TYPE_ID: Final = "cell_type_ontology_term_id"
SCORE: Final = "score"
MARGIN: Final = "margin"
SOURCE: Final = "source"
STATUS: Final = "status"
ENCODER_CELL_TYPE: Final = "encoder_cell_type"
FROM: Final = "from"
TO: Final = "to"
SCORE_BEFORE: Final = "score_before"
SCORE_AFTER: Final = "score_after"
GROUP: Final = "group"
DONOR: Final = "donor"
CLUSTER_CELL_TYPE: Final = "cluster_cell_type"
CLUSTER_SHARE: Final = "cluster_cell_type_share"
CELLS: Final = "cells"
PLAUSIBLE: Final = "plausible"
OUTCOME: Final = "outcome"
ANSWER: Final = "answer"
SUPPORT: Final = "support"
REASONING: Final = "reasoning"
ALTERNATIVES: Final = "alternatives"
MARKERS: Final = "markers"
GENE: Final = "gene"
EXPRESSED: Final = "expressed"
COUNT: Final = "count"
HOLDS: Final = "holds"
PROMPT_TOKENS: Final = "prompt_tokens"
CACHED_TOKENS: Final = "cached_tokens"
ANSWER_TOKENS: Final = "answer_tokens"
ERROR: Final = "error"
VIEW_X: Final = "x"
VIEW_Y: Final = "y"

# Gene tables
ENSEMBL_ID: Final = "ensembl_id"
TOKEN: Final = "token"  # noqa: S105 - a gene token
MEDIAN: Final = "median"
SYMBOL: Final = "symbol"
WEIGHT: Final = "weight"

# AnnData keys
OBS_PREFIX: Final = "cellray_"
OBSM_LANGCELL: Final = "X_langcell"
OBSM_SCGPT: Final = "X_scgpt"
UNS_KEY: Final = "cellray"

# Output files, relative to the output folder or to a dataset's folder in it
RUN_FILE: Final = "run.json"
LOCK_FILE: Final = "_lock"
REPORT_FILE: Final = "report.html"
DATASETS_DIR: Final = "datasets"
SCORES_DIR: Final = "scores"
STAGED_DIR: Final = "staged"
ANNOTATIONS_FILE: Final = "annotations.parquet"
VIEW_FILE: Final = "view.parquet"
REASON_DIR: Final = "reason"
REASONING_FILE: Final = "reasoning.parquet"
PARTS_DIR: Final = "parts"
MANIFEST_FILE: Final = "manifest.json"
SUCCESS_FILE: Final = "_SUCCESS"
ERROR_FILE: Final = "error.json"
STOP_FILE: Final = "_stop"
OUTPUTS_FILE: Final = "_outputs.json"

DATASET_ID_PATTERN: Final = r"[A-Za-z0-9._-]{1,128}"


class Status(StrEnum):
    """What became of a cell. Every cell has exactly one."""

    ANNOTATED = "annotated"
    ABSTAINED = "abstained"
    REJECTED = "rejected"


class Source(StrEnum):
    """Which stage gave a cell its label."""

    ENCODER = "encoder"
    GRIT = "grit"
    MAJORITY = "majority"
    AVERAGE = "average"
    LLM = "llm"
    ABSTAIN = "abstain"


class RejectCode(StrEnum):
    """Why a cell has no label. The order is the order of the checks: the first that fails names the cell."""

    NOT_FINITE = "not_finite"
    NEGATIVE_COUNT = "negative_count"
    NON_INTEGER_COUNT = "non_integer_count"
    EMPTY_CELL = "empty_cell"
    NO_KNOWN_GENE = "no_known_gene"
    TOO_FEW_GENES = "too_few_genes"


_CELL: Final = (
    (ROW, pa.int64()),
    (CELL_ID, pa.string()),
    (N_COUNTS, pa.float32()),
    (N_GENES, pa.int32()),
    (REJECT_CODE, pa.string()),
)


def token_shard(*, binned: bool = False) -> pa.Schema:
    """Cells on their way to the encoder: identity, quality and gene tokens (ranked, or binned) without CLS."""
    return pa.schema([*_CELL, (TOKENS, pa.list_(pa.uint16())), *([(BINS, pa.list_(pa.int16()))] if binned else [])])


def scores(width: int = EMBEDDING_DIM) -> pa.Schema:
    """One part file of encoder scores. The file's metadata key ``labels`` (JSON) orders ``probabilities``."""
    return pa.schema([*_CELL, (PROBABILITIES, pa.list_(pa.float32())), (EMBEDDING, pa.list_(pa.float16(), width))])


def embeddings(width: int) -> pa.Schema:
    """One part file of a run that embeds and does not score."""
    return pa.schema([*_CELL, (EMBEDDING, pa.list_(pa.float32(), width))])


def annotations() -> pa.Schema:
    """Labels of one dataset, one row a cell in the input's order."""
    return pa.schema(
        [
            (ROW, pa.int64()),
            (CELL_ID, pa.string()),
            (CELL_TYPE, pa.string()),
            (CELL_TYPE_ID, pa.string()),
            (SCORE, pa.float32()),
            (MARGIN, pa.float32()),
            (SOURCE, pa.string()),
            (STATUS, pa.string()),
            (REJECT_CODE, pa.string()),
            (ENCODER_CELL_TYPE, pa.string()),
        ]
    )


def changes() -> pa.Schema:
    """Cells whose label differs between two versions of a dataset, by name."""
    return pa.schema(
        [
            (CELL_ID, pa.string()),
            (FROM, pa.string()),
            (TO, pa.string()),
            (SCORE_BEFORE, pa.float32()),
            (SCORE_AFTER, pa.float32()),
        ]
    )


OBS_COLUMNS: Final = (CELL_TYPE, CELL_TYPE_ID, SCORE, MARGIN, SOURCE, STATUS)
"""Columns of ``annotations`` that the annotated AnnData carries in ``obs``, each behind ``OBS_PREFIX``."""


def view() -> pa.Schema:
    """Two-dimensional coordinates of a sample of a dataset's cells, for the report."""
    return pa.schema([(ROW, pa.int64()), (VIEW_X, pa.float32()), (VIEW_Y, pa.float32())])


def reasoning() -> pa.Schema:
    """One row for each group of uncertain cells that a language model was asked about, the least certain first.

    ``cells`` are rows; ``outcome`` is relabelled, confirmed, none_of_these, undecided or unanswered.
    """
    return pa.schema(
        [
            (DONOR, pa.string()),
            (CELLS, pa.list_(pa.int64())),
            (PLAUSIBLE, pa.list_(pa.string())),
            (MARGIN, pa.float32()),
            (OUTCOME, pa.string()),
            (ANSWER, pa.string()),
            (SUPPORT, pa.float32()),
            (REASONING, pa.string()),
        ]
    )


def cell_reasons() -> pa.Schema:
    """One row a cell that a language model was asked about alone, in the input's order.

    ``answer`` is the label as it was written, ``cell_type`` the first type it names (the ontology's name where there is
    one), ``alternatives`` all of them. ``markers`` are what the reasoning says of genes, ``support`` the share of it
    that the cell's counts confirm. A cell that could not be asked is rejected; ``error`` says why.
    """
    statement = pa.struct([(GENE, pa.string()), (EXPRESSED, pa.bool_()), (COUNT, pa.float32()), (HOLDS, pa.bool_())])
    return pa.schema(
        [
            (ROW, pa.int64()),
            (CELL_ID, pa.string()),
            (CELL_TYPE, pa.string()),
            (CELL_TYPE_ID, pa.string()),
            (STATUS, pa.string()),
            (REJECT_CODE, pa.string()),
            (ANSWER, pa.string()),
            (ALTERNATIVES, pa.list_(pa.string())),
            (REASONING, pa.string()),
            (MARKERS, pa.list_(statement)),
            (SUPPORT, pa.float32()),
            (PROMPT_TOKENS, pa.int32()),
            (CACHED_TOKENS, pa.int32()),
            (ANSWER_TOKENS, pa.int32()),
            (ERROR, pa.string()),
        ]
    )


def genes() -> pa.Schema:
    """Genes of a model: Ensembl id without version, token and the non-zero median that ranking divides by."""
    return pa.schema([(ENSEMBL_ID, pa.string()), (TOKEN, pa.int32()), (MEDIAN, pa.float64())])


def symbols() -> pa.Schema:
    """Gene symbols of a model and the Ensembl id each stands for."""
    return pa.schema([(SYMBOL, pa.string()), (ENSEMBL_ID, pa.string())])


def symbol_tokens() -> pa.Schema:
    """Genes of a model that knows them by symbol."""
    return pa.schema([(SYMBOL, pa.string()), (TOKEN, pa.int32())])


def weighted_genes() -> pa.Schema:
    """Genes of a model that keeps those of the largest value times ``weight`` in a cell longer than it takes."""
    return pa.schema([(SYMBOL, pa.string()), (ENSEMBL_ID, pa.string()), (TOKEN, pa.int32()), (WEIGHT, pa.float64())])


def labelled_cells() -> pa.Schema:
    """Binned cells that travel with a plugin: replayed when it is extended, or held out to judge it by."""
    return pa.schema(
        [
            (CELL_ID, pa.string()),
            (CELL_TYPE, pa.string()),
            (GROUP, pa.string()),
            (TOKENS, pa.list_(pa.uint16())),
            (BINS, pa.list_(pa.int16())),
        ]
    )
