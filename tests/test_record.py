"""The recorded run: folded cells, code, figures, prose and outputs fit together; a record that is not whole says so."""

import ast
import json
import re

import nbtools
import pytest
import record
import weave
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbtools import chapters, code_cells, number, pages, read, results, source, tags
from prose import MARKER, PICTURE, marker_faults, prose

each = pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
TEXTS = [pytest.param(path, place, text, id=f"{path.stem} {place}".strip()) for path, place, text in prose() if MARKER.search(text)]
ROWS = {"02": {"supervised"}, "03": {"raw_pixels", "random_frozen", "bt_linear", "bt_knn", "bt_knn_whitened", "bt_spread", "bt_finetuned"}}


def seen(text):
    """What a reader sees of Markdown: rendered, without comments."""
    return re.sub(r"<!--.*?-->", "", markdown2html_mistune(text), flags=re.S)


def test_folded_cells_are_what_the_tool_writes():
    assert weave.woven_faults() == []


@each
def test_a_page_and_its_record_fit(path):
    assert record.page_faults(path) == []


@each
def test_a_page_was_recorded_from_top_to_bottom_and_shows_pictures(path):
    cells = code_cells(read(path))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert number(path) == "A" or any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


def test_the_record_is_on_real_pictures_and_has_its_rows():
    for path in chapters():
        found = results(number(path))
        assert found["preset"] in ("quick", "full") and found["data_md5"] == results("01")["data_md5"]
        assert ROWS.get(number(path), set()) <= set(found["rows"])


def test_the_record_is_complete_or_says_that_it_is_not():
    partial = [path for path in chapters() if not results(number(path))["complete"]]
    for path in partial:
        assert "the complete record (preset full, three seeds) is still to come" in source(read(path)["cells"][0])
    if partial:
        pytest.skip(f"the record is partial: {', '.join(path.stem for path in partial)}")


def test_published_networks_are_those_of_the_record():
    import torch
    assert list(record.network_faults()) == []
    for file in record.networks():
        content = torch.load(nbtools.ROOT / "data" / "networks" / file, weights_only=True)
        floats = [value for module in content["modules"].values() for value in module.values() if value.is_floating_point()]
        assert floats and {value.dtype for value in floats} == {torch.float16}
        name, parts = content["header"]["name"], list(content["modules"])
        assert content["header"]["preset"] == "full" and file in (f"{name}.pt", *(f"{name}-{part}.pt" for part in parts))


@pytest.mark.parametrize("path,place,text", TEXTS)
def test_numbers_in_prose_are_the_measured_ones(path, place, text):
    assert list(marker_faults(path, place, text)) == []


@pytest.mark.parametrize("path,place,text", TEXTS)
def test_markers_do_not_show(path, place, text):
    html = markdown2html_mistune(text)
    assert len(re.findall(r"<!--=.+?-->", html)) == len(MARKER.findall(text))
    assert not re.search(r"<!--|&lt;!--|--&gt;|/--|\d\d:rows", seen(text))


@pytest.mark.parametrize("text", ["`<!--=03:a-->1<!--/-->`", "```\nx <!--=03:a-->1<!--/-->\n```", "    x <!--=03:a-->1<!--/-->"])
def test_a_marker_in_code_would_show(text):
    assert "&lt;!--" in seen(text)


def test_the_picture_in_the_readme_is_the_recorded_one():
    assert PICTURE.search((nbtools.ROOT / "README.md").read_text(encoding="utf-8"))
    assert not [fault for fault in record.check() if "is not the picture" in fault]


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_the_first_cell_says_what_the_recorded_run_took(path):
    assert f"<!--={number(path)}:took-->" in source(read(path)["cells"][0])


def test_the_hash_and_the_fingerprint_read_the_same_trees(chapter3):
    for path in pages():
        for cell in code_cells(read(path)):
            if {"keep", "machinery"} & set(tags(cell)):
                ours, theirs = (json.dumps(plain(ast.parse(source(cell)))) for plain in (weave.plain, chapter3.plain))
                assert ours == theirs, cell["id"]


def test_the_benchmark_has_the_agreed_form():
    bench = results("bench")
    if bench is None:
        pytest.skip("speeds are not measured with the present code yet: tools/bench.py")
    assert {"hardware", "versions", "pairs_per_second", "speedup", "augmentation_share", "share_of_peak", "images",
            "two_processes"} <= set(bench)
    ours, plain = (bench["pairs_per_second"][way] for way in ("ours", "plain"))
    assert bench["speedup"] == pytest.approx(ours / plain, rel=0.02)
    assert 0 < bench["augmentation_share"] < 1 and 0 < bench["share_of_peak"] < 1
    assert {"12500", "25000", "50000"} <= set(bench["images"])
