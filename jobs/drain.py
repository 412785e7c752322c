"""Ask every running job of this cluster to stop, and wait for it: ``python -m jobs.drain``, before a head goes.

A job of ours ends the shards in its hands and leaves the rest for the next one. It is asked by SIGTERM and killed
after ``RAY_JOB_STOP_WAIT_TIME_S`` (60 s in ``k8s/``). Token and address are Ray's own (``RAY_AUTH_TOKEN``).
"""

import argparse
import sys
import time
from collections.abc import Sequence

from ray.job_submission import JobStatus, JobSubmissionClient

_EVERY_S = 0.5


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    found = argparse.ArgumentParser(prog="python -m jobs.drain", description=__doc__)
    found.add_argument("--address", default="http://127.0.0.1:8265", help="of the cluster's dashboard")
    found.add_argument("--timeout-s", type=float, default=65, help="how long to wait")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Stop and wait; returns 0 when no job runs any more, 1 after the time limit."""
    given = parser().parse_args(arguments)
    client = JobSubmissionClient(given.address)
    until = time.monotonic() + given.timeout_s
    asked: set[str] = set()
    while running := _running(client):
        for name in running - asked:
            client.stop_job(name)
        asked |= running
        if time.monotonic() > until:
            sys.stderr.write(f"error: {', '.join(sorted(running))} did not stop in {given.timeout_s:g} s\n")
            return 1
        time.sleep(_EVERY_S)
    return 0


def _running(client: JobSubmissionClient) -> set[str]:
    waits = (JobStatus.PENDING, JobStatus.RUNNING)
    return {job.submission_id for job in client.list_jobs() if job.submission_id and job.status in waits}


if __name__ == "__main__":
    sys.exit(main())
