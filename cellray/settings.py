"""What a run may be told, checked before any work, and the hashes that name its results.

Contract: unknown or out-of-range settings are a ``SettingError`` naming the field. ``scoring_key`` covers everything
that changes a score, ``refining_key`` everything that changes a label given the scores; nothing else (output folder,
number of encoders, cluster address) enters a name of a result. This is the only module that reads environment
variables of ours.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cellray.errors import SettingError
from cellray.schema import SCHEMA_VERSION

_Settings = TypeVar("_Settings", bound=BaseModel)

_OF_SCORES = {
    "task",
    "alpha",
    "ctm_top_k",
    "precision",
    "max_length",
    "seed",
    "layer",
    "gene_key",
    "min_genes",
    "shard_cells",
    "batch_tokens",
}
_OF_SCORES_IF_GIVEN = {"genome", "round", "allow_normalised"}

_OF_REASONING = {"reason", "reason_share", "reason_margin", "reason_seed", "donor_key"}


class Environment(BaseSettings):
    """Machine-level switches, read from ``CELLRAY_*`` variables."""

    model_config = SettingsConfigDict(env_prefix="CELLRAY_", extra="ignore")

    object_store_bytes: int = Field(default=1 << 30, ge=80 << 20, description="size of a local Ray object store")
    registry: str = Field(default="plugins", description="plugin registry that the jobs and verbs use, path or s3://")
    api_key: SecretStr | None = Field(default=None, description="what clients of the served apps must show")
    config: str = Field(default="/etc/cellray/cellray.yaml", description="settings file of jobs.annotate")
    ray_log_level: str | None = Field(default=None, description="of Ray's loggers: debug, info, warning or error")
    ray_temp_dir: str | None = Field(default=None, description="where a local Ray keeps its session files")


class RefineSettings(BaseModel):
    """How scores become labels; see ``cellray.refine.grit.Options`` and ``Given``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    refine: Literal["grit", "majority", "average", "none"] = "grit"
    lam: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] | Literal["gcv", "loo"] = 1.0
    k: int = Field(default=15, ge=1)
    n_pcs: int = Field(default=50, ge=1)
    graph_batch_key: str | None = None
    use_rep: str | None = None
    use_graph: str | None = None
    anchor_key: str | None = None
    anchor_weight: float | None = Field(
        default=None, ge=1, le=1e12, allow_inf_nan=False, description="None holds anchors"
    )
    reason: str | None = Field(default=None, description="language model for uncertain groups: folder or URL")
    reason_share: float = Field(default=0.03, gt=0, le=1, description="of a dataset's cells, at most, are asked about")
    reason_margin: float = Field(default=0.5, gt=0, le=1, description="relative margin below which a cell is uncertain")
    reason_seed: int = Field(default=0, ge=0)
    donor_key: str | None = Field(default=None, description="groups are of one donor; None: donor_id where it is")

    @model_validator(mode="after")
    def _one_graph(self) -> Self:
        if self.use_graph is not None and (self.use_rep is not None or self.graph_batch_key is not None):
            msg = "a given graph (use_graph) leaves no room for use_rep or graph_batch_key; pass one or the other"
            raise ValueError(msg)
        if self.reason is not None and self.refine == "none":
            msg = f"reason {self.reason!r} asks about cells that refinement left uncertain; choose a --refine"
            raise ValueError(msg)
        if self.donor_key is not None and self.reason is None:
            msg = f"donor_key {self.donor_key!r} groups the cells to reason about; give --reason too"
            raise ValueError(msg)
        return self

    def beside(self) -> dict[str, Literal["obs", "obsm", "obsp"]]:
        """Return the keys that every dataset must have, and where."""
        kinds: dict[str | None, Literal["obs", "obsm", "obsp"]] = {
            self.graph_batch_key: "obs",
            self.anchor_key: "obs",
            self.donor_key: "obs",
            self.use_rep: "obsm",
            self.use_graph: "obsp",
        }
        return {key: kind for key, kind in kinds.items() if key is not None and self.refine != "none"}


