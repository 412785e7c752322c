"""The catalogue file: what it may say, and that everything else is refused in one line that names it."""

import pytest
import yaml

from cellray.catalog.catalogue import read_catalogue
from cellray.catalog.plan import make_plan
from cellray.errors import SettingError

ONE = {"id": "pbmc", "uri": "pbmc.h5ad"}


def written(folder, **values):
    path = folder / "catalog.yaml"
    path.write_text(yaml.safe_dump({"atlas": "atlas", "datasets": [ONE], **values}))
    return str(path)


def test_paths_are_relative_to_the_catalogue(tmp_path):
    entries = [{**ONE, "labels": "blood.txt"}, {"id": "far", "uri": "s3://bucket/far.h5ad"}]
    found = read_catalogue(written(tmp_path, datasets=entries, model="./models/own", labels="all.txt"))
    assert found.atlas == f"{tmp_path}/atlas"
    assert [entry.uri for entry in found.datasets] == [f"{tmp_path}/pbmc.h5ad", "s3://bucket/far.h5ad"]
    assert found.datasets[0].labels == f"{tmp_path}/blood.txt"
    assert found.model == f"{tmp_path}/./models/own"
    settings = found.annotating(found.datasets[1], "work", None)
    assert (settings.labels, settings.inputs) == (f"{tmp_path}/all.txt", ("s3://bucket/far.h5ad",))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"datasets": [ONE, {**ONE, "uri": "other.h5ad"}]}, "id 'pbmc' comes 2 times"),
        ({"datasets": [ONE, {**ONE, "id": "again"}]}, "uri 'pbmc.h5ad' comes 2 times"),
        ({"datasets": [{"id": "pbmc"}]}, r"datasets\.0\.uri: Field required \(dataset 'pbmc'\)"),
        ({"datasets": []}, "datasets"),
        ({"datasets": [{**ONE, "id": "../up"}]}, r"datasets\.0\.id"),
        ({"datasets": [{**ONE, "id": ".."}]}, "id '..' is no name"),
        ({"datasets": [{**ONE, "tisue": "liver"}]}, r"datasets\.0\.tisue"),
        ({"guard": {"max_changed": 2}}, r"guard\.max_changed"),
        ({"settings": {"out": "elsewhere"}}, "'out' is not set here"),
        ({"dataset": []}, "dataset: Extra inputs"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, values, said):
    with pytest.raises(SettingError, match=said):
        read_catalogue(written(tmp_path, **values))


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "!!python/object:os.system {}", "\x00"])
def test_what_is_no_catalogue_is_refused(tmp_path, text):
    path = tmp_path / "catalog.yaml"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"catalog\.yaml"):
        read_catalogue(str(path))
    with pytest.raises(SettingError, match="nowhere"):
        read_catalogue(str(tmp_path / "nowhere.yaml"))


def test_a_setting_that_annotate_refuses_is_refused(tmp_path):
    found = read_catalogue(written(tmp_path, settings={"alpha": 7}))
    with pytest.raises(SettingError, match="alpha"):
        found.annotating(found.datasets[0], "work", None)


def test_who_reasons_is_found_from_the_catalogue_and_told_apart_by_content(tmp_path):
    (tmp_path / "catalog.yaml").write_text(
        "atlas: atlas\nsettings: {reason: models/llm}\ndatasets:\n  - {id: a, uri: a.h5ad}\n"
    )
    found = read_catalogue(str(tmp_path / "catalog.yaml"))
    assert found.settings["reason"] == f"{tmp_path}/models/llm"
    (tmp_path / "a.h5ad").write_bytes(b"cells")
    model = tmp_path / "models" / "llm"
    model.mkdir(parents=True)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    named = []
    for text in ("{}", '{"other": 1}'):
        (model / "config.json").write_text(text)
        (step,) = make_plan(found)
        named.append(step.fingerprint["reasoner"])
    assert named[0] != named[1]
