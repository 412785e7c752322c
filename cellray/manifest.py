"""The record that makes a dataset's output trustworthy: what went in, what came out, with which settings.

Contract: readers trust ``manifest.json`` and nothing it does not name. It is written when every file it names exists,
and ``_SUCCESS`` after it. ``cells in = annotated + abstained + rejected`` is checked whenever a manifest is built or
read; of a run that embeds only, cells are embedded instead of annotated.
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from cellray import schema, storage


class ShardRecord(BaseModel):
    """One part file of scores: cells ``start`` to ``stop`` of the dataset."""

    model_config = ConfigDict(extra="forbid")

    name: str
    start: int
    stop: int
    sha256: str


class Manifest(BaseModel):
    """One dataset's output. ``plan`` says what was read and why, ``seconds`` is wall time by stage.

    ``reasoning`` counts groups and cells by what became of them, where a language model was asked. ``clusters`` has the
    label of each cluster of ``key``, the ``obs`` column that the user gave.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = schema.SCHEMA_VERSION
    dataset_id: str
    source: str
    content_hash: str
    scoring_key: str
    refining_key: str
    labels: list[str]
    label_ids: list[str]
    n_cells: int
    n_annotated: int
    n_abstained: int
    n_rejected: int
    n_embedded: int = 0
    rejects: dict[str, int]
    shards: list[ShardRecord]
    plan: dict[str, Any]
    refinement: dict[str, Any] | None
    reasoning: dict[str, Any] | None = None
    clusters: dict[str, Any] | None = None
    seconds: dict[str, float]
    warnings: list[str]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _conserve(self) -> Self:
        accounted = self.n_annotated + self.n_abstained + self.n_embedded + self.n_rejected
        if accounted != self.n_cells or sum(self.rejects.values()) != self.n_rejected:
            msg = (
                f"dataset {self.dataset_id!r}: {self.n_cells} cells in, but {self.n_annotated} annotated + "
                f"{self.n_abstained} abstained + {self.n_embedded} embedded + {self.n_rejected} rejected "
                f"({self.rejects})"
            )
            raise ValueError(msg)
        return self


def publish(folder: str, manifest: Manifest) -> None:
    """Write ``manifest.json``, then ``_SUCCESS``, into a dataset's folder, and drop the error of an earlier run."""
    storage.put_json(storage.join(folder, schema.MANIFEST_FILE), manifest.model_dump())
    storage.put_json(storage.join(folder, schema.SUCCESS_FILE), _identity(manifest.content_hash, manifest.refining_key))
    storage.remove(storage.join(folder, schema.ERROR_FILE))


def read(folder: str) -> Manifest:
    """Read and check a dataset's manifest."""
    return Manifest.model_validate(storage.read_json(storage.join(folder, schema.MANIFEST_FILE)))


def is_complete(folder: str, content_hash: str, refining_key: str) -> bool:
    """Whether the dataset in ``folder`` was finished with exactly these settings on exactly this content."""
    success = storage.join(folder, schema.SUCCESS_FILE)
    return storage.exists(success) and storage.read_json(success) == _identity(content_hash, refining_key)


def _identity(content_hash: str, refining_key: str) -> dict[str, str]:
    return {"content_hash": content_hash, "refining_key": refining_key}
