"""Storage: whole files or none, names that stay inside, hashes that follow the content."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st

from cellray import storage
from cellray.errors import WriteError


def test_put_read_list_remove(root: str) -> None:
    folder = storage.join(root, "a", "b")
    storage.put(storage.join(folder, "two"), b"2")
    storage.put_json(storage.join(folder, "one"), {"b": 1, "a": [None]})
    storage.put(storage.join(folder, "deeper", "three"), b"3")
    assert storage.list_files(folder) == ["one", "two"]
    assert storage.read_bytes(storage.join(folder, "two")) == b"2"
    assert storage.read_json(storage.join(folder, "one")) == {"a": [None], "b": 1}
    with storage.open_read(storage.join(folder, "two")) as file:
        assert file.read() == b"2"
    assert storage.exists(folder)
    storage.remove(folder)
    storage.remove(folder)
    assert not storage.exists(storage.join(folder, "two"))
    assert storage.list_files(folder) == []


def test_replace_is_seen_at_once(root: str) -> None:
    uri = storage.join(root, "file")
    storage.put(uri, b"old")
    assert storage.list_files(root) == ["file"]
    other = storage.join(root, "other")
    if not storage.is_local(root):  # another process writes: no cache of ours may hide it
        s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(uri, b"newer")
        s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(other, b"")
    else:
        Path(uri).write_bytes(b"newer")
        Path(other).touch()
    assert storage.list_files(root) == ["file", "other"]
    with storage.open_read(uri) as file:
        assert file.read() == b"newer"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_when_writing_fails(root: str, error: type[BaseException]) -> None:
    uri = storage.join(root, "file")
    storage.put(uri, b"old")
    with pytest.raises(error), storage.writing(uri) as local:  # noqa: PT012
        local.write_bytes(b"half")
        assert storage.read_bytes(uri) == b"old"
        raise error
    assert storage.read_bytes(uri) == b"old"
    assert not local.exists()
    assert storage.list_files(root) == ["file"]


def test_os_error_is_one_line(root: str) -> None:
    uri = storage.join(root, "file")
    with pytest.raises(WriteError, match=r"^cannot write .*file: no room$"), storage.writing(uri):
        raise OSError("no\n room")
    assert not storage.exists(uri)


def test_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot write"):
        storage.put(str(tmp_path / "file" / "inner"), b"")


def test_temporary_name_is_not_listed(tmp_path: Path) -> None:
    with storage.writing(str(tmp_path / "file")):
        assert len(list(tmp_path.iterdir())) == 1
        assert storage.list_files(str(tmp_path)) == []


def test_a_file_is_read_once_for_its_digest(root: str) -> None:
    import hashlib

    from cellray.storage import _read_digest, _remote_digest

    def reads() -> int:
        return _read_digest.cache_info().misses + _remote_digest.cache_info().misses

    uri, before = f"{root}/a", reads()
    storage.put(uri, b"one")
    assert {storage.file_digest(uri) for _ in range(3)} == {hashlib.sha256(b"one").hexdigest()}
    assert reads() == before + 1
    storage.put(uri, b"two")  # of the same size
    assert storage.file_digest(uri) == hashlib.sha256(b"two").hexdigest()


def test_the_umask_is_never_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the whole process's: another thread would write files that anybody may change in between."""
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask was set"))
    storage.put(str(tmp_path / "a"), b"x")
    storage.put_if_absent(str(tmp_path / "b"), b"x")


