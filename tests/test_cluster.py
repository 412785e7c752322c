import builtins

import numpy as np
from ray.experimental import tqdm_ray

from cellray.refine.graph import knn_graph


def test_ray_leaves_the_built_in_print_alone(ray):
    """Ray's bars may start in a driver at any message of a worker; Numba compiles calls of ``print``."""
    tqdm_ray.instance()
    assert builtins.print.__module__ == "builtins"
    points = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    assert knn_graph(points, 5, exact_cells=0).shape == (400, 400)
