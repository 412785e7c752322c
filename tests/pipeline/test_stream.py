"""How encoder actors are sized, leaving room for the stages around them; and what processes of a run start with."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.cluster import Resources
from cellray.errors import SettingError
from cellray.pipeline.stream import _READ_CPUS, _WRITE_CPUS, Pool


@given(st.integers(2, 256), st.data())
def test_half_of_the_nodes_may_be_lost(cpus, data):
    wanted = data.draw(st.none() | st.integers(1, 2 * cpus))
    pool = Pool.of(Resources(cpus=2 * cpus, gpus=0), wanted)
    assert pool.size * pool.threads <= 2 * cpus
    assert pool.size * pool.cpus + _READ_CPUS + _WRITE_CPUS <= cpus


def test_one_actor_a_gpu():
    pool = Pool.of(Resources(cpus=16, gpus=4), None)
    assert (pool.size, pool.gpus, pool.cpus) == (4, 1.0, 1.0)
    with pytest.raises(SettingError, match="--encoders 5 is more than the 4 GPUs"):
        Pool.of(Resources(cpus=16, gpus=4), 5)


@pytest.mark.parametrize(
    ("work", "unneeded"),
    [
        ("import cellray.pipeline.stream, cellray.pipeline.finish, cellray.pipeline.refining", "torch"),
        ("from cellray.models import checkpoints; checkpoints.load('mini').build()", "torch._dynamo"),
        ("from cellray.models import checkpoints; checkpoints.load('mini-scgpt').build()", "torch._dynamo"),
        ("import cellray.train.posttraining.sft, cellray.train.posttraining.learner", "transformers"),
        ("import cellray.train.puzzle_lm", "transformers"),
    ],
)
def test_processes_start_with_what_their_stage_needs(work, unneeded):
    """Each takes a second or more, in every worker of a run."""
    code = f"import sys; {work}; sys.exit({unneeded!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
