"""A cluster of several nodes on this machine with token authentication, in processes of its own.

``python -m tests.clustered DASHBOARD_PORT AGENT_PORT WORKERS CPUS`` starts it, prints a line of JSON (pids of the
workers' ``raylets``) and holds it until its standard input ends.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Running:
    """A running cluster: where its dashboard is, the environment that its clients need, pids of workers' raylets."""

    dashboard: str
    environment: dict[str, str]
    raylets: list[int]

    def submit(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        """Submit ``words`` as a job, once the cluster takes jobs; the process ends with the job."""
        self._wait_for_agent()
        command = ["ray", "job", "submit", "--address", self.dashboard, "--", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env={**self.environment, **environment}, text=True, **pipes)

    def ask(self, path: str, body: object = None, method: str = "GET") -> object:
        """Ask the dashboard, with the token."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}", "content-type": "application/json"}
        request = urllib.request.Request(self.dashboard + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def _wait_for_agent(self) -> None:
        """A head takes jobs some seconds after it is up."""
        until = time.monotonic() + 60
        while True:
            try:
                self.ask("/api/jobs/", {"entrypoint": "true"}, "POST")
                return
            except urllib.error.HTTPError:
                assert time.monotonic() < until
                time.sleep(0.5)


@contextmanager
def cluster(workers: int, cpus: int, **environment: str) -> Iterator[Running]:
    """Start a head without CPUs and ``workers`` nodes of ``cpus`` each; stop them in the end."""
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        port, agent = (free.getsockname()[1] for free in (one, other))
    known = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **environment,
    }
    command = [sys.executable, "-m", "tests.clustered", *map(str, (port, agent, workers, cpus))]
    with subprocess.Popen(
        command, env=known, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as held:
        try:
            facts = json.loads(next(line for line in held.stdout if line.startswith("{")))
            yield Running(f"http://127.0.0.1:{port}", known, facts["raylets"])
        finally:
            held.stdin.close()
            held.wait(60)


def main(port: int, agent: int, workers: int, cpus: int) -> None:
    """Start, tell, hold."""
    from ray.cluster_utils import Cluster

    store = 200 << 20
    # The agent takes jobs; at its usual port may be that of another Ray of this machine.
    ports = {"dashboard_port": port, "dashboard_agent_listen_port": agent}
    head = {"num_cpus": 0, "include_dashboard": True, **ports, "object_store_memory": store}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    added = [nodes.add_node(num_cpus=cpus, object_store_memory=store) for _ in range(workers)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in added]
    sys.stdout.write(json.dumps({"raylets": raylets}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    nodes.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
