"""``python -m jobs.grpo`` with two workers that share the weights, one of them killed; and what it refuses."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from cellray.errors import InputError
from cellray.puzzles import records
from cellray.train.posttraining.config import GRPOConfig
from cellray.train.posttraining.learner import GRPOInput, Prompt, chosen
from cellray.train.posttraining.policy import Policy
from cellray.train.posttraining.rewards import batch
from jobs import grpo, solve_puzzles
from tests.killing import killed_worker
from tests.train.posttraining.conftest import SMALL_GRPO, made_up

pytestmark = [pytest.mark.usefixtures("ray"), pytest.mark.timeout(600)]


def config(model, **more):
    return GRPOConfig(**{**SMALL_GRPO, "model": str(model), **more})


# Rewards are all equal here: with all weights it is the decay that begins to move them.
SHARED = {"micro": 2, "sharded": True, "adapter": None, "weight_decay": 0.1}


def test_a_killed_worker_repeats_and_skips_no_prompt(tiny_lm, solved, tmp_path, capsys):
    job = {**SMALL_GRPO, "model": str(tiny_lm), "puzzles": [str(solved)], "save_steps": 1, "updates": 2, **SHARED}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(job))
    given = ["--config", tmp_path / "config.yaml", "--out", tmp_path / "out", "--runs", tmp_path / "runs"]
    with killed_worker(tmp_path / "runs") as killed:
        assert grpo.main([str(one) for one in (*given, "--workers", 2, "--threads", 1)]) == 0
    assert killed
    told = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (told["steps"], told["prompts"], told["too_long"]) == (4, 48, 0)
    rows = pq.read_table(tmp_path / "out" / "metrics.parquet").to_pylist()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    puzzles = records.read(str(solved))
    start = GRPOInput(config(tiny_lm), [Prompt([], one) for one in puzzles], batch, [], 0, None)
    for row in rows:
        assert row["prompts"] == [puzzles[at].key for at in chosen(start, row["step"])]
        assert row["gap"] < 1e-4
        assert row["reward"] == -1  # nobody has taught this model to speak: equal rewards, no NaN
        assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
    assert len({key for row in rows for key in row["prompts"]}) == 16
    assert list((tmp_path / "runs").glob("*/events/events.*"))
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 11
    model = str(tmp_path / "out" / "model")
    before, after = (Policy(config(one, adapter=None)).trained() for one in (tiny_lm, model))
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        assert one.shape == other.shape
        assert other.isfinite().all()
        assert not torch.equal(one, other) or one.ndim == 1
    # The model is one that puzzles are solved with, as it is.
    options = ["--model", model, "--max-tokens", "60", "--out", str(tmp_path / "solved")]
    capsys.readouterr()
    assert solve_puzzles.main([str(solved), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["statuses"] == {"solved": 48}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": 3}, "prompt: Extra inputs"),
        ({"reward": "best"}, "reward"),
        ({"adapter": {"dora": True}}, "dora: false"),
        ({"adapter": {"rank": 1000}}, "at most 512"),
        ({"max_prompt": 10}, "all 48 prompts are longer than 10 tokens"),
        ({"puzzles": ["UNSOLVED"]}, "has no answer for each cell"),
        ({"model": "nowhere"}, "no config.json"),
    ],
)
def test_a_users_mistake_is_one_line(tiny_lm, solved, tmp_path, capsys, change, says):
    unsolved = tmp_path / "unsolved.parquet"
    records.write(str(unsolved), [type(one)(one.context, one.cells, one.candidates) for one in made_up(2)])
    told = {**SMALL_GRPO, "model": str(tiny_lm), "puzzles": [str(solved)], **change}
    told["puzzles"] = [str(unsolved) if one == "UNSOLVED" else one for one in told["puzzles"]]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
    assert grpo.main(["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path)]) == InputError.exit_code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
