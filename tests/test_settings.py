"""Settings: wrong ones stop the run in one line, and the keys follow what changes a result and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cellray.errors import SettingError
from cellray.settings import AnnotateSettings, Environment

BASE = {"inputs": ["a.h5ad"], "out": "out"}
TEXTS = [("B cell", "a B cell"), ("T cell", "a T cell")]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"lam": -1}, "lam"),
        ({"lam": float("inf")}, "lam"),
        ({"k": 0}, "k"),
        ({"k": 2.5}, "k"),
        ({"n_pcs": "many"}, "n_pcs"),
        ({"refine": "smooth"}, "refine"),
        ({"lam": "best"}, "lam"),
        ({"anchor_weight": 0.5}, "anchor_weight"),
        ({"inputs": []}, "inputs"),
        ({"out": ""}, "out"),
        ({"shard_cells": 0}, "shard_cells"),
        ({"min_genes": 0}, "min_genes"),
        ({"encoders": 0}, "encoders"),
        ({"gpu": True}, "gpu"),
    ],
)
def test_wrong_setting_is_named(wrong: dict[str, object], field: str) -> None:
    with pytest.raises(SettingError) as caught:
        AnnotateSettings.checked(**(BASE | wrong))
    assert str(caught.value).startswith(f"setting '{field}': ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        AnnotateSettings.checked(**BASE).alpha = 0.5


CHANGES_SCORES = {
    "task": "embed",
    "ctm_top_k": 3,
    "precision": "float16",
    "max_length": 100,
    "seed": 1,
    "alpha": 0.3,
    "layer": "counts",
    "gene_key": "id",
    "min_genes": 5,
    "shard_cells": 10,
    "batch_tokens": 9,
    "genome": "GRCh38",
    "round": True,
    "allow_normalised": True,
}
CHANGES_LABELS = {
    "refine": "none",
    "lam": "gcv",
    "k": 7,
    "n_pcs": 9,
    "graph_batch_key": "donor",
    "use_rep": "X_pca",
    "use_graph": "connectivities",
    "anchor_key": "known",
    "anchor_weight": 3.0,
    "reason": "http://host:8000",
    "reason_share": 0.1,
    "reason_margin": 0.2,
    "reason_seed": 1,
    "donor_key": "donor",
    "cluster_key": "leiden",
}
CHANGES_NOTHING = {
    "inputs": ["b.h5ad"],
    "out": "other",
    "encoders": 3,
    "address": "auto",
    "model": "copy",
    "labels": "l",
    "plugins": "registry",  # their versions are what counts: see below
    "tissue": "liver",
}


def test_every_setting_is_in_one_of_the_groups() -> None:
    assert set(AnnotateSettings.model_fields) == {*CHANGES_SCORES, *CHANGES_LABELS, *CHANGES_NOTHING}


@pytest.mark.parametrize(("name", "value"), (CHANGES_SCORES | CHANGES_LABELS | CHANGES_NOTHING).items())
def test_keys_follow_what_they_name(name: str, value: object) -> None:
    needs = {"tissue": {"plugins": "registry"}}.get(name, {})
    # What says how to reason says nothing where nobody reasons.
    both = {"reason": "m"} if name in ("reason_share", "reason_margin", "reason_seed", "donor_key") else {}
    both |= {"layer": "soupX"} if name == "round" else {}
    base = AnnotateSettings.checked(**(BASE | both))
    changed = AnnotateSettings.checked(**(BASE | both | needs | {name: value}))
    scoring = base.scoring_key("m", TEXTS)
    assert (changed.scoring_key("m", TEXTS) != scoring) == (name in CHANGES_SCORES)
    assert (changed.refining_key(scoring) != base.refining_key(scoring)) == (name in CHANGES_LABELS)


def test_keys_follow_model_labels_and_scores() -> None:
    settings = AnnotateSettings.checked(**BASE)
    keys = {settings.scoring_key("m", TEXTS), settings.scoring_key("n", TEXTS), settings.scoring_key("m", TEXTS[::-1])}
    assert len(keys) == 3
    assert settings.scoring_key("m", TEXTS, ["liver:a", None]) not in keys
    assert settings.scoring_key("m", TEXTS, ["liver:a"]) != settings.scoring_key("m", TEXTS, ["liver:b"])
    assert settings.refining_key("a") != settings.refining_key("b")


def test_unused_refinement_settings_do_not_rename_results() -> None:
    plain = AnnotateSettings.checked(**BASE, refine="none")
    assert plain.refining_key("s") == AnnotateSettings.checked(**BASE, refine="none", k=3, lam=9.0).refining_key("s")


@given(st.floats(0, 1), st.integers(1, 1 << 20))
def test_saved_settings_name_the_same_results(alpha: float, shard_cells: int) -> None:
    settings = AnnotateSettings.checked(**BASE, alpha=alpha, shard_cells=shard_cells)
    again = AnnotateSettings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert again.scoring_key("m", TEXTS) == settings.scoring_key("m", TEXTS)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLRAY_OBJECT_STORE_BYTES", str(100 << 20))
    monkeypatch.setenv("CELLRAY_SOMETHING_ELSE", "1")
    assert Environment().object_store_bytes == 100 << 20
    monkeypatch.setenv("CELLRAY_OBJECT_STORE_BYTES", "1")
    with pytest.raises(ValidationError):
        Environment()


def test_a_given_graph_excludes_what_would_make_one() -> None:
    with pytest.raises(SettingError, match=r"use_graph.*pass one or the other"):
        AnnotateSettings.checked(**BASE, use_graph="connectivities", use_rep="X_pca")


def test_reasoning_does_not_rename_results_without_a_language_model() -> None:
    plain = AnnotateSettings.checked(**BASE)
    assert "reason" not in plain.refining()
    assert AnnotateSettings.checked(**BASE, reason_share=0.1).refining_key("s") == plain.refining_key("s")
    asking = AnnotateSettings.checked(**BASE, reason="m")
    assert asking.refining_key("s", "digest") != asking.refining_key("s", "other")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reason": "m", "refine": "none"}, "--refine"),
        ({"donor_key": "donor"}, "--reason"),
        ({"reason": "m", "reason_share": 0}, "reason_share"),
        ({"reason": "m", "reason_share": 1.5}, "reason_share"),
    ],
)
def test_wrong_reasoning(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        AnnotateSettings.checked(**(BASE | wrong))


def test_what_every_dataset_must_have() -> None:
    wanted = {"graph_batch_key": "donor", "use_rep": "X_pca", "anchor_key": "known"}
    assert AnnotateSettings.checked(**BASE, **wanted).beside() == {"donor": "obs", "X_pca": "obsm", "known": "obs"}
    assert AnnotateSettings.checked(**BASE, **wanted, refine="none").beside() == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tissue": "liver"}, "--plugins"),
        ({"plugins": "r", "labels": "l"}, "--labels"),
        ({"plugins": "r", "task": "embed"}, "annotate"),
    ],
)
def test_plugins_have_classes_of_their_own(given: dict[str, object], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        AnnotateSettings.checked(**(BASE | given))


def test_rounding_needs_a_layer() -> None:
    with pytest.raises(SettingError, match="give --layer too"):
        AnnotateSettings.checked(**BASE, round=True)


def test_a_setting_that_is_not_given_leaves_earlier_scores_good() -> None:
    """The keys are those of a run from before there were genomes, rounding and clusters."""
    settings = AnnotateSettings.checked(**BASE)
    key = settings.scoring_key("m", TEXTS[:1])
    assert (key[:16], settings.refining_key(key)[:16]) == ("b62d1a43dbb1472d", "ff510d881b1e9459")
