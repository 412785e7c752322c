"""The registry on a disk and on S3: what is written comes back whole, or it is an error that says why."""

import json
import threading

import numpy as np
import pytest

from cellray import storage
from cellray.errors import PluginError, TissueError
from cellray.plugins.registry import Registry, tissue_name


def copy_of(version, number):
    return version.changed(metrics={"number": number})


@pytest.fixture
def registry(root):
    return Registry(root)


def test_a_version_comes_back_as_it_was(registry, liver):
    digest = registry.put(liver)
    assert registry.put(liver) == digest
    assert registry.versions("liver") == [digest]
    found = registry.get("Liver", digest[:8])
    assert found.labels == liver.labels
    assert found.thresholds == liver.thresholds
    assert all(found.state[name].equal(tensor) for name, tensor in liver.state.items())
    np.testing.assert_array_equal(found.replay.tokens, liver.replay.tokens)
    np.testing.assert_array_equal(found.held_out.labels, liver.held_out.labels)
    assert registry.tissues() == []
    assert registry.promoted("liver") is None


def test_promote_and_roll_back(registry, liver):
    first, second, third = (registry.put(copy_of(liver, number)) for number in range(3))
    registry.promote("liver", first, reason="trained")
    registry.promote("liver", second[:10])
    assert registry.promoted("liver") == second
    assert registry.rollback("liver") == first
    with pytest.raises(PluginError, match="nothing to go back to"):
        registry.rollback("liver")
    registry.promote("liver", third)
    assert registry.rollback("liver") == first
    history = registry.history("liver")
    assert [change.action for change in history] == ["promote", "promote", "rollback", "promote", "rollback"]
    assert [change.number for change in history] == [1, 2, 3, 4, 5]
    assert history[0].reason == "trained"
    assert registry.tissues() == ["liver"]


def test_of_two_updates_of_one_version_the_second_is_refused(registry, liver):
    parent, one, two = (registry.put(copy_of(liver, number)) for number in range(3))
    registry.promote("liver", parent)
    registry.promote("liver", one, parent=parent)
    with pytest.raises(PluginError, match="promoted meanwhile"):
        registry.promote("liver", two, parent=parent)
    assert registry.promoted("liver") == one


def test_writers_at_once_lose_nothing(registry, liver):
    digests = [registry.put(copy_of(liver, number)) for number in range(6)]
    threads = [threading.Thread(target=registry.promote, args=("liver", digest)) for digest in digests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = registry.history("liver")
    assert [change.number for change in history] == list(range(1, 7))
    assert {change.digest for change in history} == set(digests)
    assert registry.promoted("liver") == history[-1].digest


def test_half_written_versions_are_not_there(registry, liver):
    digest = registry.put(liver)
    storage.remove(storage.join(registry.uri, "liver", "versions", digest, "manifest.json"))
    assert registry.versions("liver") == []
    assert registry.known() == []
    with pytest.raises(PluginError, match="no version"):
        registry.promote("liver", digest)


def damaged(registry, liver, name, change):
    digest = registry.put(liver)
    uri = storage.join(registry.uri, "liver", "versions", digest, name)
    storage.put(uri, change(storage.read_bytes(uri)))
    return digest


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "labels.json", "manifest.json", "replay.parquet"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-20] + b"x" + data[-19:],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0" * 100,
    ],
    ids=["tampered", "truncated", "oversized"],
)
def test_what_was_changed_is_refused(registry, liver, name, change):
    digest = damaged(registry, liver, name, change)
    with pytest.raises(PluginError, match=f"{name}|manifest"):
        registry.get("liver", digest)


def test_a_huge_file_is_not_read(registry, liver, monkeypatch):
    monkeypatch.setattr("cellray.plugins.registry.MOST_BYTES", 1000)
    digest = registry.put(liver)
    with pytest.raises(PluginError, match="at most 1,000"):
        registry.get("liver", digest)


@pytest.mark.parametrize("name", ["..", "a/b", "", "x" * 65, "ä", ".hidden"])
def test_names_that_could_climb_out(name):
    with pytest.raises(TissueError, match="no usable name"):
        tissue_name(name)
    assert tissue_name(" Bone  Marrow ") == "bone_marrow"


def config_with(liver, **changes):
    files = liver.files()
    config = {**json.loads(files["adapter_config.json"]), **changes}
    return {**files, "adapter_config.json": json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"r": 4}, "adapter_model.safetensors: tensor .* has shape"),
        ({"r": 0}, "adapter_config.json: r is 0"),
        ({"r": "2"}, "adapter_config.json: r is '2'"),
        ({"num_experts": 10**9}, "num_experts is 1000000000"),
        ({"peft_type": "LORA"}, "peft_type is 'LORA'"),
        ({"task": "other"}, "task 'other'"),
        ({"hidden_size": 32}, "has shape"),
    ],
)
def test_files_that_do_not_fit(liver, changes, says):
    with pytest.raises(ValueError, match=says):
        type(liver).of_files(config_with(liver, **changes))


def test_labels_that_do_not_fit(liver):
    files = liver.files()
    twice = [*json.loads(files["labels.json"])[:2], json.loads(files["labels.json"])[0]]
    with pytest.raises(ValueError, match="twice"):
        type(liver).of_files({**files, "labels.json": json.dumps(twice).encode()})
    many = [{"name": f"type {number}", "term_id": ""} for number in range(7)]
    with pytest.raises(ValueError, match="room for 2 to 6"):
        type(liver).of_files(
            {**files, "labels.json": json.dumps(many).encode(), "thresholds.json": json.dumps([0.0] * 7).encode()}
        )


def test_another_base_is_refused(world, liver):
    with pytest.raises(ValueError, match="trained on base 'base'"):
        liver.changed(base_digest="0" * 64).on(world.checkpoint())
    assert liver.on(world.checkpoint()) is liver
