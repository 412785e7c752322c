"""What the pipeline costs beyond the encoder: ``python -m jobs.bench.annotate [--json]``.

Three ratios, each measured within one run on made-up cells:

``rss_ratio``
    Peak resident memory of the driver plus that of the largest worker, annotating 80,000 cells over 8,000, same shard
    size, without refinement (whose memory is that of a dataset, not of a shard). Goal: at most 1.15.
``pipeline_efficiency``
    Cells per second through Ray Data, from the first shard written to the last, over a bare loop of the same scorer
    on the same tokens with the same threads. Goal: at least 0.85.
``tokenise_ratio``
    Seconds of a per-row ``numpy.argsort`` (stable, so that tokens are equal) over ours, same matrix, one core. Goal:
    at least 3. ``tokenise_ratio_unstable`` compares with NumPy's default, whose order of ties is undefined.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from scipy import sparse

from cellray.ingest import GeneIndex, find_sources, inspect_dataset
from cellray.models import checkpoints
from cellray.tokenize import rank_tokens
from jobs.bench.synthetic import write_cells, write_model

_GENES = 2000
_SHARD_CELLS = 2048
_ENCODER_THREADS = 1


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.annotate", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["rss", "pipeline", "tokenise"], default=None)
    given = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.only in (None, "tokenise"):
            found |= tokenise_ratio()
        if given.only in (None, "pipeline"):
            found |= pipeline_efficiency(folder)
        if given.only in (None, "rss"):
            found |= rss_ratio(folder)
    if given.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        for key, value in found.items():
            sys.stdout.write(f"{key:<28}{value:,.3f}\n")
    return 0


def tokenise_ratio(
    n_cells: int = 3000, n_genes: int = 16000, genes_per_cell: int = 1000, repeats: int = 5
) -> dict[str, float]:
    """Compare with the loop that everybody writes; the tokens must be equal."""
    rng = np.random.default_rng(0)
    columns = np.sort(np.argsort(rng.random((n_cells, n_genes)), 1)[:, :genes_per_cell], 1).astype(np.int32)
    values = rng.geometric(0.6, columns.size).astype(np.float32)
    indptr = np.arange(n_cells + 1) * genes_per_cell
    counts = sparse.csr_matrix((values, columns.ravel(), indptr), (n_cells, n_genes))
    n_counts = np.asarray(counts.sum(1)).ravel()
    tokens, medians = np.arange(2, n_genes + 2), rng.lognormal(size=n_genes)
    longest = 2047

    def loop(kind: Literal["stable"] | None) -> list[np.ndarray]:
        rows = []
        for row in range(n_cells):
            at = slice(indptr[row], indptr[row + 1])
            value = counts.data[at] / n_counts[row] * np.float32(1e4) / medians[counts.indices[at]]
            rows.append(tokens[counts.indices[at]][np.argsort(-value, kind=kind)[:longest]])
        return rows

    flat, _ = rank_tokens(counts, n_counts, tokens, medians, longest)
    if not np.array_equal(flat, np.concatenate(loop("stable"))):
        msg = "tokens differ from the loop's"
        raise AssertionError(msg)
    seconds: dict[str, list[float]] = {"ours": [], "stable": [], "unstable": []}
    for _ in range(repeats):
        seconds["ours"].append(_seconds(lambda: rank_tokens(counts, n_counts, tokens, medians, longest)))
        seconds["stable"].append(_seconds(lambda: loop("stable")))
        seconds["unstable"].append(_seconds(lambda: loop(None)))
    ours, stable, unstable = (statistics.median(seconds[name]) for name in ("ours", "stable", "unstable"))
    return {
        "tokenise_ratio": stable / ours,
        "tokenise_ratio_unstable": unstable / ours,
        "tokenise_cells_per_s": n_cells / ours,
    }


def pipeline_efficiency(folder: Path, n_shards: int = 12) -> dict[str, float]:
    """Stream shards through Ray Data and through a plain loop; the encoder is what costs."""
    import ray
    import torch

    from cellray.cluster import ray_session
    from cellray.encode import open_encoder, tokenizer_of
    from cellray.pipeline.order import Scoring
    from cellray.pipeline.scoring import token_shard
    from cellray.pipeline.stream import Pool, Unit, stream

    cells = write_cells(folder / "encode.h5ad", n_shards * _SHARD_CELLS, _GENES, 200)
    model = write_model(folder / "model", _GENES, hidden=64, layers=3, max_tokens=128)
    checkpoint = checkpoints.load_langcell(str(model))
    genes = GeneIndex(checkpoint.genes, checkpoint.symbols)
    plan = inspect_dataset(find_sources([str(cells)])[0], genes)
    texts = tuple(label["text"] for label in checkpoint.labels)
    names = tuple(label["name"] for label in checkpoint.labels)
    scoring = Scoring(
        model=str(model),
        tokenizer=tokenizer_of(checkpoint),
        labels=names,
        texts=texts,
        alpha=0.2,
        batch_tokens=32768,
        min_genes=20,
        embedding_key=checkpoint.EMBEDDING_KEY,
        embedding_width=checkpoint.width,
    )
    units = [
        Unit(0, start, start + _SHARD_CELLS, str(folder / "parts" / f"part-{start}.parquet"))
        for start in range(0, plan.n_cells, _SHARD_CELLS)
    ]
    with ray_session():
        finished = []
        for receipt in stream(units, [plan], scoring, Pool(1, _ENCODER_THREADS, 0), str(folder / "stop")):
            if receipt.error:
                raise RuntimeError(receipt.error)
            finished.append(time.perf_counter())
        ray.shutdown()
    streamed = (len(finished) - 1) * _SHARD_CELLS / (finished[-1] - finished[0])

    torch.set_num_threads(_ENCODER_THREADS)
    scorer = open_encoder(checkpoint, texts, scoring=True, alpha=0.2)
    shards = [
        token_shard(plan, unit.start, unit.stop, tokenizer=scoring.tokenizer, min_genes=scoring.min_genes)
        for unit in units[:4]
    ]
    scorer.score(shards[0])
    bare = len(shards) * _SHARD_CELLS / _seconds(lambda: [scorer.score(shard) for shard in shards])
    return {"pipeline_efficiency": streamed / bare, "pipeline_cells_per_s": streamed, "bare_cells_per_s": bare}


def rss_ratio(folder: Path) -> dict[str, float]:
    """Annotate 8,000 and 80,000 cells, each in a process of its own, watching the process tree."""
    model = write_model(folder / "small", _GENES)
    peaks = {}
    for n_cells in (8_000, 80_000):
        cells = write_cells(folder / f"cells{n_cells}.h5ad", n_cells, _GENES, 100)
        command = [sys.executable, "-m", "cellray.cli", "annotate", str(cells), "--out", str(folder / f"out{n_cells}")]
        options = ["--model", str(model), "--refine", "none", "--alpha", "1", "--shard-cells", str(_SHARD_CELLS)]
        peaks[n_cells] = _peak_rss([*command, *options])
    gigabytes = {f"rss_gb_{n_cells}": peak / 1e9 for n_cells, peak in peaks.items()}
    return {"rss_ratio": peaks[80_000] / peaks[8_000], **gigabytes}


def _peak_rss(command: list[str]) -> int:
    """Peak resident bytes of a command plus the peak of its largest Ray worker, by the kernel's high-water marks."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"})  # noqa: S603
    peaks: dict[int, int] = {}
    done = threading.Event()

    def watch() -> None:
        parent = psutil.Process(process.pid)
        while not done.wait(0.1):
            try:
                for one in [parent, *parent.children(recursive=True)]:
                    if one.pid == process.pid or one.name().startswith("ray::"):
                        peaks[one.pid] = max(peaks.get(one.pid, 0), _high_water(one.pid))
            except (psutil.Error, OSError):
                continue  # a process that ended while we looked

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code:
        msg = f"{' '.join(command)} ended with {code}"
        raise RuntimeError(msg)
    driver = peaks.pop(process.pid)
    return driver + max(peaks.values())


def _high_water(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