class AnnotateSettings(RefineSettings):
    """Settings of one run of ``annotate`` or, as far as they matter there, ``embed``."""

    inputs: tuple[str, ...] = Field(min_length=1)
    out: str = Field(min_length=1)
    model: str = "mini"
    labels: str | None = None
    plugins: str | None = None
    tissue: str | None = None
    task: Literal["annotate", "embed"] = "annotate"
    alpha: float = Field(default=0.2, ge=0, le=1)
    ctm_top_k: int | None = Field(default=None, ge=1, description="an approximation; None matches all labels")
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    max_length: int | None = Field(default=None, ge=2, description="longest cell, CLS included; None: the model's")
    seed: int = Field(default=0, ge=0)
    layer: str | None = None
    gene_key: str | None = None
    genome: str | None = Field(default=None, description="of several in one file; None: the human one")
    round: bool = Field(default=False, description="decimals of the named layer are rounded to whole counts")
    allow_normalised: bool = Field(default=False, description="take log-normalised values where counts are lost")
    cluster_key: str | None = Field(default=None, description="obs column of clusters that get one label each")
    min_genes: int = Field(default=20, ge=1)
    shard_cells: int = Field(default=8192, ge=1, le=1 << 20)
    batch_tokens: int = Field(default=32768, ge=1)
    encoders: int | None = Field(default=None, ge=1)
    address: str | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.round and self.layer is None:
            msg = "round turns decimals of a layer that you name into counts; give --layer too"
            raise ValueError(msg)
        if self.tissue is not None and self.plugins is None:
            msg = f"tissue {self.tissue!r} chooses among plugins; give their registry with --plugins too"
            raise ValueError(msg)
        if self.plugins is not None and (self.labels is not None or self.task == "embed"):
            msg = "plugins have classes of their own; leave --labels away, and use annotate, not embed"
            raise ValueError(msg)
        return self

    def beside(self) -> dict[str, Literal["obs", "obsm", "obsp"]]:
        """Return the keys that every dataset must have, and where."""
        return {**super().beside(), **({} if self.cluster_key is None else {self.cluster_key: "obs"})}

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Build settings; see ``checked``."""
        return checked(cls, **values)

    def scoring_key(
        self, model_digest: str, label_texts: list[tuple[str, str]], plugins: Sequence[str | None] = ()
    ) -> str:
        """Hash of everything that changes a cell's score.

        ``label_texts`` are (name, text) in column order, ``plugins`` the digests of those that take part.
        """
        known = {**self.model_dump(include=_OF_SCORES), "model": model_digest, "labels": label_texts}
        # A setting that is not given is left out, so that scores of a time before there was one stay good.
        known |= {name: value for name, value in self.model_dump(include=_OF_SCORES_IF_GIVEN).items() if value}
        # Without plugins the key is what it was before there were any, so that earlier scores stay good.
        return _hash({**known, "schema": SCHEMA_VERSION, **({"plugins": list(plugins)} if plugins else {})})

    def refining_key(self, scoring_key: str, reasoner: str = "") -> str:
        """Hash of everything that changes a cell's label: the scores, how they are refined, and who reasons.

        ``reasoner`` is the digest of the language model, or where it is served.
        """
        extra = {"reason": reasoner} if self.reason else {}
        extra |= {"cluster_key": self.cluster_key} if self.cluster_key else {}
        return _hash({**self.refining(), "scores": scoring_key, **extra})

    def refining(self) -> dict[str, Any]:
        """Return the settings that matter to refinement, as JSON values."""
        if self.refine == "none":
            return {"refine": "none"}
        # Without a language model the entries are what they always were, so that earlier labels stay good.
        unused = _OF_REASONING if self.reason is None else set()
        return self.model_dump(mode="json", include=set(RefineSettings.model_fields) - unused)


def checked(kind: type[_Settings], **values: Any) -> _Settings:
    """Build settings; a wrong value is a ``SettingError`` in one line that names the field and the value."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        # Of a union (lam) the location goes on with the name of an alternative, which says nothing to a user.
        where = f"setting {first['loc'][0]!r}: " if first["loc"] else ""
        got = f" (got {first.get('input')!r})" if first["loc"] else ""
        msg = f"{where}{first['msg'].removeprefix('Value error, ')}{got}"
        raise SettingError(msg) from error


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
