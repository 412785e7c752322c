"""The pointer to the version in use: order by number whatever clocks say, and what was rolled back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray import storage
from cellray.errors import AtlasError
from cellray.pointer import Change, Pointer, rolled_back


def test_clocks_that_disagree_change_nothing(root):
    pointer = Pointer(root, "dataset 'a'", AtlasError)
    for number, (digest, at) in enumerate([("one", "2999-01-01T00:00:00Z"), ("two", "1970-01-01T00:00:00Z")], 1):
        storage.put_json(
            storage.join(root, f"{number:08d}.json"), vars(Change(number, "promote", digest, at, "another clock"))
        )
    assert pointer.now() == "two"
    assert pointer.move("promote", lambda _: "three", "") == "three"
    assert [change.digest for change in pointer.history()] == ["one", "two", "three"]
    assert pointer.move("rollback", pointer.before, "") == "two"
    assert pointer.now() == "two"


def test_a_change_that_cannot_be_read_names_its_file(tmp_path):
    pointer = Pointer(str(tmp_path), "dataset 'a'", AtlasError)
    (tmp_path / "00000001.json").write_text("{")
    for ask in (pointer.now, pointer.history):
        with pytest.raises(AtlasError, match="dataset 'a'"):
            ask()


@given(st.lists(st.sampled_from("abcd<"), max_size=20))
def test_what_was_rolled_back_is_what_is_above_the_version_in_use(actions):
    history, stack = [], []
    for number, action in enumerate(actions, 1):
        if action == "<":
            if len(stack) < 2:
                continue
            stack.pop()
        else:
            stack.append(action)
        history.append(Change(number, "rollback" if action == "<" else "promote", stack[-1], "", ""))
    found = rolled_back(history)
    assert not found & set(stack[-1:])
    assert found <= {change.digest for change in history}
    if history and history[-1].action == "rollback" and history[-2].digest != stack[-1]:
        assert history[-2].digest in found
