"""Settings from a file: what is wrong with them is one line that names the file or the setting, and exit code 2."""

import pytest

from jobs.annotate import main, read_settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no mapping"),
        ("- a", "no mapping"),
        ("inputs: [", "cellray.yaml"),
        ("{inputs: [a.h5ad], out: out, modle: mini}", "modle"),
        ("{inputs: [], out: out}", "inputs"),
        ("{1: 2}", "cellray.yaml"),
        ("{inputs: [nowhere.h5ad], out: out}", "nowhere.h5ad"),
    ],
)
def test_bad_settings(tmp_path, capsys, text, said):
    path = tmp_path / "cellray.yaml"
    path.write_text(text)
    assert main(["--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2


def test_settings_and_the_cluster_of_the_command(tmp_path, monkeypatch):
    path = tmp_path / "cellray.yaml"
    path.write_text("{inputs: [a.h5ad], out: out, lam: 2, address: elsewhere}")
    found = read_settings(str(path), "auto")
    assert (found.inputs, found.lam, found.address) == (("a.h5ad",), 2, "auto")
    assert read_settings(str(path)).address == "elsewhere"
    monkeypatch.setenv("CELLRAY_CONFIG", str(path))
    from jobs.annotate import parser

    assert parser().parse_args([]).config == str(path)
