"""What is to be done to each dataset of a catalogue, and why.

Contract: nothing is written and no model is loaded: weights and datasets are hashed. A dataset that cannot be read
fails alone; a model, label set or registry that cannot is a ``SettingError``, for it would fail all.

- ``annotate``: there is no version of this state, or the one there is damaged.
- ``judge``: there is a version of this state, but another is in use: the guard is asked (again).
- ``held``: a person went back from the version of this state; it stays away until it is promoted.
- ``unchanged``: the version of this state is in use.
- ``failed``: the dataset, or what the atlas has of it, cannot be read.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cellray import schema, storage
from cellray.catalog.catalogue import Catalogue, Entry
from cellray.catalog.versions import Version, Versions, fingerprint_digest
from cellray.errors import AtlasError, CellRayError, InputError, ReadError, SettingError, boundary, one_line
from cellray.ingest import find_sources
from cellray.labels.candidates import Label, read_labels
from cellray.models.folders import Identity, identify
from cellray.pointer import rolled_back
from cellray.puzzles.reasoner import identify as identify_reasoner
from cellray.settings import AnnotateSettings

Action = Literal["annotate", "judge", "held", "unchanged", "failed"]

_READERS = 8
_ELSEWHERE: Final = {"inputs", "out", "model", "labels", "plugins", "reason", "encoders", "address"}
"""Settings that change no label, or that the fingerprint has by content."""


@dataclass(frozen=True)
class Step:
    """What is to be done to one dataset.

    Attributes
    ----------
    entry, settings
        The dataset, and how it is annotated.
    action, reasons
        See the module; why, in words.
    fingerprint
        What its labels are a function of; empty where the dataset cannot be read.
    in_use
        Name of the version in use, or None.
    """

    entry: Entry
    settings: AnnotateSettings
    action: Action
    reasons: tuple[str, ...] = ()
    fingerprint: dict[str, Any] = field(default_factory=dict)
    in_use: str | None = None

    @property
    def digest(self) -> str:
        """Name of the version of this state."""
        return fingerprint_digest(self.fingerprint)

    def facts(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"id": self.entry.id, "action": self.action, "reasons": list(self.reasons), "in_use": self.in_use}


def make_plan(catalogue: Catalogue, address: str | None = None) -> list[Step]:
    """Decide for every dataset, in the catalogue's order."""
    model = identify(catalogue.model)
    known: dict[str | None, list[Label]] = {}
    jobs = []
    for entry in catalogue.datasets:
        settings = catalogue.annotating(entry, work_folder(catalogue, entry), address)
        with boundary(SettingError, f"dataset {entry.id!r}", ValueError):
            if settings.labels not in known:
                known[settings.labels] = _labels(settings, model)
            common = {
                "schema": schema.SCHEMA_VERSION,
                "model": model.digest,
                "labels": _hash([(label.name, label.text) for label in known[settings.labels]]),
                "plugins": _plugins(settings),
                **({} if settings.reason is None else {"reasoner": identify_reasoner(settings.reason)}),
                "settings": settings.model_dump(mode="json", exclude=_ELSEWHERE),
            }
        jobs.append((entry, settings, common))
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda job: _step(catalogue.atlas, *job), jobs))


def work_folder(catalogue: Catalogue, entry: Entry) -> str:
    """Return the output folder of the runs that annotate ``entry``: one for all of like labels and tissue."""
    key = _hash([entry.labels or catalogue.labels, entry.tissue if catalogue.plugins else None])
    return storage.join(catalogue.atlas, "work", key[:16])


def _step(atlas: str, entry: Entry, settings: AnnotateSettings, common: dict[str, Any]) -> Step:
    try:
        with boundary(ReadError, f"dataset {entry.id!r}", ValueError):
            sources = find_sources(settings.inputs)
            if len(sources) != 1:
                msg = f"{entry.uri!r} names {len(sources)} datasets; give each an entry of its own"
                raise InputError(msg)
            fingerprint = {**common, "content": sources[0].content_hash()}
        return _decided(Versions(atlas, entry.id), entry, settings, fingerprint)
    except CellRayError as error:
        return Step(entry, settings, "failed", (one_line(error),))


def _decided(versions: Versions, entry: Entry, settings: AnnotateSettings, fingerprint: dict[str, Any]) -> Step:
    digest, in_use = fingerprint_digest(fingerprint), versions.latest.now()

    def step(action: Action, *reasons: str) -> Step:
        return Step(entry, settings, action, reasons, fingerprint, in_use)

    if versions.exists(digest):
        try:
            versions.get(digest)
        except AtlasError as error:
            return step("annotate", f"damaged: {one_line(error)}")
        if in_use == digest:
            return step("unchanged")
        if digest in rolled_back(versions.latest.history()):
            return step("held", "it was rolled back; --promote brings it back")
        return step("judge", "it was annotated before and is not in use")
    if in_use is None:
        return step("annotate", "new")
    try:
        before = versions.get(in_use)
    except AtlasError as error:
        return step("annotate", f"the version in use is damaged: {one_line(error)}")
    return step("annotate", *_changes(before, fingerprint))


def _changes(before: Version, fingerprint: dict[str, Any]) -> Sequence[str]:
    """Say which parts of a fingerprint differ from those of the version in use."""
    said = []
    for part, value in fingerprint.items():
        was = before.fingerprint.get(part)
        if was == value:
            continue
        if isinstance(value, dict) and isinstance(was, dict):
            names = sorted(name for name in value.keys() | was.keys() if value.get(name) != was.get(name))
            said.append(f"{part}: " + ", ".join(f"{name} {was.get(name)!r} -> {value.get(name)!r}" for name in names))
        elif isinstance(value, int):
            said.append(f"{part}: {was} -> {value}")
        else:
            said.append(part)
    return said


def _labels(settings: AnnotateSettings, model: Identity) -> list[Label]:
    known = [Label(**entry) for entry in model.labels]
    if settings.labels is None:
        return known
    return read_labels(storage.read_bytes(settings.labels).decode(), settings.labels, known)


def _plugins(settings: AnnotateSettings) -> list[str | None] | None:
    if settings.plugins is None:
        return None
    from cellray.plugins.router import Chosen

    return list(Chosen.of(settings.plugins, settings.tissue).digests)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
