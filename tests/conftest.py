"""Fixtures of more than one room: a real S3 server and the shared data."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.golden import Golden

# Ray, S3 and AnnData are imported where they are used: the tests of GPUs run without them.

# Machines that run tests are busy: an example that takes long is no failure.
hypothesis.settings.register_profile("cellray", deadline=None)
hypothesis.settings.load_profile("cellray")

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Every process that a test starts begins with tests/startup, which says what for.
STARTUP = str(Path(__file__).parent / "startup")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [STARTUP, os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 server; the environment names it, so that child processes find it as well."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", ",".join(filter(None, [os.environ.get("NO_PROXY"), host])))
        s3fs.S3FileSystem.clear_instance_cache()
        yield endpoint
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> str:
    """URI of an empty bucket."""
    import s3fs

    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of an empty folder, once on the local disk and once on S3."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared data sets and golden outputs."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared data are not beside the repository ({SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Golden:
    """The official code's outputs on a tiny checkpoint."""
    return Golden(shared / "golden" / "langcell-tiny", shared / "golden" / "input.h5ad")


@pytest.fixture(scope="session")
def ray(s3_server: str) -> Iterator[None]:
    """One Ray for the whole session; its workers know the S3 server."""
    from cellray.cluster import ray_session

    with ray_session(cpus=3):
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """While the test runs, numbers are computed by one thread, as in a worker with one: sums then round the same."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights and 300 genes."""
    from jobs.bench.synthetic import write_model

    return write_model(tmp_path_factory.mktemp("model") / "tiny", 300)


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 cells of 300 genes: row 5 is empty, rows 17 and 40 have a handful of genes."""
    import anndata

    from jobs.bench.synthetic import write_cells

    path = write_cells(tmp_path_factory.mktemp("cells") / "cells.h5ad", 48, 300, 60)
    data = anndata.read_h5ad(path)
    counts = data.X.tolil()
    counts[5] = 0
    for row in (17, 40):
        counts[row] = 0
        counts[row, :5] = 2
    data.X = counts.tocsr()
    data.write_h5ad(path)
    return path
