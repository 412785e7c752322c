"""A policy on a GPU: the CPU's probabilities, and fine-tuning that takes the same steps. Needs neither Ray nor vLLM."""

import pytest
import torch

from cellray.train.loop import Alone
from cellray.train.posttraining.config import SFTConfig
from cellray.train.posttraining.examples import dialogue, examples, packed
from cellray.train.posttraining.grpo import advantages, token_loss
from cellray.train.posttraining.policy import Policy, open_tokenizer
from cellray.train.posttraining.sft import SFTInput, train
from tests.train.posttraining.conftest import made_up

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def material(folder, n):
    tokenizer = open_tokenizer(str(folder))
    return examples(tokenizer, [dialogue(one, "list", "appended") for one in made_up(n)], 128)[0], tokenizer


def config(folder, **more):
    return SFTConfig(name="gpu", model=str(folder), batch=4, epochs=2, learning_rate=1e-3, said="list", **more)


def test_log_probabilities_and_gradients(tiny_lm):
    found, tokenizer = material(tiny_lm, 8)
    batch = packed(found, tokenizer.pad_token_id)
    results = []
    for device in ("cpu", "cuda"):
        policy = Policy(config(tiny_lm, adapter=None)).to(device)
        told = policy(batch)
        weight = advantages(torch.arange(8.0).view(2, 4)).view(-1).to(device)
        counted = batch.example[batch.target != -100].to(device)
        loss = token_loss(told, told.detach(), told.detach(), weight[counted], clip=0.2, beta=0.001).loss.mean()
        loss.backward()
        gradient = torch.cat([one.grad.flatten() for one in policy.trained().parameters()])
        results.append((told.detach().cpu(), gradient.cpu()))
    (cpu, cpu_gradient), (gpu, gpu_gradient) = results
    torch.testing.assert_close(gpu, cpu, atol=1e-4, rtol=0)
    torch.testing.assert_close(gpu_gradient, cpu_gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("how", [{"adapter": None}, {}, {"dtype": "bfloat16"}])
def test_fine_tuning(tiny_lm, how):
    found, tokenizer = material(tiny_lm, 16)
    given = SFTInput(config(tiny_lm, **how), found, found[:4], tokenizer.pad_token_id)
    losses = {device: train(given, Alone(device))[2]["loss"] for device in ("cpu", "cuda")}
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=2e-2 if how.get("dtype") else 1e-3)
