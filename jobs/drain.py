"""Ask every job that this node drives to stop, and wait for it: ``python -m jobs.drain``, before a head goes.

A job of ours ends the shards in its hands and leaves the rest for the next one. It is sent SIGTERM and not stopped
through Ray: a job that was stopped counts as done, one that ends with exit code 143 as failed, and KubeRay starts it
again. Token and address are Ray's own (``RAY_AUTH_TOKEN``).
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from ray.job_submission import JobStatus, JobSubmissionClient, JobType

from jobs.numbers import amount

_EVERY_S = 0.5


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    found = argparse.ArgumentParser(prog="python -m jobs.drain", description=__doc__)
    found.add_argument("--address", default="http://127.0.0.1:8265", help="of the cluster's dashboard")
    found.add_argument("--timeout-s", type=amount, default=65, help="how long to wait")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask and wait; returns 0 when no job runs any more, 1 after the time limit."""
    given = parser().parse_args(arguments)
    client = JobSubmissionClient(given.address)
    until = time.monotonic() + given.timeout_s
    asked: set[int] = set()
    while drivers := _drivers(client):
        for pid in drivers - asked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        asked |= drivers
        if time.monotonic() > until:
            sys.stderr.write(f"error: {len(drivers)} jobs did not stop in {given.timeout_s:g} s\n")
            return 1
        time.sleep(_EVERY_S)
    return 0


def _drivers(client: JobSubmissionClient) -> set[int]:
    """Pids of the drivers of submitted jobs, which run on the head; one without a driver has nothing in its hands."""
    found = set()
    for job in client.list_jobs():
        if job.type == JobType.SUBMISSION and job.status == JobStatus.RUNNING and job.driver_info is not None:
            found.add(int(job.driver_info.pid))
    return found


if __name__ == "__main__":
    sys.exit(main())
