"""The catalogue: a YAML file that names an atlas, its datasets and how they are annotated.

::

    atlas: s3://bucket/atlas            # where versions go
    model: mini                         # all from here on may be left out
    labels: labels.txt                  # label set of datasets that name none
    plugins: s3://bucket/plugins
    settings: {lam: 2, min_genes: 50}   # of cellray.settings.AnnotateSettings
    guard: {max_changed: 0.1}
    datasets:
      - {id: pbmc, uri: s3://bucket/pbmc.h5ad, tissue: blood, labels: blood.txt}

Contract: paths are relative to the catalogue's folder. An unknown field, a missing URI, an id or dataset that comes
twice, or a setting that ``annotate`` would refuse is a ``SettingError`` that names it, before any work. No dataset is
looked at here.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cellray import schema, storage
from cellray.errors import SettingError, one_line
from cellray.settings import AnnotateSettings

_Share = Annotated[float, Field(ge=0, le=1)]
_GIVEN = {"inputs", "out", "model", "labels", "plugins", "tissue", "task", "address"}
"""Settings that are not for the catalogue's ``settings``: it has fields of its own for them, or the job has."""


class Guard(BaseModel):
    """What a new version may differ in from the one in use and still be promoted by itself.

    Attributes
    ----------
    max_changed
        Share of the cells in both versions whose label changed.
    max_abstained_rise
        By how much the share of abstained and rejected cells may rise.
    max_removed
        Share of the cells in use that may be gone.
    min_vanished_cells
        A type with fewer cells than this may vanish.
    may_vanish
        Types that may vanish however many cells they had.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_changed: _Share = 0.1
    max_abstained_rise: _Share = 0.05
    max_removed: _Share = 0.2
    min_vanished_cells: Annotated[int, Field(ge=1)] = 10
    may_vanish: tuple[str, ...] = ()


class Entry(BaseModel):
    """A dataset: its id in the atlas, where it lies, and what is known of it. ``tissue`` chooses the plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=f"^{schema.DATASET_ID_PATTERN}$")]
    uri: Annotated[str, Field(min_length=1)]
    tissue: str | None = None
    labels: str | None = None


class Catalogue(BaseModel):
    """A catalogue whose paths mean the same everywhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    atlas: Annotated[str, Field(min_length=1)]
    model: str = "mini"
    labels: str | None = None
    plugins: str | None = None
    settings: dict[str, Any] = {}
    guard: Guard = Guard()
    datasets: Annotated[tuple[Entry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for field, values in (
            ("id", [entry.id for entry in self.datasets]),
            ("uri", [(entry.uri, entry.labels, entry.tissue) for entry in self.datasets]),
        ):
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                what = value if isinstance(value, str) else value[0]
                msg = f"datasets: {field} {what!r} comes {count} times; each must come once"
                raise ValueError(msg)
        dots = [entry.id for entry in self.datasets if entry.id in (".", "..")]
        if dots:
            msg = f"datasets: id {dots[0]!r} is no name"
            raise ValueError(msg)
        taken = sorted(_GIVEN & self.settings.keys())
        if taken:
            msg = f"settings: {taken[0]!r} is not set here; the catalogue and the job have places of their own for it"
            raise ValueError(msg)
        return self

    def annotating(self, entry: Entry, out: str, address: str | None) -> AnnotateSettings:
        """Return how ``entry`` is annotated into ``out``; of a dataset without plugins the tissue says nothing."""
        return AnnotateSettings.checked(
            **self.settings,
            inputs=(entry.uri,),
            out=out,
            model=self.model,
            labels=None if self.plugins else entry.labels or self.labels,
            plugins=self.plugins,
            tissue=entry.tissue if self.plugins else None,
            address=address,
        )


def read_catalogue(uri: str) -> Catalogue:
    """Read and check a catalogue.

    Raises
    ------
    SettingError
        If it cannot be read, or says something that cannot be meant.
    """
    try:
        raw = yaml.safe_load(storage.read_bytes(uri))
        found = Catalogue.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        named = _named(raw, first["loc"])
        msg = f"catalogue {uri!r}: {where}{': ' if where else ''}{what}{named}"
        raise SettingError(msg) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        msg = f"catalogue {uri!r}: {one_line(error)}"
        raise SettingError(msg) from error
    return _anchored(found, uri)


def _named(raw: Any, location: tuple[int | str, ...]) -> str:
    """Say which dataset a location is in, for a number in a list is hard to find."""
    if len(location) > 1 and location[0] == "datasets" and isinstance(location[1], int):
        entry = raw["datasets"][location[1]]
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            return f" (dataset {entry['id'][:128]!r})"
    return ""


def _anchored(found: Catalogue, uri: str) -> Catalogue:
    """Make paths relative to the catalogue absolute."""
    folder = str(Path(storage.absolute(uri)).parent) if storage.is_local(uri) else uri.rsplit("/", 1)[0]

    def there(path: str | None) -> str | None:
        if path is None or storage.scheme(path) or Path(path).is_absolute():
            return path
        return f"{folder}/{path}"

    entries = [
        entry.model_copy(update={"uri": there(entry.uri), "labels": there(entry.labels)}) for entry in found.datasets
    ]
    changes = {"atlas": there(found.atlas), "labels": there(found.labels), "plugins": there(found.plugins)}
    if "/" in found.model or found.model.startswith("."):
        changes["model"] = there(found.model)
    reasoner = found.settings.get("reason")
    if isinstance(reasoner, str) and "/" in reasoner:
        found = found.model_copy(update={"settings": {**found.settings, "reason": there(reasoner)}})
    return found.model_copy(update={**changes, "datasets": tuple(entries)})
