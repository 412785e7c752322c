"""Files at a path or URI (local, ``s3://``): safe names, atomic writes, content hashes.

Contract: a file written here is either absent or whole, on a local disk (temporary name, fsync, rename) and on S3
(one PUT or one multipart completion). Credentials and endpoints are the SDK's own business (``AWS_ENDPOINT_URL`` and
the like). A store that cannot be reached is an ``OSError`` like any other. It does not retry beyond what fsspec does,
and it does not cache.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.core import url_to_fs

from cellray.errors import WriteError, one_line
from cellray.scratch import Scratch

_COPY_BYTES = 8 << 20
_MOST_DIGESTS = 4096
_SCHEMES = ("", "file", "s3")
_PART = re.compile(r"[A-Za-z0-9._-]{1,255}")


@contextmanager
def network_errors() -> Iterator[None]:
    """Turn the SDK's own errors (no credentials, no connection) into ``OSError``, as s3fs does with other ones."""
    try:
        yield
    except BotoCoreError as error:
        raise OSError(one_line(error)) from error


def scheme(uri: str) -> str:
    """Return the scheme of ``uri`` (``""`` for a plain path)."""
    return uri.split("://", 1)[0] if "://" in uri else ""


def is_local(uri: str) -> bool:
    """Whether ``uri`` lies on this machine's file system."""
    return scheme(uri) in ("", "file")


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of ``uri`` and the path in it.

    Raises
    ------
    ValueError
        If the scheme is not one of local, ``file://`` and ``s3://``.
    """
    if scheme(uri) not in _SCHEMES:
        msg = f"{uri!r}: scheme {scheme(uri)!r} is not supported; use a local path or s3://"
        raise ValueError(msg)
    return url_to_fs(uri, use_listings_cache=False)  # other processes write here too


def join(root: str, *parts: str) -> str:
    """Join file names to ``root``; each may use letters, digits, ``.``, ``_`` and ``-`` only, so none can climb out."""
    for part in parts:
        if part in (".", "..") or not _PART.fullmatch(part):
            msg = f"{part!r} is not a safe file name (letters, digits, '.', '_' and '-', at most 255)"
            raise ValueError(msg)
    return "/".join([root.rstrip("/"), *parts]) if parts else root


def absolute(uri: str) -> str:
    """Return ``uri`` so that it means the same in a process with another working directory."""
    return str(Path(filesystem(uri)[1]).absolute()) if is_local(uri) else uri


@network_errors()
def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


@network_errors()
def list_files(uri: str) -> list[str]:
    """Names of the files directly in folder ``uri``, sorted; temporary names left out. No folder gives no names."""
    fs, path = filesystem(uri)
    try:
        entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    names = (Path(entry["name"]).name for entry in entries if entry["type"] == "file")
    return sorted(name for name in names if not name.startswith(".tmp-"))


@network_errors()
def open_read(uri: str) -> IO[bytes]:
    """Open for random-access reading."""
    fs, path = filesystem(uri)
    return fs.open(path, "rb")


@network_errors()
def read_bytes(uri: str) -> bytes:
    """Return the whole file."""
    fs, path = filesystem(uri)
    return fs.cat_file(path)


def read_json(uri: str) -> Any:
    """Return the parsed JSON file."""
    return json.loads(read_bytes(uri))


def put(uri: str, data: bytes) -> None:
    """Write ``data`` to ``uri`` atomically, replacing what is there."""
    with writing(uri) as local:
        local.write_bytes(data)


def put_if_absent(uri: str, data: bytes) -> None:
    """Write ``data`` to ``uri`` atomically if nothing is there.

    Raises
    ------
    FileExistsError
        If something is there; of several writers at once all but one get it.
    """
    if is_local(uri):
        path = Path(filesystem(uri)[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path.parent)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            temporary.unlink()
        return
    fs, target = filesystem(uri)
    with network_errors():
        fs.pipe_file(target, data, mode="create")


@network_errors()
def size(uri: str) -> int:
    """Return the bytes of a file."""
    fs, path = filesystem(uri)
    return int(fs.info(path)["size"])


@network_errors()
def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in folder ``uri``, sorted. No folder gives no names."""
    fs, path = filesystem(uri)
    try:
        entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(Path(entry["name"].rstrip("/")).name for entry in entries if entry["type"] == "directory")


def put_json(uri: str, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    put(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


@contextmanager
def writing(uri: str) -> Iterator[Path]:
    """Yield a local path to fill; on success publish it at ``uri`` in one step, on failure leave nothing behind.

    Raises
    ------
    WriteError
        If the file cannot be created, filled or published.
    """
    fs, path = filesystem(uri)
    local = is_local(uri)
    folder = Path(path).parent if local else Path(tempfile.gettempdir())
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(folder, 0o666 if local else 0o600)
        yield temporary
        if local:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        else:
            with network_errors():
                fs.put_file(str(temporary), path)
    except OSError as error:
        msg = f"cannot write {uri}: {one_line(error)}"
        raise WriteError(msg) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def copy(source: str, target: str) -> None:
    """Copy one file, atomically, between any two places."""
    with open_read(source) as file, writing(target) as path, path.open("wb") as copied:
        shutil.copyfileobj(file, copied, _COPY_BYTES)


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """Yield a local path that holds the content of ``uri``: itself when local, else a temporary download."""
    if is_local(uri):
        yield Path(filesystem(uri)[1])
        return
    with Scratch("copy") as scratch:
        fs, path = filesystem(uri)
        target = scratch.path / Path(path).name
        with network_errors():
            fs.get(path, str(target), recursive=fs.isdir(path))
        yield target


@network_errors()
def remove(uri: str) -> None:
    """Remove a file or a whole folder; nothing there is fine."""
    fs, path = filesystem(uri)
    with suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


@network_errors()
def content_hash(uri: str) -> str:
    """Return 64 hex digits that change when the content of a file or folder does.

    A local file is read whole (SHA-256). For an S3 object the store's own entity tag and size are taken, so that a
    large object is not read twice: copying it with another part size changes the hash although the bytes are the
    same.
    """
    fs, path = filesystem(uri)
    digest = hashlib.sha256()
    if fs.isdir(path):
        root = path.rstrip("/") + "/"
        for name, info in sorted(fs.find(path, detail=True).items()):
            digest.update(f"{name.removeprefix(root)}\0{_file_hash(uri, info)}\n".encode())
    else:
        digest.update(_file_hash(uri, fs.info(path)).encode())
    return digest.hexdigest()


@network_errors()
def file_digest(uri: str) -> str:
    """Return the SHA-256 of a file's bytes, read once in a process as long as the file stays the same."""
    fs, path = filesystem(uri)
    if is_local(uri):
        return _local_digest(path)
    info = fs.info(path)
    return _remote_digest(uri, str(info["ETag"]), int(info["size"]))


def _file_hash(uri: str, info: dict[str, Any]) -> str:
    return _local_digest(info["name"]) if is_local(uri) else f"{info['ETag']}:{info['size']}"


def _local_digest(path: str) -> str:
    status = Path(path).stat()
    return _read_digest(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=_MOST_DIGESTS)
def _read_digest(path: str, *_state: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=_MOST_DIGESTS)
def _remote_digest(uri: str, *_state: Any) -> str:
    with open_read(uri) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _temporary(folder: Path, mode: int = 0o666) -> Path:
    """Create an empty file of a new name, with what the process's umask leaves of ``mode``; the umask itself is kept.

    ``tempfile`` makes files for their owner alone, and asking for the umask means setting it, for all threads.
    """
    while True:
        path = folder / f".tmp-{secrets.token_hex(8)}"
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), mode))
            return path
