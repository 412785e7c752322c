import builtins
import signal
import threading
import time

import numpy as np
import pytest
from ray.experimental import tqdm_ray

from cellray.cluster import draining
from cellray.errors import Terminated
from cellray.refine.graph import knn_graph


def test_ray_leaves_the_built_in_print_alone(ray):
    """Ray's bars may start in a driver at any message of a worker; Numba compiles calls of ``print``."""
    tqdm_ray.instance()
    assert builtins.print.__module__ == "builtins"
    points = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    assert knn_graph(points, 5, exact_cells=0).shape == (400, 400)


def test_sigterm_lets_what_is_in_hand_end():
    stopped, ended = threading.Event(), []

    def work():
        with draining(stopped.set, limit_s=60) as asked:
            signal.raise_signal(signal.SIGTERM)
            assert stopped.wait(10)
            assert asked.is_set()
            ended.append("the shard in hand")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="run the same command again"):
        work()
    assert ended
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("limit_s", [0.2, 60])
def test_it_does_not_wait_for_ever_nor_after_a_second_sigterm(limit_s):
    def work():
        with draining(lambda: None, limit_s=limit_s):
            signal.raise_signal(signal.SIGTERM)
            if limit_s > 1:
                signal.raise_signal(signal.SIGTERM)
            time.sleep(10)
            pytest.fail("the work went on")

    with pytest.raises(Terminated):
        work()


def test_without_sigterm_nothing_happens():
    with draining(lambda: pytest.fail("nobody asked")) as asked:
        pass
    assert not asked.is_set()
