"""Every page runs, from its own folder and alone in an empty one, twice in a row; and it is built as a reader is promised."""

import ast
import json
import shutil
import sys
from pathlib import Path

import nbtools
import pytest
import weave
from nbtools import chapters, code_cells, execute, number, pages, read, source, tags
from record import output_faults, result_faults

PAGES, CHAPTERS = pages(), chapters()
each = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
# the six, and what they bring; certifi only where a system has no certificates of its own
ALLOWED = {"torch", "torchvision", "numpy", "matplotlib", "jupyter", "tqdm", "IPython", "PIL", "certifi"} | sys.stdlib_module_names
SMOKE = {"PRESET": "smoke", "SEEDS": "0", "DEVICE": "cpu", "NETWORK": "train", "DATA": "", "RESULTS": ""}

# Whatever determines a number is taught, so that a recording is tied to it and a reader has seen it.
TEACHING = """
    load_split CIFAR10 MEAN STD normalize crop_and_flip random_boxes random_colours random_view distort finds_original
    seeded split_indices labelled_subset Block Backbone make_classifier orthogonalize Muon make_optimizer set_learning_rate minibatch
    augment train_supervised predict accuracy supervised_settings
    cross_correlation barlow_twins_loss make_projector Method barlow_twins pretrain knn_accuracy whitening features_of fit_softmax
    linear_probe spread_labels pretraining_settings supervised_network pretrained untrained watch
    spectrum k_means matched clustering_marks log_densities gaussian_mixture dbscan neighbour_distances bend learn_patches encode
    neighbour_map
    embed simclr_loss simclr moco_loss follow Queue keys_of moco sinkhorn swav_loss swav vicreg_loss vicreg sigreg lejepa_loss lejepa
    cousins_settings own_settings""".split()


def run_at_smoke(path, folder):
    """A page's run as a reader would have it in that folder, with nothing set but the preset."""
    return execute(path.stem, read(path), folder, SMOKE, folder / "executed" / path.name)


def rows(folder, path):
    """The rows that a run has written; an appendix writes none."""
    written = folder / "data" / "runs" / f"{number(path)}.json"
    return json.loads(written.read_text()).get("rows") if path in CHAPTERS else None


