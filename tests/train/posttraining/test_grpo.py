"""GRPO's arithmetic and rewards: as TRL has them, and at the edges."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellray.puzzles.answer import written
from cellray.puzzles.puzzle import Puzzle
from cellray.train.posttraining.config import GRPOConfig
from cellray.train.posttraining.grpo import advantages, token_loss
from cellray.train.posttraining.policy import Policy
from cellray.train.posttraining.rewards import batch, mixed

PUZZLE = Puzzle("x ", (("A",), ("B",), ("C",)), ("a", "b", "c"), ("b", "c", "a"))


@pytest.fixture(scope="module")
def trl(tiny_lm, tmp_path_factory):
    """TRL's trainer on the tiny model; the rewards that it was given last."""
    from datasets import Dataset
    from trl import GRPOConfig as Arguments
    from trl import GRPOTrainer

    given = []

    def reward(completions, **_):
        given[:] = [[0.0, 1.0, 0.5, -1.0][len(str(one)) % 4] for one in completions]
        return given

    arguments = Arguments(
        str(tmp_path_factory.mktemp("trl")),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        loss_type="bnpo",
        beta=0.1,
        epsilon=0.2,
        use_cpu=True,
        bf16=False,
        use_bias_correction_kl=False,
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"prompt": [f"Cell {number}: G1" for number in range(4)]})
    return GRPOTrainer(str(tiny_lm), reward, args=arguments, train_dataset=data), given


def test_advantages_are_those_of_trl(trl):
    trainer, rewards = trl
    found = trainer._generate_and_score_completions([{"prompt": f"Cell {n // 4}: G1"} for n in range(8)])
    assert len(set(rewards)) > 1
    ours = advantages(torch.tensor(rewards).reshape(2, 4)).flatten()
    torch.testing.assert_close(ours, found["advantages"], atol=1e-6, rtol=0)


def test_loss_is_that_of_trl(trl, tiny_lm):
    trainer, _ = trl
    generator = torch.Generator().manual_seed(0)
    model = trainer.model.eval()
    prompt, said = (torch.randint(5, 300, (6, n), generator=generator) for n in (5, 7))
    mask = (torch.arange(7) < torch.randint(1, 8, (6, 1), generator=generator)).long()

    def log_probabilities(of):
        logits = of(torch.cat([prompt, said], 1)).logits[:, 4:-1]
        return torch.log_softmax(logits, -1).gather(-1, said[..., None]).squeeze(-1)

    now = log_probabilities(model)
    before, reference = (now.detach() + 0.3 * torch.randn(now.shape, generator=generator) for _ in range(2))
    advantage = torch.randn(6, generator=generator)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": said,
        "completion_mask": mask,
        "advantages": advantage,
        "old_per_token_logps": before,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    expected = trainer._compute_loss(model, inputs)
    counted = mask.bool()
    spread = advantage[:, None].expand_as(now)
    found = token_loss(now[counted], before[counted], reference[counted], spread[counted], clip=0.2, beta=0.1)
    assert found.clipped.any()
    torch.testing.assert_close(found.loss.mean(), expected, atol=1e-6, rtol=0)
    weight = model.model.embed_tokens.weight
    ours = torch.autograd.grad(found.loss.mean(), weight, retain_graph=True)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, weight)[0], atol=1e-6, rtol=0)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=2, max_size=8))
def test_advantages_are_finite_and_sum_to_nothing(rewards):
    found = advantages(torch.tensor([rewards]))
    assert found.isfinite().all()
    assert abs(float(found.sum())) < 1e-4
    if len(set(rewards)) == 1:
        assert (found == 0).all()


def test_equal_weights_and_rewards_teach_nothing():
    now = torch.tensor([-1.0, -2.0], requires_grad=True)
    found = token_loss(now, now.detach(), now.detach(), torch.zeros(2), clip=0.2, beta=0.1)
    found.loss.sum().backward()
    assert (now.grad == 0).all()
    assert (found.divergence == 0).all()


@pytest.mark.parametrize(
    ("items", "paper", "released"),
    [
        (("b", "c", "a"), 1, 1),
        (("B", "C", "A"), 1, 1),
        (("b", "a", "c"), 0, 1 / 6),
        (("a", "b", "c"), 0, 0),
        (("b", "b", "a"), 0, -1),
        (("b", "c"), 0, -1),
        (("b", "c", "a", "b"), 0, -1),
    ],
)
def test_rewards_of_valid_answers(items, paper, released):
    text = written("because", items)
    assert batch(text, PUZZLE) == paper
    assert mixed(text, PUZZLE) == pytest.approx(released)


@given(st.text(max_size=60))
def test_what_is_no_answer_is_punished(text):
    assert batch(text, PUZZLE) == mixed(text, PUZZLE) == -1


@pytest.mark.parametrize(("adapter", "says"), [({"dora": True}, "dora: false"), ({"dropout": 0.1}, "set 0")])
def test_an_adapter_that_rollouts_cannot_have_is_refused(adapter, says):
    with pytest.raises(ValueError, match=says):
        GRPOConfig(name="x", model="m", steps=1, adapter=adapter)


def test_the_reference_of_an_adapter_is_the_model_it_began_with(tiny_lm):
    whole = Policy(GRPOConfig(name="x", model=str(tiny_lm), steps=1, adapter=None))
    with pytest.raises(ValueError, match="second policy"), whole.reference():
        pass
