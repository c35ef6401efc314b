"""The recorded run: recaps, code, figures, prose and outputs fit together."""

import json
import re

import chain
import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune

CHAPTERS = chain.chapters()
each = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
TEXTS = [pytest.param(path, place, text, id=f"{path.stem} {place}".strip()) for path, place, text in chain.prose()
         if chain.MARKER.search(text)]


def needs_record(path):
    """Skip where a chapter waits for its recorded run: no results file, and no output that could be stale."""
    if chain.results(chain.number(path)) is None:
        assert not any(cell["outputs"] for cell in chain.code_cells(chain.read(path)))
        pytest.skip(f"{path.name} is not recorded yet: tools/chain.py record")


def seen(text):
    """What a reader sees of Markdown: rendered, without comments."""
    return re.sub(r"<!--.*?-->", "", markdown2html_mistune(text), flags=re.S)


@each
def test_recap_and_recorded_cell_are_what_the_tool_writes(path):
    nb = chain.read(path)
    assert chain.source(chain.the_cell(path, nb, "recorded")) == chain.recorded(path)
    if path != CHAPTERS[0]:
        assert chain.source(chain.the_cell(path, nb, "recap")) == chain.recap(path)


@each
def test_the_code_is_the_code_of_the_recorded_run(path):
    needs_record(path)
    series = chain.read(path)["metadata"]["series"]
    assert series == {"code_hash": chain.code_hash(chain.read(path)), "preset": "full",
                      "results": f"data/results/{chain.number(path)}.json"}


@each
def test_results_have_the_agreed_form(path):
    needs_record(path)
    name = chain.number(path)
    assert chain.result_faults(name, chain.results(name)) == []


def test_the_record_has_every_seed_and_every_row():
    for path in CHAPTERS:
        needs_record(path)
    rows = {"raw_pixels", "random_frozen", "bt_linear", "bt_knn", "bt_projector", "bt_finetuned"}
    assert rows <= set(chain.results("03")["rows"]) and "supervised" in chain.results("02")["rows"]
    for name, row in (("02", "supervised"), ("03", "bt_linear"), ("03", "bt_finetuned")):
        found = chain.results(name)
        assert found["seeds"] == [0, 1, 2] and len(set(found["rows"][row]["1"]["seeds"])) == 3


def test_published_networks_are_those_of_the_record():
    import torch
    needs_record(CHAPTERS[2])
    found = chain.results("03")
    assert len(found["backbones"]) == len(found["seeds"])
    assert {path.name for path in chain.BACKBONES.glob("*")} == chain.published_backbones()
    for file, seed in zip(found["backbones"], found["seeds"]):
        content = torch.load(chain.BACKBONES / file, weights_only=True)
        trained_with = {key: value for key, value in content["header"]["settings"].items() if key in found["settings"]}
        assert content["header"]["settings"]["seed"] == seed
        assert trained_with == {key: found["settings"][key] for key in trained_with} and content["step"] == trained_with["steps"]
        assert content["header"]["settings"]["data"] == found["data_md5"]


@each
def test_outputs_are_whole_and_show_nothing_they_should_not(path):
    needs_record(path)
    nb = chain.read(path)
    assert chain.output_faults(nb) == []
    counts = [cell["execution_count"] for cell in chain.code_cells(nb)]
    assert counts == list(range(1, len(counts) + 1))
    assert any("image/png" in output.get("data", {}) for cell in chain.code_cells(nb) for output in cell["outputs"])


@pytest.mark.parametrize("path,place,text", TEXTS)
def test_numbers_in_prose_are_the_measured_ones(path, place, text):
    faults = list(chain.marker_faults(path, place, text))
    unmeasured = [fault for fault in faults if fault.endswith("is not measured yet")]
    assert [fault for fault in faults if fault not in unmeasured] == []
    if unmeasured:
        pytest.skip(unmeasured[0])


@pytest.mark.parametrize("path,place,text", TEXTS)
def test_markers_do_not_show(path, place, text):
    html = markdown2html_mistune(text)
    assert len(re.findall(r"<!--=.+?-->", html)) == len(chain.MARKER.findall(text))
    assert not re.search(r"<!--|&lt;!--|--&gt;|/--|\d\d:rows", seen(text))


def test_the_picture_in_the_readme_is_the_recorded_one():
    needs_record(CHAPTERS[2])
    assert not [fault for fault in chain.check() if "is not the picture" in fault]
    assert chain.PICTURE.search((chain.ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", ["`<!--=03:a-->1<!--/-->`", "```\nx <!--=03:a-->1<!--/-->\n```",
                                  "    x <!--=03:a-->1<!--/-->"])
def test_a_marker_in_code_would_show(text):
    assert "&lt;!--" in seen(text)


@each
def test_each_title_says_how_to_open_the_chapter_in_colab(path):
    assert "<!--=colab-->" in chain.source(chain.read(path)["cells"][0])


def test_the_benchmark_has_the_agreed_form():
    if not (chain.RESULTS / "bench.json").exists():
        pytest.skip("not measured yet: tools/bench.py")
    bench = json.loads((chain.RESULTS / "bench.json").read_text())
    assert {"hardware", "versions", "pairs_per_second", "speedup", "augmentation_share", "share_of_peak", "threads",
            "images"} <= set(bench)
    ours, plain = (bench["pairs_per_second"][way] for way in ("ours", "plain"))
    assert bench["speedup"] == pytest.approx(ours / plain, rel=0.02)
    assert 0 < bench["augmentation_share"] < 1 and 0 < bench["share_of_peak"] < 1
    assert {"12500", "25000", "50000"} <= set(bench["images"])
