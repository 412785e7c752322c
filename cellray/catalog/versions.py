"""Versions of a dataset's labels: immutable, whole or not there, one of them in use.

Contract: a version is a folder named by its fingerprint. ``version.json`` is written after every file that it names,
with their sizes and SHA-256, so a version without it is not there, and one that does not fit it is an
``AtlasError`` that says what is wrong. Nothing here is overwritten, but for a version that is damaged and made again.
"""

import hashlib
import json
import re
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from cellray import schema, storage
from cellray.errors import AtlasError, boundary
from cellray.pointer import Pointer

VERSION_FILE = "version.json"
_VERSIONS, _LATEST = "versions", "latest"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class StoredFile(BaseModel):
    """A file of a version."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    bytes: int


class Version(BaseModel):
    """What a version is. ``fingerprint`` is what its labels are a function of; ``types`` counts cells by label."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = schema.SCHEMA_VERSION
    dataset_id: str
    source: str
    tissue: str | None
    run_id: str
    fingerprint: dict[str, Any]
    labels: list[str]
    n_cells: int
    n_annotated: int
    n_abstained: int
    n_rejected: int
    types: dict[str, int]
    files: dict[str, StoredFile]

    @property
    def digest(self) -> str:
        """Its name."""
        return fingerprint_digest(self.fingerprint)


def fingerprint_digest(fingerprint: dict[str, Any]) -> str:
    """Return the name of the version with this fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


class Versions:
    """The versions of dataset ``dataset_id`` in ``atlas``; whatever cannot be read is an ``AtlasError``."""

    def __init__(self, atlas: str, dataset_id: str) -> None:
        self.dataset_id = dataset_id
        self._root = storage.join(atlas, schema.DATASETS_DIR, dataset_id)
        self.latest = Pointer(storage.join(self._root, _LATEST), f"dataset {dataset_id!r}", AtlasError)

    def folder(self, digest: str) -> str:
        """Return the folder of a version."""
        return storage.join(self._root, _VERSIONS, digest)

    def known(self) -> list[str]:
        """Names of the versions that are there, sorted."""
        with boundary(AtlasError, f"dataset {self.dataset_id!r}"):
            there = storage.list_folders(storage.join(self._root, _VERSIONS))
            return [name for name in there if _DIGEST.fullmatch(name) and self.exists(name)]

    def exists(self, digest: str) -> bool:
        """Whether there is such a version."""
        return storage.exists(storage.join(self.folder(digest), VERSION_FILE))

    def get(self, digest: str, how: Literal["sizes", "content"] = "sizes") -> Version:
        """Read a version and check its files, by their sizes or by all that is in them."""
        with boundary(AtlasError, f"dataset {self.dataset_id!r}, version {digest[:12]}", ValueError):
            found = Version.model_validate(storage.read_json(storage.join(self.folder(digest), VERSION_FILE)))
            if found.digest != digest:
                msg = f"{VERSION_FILE} was changed after it was written"
                raise ValueError(msg)
            for name, file in found.files.items():
                self._check(digest, name, file, how)
            return found

    def _check(self, digest: str, name: str, file: StoredFile, how: Literal["sizes", "content"]) -> None:
        uri = storage.join(self.folder(digest), name)
        if storage.size(uri) != file.bytes or (how == "content" and _hashed(uri) != file.sha256):
            msg = f"{name} was changed after it was written"
            raise ValueError(msg)

    def annotations(self, version: Version) -> pa.Table:
        """Return the labels of a version, ``schema.annotations()``, if they are those that were written."""
        what = f"dataset {self.dataset_id!r}, version {version.digest[:12]}"
        with boundary(AtlasError, what, ValueError, KeyError):
            self._check(version.digest, schema.ANNOTATIONS_FILE, version.files[schema.ANNOTATIONS_FILE], "content")
            with storage.open_read(storage.join(self.folder(version.digest), schema.ANNOTATIONS_FILE)) as file:
                return pq.read_table(file)

    def put(self, version: Version, sources: dict[str, str]) -> Version:
        """Store a version whose files are copies of ``sources``, URIs by name; returns it with their hashes."""
        folder = self.folder(version.digest)
        files = {}
        for name, uri in sources.items():
            with storage.local_copy(uri) as path:
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                files[name] = StoredFile(sha256=sha256, bytes=path.stat().st_size)
                storage.copy(str(path), storage.join(folder, name))
        stored = version.model_copy(update={"files": files})
        storage.put_json(storage.join(folder, VERSION_FILE), stored.model_dump(mode="json"))
        return stored

    def promote(self, digest: str, reason: str) -> None:
        """Make a version the one in use."""
        self.latest.move("promote", lambda _: digest, reason)

    def rollback(self, reason: str) -> str:
        """Go back to the version that was in use before, if it is whole; returns its name."""
        self.get(self.latest.before(self.latest.history()), "content")
        return self.latest.move("rollback", self.latest.before, reason)


def _hashed(uri: str) -> str:
    with storage.open_read(uri) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