def test_published_file_obeys_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.put(str(tmp_path / "file"), b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_full_disk(tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: both fail inside write(2)."""
    script = """
        import resource, signal, sys
        from cellray import storage
        from cellray.errors import WriteError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            storage.put(sys.argv[1], bytes(5000))
        except WriteError as error:
            print(error)
    """
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(out / "file")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"cannot write {out}/file: ")
    assert list(out.iterdir()) == []


def test_large_object_is_whole(s3: str) -> None:
    uri = storage.join(s3, "large")
    data = bytes(range(256)) * (101 << 12)  # 101 MiB: more than one PUT
    storage.put(uri, data)
    with storage.open_read(uri) as file:
        file.seek(-256, os.SEEK_END)
        assert file.read() == bytes(range(256))
    assert s3fs.S3FileSystem().info(uri)["size"] == len(data)


def test_bucket_that_is_not_there(s3_server: str) -> None:
    with pytest.raises(WriteError, match="bucket does not exist"):
        storage.put("s3://no-such-bucket-here/file", b"")


def test_missing_credentials_are_an_os_error(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    uri = storage.join(s3, "file")
    try:
        with pytest.raises(WriteError, match="credentials"):
            storage.put(uri, b"")
        for read in (storage.read_bytes, storage.open_read, storage.content_hash, storage.list_files):
            with pytest.raises(OSError, match="credentials"):
                read(uri)
        with pytest.raises(OSError, match="credentials"), storage.local_copy(uri):
            pass
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_local_copy_of_a_file_and_a_folder(root: str) -> None:
    storage.put(storage.join(root, "store", "a"), b"1")
    storage.put(storage.join(root, "store", "b", "c"), b"2")
    with storage.local_copy(storage.join(root, "store")) as folder:
        assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {
            "a": b"1",
            "b/c": b"2",
        }
    with storage.local_copy(storage.join(root, "store", "a")) as file:
        assert file.read_bytes() == b"1"
        assert file.name == "a"
    assert file.exists() == storage.is_local(root)


def test_content_hash_follows_content(root: str) -> None:
    store, file = storage.join(root, "store"), storage.join(root, "store", "b", "c")
    storage.put(storage.join(store, "a"), b"1")
    storage.put(file, b"2")
    seen = [storage.content_hash(store), storage.content_hash(file)]
    assert all(len(digest) == 64 for digest in seen)
    assert [storage.content_hash(store), storage.content_hash(file)] == seen
    storage.put(file, b"3")
    changed = [storage.content_hash(store), storage.content_hash(file)]
    storage.remove(file)
    storage.put(storage.join(store, "b", "d"), b"3")
    assert len({*seen, *changed, storage.content_hash(store)}) == 5


def test_content_hash_does_not_depend_on_the_place(root: str) -> None:
    for folder in ("one", "two"):
        storage.put(storage.join(root, folder, "x", "y"), b"same")
    assert storage.content_hash(storage.join(root, "one")) == storage.content_hash(storage.join(root, "two"))


def test_content_hash_of_nothing(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.content_hash(storage.join(root, "none"))


def test_unknown_scheme() -> None:
    with pytest.raises(ValueError, match=r"scheme 'ftp' is not supported; use a local path or s3://"):
        storage.filesystem("ftp://host/file")


@given(st.lists(st.text() | st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True), min_size=1, max_size=4))
def test_join_never_leaves_the_root(parts: list[str]) -> None:
    for base in ("/data/out", "/data/out/", "/", "s3://bucket/out", "out"):
        try:
            joined = storage.join(base, *parts)
        except ValueError:
            return  # what is refused is tested below
        assert joined == "/".join([base.rstrip("/"), *parts])
        assert os.path.normpath(joined) == os.path.normpath(base).rstrip("/") + "/" + "/".join(parts)


@pytest.mark.parametrize("part", ["", ".", "..", "a/b", "/a", "a\\b", "a\0", "a\n", "ü", "a" * 256, "~ "])
def test_join_refuses(part: str) -> None:
    with pytest.raises(ValueError, match="not a safe file name"):
        storage.join("/data", part)


def test_join_of_nothing() -> None:
    assert storage.join("/data/") == "/data/"


def test_put_if_absent(root: str) -> None:
    uri = storage.join(root, "folder", "file")
    storage.put_if_absent(uri, b"first")
    with pytest.raises(FileExistsError):
        storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert storage.size(uri) == 5
    assert storage.list_folders(root) == ["folder"]
    assert storage.list_folders(storage.join(root, "none")) == []
    assert storage.list_files(storage.join(root, "folder")) == ["file"]
