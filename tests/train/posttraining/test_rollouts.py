"""Rollouts on a real engine: weights arrive or it is an error, an actor that dies is given them again."""

import json
import os
import signal

import numpy as np
import psutil
import pytest
import ray as ray_
import torch

from cellray.errors import StaleWeightsError
from cellray.train.loop import Alone
from cellray.train.posttraining.config import GRPOConfig
from cellray.train.posttraining.examples import Example, packed, prompt_tokens
from cellray.train.posttraining.learner import GRPO, GRPOInput, Prompt
from cellray.train.posttraining.policy import Policy, open_tokenizer
from cellray.train.posttraining.rewards import batch
from cellray.train.posttraining.rollout import Wish
from cellray.train.posttraining.writers import Writers, start_rollouts
from jobs import sft
from tests.killing import Stopped, Stopping
from tests.train.posttraining.conftest import SMALL_GRPO, made_up

pytestmark = [pytest.mark.usefixtures("ray"), pytest.mark.timeout(600)]


def config(model, **more):
    return GRPOConfig(**{**SMALL_GRPO, "model": str(model), **more})


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


# First, as long as the engine has the model's own weights under its adapters.
def test_a_run_that_stops_goes_on_as_if_it_had_not(actor, tiny_lm, tmp_path):
    told = config(tiny_lm, save_steps=1, updates=2)
    start = GRPOInput(told, prompts_of(tiny_lm, 16), lambda text, _: float(len(text) % 5), [actor], 0, None)
    runs = [GRPO(start, Stopping(tmp_path, 2)), GRPO(start, Stopping(tmp_path)), GRPO(start, Alone())]
    with pytest.raises(Stopped):
        runs[0].run()
    _, rest, whole = runs
    rest.run()
    whole.run()
    assert rest.workers.checkpoints == told.steps - 2
    for one, other in zip(rest.trained.parameters(), whole.trained.parameters(), strict=True):
        assert torch.equal(one, other)
    assert any(one.abs().sum() > 0.1 for name, one in rest.trained.named_parameters() if "lora_B" in name)  # from 0
    adapter = tmp_path / "out" / "adapter"
    sft.write(rest.policy, open_tokenizer(str(tiny_lm)), tmp_path / "out", told, {})
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == SMALL_GRPO["adapter"]["rank"]
    assert (adapter / "adapter_model.safetensors").is_file()
    assert Policy(config(tmp_path / "out" / "model")).digest != Policy(told).digest


@pytest.mark.parametrize("adapter", [SMALL_GRPO["adapter"], None])
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
