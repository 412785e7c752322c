"""Training loops on Ray Train: the options that all training jobs share, and the run itself.

Contract: a worker that dies is started again and goes on from the last checkpoint, three times at most; so does the
same command, as long as its run folder is there.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from cellray.cluster import ray_session
from cellray.errors import CellRayError
from jobs.numbers import count

_LOOKS_S = "0.25"
"""How often the controller looks at the workers, each of which waits for it with every checkpoint: by default 2 s,
longer than an epoch of some tens of cells takes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``trained``."""
    parser.add_argument("--runs", type=Path, default=Path("out/train"), help="where checkpoints go")
    parser.add_argument("--workers", type=count, default=1)
    parser.add_argument("--threads", type=count, default=None, help="CPUs of each worker; default: all, shared evenly")
    parser.add_argument("--address", default=None, help="Ray cluster; default: start one here")


@contextmanager
def trained(
    worker: Callable[[dict[str, Any]], None],
    training: Any,
    name: str,
    given: argparse.Namespace,
    *,
    on_gpus: bool = True,
) -> Iterator[Path]:
    """Train on the cluster, from the last checkpoint if there is one; yields the folder of the final state.

    With ``on_gpus`` each worker has one where the cluster has any; without, none is asked for.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _LOOKS_S)
    with ray_session(given.address) as resources:
        trainer = TorchTrainer(
            worker,
            train_loop_config={"given": training},
            torch_config=TorchConfig(backend="nccl" if on_gpus and resources.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=given.workers,
                use_gpu=on_gpus and resources.gpus > 0,
                resources_per_worker={"CPU": given.threads or max(1, resources.cpus // given.workers)},
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(given.runs.resolve()),
                failure_config=FailureConfig(max_failures=3),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise (_ours(error) or error) from error
    if result.checkpoint is None:
        msg = f"training {name!r} ended without a checkpoint; see {given.runs}"
        raise CellRayError(msg)
    with result.checkpoint.as_directory() as folder:
        yield Path(folder)
    sys.stderr.write(f"{name}: {result.metrics}\n")


def _ours(error: TrainingFailedError) -> CellRayError | None:
    """Return the error of ours that made a worker fail, if it was one."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return next((one for one in failures if isinstance(one, CellRayError)), None)