def checkpoints(folder):
    """When each checkpoint was written."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.pt")}


def visible(nb):
    """The code cells that a reader sees, but for the parameters."""
    return code_cells(nb, "parameters", "woven", "recap")


def lines(cell):
    """A cell's lines, without blank ones."""
    return [line for line in source(cell).splitlines() if line.strip()]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """All pages run in order, each from the notebooks folder of a repository; (folder, {stem: notebook})."""
    root = tmp_path_factory.mktemp("series")
    shutil.copytree(nbtools.ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (root / "data").mkdir()
    shutil.copy(nbtools.ROOT / "data" / "README.md", root / "data")
    return root, {path.stem: run_at_smoke(path, root / "notebooks") for path in sorted(PAGES)}


@pytest.fixture(scope="module", params=PAGES, ids=lambda path: path.stem)
def alone(request, tmp_path_factory):
    """A page run twice as a single file: (page, folder, first, second, rows and checkpoints between)."""
    folder = tmp_path_factory.mktemp("alone") / "a folder of my own, ñ"
    folder.mkdir()
    copy = Path(shutil.copy(request.param, folder))
    first = run_at_smoke(copy, folder)
    between = rows(folder, request.param), checkpoints(folder)
    return request.param, folder, first, run_at_smoke(copy, folder), between


def test_the_pages_are_there():
    assert [number(path) for path in PAGES[:6]] == ["A", "B", "C", "01", "02", "03"]


@each
def test_runs_from_its_own_folder(series, path):
    root, done = series
    assert output_faults(done[path.stem]) == []
    if path in CHAPTERS:
        found = json.loads((root / "data" / "runs" / f"{number(path)}.json").read_text())
        assert result_faults(number(path), found) == [] and found["preset"] == "smoke" and not found["complete"]


def test_running_leaves_the_notebooks_folder_as_it_was(series):
    root, _ = series
    assert {path.name for path in (root / "notebooks").iterdir()} == {path.name for path in PAGES} | {"executed"}


def test_runs_alone_and_a_second_run_loads_what_the_first_trained(alone):
    path, folder, first, second, (first_rows, first_checkpoints) = alone
    assert output_faults(first) == output_faults(second) == []
    assert {entry.name for entry in folder.iterdir()} - {"data"} == {path.name, "executed"}
    assert rows(folder, path) == first_rows
    if path in CHAPTERS:  # appendix B trains its demonstrations anew
        assert checkpoints(folder) == first_checkpoints


def test_alone_and_after_the_others_it_finds_the_same(alone, series):
    path, folder, *_ = alone
    assert rows(folder, path) == rows(series[0], path)


def test_chapter_1_shows_its_first_picture_early(series):
    cells = visible(series[1][CHAPTERS[0].stem])
    pictures = [any("image/png" in output.get("data", {}) for output in cell["outputs"]) for cell in cells]
    upto = cells[:pictures.index(True) + 1]
    assert len(upto) <= 5 and sum(len(lines(cell)) for cell in upto) <= 60


@each
def test_the_woven_machinery_runs_alone_after_the_parameters(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {**SMOKE, "DATA": "data"}.items():
        monkeypatch.setenv(f"NOLABELS_{name}", value)
    nb, space = read(path), {"__name__": "alone"}
    for tag in ("parameters", "woven"):
        exec(compile(source(nbtools.the_cell(path, nb, tag)), tag, "exec"), space)
    assert {"RECORDED", "ADDRESS", "MACHINERY"} <= set(space)
    if number(path) != "A":  # there the parameters are checked at home
        assert space["GENERATED"] is True


@each
def test_imports_the_six_packages_and_the_standard_library_alone(path):
    for cell in code_cells(read(path)):
        for node in ast.walk(ast.parse(source(cell))):
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {module.split(".")[0] for module in modules} <= ALLOWED, cell["id"]


@each
def test_opens_with_title_parameters_and_folded_cells(path):
    nb = read(path)
    assert source(nb["cells"][0]).startswith("# ") and "<!--=colab-->" in source(nb["cells"][0])
    first = [tags(cell)[0] for cell in code_cells(nb)[:3] if tags(cell)]
    assert first[:2] == ["parameters", "woven"]
    for tag in ("woven", "recap"):
        for cell in nbtools.tagged(nb, tag):
            assert cell["metadata"] == {"tags": [tag, "hide-input"], "jupyter": {"source_hidden": True}, "cellView": "form"}
            assert source(cell).startswith("#@title ")


@each
def test_visible_code_is_short_and_narrow(path):
    in_a_row = 0
    for cell in read(path)["cells"]:
        if {"parameters", "woven", "recap"} & set(tags(cell)):
            continue
        in_a_row = in_a_row + 1 if cell["cell_type"] == "code" else 0
        assert in_a_row <= 2, f"{cell['id']} is the third code cell in a row"
        if cell["cell_type"] == "code":
            assert max(map(len, source(cell).splitlines()), default=0) <= 88, cell["id"]
            assert len(lines(cell)) <= 25 or number(path) in "AB", cell["id"]


@each
def test_parameter_cells_are_the_same(path):
    first, this = (source(nbtools.the_cell(p, read(p), "parameters")) for p in (CHAPTERS[0], path))
    assert this == first


@each
def test_kept_functions_and_classes_say_what_they_do(path):
    for cell in code_cells(read(path)):
        for node in ast.parse(source(cell)).body if {"keep", "machinery"} & set(tags(cell)) else []:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert ast.get_docstring(node), f"{cell['id']}: {node.name}"


@pytest.mark.parametrize("name", TEACHING)
def test_what_determines_a_number_is_a_teaching_cell(name):
    homes = [one for one in weave.kept()[0] if name in one.defined]
    assert homes and not any(one.machinery for one in homes), f"{name}: {[one.page for one in homes] or 'nowhere'}"


def test_kept_cells_show_nothing_when_they_run(capsys, chapter3):
    weave.namespace(3, **dict(SMOKE, DATA=chapter3.DATA, RESULTS=chapter3.RESULTS))
    assert capsys.readouterr() == ("", "")
