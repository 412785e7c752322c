"""Rollouts on a real engine: weights arrive or it is an error, an actor that dies is given them again; and the job."""

import json
import os
import signal

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray as ray_
import torch
import yaml

from cellray.errors import InputError, StaleWeightsError
from cellray.puzzles import records
from cellray.train.loop import Alone
from cellray.train.posttraining.config import GRPOConfig
from cellray.train.posttraining.examples import Example, packed, prompt_tokens
from cellray.train.posttraining.learner import GRPO, GRPOInput, Prompt, chosen
from cellray.train.posttraining.policy import Policy, open_tokenizer
from cellray.train.posttraining.rewards import batch
from cellray.train.posttraining.rollout import Wish
from cellray.train.posttraining.writers import Writers, start_rollouts
from jobs import grpo
from tests.killing import killed_worker
from tests.train.posttraining.conftest import made_up

pytestmark = [pytest.mark.usefixtures("ray"), pytest.mark.timeout(600)]
SMALL = {
    "name": "small",
    "steps": 4,
    "prompts": 4,
    "group": 3,
    "max_prompt": 100,
    "max_tokens": 12,
    "learning_rate": 0.01,
    "adapter": {"rank": 4, "alpha": 8},
    "cache_bytes": 16 << 20,
    "sequences": 16,
}


def config(model, **more):
    return GRPOConfig(**{**SMALL, "model": str(model), **more})


@pytest.fixture(scope="module")
def actor(ray, tiny_lm):
    (one,) = start_rollouts(config(tiny_lm), block=32)
    yield one
    ray_.kill(one)


def prompts_of(model, n):
    tokenizer = open_tokenizer(str(model))
    return [Prompt(prompt_tokens(tokenizer, one.messages("spaced")), one) for one in made_up(n, seed=3, sizes=(5,))]


def gap(policy, wish, answers):
    """The largest difference of log-probabilities."""
    with torch.no_grad():
        own = [policy(packed([Example(np.array(wish.prompt, np.int32), one.tokens)], 0)).numpy() for one in answers]
    return max(abs(mine - one.log_probabilities).max() for mine, one in zip(own, answers, strict=True))


def shaken(policy):
    torch.manual_seed(1)
    with torch.no_grad():
        for one in policy.trained().parameters():
            one += 0.2 * torch.randn_like(one)
    return policy


@pytest.mark.parametrize("adapter", [SMALL["adapter"], None])
def test_synced_weights_give_the_policys_probabilities_and_stale_ones_do_not(actor, tiny_lm, adapter):
    told = config(tiny_lm, adapter=adapter)
    policy, writers = shaken(Policy(told)), Writers([actor], told, Alone())
    wish = Wish(prompts_of(tiny_lm, 1)[0].tokens, (1, 2, 3, 4))
    assert writers.send(policy, 7) > 0
    ((*answers,),) = writers.ask([wish])
    synced = gap(policy, wish, answers)
    assert synced < 1e-4
    assert gap(shaken(policy), wish, answers) > 100 * synced
    assert len({one.tokens.tobytes() for one in answers}) > 1
    assert [one.tokens.tolist() for one in writers.ask([wish])[0]] == [one.tokens.tolist() for one in answers]
    assert all(one.cached >= 32 for one in answers[1:])
    with pytest.raises(StaleWeightsError, match="holds weights 7, not 8"):
        ray_.get(actor.write.remote([wish], 8, 1.0, 4))


def test_weights_that_did_not_arrive_end_the_step(actor, tiny_lm):
    """The engine says it has them and has not: only the probabilities tell."""
    told = config(tiny_lm, adapter=None)
    loop = GRPO(GRPOInput(told, prompts_of(tiny_lm, 4), batch, [actor], 0, None), Alone())
    send = loop.writers.send

    def late(policy, version):
        seconds = send(policy, version)
        shaken(policy)
        return seconds

    loop.writers.send = late
    with pytest.raises(StaleWeightsError, match="does not hold its weights"):
        loop.step(0)


def test_a_killed_actor_is_given_the_weights_again(actor, tiny_lm):
    told = config(tiny_lm, adapter=None)
    policy, writers = shaken(Policy(told)), Writers([actor], told, Alone())
    wishes = [Wish(one.tokens, (1, 2)) for one in prompts_of(tiny_lm, 3)]
    writers.send(policy, 1)
    before = writers.ask(wishes)
    victims = [one for one in psutil.Process().children(recursive=True) if "Rollouts" in one.name()]
    assert victims
    for one in victims:
        os.kill(one.pid, signal.SIGKILL)
    after = writers.ask(wishes)
    assert [[one.tokens.tolist() for one in group] for group in after] == [
        [one.tokens.tolist() for one in group] for group in before
    ]


def test_a_killed_worker_repeats_and_skips_no_prompt(tiny_lm, solved, tmp_path, capsys):
    job = {**SMALL, "model": str(tiny_lm), "puzzles": [str(solved)], "save_steps": 1, "updates": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(job))
    given = ["--config", tmp_path / "config.yaml", "--out", tmp_path / "out", "--runs", tmp_path / "runs"]
    with killed_worker(tmp_path / "runs") as killed:
        assert grpo.main([str(one) for one in (*given, "--threads", 1)]) == 0
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
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert Policy(config(tmp_path / "out" / "model")).digest != Policy(config(tiny_lm)).digest


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
    told = {**SMALL, "model": str(tiny_lm), "puzzles": [str(solved)], **change}
    told["puzzles"] = [str(unsolved) if one == "UNSOLVED" else one for one in told["puzzles"]]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
    assert grpo.main(["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path)]) == InputError.exit_code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
