"""Plugin versions on a local disk or ``s3://``: immutable, checked when read, one of each tissue promoted.

::

    REGISTRY/<tissue>/versions/<digest>/...          the files of a version, ``manifest.json`` written last
    REGISTRY/<tissue>/promoted/00000001.json ...     every change of the pointer; the highest number counts

Contract: a version is named by the SHA-256 of its manifest, which holds the SHA-256 and size of every file, so what is
read is what was written or an error. A version without a manifest is not there. How the pointer moves is told in
``cellray.pointer``. It does not train and does not judge.
"""

import hashlib
import json
import re
from contextlib import AbstractContextManager
from typing import Final

from cellray import schema, storage
from cellray.errors import PluginError, TissueError, boundary
from cellray.plugins.version import FILES, PluginCheckpoint
from cellray.pointer import Change, Pointer

TISSUES: Final = "tissues"
"""Name that the tissue-assignment plugin is kept under."""
MOST_BYTES: Final = 1 << 30
"""Largest file that is read."""

_VERSIONS, _PROMOTED, _MANIFEST = "versions", "promoted", "manifest.json"
_MANIFEST_BYTES = 1 << 16
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TISSUE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def tissue_name(text: str) -> str:
    """Return the name that a tissue is kept under: lower case, words joined by ``_``; else a ``TissueError``."""
    name = "_".join(text.split()).lower()
    if not _TISSUE.fullmatch(name):
        msg = f"tissue {text[:80]!r} is no usable name (letters, digits, '.', '_', '-' and spaces, at most 64)"
        raise TissueError(msg)
    return name


class Registry:
    """The registry at ``uri``. Every method raises ``PluginError`` when the store cannot be read or written."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)

    def tissues(self) -> list[str]:
        """Names of the tissues that have a promoted version."""
        return list(self.promotions())

    def promotions(self) -> dict[str, str]:
        """Promoted version of every tissue that has one."""
        found = {name: self.promoted(name) for name in self._names()}
        return {name: digest for name, digest in found.items() if digest is not None}

    def _names(self) -> list[str]:
        with self._at("tissues"):
            return [name for name in storage.list_folders(self.uri) if _TISSUE.fullmatch(name)]

    def known(self) -> list[str]:
        """Names of the tissues that have a version at all."""
        return [name for name in self._names() if self.versions(name)]

    def versions(self, tissue: str) -> list[str]:
        """Digests of the whole versions of a tissue, sorted."""
        folder = storage.join(self._folder(tissue), _VERSIONS)
        with self._at(tissue):
            there = [name for name in storage.list_folders(folder) if _DIGEST.fullmatch(name)]
            return [name for name in there if storage.exists(storage.join(folder, name, _MANIFEST))]

    def put(self, checkpoint: PluginCheckpoint) -> str:
        """Store a version and return its digest; it is not promoted. Storing it again changes nothing."""
        checkpoint.check()
        files = checkpoint.files()
        tissue = TISSUES if checkpoint.task == "tissue" else tissue_name(checkpoint.tissue)
        manifest = {
            "schema_version": schema.SCHEMA_VERSION,
            "tissue": tissue,
            "files": {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in files.items()},
        }
        text = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
        digest = _sha256(text)
        folder = self._version(tissue, digest)
        with self._at(f"{tissue} {digest[:12]}"):
            for name, data in files.items():
                storage.put(storage.join(folder, name), data)
            storage.put(storage.join(folder, _MANIFEST), text)
        return digest

    def get(self, tissue: str, digest: str) -> PluginCheckpoint:
        """Read a version.

        Raises
        ------
        PluginError
            If it is not there, or a file is missing, changed, too large or does not fit the others.
        """
        tissue, digest = tissue_name(tissue), self._whole(tissue, digest)
        folder = self._version(tissue, digest)
        with self._at(f"{tissue} {digest[:12]}"):
            text = _read(storage.join(folder, _MANIFEST), _MANIFEST_BYTES)
            if _sha256(text) != digest:
                msg = f"{_MANIFEST} was changed after it was written"
                raise ValueError(msg)
            files = {}
            for name in FILES:
                entry = json.loads(text)["files"][name]
                if entry["bytes"] > MOST_BYTES:
                    msg = f"{name} has {entry['bytes']:,} bytes; at most {MOST_BYTES:,} are read"
                    raise ValueError(msg)
                files[name] = _read(storage.join(folder, name), entry["bytes"])
                if _sha256(files[name]) != entry["sha256"]:
                    msg = f"{name} was changed after it was written"
                    raise ValueError(msg)
            return PluginCheckpoint.of_files(files)

    def promoted(self, tissue: str) -> str | None:
        """Return the digest of the promoted version, None if there is none."""
        return self._pointer(tissue).now()

    def history(self, tissue: str) -> list[Change]:
        """Return the changes of the pointer, oldest first."""
        return self._pointer(tissue).history()

    def promote(self, tissue: str, digest: str, *, reason: str = "", parent: str | None = None) -> str:
        """Make a version the one that is used; returns its digest.

        With ``parent``, only if that version is the promoted one at the moment of the change: of two updates of one
        version the second is refused, and so no class number is given away twice.

        Raises
        ------
        PluginError
            If there is no such version, or the pointer is not at ``parent``.
        """
        whole = self._whole(tissue, digest)
        pointer = self._pointer(tissue)
        return pointer.move("promote", lambda history: self._after(tissue, history, whole, parent), reason)

    def rollback(self, tissue: str, *, reason: str = "") -> str:
        """Go back to the version that was promoted before; returns its digest."""
        pointer = self._pointer(tissue)
        return pointer.move("rollback", pointer.before, reason)

    def _after(self, tissue: str, history: list[Change], digest: str, parent: str | None) -> str:
        now = history[-1].digest if history else None
        if parent is not None and now != parent:
            msg = (
                f"plugin {tissue!r}: version {(now or 'none')[:12]} was promoted meanwhile, and {digest[:12]} was made "
                f"from {parent[:12]}; update again from the promoted one"
            )
            raise PluginError(msg)
        return digest

    def _whole(self, tissue: str, digest: str) -> str:
        """Resolve the beginning of a digest (6 characters or more)."""
        there = self.versions(tissue)
        found = [name for name in there if len(digest) >= 6 and name.startswith(digest)]
        if len(found) != 1:
            has = ", ".join(name[:12] for name in there) or "none"
            msg = f"plugin {tissue!r} has {'no' if not found else 'more than one'} version {digest[:64]!r} (has: {has})"
            raise PluginError(msg)
        return found[0]

    def _folder(self, tissue: str) -> str:
        return storage.join(self.uri, tissue_name(tissue))

    def _pointer(self, tissue: str) -> Pointer:
        return Pointer(storage.join(self._folder(tissue), _PROMOTED), f"plugin {tissue!r}", PluginError)

    def _version(self, tissue: str, digest: str) -> str:
        return storage.join(self._folder(tissue), _VERSIONS, digest)

    def _at(self, what: str) -> AbstractContextManager[None]:
        return boundary(PluginError, f"registry {self.uri}, {what}", ValueError, KeyError, TypeError)


def _read(uri: str, most: int) -> bytes:
    """Read a file of at most ``most`` bytes; a larger one is not read at all."""
    if (found := storage.size(uri)) > most:
        msg = f"{uri.rsplit('/', 1)[-1]} has {found:,} bytes instead of {most:,}; it was changed"
        raise ValueError(msg)
    return storage.read_bytes(uri)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
