"""Every chapter runs: from its own folder after the others, and alone in an empty folder, twice in a row."""

import ast
import json
import shutil
import sys
from pathlib import Path

import chain
import pytest
from run import execute

CHAPTERS = chain.chapters()
each = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
ALLOWED = {"torch", "torchvision", "numpy", "matplotlib", "jupyter", "tqdm", "IPython"} | sys.stdlib_module_names


def run_at_smoke(path, folder):
    """A chapter's run as a reader would have it in that folder, with nothing set but the preset."""
    settings = {"PRESET": "smoke", "SEEDS": "0", "DEVICE": "cpu", "DATA": "", "RESULTS": ""}
    return execute(path.stem, chain.read(path), folder, settings, folder / "executed" / path.name)


def rows(folder, path):
    """The rows that a run has written."""
    return json.loads((folder / "data" / "runs" / f"{chain.number(path)}.json").read_text())["rows"]


def checkpoints(folder):
    """When each checkpoint was written."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.pt")}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """All chapters run in order, each from the notebooks folder of a repository; (folder, {stem: notebook})."""
    root = tmp_path_factory.mktemp("series")
    shutil.copytree(chain.NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (root / "data").mkdir()
    shutil.copy(chain.ROOT / "data" / "README.md", root / "data")
    return root, {path.stem: run_at_smoke(path, root / "notebooks") for path in CHAPTERS}


@pytest.fixture(scope="module", params=CHAPTERS, ids=lambda path: path.stem)
def alone(request, tmp_path_factory):
    """A chapter run twice as a single file: (path, folder, first, second, rows and checkpoints between)."""
    folder = tmp_path_factory.mktemp("alone") / "a folder of my own, ñ"
    folder.mkdir()
    path = Path(shutil.copy(request.param, folder))
    first = run_at_smoke(path, folder)
    between = rows(folder, path), checkpoints(folder)
    return path, folder, first, run_at_smoke(path, folder), between


def test_the_chapters_are_there():
    assert [chain.number(path) for path in CHAPTERS[:3]] == ["01", "02", "03"]


@each
def test_runs_from_its_own_folder(series, path):
    root, done = series
    assert chain.output_faults(done[path.stem]) == []
    found = json.loads((root / "data" / "runs" / f"{chain.number(path)}.json").read_text())
    assert chain.result_faults(chain.number(path), found, "smoke") == []


def test_running_leaves_the_notebooks_folder_as_it_was(series):
    root, _ = series
    assert {path.name for path in (root / "notebooks").iterdir()} == {path.name for path in CHAPTERS} | {"executed"}


def test_runs_alone(alone):
    path, folder, first, _, _ = alone
    assert chain.output_faults(first) == []
    assert {entry.name for entry in folder.iterdir()} == {path.name, "data", "executed"}


def test_a_second_run_loads_what_the_first_trained(alone):
    path, folder, _, second, (first_rows, first_checkpoints) = alone
    assert chain.output_faults(second) == []
    assert checkpoints(folder) == first_checkpoints
    assert rows(folder, path) == first_rows


def test_alone_and_after_the_others_it_finds_the_same(alone, series):
    path, folder, *_ = alone
    assert rows(folder, path) == rows(series[0], path)


@each
def test_imports_the_six_packages_and_the_standard_library_alone(path):
    for cell in chain.code_cells(chain.read(path)):
        for node in ast.walk(ast.parse(chain.source(cell))):
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {module.split(".")[0] for module in modules} <= ALLOWED, cell["id"]


@each
def test_never_more_than_two_code_cells_in_a_row(path):
    in_a_row = 0
    for cell in chain.read(path)["cells"]:
        if {"parameters", "recap", "recorded"} & set(cell["metadata"].get("tags", [])):
            continue
        in_a_row = in_a_row + 1 if cell["cell_type"] == "code" else 0
        assert in_a_row <= 2, cell["id"]


@each
def test_opens_with_title_parameters_recap_and_record(path):
    nb = chain.read(path)
    head = ["parameters", "recap", "recorded"] if path != CHAPTERS[0] else ["parameters", "recorded"]
    assert nb["cells"][0]["cell_type"] == "markdown" and chain.source(nb["cells"][0]).startswith("# ")
    assert [cell["metadata"]["tags"][0] for cell in chain.code_cells(nb)[:len(head)]] == head


@each
def test_parameter_cells_are_the_same(path):
    first, this = (chain.source(chain.the_cell(p, chain.read(p), "parameters")) for p in (CHAPTERS[0], path))
    assert this == first


@each
def test_kept_functions_and_classes_say_what_they_do(path):
    for cell in chain.kept_cells(chain.read(path)):
        for node in ast.parse(chain.source(cell)).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert ast.get_docstring(node), f"{cell['id']}: {node.name}"


@each
def test_kept_cells_show_nothing_when_they_run(path, capsys, chapter3):
    chain.namespace(int(chain.number(path)), PRESET="smoke", DATA=chapter3.DATA, RESULTS=chapter3.RESULTS)
    assert capsys.readouterr() == ("", "")


@each
def test_is_under_one_megabyte(path):
    assert path.stat().st_size < 1e6
