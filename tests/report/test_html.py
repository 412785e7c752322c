"""The page: what it shows, and that nothing in a run can make it do anything else."""

import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from cellray import storage
from cellray.errors import ReadError, SettingError
from cellray.report import evaluate, html, write_report

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=1>&amp;\x00"
KEY = "<script>truth"


def cells(before, after, **more):
    return {"before": before, "after": after, **more}


class Page(HTMLParser):
    """Elements and attributes of a page; it fails on tags that do not nest."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(out, **options):
    uri = write_report(out, **options)
    assert uri == f"{out}/report.html"
    return storage.read_bytes(uri).decode()


def words_of(page):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


@pytest.fixture
def out(make_run):
    return make_run(
        {
            "pbmc": cells(
                [0, 0, 1, 2, -1, 1], [0, 0, 0, 0, -1, -2], obs={"truth": ["B cell"] * 6}, plan={"why": "it is raw"}
            ),
            "liver": cells([0, 1], [0, 1], obs={"truth": ["B cell", "T cell"]}, refined=False, warnings=["few genes"]),
            "torn": {"error": "/data/torn.h5ad is truncated"},
        }
    )


def test_totals_and_each_dataset_conserve_cells(out):
    words = words_of(page_of(out))
    assert "8 cells in = 6 annotated + 1 abstained + 1 rejected, over the finished datasets" in words
    assert "6 cells in = 4 annotated + 1 abstained + 1 rejected" in words
    assert "2 cells in = 2 annotated + 0 abstained + 0 rejected" in words


def test_failures_warnings_and_reasons_are_told(out):
    words = words_of(page_of(out))
    assert "1 dataset without a result" in words
    assert "torn ReadError: /data/torn.h5ad is truncated" in words
    assert "2 of 3 datasets finished" in words
    assert "few genes" in words
    assert "it is raw" in words
    assert "too few genes" in words
    assert "2 (50.0% of the annotated)" in words


def test_classes_emptied_by_refinement_are_warned_of(out):
    words = words_of(page_of(out))
    assert "refinement emptied 'T cell': from 1 to 0 cells" in words
    assert "refinement emptied 'monocyte': from 1 to 0 cells" in words
    assert words.count("refinement emptied") == 2


def test_unfinished_datasets_are_failures(out, tmp_path):
    (tmp_path / "out" / "datasets" / "pbmc" / "_SUCCESS").unlink()
    words = words_of(page_of(out))
    assert "2 datasets without a result" in words
    assert "pbmc not finished; run the same command again" in words


def test_the_same_folder_gives_the_same_bytes(out):
    assert page_of(out) == page_of(out)


def test_the_evaluation_block_has_its_numbers(out):
    result = evaluate(out, "truth")
    words = words_of(page_of(out, evaluation=result))
    assert "Against truth" in words
    assert "pbmc 6 4 66.7% 50.0% 100.0%" in words
    assert "truth B cell, predicted T cell: 1 (20%)" in words
    assert "Against truth" not in words_of(page_of(out))


def test_nothing_can_be_loaded_or_run(out):
    page = Page(page_of(out, evaluation=evaluate(out, "truth")))
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base", "image", "use"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in {"src", "srcset", "xlink:href"}]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert all("url(" not in (value or "") for _, value in page.attributes)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("content", policy) in page.attributes


def test_hostile_names_stay_text(make_run):
    names = [EVIL, '=HYPERLINK("http://evil.example")', "{{ 7 * 7 }}"]
    obs = {KEY: ['=HYPERLINK("http://evil.example")', "=1+1", "<b>x</b>"]}
    dataset = cells([0, 1, 2], [1, 1, 2], obs=obs, warnings=[EVIL], plan={EVIL: [EVIL, {EVIL: EVIL}]})
    out = make_run(
        {"-._a..b": dataset, "torn": {"error": EVIL}},
        names=names,
        terms=["", "", EVIL],
        run_id=EVIL,
        settings={"inputs": [EVIL], EVIL: EVIL},
    )
    text = page_of(out, evaluation=evaluate(out, KEY))
    page = Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "\x00" not in text
    assert "{{ 7 * 7 }}" in text
    assert "<script>alert('x')</script>" in unescape(text)
    assert "=HYPERLINK" in text


def test_only_the_first_datasets_are_detailed_and_the_page_says_so(make_run, monkeypatch):
    monkeypatch.setattr(html, "MOST_SECTIONS", 2)
    out = make_run({f"d{i}": cells([0], [0]) for i in range(4)})
    text = page_of(out)
    assert "The first 2 finished datasets are described in detail" in words_of(text)
    assert re.findall(r'<section class="card" id="(dataset-\d)">', text) == ["dataset-1", "dataset-2"]
    assert all(f"d{i}" in text for i in range(4))


def test_empty_and_wholly_rejected_datasets_have_a_page(make_run):
    out = make_run({"empty": cells([], []), "poor": cells([-1, -1], [-1, -1])})
    assert "2 cells in = 0 annotated + 0 abstained + 2 rejected" in words_of(page_of(out))


def test_more_classes_than_colours(make_run):
    names = [f"type {i}" for i in range(60)]
    each = list(range(60))
    text = page_of(make_run({"many": cells(each, each)}, names=names, terms=[""] * 60))
    assert "The 40 largest of 60 types are drawn" in words_of(text)
    assert all(name in text for name in names)


def test_a_damaged_annotations_file_names_the_dataset(out, tmp_path):
    (tmp_path / "out" / "datasets" / "liver" / "annotations.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ReadError, match="'liver'"):
        write_report(out)


def test_annotations_with_labels_of_another_run_are_refused(out, tmp_path):
    path = tmp_path / "out" / "run.json"
    path.write_text(path.read_text().replace('"name": "T cell"', '"name": "other"'))
    with pytest.raises(ReadError, match=r"labels that run\.json does not list"):
        write_report(out)


def test_a_folder_without_a_run_is_a_setting_error(tmp_path):
    with pytest.raises(SettingError, match=r"run\.json"):
        write_report(str(tmp_path))


def test_scores_are_drawn_over_their_own_range(make_run):
    dataset = cells([0] * 100, [0] * 100, scores=np.linspace(0.021, 0.029, 100, dtype=np.float32))
    words = words_of(page_of(make_run({"one": dataset})))
    assert "0.022 0.023 0.024" in words
