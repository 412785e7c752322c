"""Fine-tuning: what a step is, and the job with two workers, one of them killed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cellray.errors import InputError, ModelError
from cellray.puzzles import records
from cellray.puzzles.puzzle import Puzzle
from cellray.train.posttraining.config import SFTConfig
from cellray.train.posttraining.examples import IGNORED, Example, dialogue, examples, packed, thinned
from cellray.train.posttraining.policy import Policy, open_tokenizer
from cellray.train.posttraining.sft import Learner, Segment, SFTInput, split, train
from jobs import merge, sft
from jobs.grpo import GRPOJob
from tests.killing import Stopped, Stopping, killed_worker
from tests.train.posttraining.conftest import made_up, write_language_model

SMALL = {"name": "small", "said": "list", "epochs": 4, "batch": 4, "learning_rate": 0.02, "adapter": None}


def config(model, **more):
    return SFTConfig(**{**SMALL, "model": str(model), **more})


def input_of(model, puzzles, **more):
    told = config(model, **more)
    tokenizer = open_tokenizer(told.model)
    found, _ = examples(tokenizer, [dialogue(one, told.said, told.placement) for one in puzzles], 128)
    return SFTInput(told, *split(found, told), tokenizer.pad_token_id)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_packing_keeps_every_token_once(sizes):
    chosen = [
        Example(np.arange(a, dtype=np.int32) + 100 * at, np.arange(b, dtype=np.int32) + 100 * at + 50)
        for at, (a, b) in enumerate(sizes)
    ]
    rows = packed(chosen, 7, 20)
    assert rows.ids.shape[1] <= max(*map(len, chosen), 20)
    for at, one in enumerate(chosen):
        own = rows.example == at
        assert rows.ids[own].tolist() == [*one.prompt, *one.said]
        assert rows.positions[own].tolist() == list(range(len(one)))
        wanted = rows.target[own]
        assert wanted[wanted != IGNORED].tolist() == one.said.tolist()
    assert (rows.target[rows.example < 0] == IGNORED).all()


def test_examples_do_not_see_each_other(tiny_lm):
    start = input_of(tiny_lm, made_up(9), said="answer")
    policy = Policy(start.config).eval()
    rows = packed(start.training, start.pad)
    assert len(rows.ids) < 9
    together = policy(rows)
    owner = rows.example[rows.target != IGNORED]
    for at, one in enumerate(start.training):
        torch.testing.assert_close(together[owner == at], policy(packed([one], start.pad)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("world", "batch", "accumulate"), [(1, 8, 1), (2, 4, 1), (1, 2, 4), (2, 2, 2)])
def test_loss_and_gradient_do_not_depend_on_the_split(tiny_lm, world, batch, accumulate):
    whole = input_of(tiny_lm, made_up(20), batch=8)
    part = replace(whole, config=config(tiny_lm, batch=batch, accumulate=accumulate))

    def step(start, workers):
        learner = Learner(Policy(start.config))
        losses = []
        for rank in range(workers):
            for at in range(start.config.accumulate):
                loss = learner(Segment(start, 0, rank, workers)[at])[0] / workers
                loss.backward()
                losses.append(float(loss.detach()))
        return sum(losses), learner.policy.causal.model.embed_tokens.weight.grad

    loss, gradient = step(whole, 1)
    found, other = step(part, world)
    assert found == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(other, gradient, atol=1e-6, rtol=1e-4)


def test_thinned_puzzles_keep_order_answers_and_a_gene():
    puzzle = made_up(1, sizes=(5,))[0]
    found = [thinned(puzzle, 0.9, np.random.default_rng(seed)) for seed in range(30)]
    assert len({one.cells for one in found}) > 10
    for one in found:
        assert (one.answer, one.candidates) == (puzzle.answer, puzzle.candidates)
        for genes, whole in zip(one.cells, puzzle.cells, strict=True):
            assert genes
            assert list(genes) == [gene for gene in whole if gene in genes]


def test_presets_and_what_overrides_them():
    told = SFTConfig(name="x", model="m", preset="released", epochs=2)
    assert (told.epochs, told.batch, told.accumulate, told.max_length, told.adapter.dora) == (2, 6, 16, 4096, True)
    assert SFTConfig(name="x", model="m", preset="paper").adapter.dora is False


def test_a_run_that_stops_goes_on_as_if_it_had_not(tiny_lm, solved, tmp_path):
    start = input_of(tiny_lm, records.read(str(solved)), save_steps=3, validation=0.25)
    with pytest.raises(Stopped):
        train(start, Stopping(tmp_path, 2))
    rest = Stopping(tmp_path)
    (_, found, facts), (_, expected, others) = train(start, rest), train(start)
    assert rest.checkpoints == 12 - 2  # 36 steps, every third kept
    assert facts == others
    assert facts["loss"] < 3  # it begins at the logarithm of some 300 tokens
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray")
def test_a_killed_worker_changes_nothing(tiny_lm, solved, tmp_path):
    shared = {"batch": 1, "accumulate": 2, "sharded": True}  # two workers' batches of two are what one has in four
    job = {**SMALL, "model": str(tiny_lm), "puzzles": [str(solved)], "save_steps": 3, "validation": 0.25, **shared}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(job))
    out = tmp_path / "out"
    options = ["--runs", tmp_path / "runs", "--workers", 2, "--threads", 1]
    with killed_worker(tmp_path / "runs") as killed:
        assert sft.main([str(one) for one in ("--config", tmp_path / "config.yaml", "--out", out, *options)]) == 0
    assert killed
    told = json.loads((out / "training.json").read_text())
    assert (told["examples"], told["validation"], told["too_long"]) == (36, 12, 0)
    _, alone, facts = train(input_of(tiny_lm, records.read(str(solved)), save_steps=3, validation=0.25))
    assert told["validation_loss"] == pytest.approx(-facts["score"], abs=1e-3)
    weights = load_file(out / "model" / "model.safetensors")
    for name, value in alone.named_parameters():
        found = weights[name.replace("/", ".").removeprefix("causal.")]
        # Two workers' sums round otherwise, which 36 steps make larger; one step moves a weight by up to 2e-2.
        torch.testing.assert_close(found, value.detach(), atol=2e-3, rtol=0)


def test_an_adapter_merges_and_belongs_to_its_base(tiny_lm, tmp_path, capsys):
    start = input_of(tiny_lm, made_up(12), adapter={"rank": 2, "dora": True}, epochs=2)
    policy, trained, _ = train(start)
    assert sum(one.numel() for one in trained.parameters()) < 10_000
    rows = packed(start.training, start.pad)
    with torch.no_grad():
        learned = policy.eval()(rows)
        with policy.reference():
            assert not torch.allclose(policy(rows), learned, atol=1e-2)
    policy.save_adapter(tmp_path / "adapter")
    given = ["--adapter", str(tmp_path / "adapter"), "--out"]
    assert merge.main(["--model", str(tiny_lm), *given, str(tmp_path / "merged")]) == 0
    policy.save_model(tmp_path / "model", open_tokenizer(str(tiny_lm)))
    for folder in ("merged", "model"):
        with torch.no_grad():
            found = Policy(config(tmp_path / folder)).eval()(rows)
        torch.testing.assert_close(found, learned, atol=1e-4, rtol=0)
    other = write_language_model(tmp_path / "other", seed=1)
    assert merge.main(["--model", str(other), *given, str(tmp_path / "wrong")]) == 2
    assert "trained on another model" in capsys.readouterr().err
    with pytest.raises(ModelError, match="checkpoint is of another model"):
        Policy(config(other)).trained().load_state_dict(Policy(config(tiny_lm)).trained().state_dict())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epoch": 3}, "epoch: Extra inputs"),
        ({"preset": "best"}, "preset"),
        ({"puzzles": ["nothing.parquet"]}, "nothing.parquet"),
        ({"model": "nowhere"}, "no config.json"),
        ({"said": "trace"}, "no reasoning trace"),
        ({"said": "trace", "most_dropped": 0.5}, "set said: list"),
        ({"max_length": 16}, "all 48 examples are longer than 16 tokens"),
    ],
)
def test_a_users_mistake_is_one_line(tiny_lm, solved, tmp_path, capsys, change, says):
    told = {**SMALL, "model": str(tiny_lm), "puzzles": [str(solved)], **change}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
    assert sft.main(["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_puzzles_without_answers_are_refused():
    with pytest.raises(InputError, match="0 answers for 1 cells"):
        dialogue(Puzzle("x ", (("A",),), ("a",)), "answer", "appended")


def test_the_shipped_configurations_are_read():
    folder = Path(sft.__file__).parent / "configs"
    for kind, job in (("sft", sft.SFTJob), ("grpo", GRPOJob)):
        found = [job.read(path) for path in folder.glob(f"*-{kind}.yaml")]
        assert len(found) == 2
