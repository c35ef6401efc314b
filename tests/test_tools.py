"""The tools, on small series made up here: what they do, and how they end when something is wrong."""

import ast
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbtools
import prose
import pytest
import record
import run
import weave
from nbtools import Stop

TOOLS = Path(run.__file__).parent
PARAMETERS = 'import os\n\nPRESET = os.environ.get("NOLABELS_PRESET", "auto")\nSEEDS = os.environ.get("NOLABELS_SEEDS", "0")\n' \
             'RESULTS = os.environ.get("NOLABELS_RESULTS", "")'
KEEP = '''import json


def load():
    """The results file as it stands."""
    path = os.path.join(FOLDER, CHAPTER + ".json")
    return json.load(open(path)) if os.path.exists(path) else {}


def write(found):
    """Write a results file, which is old or new and never half: the recorder reads it meanwhile."""
    os.makedirs(FOLDER, exist_ok=True)
    path = os.path.join(FOLDER, CHAPTER + ".json")
    with open(path + ".part", "w") as file:
        json.dump(found, file)
    os.replace(path + ".part", path)


def remember(name, figures):
    """Keep a unit of work."""
    found, unit = load(), {"fingerprint": str(figures), "figures": figures, "seconds": 30.0}
    unit.update(parts={}, log=[], hardware="two cores")
    found.setdefault("remembered", {})[PRESET + " " + name] = unit
    write(found)


def save(rows, **tables):
    """Finish a results file."""
    kept = {key: value for key, value in load().items() if key in ("remembered", "networks")}
    seeds = [int(seed) for seed in SEEDS.split(",")]
    write(dict(chapter=CHAPTER, preset=PRESET, complete=False, seconds=1.5, hardware="two cores", versions={},
               data_md5="generated", seeds=seeds, rows=rows, **tables, **kept))'''
ROWS = ('{"supervised": {p: {"mean": 50.0, "std": 0.0 + (len(SEEDS) > 1), "seeds": [49.0, 50.0, 51.0] if len(SEEDS) > 1 else [50.0]}'
        ' for p in ("1", "10")}}')
HELP = [("md", "title", "", "# A\n\nIn Colab, <!--=colab-->?<!--/-->."), ("code", "parameters", "parameters", PARAMETERS),
        ("code", "environment", "machinery", 'FOLDER = RESULTS or "../data/runs"'), ("code", "results", "machinery", KEEP),
        ("code", "unused", "machinery", "def unused():\n    return area(2)")]
FIRST = [("md", "title", "", "# One\n\nIn Colab, <!--=colab-->?<!--/-->. <!--=01:took-->?<!--/-->"),
         ("code", "parameters", "parameters", PARAMETERS), ("code", "imports", "keep", "import math\nimport os"),
         ("code", "area", "keep", 'def area(r):\n    """Of a circle."""\n    return PI * r * r'), ("code", "pi", "keep", "PI = math.pi"),
         ("code", "other", "keep", "def other():\n    return PI"), ("code", "end", "", "save({})")]
SECOND = [("md", "title", "", "# Two\n\nIt took <!--=02:seconds:.1f-->0<!--/--> s, seeds <!--=02:seeds-->0<!--/-->. <!--=02:took-->?<!--/-->"),
          ("code", "parameters", "parameters", PARAMETERS), ("code", "body", "", "print(area(1))"),
          ("md", "found", "", "It found <!--=02:rows.supervised.10.mean - 02:rows.supervised.1.std:.1f-->0<!--/--> %."),
          ("code", "end", "", f'for seed in SEEDS.split(","):\n    remember("train " + seed, area(int(seed)))\nsave({ROWS})')]


def notebook(cells):
    """A notebook of (kind, id, tag, text)."""
    made = []
    for kind, name, tag, text in cells:
        cell = {"cell_type": {"md": "markdown"}.get(kind, kind), "id": name, "metadata": {"tags": [tag]} if tag else {},
                "source": text.splitlines(keepends=True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    return {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


class Series:
    """A repository of an appendix and two small chapters."""

    def __init__(self, root):
        self.root, self.data = root, root / "data" / "results"
        self.help, self.one, self.two = (root / "notebooks" / f"{name}.ipynb" for name in ("A_help", "01_one", "02_two"))

    def make(self):
        """Write it, neither woven nor recorded."""
        self.one.parent.mkdir()
        for path, cells in ((self.help, HELP), (self.one, FIRST), (self.two, SECOND)):
            self.put(path, cells)
        (self.root / "pyproject.toml").write_text('[project.urls]\nRepository = ""\n')
        (self.root / "README.md").write_text("# R\n\nIt is <!--=repository-->?<!--/-->, 2: <!--=colab:02-->?<!--/-->\n")
        return self

    def put(self, path, cells):
        """Write a page."""
        nbtools.write(path, notebook(cells))

    def edit(self, path, name, text, **more):
        """Change a cell's text, and its other entries."""
        nb = nbtools.read(path)
        next(cell for cell in nb["cells"] if cell["id"] == name).update(source=text.splitlines(keepends=True), **more)
        nbtools.write(path, nb)

    def cell(self, path, name):
        """A cell of a page."""
        return next(cell for cell in nbtools.read(path)["cells"] if cell["id"] == name)

    def text(self, path, name):
        """A cell's text."""
        return nbtools.source(self.cell(path, name))

    def results(self, name, **entries):
        """Change a results file."""
        path = self.data / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    def committed(self):
        """What is committed, byte for byte."""
        return {path: path.read_bytes() for path in [*self.one.parent.glob("*"), self.root / "README.md", *self.data.glob("*")]}


@pytest.fixture
def series(tmp_path, monkeypatch):
    """A small series, neither woven nor recorded."""
    monkeypatch.setattr(nbtools, "ROOT", tmp_path)
    return Series(tmp_path).make()


@pytest.fixture(scope="module")
def recorded_root(tmp_path_factory):
    """The folder of a small series that has been recorded."""
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nbtools, "ROOT", root)
        Series(root).make()
        record.record()
    return root


@pytest.fixture
def recorded(recorded_root, tmp_path, monkeypatch):
    """A recorded series to spoil."""
    shutil.copytree(recorded_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(nbtools, "ROOT", tmp_path)
    return Series(tmp_path)


def says(*words):
    """Expect a Stop whose sentences hold these words."""
    return pytest.raises(Stop, match="(?s)" + ".*".join(map(re.escape, words)))


# ---- weaving --------------------------------------------------------------------------------------

def homes(text):
    """What a folded cell was made of."""
    return re.findall(r"# from (.*)", text)


def test_folded_cells_hold_what_a_page_uses_and_what_that_uses_and_nothing_else(series):
    assert weave.weave() == [] == weave.woven_faults()
    woven, recap = series.text(series.two, "machinery"), series.text(series.two, "recap")
    assert homes(woven) == ["A_help: environment", "A_help: results"]
    assert homes(recap) == ["01_one: area", "01_one: pi"] and "import" not in recap
    assert "\nimport json\nimport math\n" in woven and 'CHAPTER = "02"\n' in woven and 'ADDRESS = ""\n' in woven
    assert "FOLDER MACHINERY RECORDED load remember save unused write" in woven
    assert homes(series.text(series.help, "recap")) == ["01_one: area", "01_one: pi"]  # an appendix may use any chapter
    assert not nbtools.tagged(nbtools.read(series.one), "recap")  # nothing comes before it
    assert [nbtools.tags(cell) for cell in nbtools.code_cells(nbtools.read(series.two))][:3] == [
        ["parameters"], ["woven", "hide-input"], ["recap", "hide-input"]]


def test_folded_cells_are_folded_everywhere_and_weaving_twice_changes_nothing(series):
    weave.weave()
    for name, tag in (("machinery", "woven"), ("recap", "recap")):
        assert series.cell(series.two, name)["metadata"] == {
            "tags": [tag, "hide-input"], "jupyter": {"source_hidden": True}, "cellView": "form"}
        assert series.text(series.two, name).startswith("#@title ")
    before = series.committed()
    weave.weave()
    assert series.committed() == before
    series.edit(series.two, "recap", "PI = 3")
    assert weave.woven_faults() == ["02_two.ipynb: its recap cell is not what tools/weave.py writes; run it."]


def test_a_package_that_is_missing_is_a_sentence_with_the_command(series):
    series.edit(series.one, "imports", "import math\nimport os\nimport no_such_package")
    series.edit(series.two, "body", "print(area(no_such_package.one))")
    weave.weave()
    with pytest.raises(ModuleNotFoundError, match="This kernel has no no_such_package.*%pip install torch"):
        exec(series.text(series.two, "machinery"), {"RESULTS": "", "PRESET": "smoke"})


def test_recorded_figures_are_woven_without_what_is_bulky(recorded):
    recorded.results("01", curves=[1.0] * 9, table=list(range(5000)), small={"a": 1})
    recorded.results("02", rows={f"row_{k}": {"1": {"mean": 50.0, "std": 0.0, "seeds": [50.0]}} for k in range(200)})
    weave.weave()
    header, space = recorded.text(recorded.two, "machinery").partition("\n\n\n")[0], {}
    exec(header, space)
    assert set(space["RECORDED"]) == {"01", "02"} and space["RECORDED"]["01"]["small"] == {"a": 1}
    assert not {"remembered", "curves", "table"} & {*space["RECORDED"]["01"], *space["RECORDED"]["02"]}
    assert len(space["RECORDED"]["02"]["rows"]) == 200
    assert max(map(len, header.splitlines())) <= 88
    assert "'02'" not in recorded.text(recorded.one, "machinery")


def test_names_are_those_that_python_sees():
    text = "import a.b as c, d.e\nx = [y for y in f(z)]\ndef g(p, q=r):\n    s = p + t\n    global u\n    u = s\nclass H(I): j = k"
    defined, used = nbtools.names(text)
    assert {"c", "d", "x", "g", "H"} <= defined and not {"y", "s", "p"} & (defined | used)
    assert {"f", "z", "r", "t", "I", "k"} <= used
    defined, used = nbtools.names("[y for y in a]\n{b(u): [v for v in u] for u in c}\n{w for w in d if w}")
    assert not defined and {"a", "b", "c", "d"} <= used and not {"u", "v", "w", "y"} & used


@pytest.mark.parametrize("page,name,text,same", [
    ("one", "area", 'def area( r ):  # round\n    """Of a disc."""\n\n    return (PI * r) * r', True),
    ("help", "results", KEEP + "\n\n\nMORE = 1", True), ("help", "environment", 'FOLDER = RESULTS or "elsewhere"', True),
    ("one", "other", "def other():\n    return 2", True), ("one", "area", "def area(r):\n    return PI * r * r * 1", False),
    ("one", "pi", "PI = 3", False), ("two", "body", "print(area(2))", False)])
def test_the_hash_is_of_teaching_cells_and_the_page_s_own(series, page, name, text, same):
    weave.weave()
    before = weave.code_hash(nbtools.read(series.two))
    series.edit(getattr(series, page), name, text)
    weave.weave()
    assert (weave.code_hash(nbtools.read(series.two)) == before) == same


def test_namespace_is_a_module_whose_functions_show_their_source(series, monkeypatch):
    monkeypatch.setenv("NOLABELS_PRESET", "quick")
    module = weave.namespace(2, PRESET="smoke", RESULTS="r")
    assert module.PRESET == "smoke" and module.FOLDER == "r" and module.unused() == 4 * module.math.pi
    assert inspect.getsource(module.area).startswith("def area(r):")
    assert "unused" in module.MACHINERY.split() and module.CHAPTER == "02" and module.RECORDED == {}
    assert os.environ["NOLABELS_PRESET"] == "quick" and "NOLABELS_RESULTS" not in os.environ
    assert not hasattr(weave.namespace(["02"]), "area") and sys.modules[module.__name__] is module
    with says("no chapter 03"):
        weave.namespace(3)


@pytest.mark.fault
@pytest.mark.parametrize("text,words", [
    ("", "not a whole notebook"), ("{", "not a whole notebook"), ("[]", "not a whole notebook"),
    ("null", "not a whole notebook"), (b"\xff\xfe\x00", "not a whole notebook"),
    ('{"nbformat": 4}', "no 'cells'"), ('{"cells": [{"cell_type": "code", "source": []}]}', "no 'id'"),
    ('{"cells": [{"id": "a", "source": []}]}', "no 'cell_type'"), ('{"cells": [{"id": "a", "cell_type": "code"}]}', "no 'source'"),
    ('{"cells": [{"id": "a", "cell_type": "code", "source": []}]}', "no 'metadata'"),
    ('{"cells": [{"id": "a", "cell_type": "code", "source": [1]}]}', "not a whole notebook"),
    (json.dumps(notebook([("code", "a", "", "1"), ("md", "a", "", "2")])), "two cells have the id a"),
    (json.dumps(notebook([("code", "a", "", "%matplotlib inline")])), "cell a: invalid syntax in line 1")])
def test_a_broken_notebook_is_named_and_left_as_it_is(series, text, words):
    broken = text if isinstance(text, bytes) else text.encode()
    series.two.write_bytes(broken)
    for command in (weave.main, prose.fill, record.check, record.record):
        with says("02_two.ipynb", words):
            command()
    assert series.two.read_bytes() == broken and nbtools.tagged(nbtools.read(series.one), "woven")  # the others are woven


@pytest.mark.fault
@pytest.mark.parametrize("page,cell,words", [
    ("two", ("md", "again", "parameters", ""), ["02_two.ipynb needs exactly one code cell tagged parameters"]),
    ("one", ("code", "again", "keep", "PI = 3"), ["PI is defined by two kept cells", "01_one: pi", "01_one: again"]),
    ("help", ("code", "again", "machinery", "PI = 3"), ["PI is defined by two kept cells", "A_help: again", "01_one: pi"]),
    ("one", ("code", "again", "keep", "math = 3"), ["math is imported, but 01_one: again defines it too"]),
    ("one", ("code", "again", "keep", "from cmath import pi as math"), ["from cmath import pi as math, but elsewhere import math"])])
def test_cells_that_contradict_each_other_are_named(series, page, cell, words):
    series.put(getattr(series, page), [*{"one": FIRST, "two": SECOND, "help": HELP}[page], cell])
    with says(*words):
        weave.main()


# ---- recording ------------------------------------------------------------------------------------

def test_a_recording_keeps_outputs_figures_and_hash_and_leaves_nothing_to_complain_about(recorded):
    assert record.check() == []
    nb = nbtools.read(recorded.two)
    assert nb["metadata"]["series"] == {"code_hash": weave.code_hash(nb), "preset": "full", "complete": True,
                                        "results": "data/results/02.json"}
    assert recorded.cell(recorded.two, "body")["outputs"][0]["text"] == ["3.141592653589793\n"]
    assert "It took <!--=02:seconds:.1f-->1.5<!--/--> s, seeds <!--=02:seeds-->0, 1 and 2<!--/-->" in recorded.text(recorded.two, "title")
    assert recorded.text(recorded.two, "title").endswith(
        "<!--=02:took-->Recorded run: preset full, seeds 0, 1 and 2, 90 seconds on two cores.<!--/-->")
    assert "found <!--=02:rows.supervised.10.mean - 02:rows.supervised.1.std:.1f-->49.0<!--/--> %" in recorded.text(recorded.two, "found")
    assert set(nbtools.results("02")["remembered"]) == {"full train 0", "full train 1", "full train 2"}


def test_what_a_run_took_is_said_of_each_machine():
    def unit(hardware, seconds):
        return {"hardware": hardware, "seconds": seconds}
    found = {"rows": {}, "preset": "full", "seeds": [0, 1], "seconds": 1.0, "hardware": "a GPU; two cores", "complete": True}
    assert prose.took(found) == "Recorded run: preset full, seeds 0 and 1, 1 seconds on a GPU; two cores."
    found["remembered"] = {"full a 0": unit("two cores", 1200), "full a 1": unit("a GPU", 50), "quick a 0": unit("two cores", 9),
                           "full b 0": unit("two cores", 300), "full b 1": unit("a GPU", 70)}
    assert prose.took(found) == "Recorded run: preset full, seeds 0 and 1, 25 minutes on two cores and 2.0 minutes on a GPU."


def test_a_second_recording_runs_nothing_and_a_named_page_or_a_changed_one_runs_again(recorded, monkeypatch):
    ran = []
    monkeypatch.setattr(record, "execute", lambda label, *rest: ran.append(label) or nbtools.execute(label, *rest))
    record.record()
    assert ran == []
    record.record(["02"])
    assert ran == ["02_two"]
    recorded.edit(recorded.one, "pi", "PI = 3")
    record.record()
    assert ran == ["02_two", "01_one", "02_two", "A_help"] and record.check() == []


def test_a_record_grows_seed_by_seed_says_that_it_is_partial_and_is_committed(series):
    git = ["git", "-C", str(series.root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    for name, value in (("name", "a"), ("email", "a@b.c")):
        subprocess.run([*git, "config", f"user.{name}", value], check=True)
    (series.root / "staged").touch()
    subprocess.run([*git, "add", "staged"], check=True)
    record.record(["02"], seeds=[1], preset="quick", commits=True, figures_only=True)
    found = nbtools.results("02")
    assert set(found["remembered"]) == {"quick train 1"} and "rows" not in found and found["complete"] is False
    assert not series.cell(series.two, "body")["outputs"]
    record.record(["01", "02", "A"], seeds=[0, 1], preset="quick", commits=True)
    found = nbtools.results("02")
    assert set(found["remembered"]) == {"quick train 0", "quick train 1"} and found["complete"] is False
    assert "60 seconds on two cores; the complete record (preset full, three seeds) is still to come." in series.text(
        series.two, "title")
    log = subprocess.run([*git, "log", "--name-only", "--format=%s"], capture_output=True, text=True, check=True).stdout
    assert log.count("quick train") >= 2 and "quick train 1" in log and "figures at preset quick" in log
    assert set(re.findall(r"^\S+/\S+$", log, re.M)) == {"data/results/01.json", "data/results/02.json"} and "staged" not in log


def test_rows_may_carry_fewer_seeds_and_a_partial_record_is_not_called_complete(recorded):
    fewer = {"mean": 50.0, "std": 0.0, "seeds": [50.0], "seed_numbers": [2]}
    recorded.results("02", rows={"supervised": {"1": fewer, "10": fewer}})
    assert record.result_faults("02", nbtools.results("02")) == []
    recorded.results("02", seeds=[0, 2])
    assert record.result_faults("02", nbtools.results("02")) == ["it is called complete with preset full and seeds [0, 2]"]


@pytest.mark.fault
def test_code_changed_during_a_recording_is_not_recorded(recorded, monkeypatch):
    def meanwhile(*given):
        recorded.edit(recorded.two, "body", "print(area(2))")
        return nbtools.execute(*given)
    monkeypatch.setattr(record, "execute", meanwhile)
    with says("02_two.ipynb was changed while it ran"):
        record.record(["02"])


@pytest.mark.fault
@pytest.mark.parametrize("code,words", [
    ("area(None)", ["cell body", "TypeError"]),
    ("import signal\nos.kill(os.getpid(), signal.SIGKILL)", ["cell body", "ended from outside", "same command continues"]),
    ("print('in /home/somebody/data')", ["something private: /home/somebody/data"]),
    ("print(r'C:\\Users\\somebody')", ["something private: C:"]),
    ("import warnings\nwarnings.warn('old')", ["writes to stderr"]),
    ("from IPython.display import Image, display\nimport base64\ndisplay(Image(base64.b64decode("
     "'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')))",
     ["picture without alt text"]),
    ("os.remove(RESULTS + '/02.json')\nsave = print\nremember = print", ["wrote no results file"])])
def test_a_run_that_must_not_be_recorded_leaves_the_page_and_is_not_called_complete(recorded, code, words):
    recorded.edit(recorded.two, "body", code)
    weave.weave()
    before = recorded.two.read_bytes()
    with says("02_two", *words):
        record.record()
    assert recorded.two.read_bytes() == before and any("02_two" in fault for fault in record.check())
    assert (nbtools.results("02") or {"complete": False})["complete"] is False
    assert (recorded.root / "data/runs/record/02_two.ipynb").exists()


def test_figures_in_the_folded_cell_fill_their_lines_and_are_the_same_figures():
    value = {"networks": {f"a network with a long name, seed {seed}.pt": 64 * str(seed) for seed in range(3)}, "none": None,
             "rows": {str(k): {"mean": -k / 7, "seeds": [k, -1e-9], "whole": True} for k in range(30)}}
    lines = weave.literal(value).splitlines()
    assert ast.literal_eval("\n".join(lines)) == value
    assert max(map(len, lines)) <= weave.WIDTH and len(lines) < 1.2 * len(repr(value)) / (weave.WIDTH - len("RECORDED = "))


@pytest.mark.fault
def test_networks_are_published_with_the_record_and_watched(recorded):
    recorded.put(recorded.help, [*HELP, ("code", "publish", "machinery", '''def publish(path, folder):
    """Copy a checkpoint."""
    import hashlib
    folder.mkdir(exist_ok=True)
    (folder / "net.pt").write_bytes(path.read_bytes())
    return {"net.pt": hashlib.sha256(path.read_bytes()).hexdigest()}''')])
    checkpoints, place = recorded.root / "data" / "checkpoints", recorded.root / "data" / "networks"
    recorded.edit(recorded.one, "end", 'save({}, publish=["net"])')
    with says("net were trained on another machine"):
        record.record()
    checkpoints.mkdir()
    (checkpoints / "net-full-0123.pt").write_text("weights")
    place.mkdir()
    (place / "old.pt").touch()
    record.record()
    assert [path.name for path in place.iterdir()] == ["net.pt"] and record.check() == []
    (place / "net.pt").write_text("others")
    assert "data/networks/net.pt is not what the results name; run tools/record.py" in record.check()
    (place / "net.pt").unlink()
    assert "data/networks/net.pt is not what the results name; run tools/record.py" in record.check()


def test_a_killed_recording_continues_with_what_it_had_finished(recorded):
    recorded.edit(recorded.two, "body", 'remember("early", area(1))\nif not os.path.exists("../was-here"):\n'
                                        '    open("../was-here", "w").close()\n    os.kill(os.getpid(), 9)\nprint(area(1))')
    with says("ended from outside"):
        record.record()
    assert "full early" in nbtools.results("02")["remembered"] and nbtools.results("02")["complete"] is False
    record.record()
    assert record.check() == [] and nbtools.results("02")["complete"] is True


@pytest.mark.fault
def test_ctrl_c_reaches_the_cell_and_ends_the_recording(recorded):
    recorded.edit(recorded.two, "body", "import time\ntry:\n    open('../started', 'w').close()\n    time.sleep(60)\n"
                                        "finally:\n    open('../saved', 'w').close()")
    weave.weave()
    before = recorded.two.read_bytes()

    def press():
        while not (recorded.root / "started").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        record.record()
    assert (recorded.root / "saved").exists() and recorded.two.read_bytes() == before


@pytest.mark.fault
def test_the_kernel_is_this_environments_own(recorded, monkeypatch, tmp_path):
    spec = tmp_path / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["false", "{connection_file}"], "display_name": "another",
                                                  "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    recorded.edit(recorded.two, "body", "import sys\nprint(sys.executable == os.environ['THIS'])")
    monkeypatch.setenv("THIS", sys.executable)
    record.record(["02"])
    assert recorded.cell(recorded.two, "body")["outputs"][0]["text"] == ["True\n"]


def test_progress_lines_leave_their_last_state():
    outputs = [{"output_type": "stream", "name": "stdout", "text": "a\r"}, {"output_type": "display_data", "data": {}},
               {"output_type": "stream", "name": "stdout", "text": "b\r\nc\rdd\re\nf\n"}]
    assert [output.get("text") for output in nbtools.tidy(outputs)] == ["b\ne\nf\n", None]


# ---- numbers in prose, the address ----------------------------------------------------------------

@pytest.mark.fault
@pytest.mark.parametrize("name,text,words", [
    ("recap", "PI = 3", "02_two.ipynb: its recap cell is not what tools/weave.py writes"),
    ("machinery", "RECORDED = {}", "02_two.ipynb: its woven cell is not what tools/weave.py writes"),
    ("parameters", PARAMETERS + "  # mine", "the pages' parameter cells differ"),
    ("body", "print(area(2))", "02_two.ipynb: its code is not the code of the recorded run"),
    ("title", "It took <!--=02:seconds:.1f-->1.4<!--/--> s", "02:seconds:.1f is 1.5, the text says 1.4"),
    ("title", "It took <!--=02:second:.1f-->1.5<!--/--> s", "02.json has no second"),
    ("title", "It took <!--=02:rows.0:.1f-->1.5<!--/--> s", "02.json has no rows.0"),
    ("title", "It took <!--=07:seconds-->1.5<!--/--> s", "07:seconds is not measured yet"),
    ("title", "It took <!--=07:took-->1.5<!--/--> s", "07:took is not measured yet"),
    ("title", "It took <!--=seconds-->1.5<!--/--> s", "seconds is not a marker"),
    ("title", "It took <!--=02:seconds ** 2-->1.5<!--/--> s", "is not a marker"),
    ("title", "It took <!--=02:seconds:.1q-->1.5<!--/--> s", "02:seconds:.1q"),
    ("title", "It took <!--=02:hardware * 2-->1.5<!--/--> s", "02:hardware * 2"),
    ("title", "It took <!--=02:seconds / 0-->1.5<!--/--> s", "02:seconds / 0"),
    ("title", "It took <!--=colab:09-->1.5<!--/--> s", "there is no chapter 09"),
    ("title", "It took <!--=02:seconds:.1f-->1.5 s", "not closed"),
    ("title", "It took <!--=02:seconds:.1f-->1.5\n<!--/--> s", "not closed"),
    ("title", "<!--=02:seconds:.1f-->1.5<!--/--> s", "would show"),
    ("title", "It took\n- <!--=02:seconds:.1f-->1.5<!--/--> s", "would show"),
    ("title", "It took\n3. <!--=02:seconds:.1f-->1.5<!--/--> s", "would show"),
    ("title", "# In <!--=02:seconds:.1f-->1.5<!--/--> s", "would show"),
    ("title", "It took `<!--=02:seconds:.1f-->1.5<!--/-->` s", "would show"),
    ("title", "It took\n```\nt = <!--=02:seconds:.1f-->1.5<!--/-->\n```", "would show"),
    ("title", "It took $t=<!--=02:seconds:.1f-->1.5<!--/-->$ s", "would show"),
    ("title", "It took\n$$\nt=<!--=02:seconds:.1f-->1.5<!--/-->\n$$", "would show"),
    ("title", "It took [about <!--=02:seconds:.1f-->1.5<!--/--> s](x)", "would show")])
def test_check_says_what_was_spoiled_in_a_notebook(recorded, name, text, words):
    recorded.edit(recorded.two, name, text)
    assert any(words in fault for fault in record.check()), record.check()


def test_check_lets_good_markers_be(recorded):
    recorded.edit(recorded.two, "title", "| a | <!--=02:seconds:.1f-->1.5<!--/--> | $x$ `y` [z](z) <!--=02:seconds * 2:.0f-->3<!--/--> |")
    assert record.check() == []


@pytest.mark.fault
@pytest.mark.parametrize("entries,words", [
    ({"seconds": 9.0}, "the text says 1.5"), ({"seconds": None}, "seconds is missing"), ({"rows": []}, "rows is missing"),
    ({"complete": None}, "complete is missing"), ({"chapter": "03"}, "it holds chapter 03"), ({"preset": "quick"}, "with preset quick"),
    ({"complete": False}, "is not the code of the recorded run"), ({"remembered": {"full a": {}}}, "the unit full a lacks figures"),
    *(({"rows": {"supervised": {"1": cell, "10": cell}}}, "mean and deviation") for cell in (
        {"mean": 51.0, "std": 1.0, "seeds": [49.0, 50.0, 51.0]}, {"mean": 50.0, "std": 0.8, "seeds": [49.0, 50.0, 51.0]},
        {"mean": 0.5, "std": 1.0, "seeds": [49.0, 50.0, 51.0]}, {"mean": 120.0, "std": 0.0, "seeds": [120.0] * 3},
        {"mean": 50.0, "std": 0.0, "seeds": [50.0, 50.0]}, {"mean": 50.0, "std": 0.0, "seeds": []}, {"mean": 50.0},
        {"mean": 50.0, "std": 0.0, "seeds": [50.0], "seed_numbers": [7]}))])
def test_check_says_what_does_not_fit_in_a_results_file(recorded, entries, words):
    recorded.results("02", **entries)
    assert any(words in fault for fault in record.check()), record.check()


@pytest.mark.fault
@pytest.mark.parametrize("text", ["", "{", '{"seconds": NaN}', '{"seconds": Infinity}', "\x00"])
def test_a_damaged_results_file_is_named(recorded, text):
    (recorded.data / "02.json").write_text(text)
    for command in (weave.main, prose.fill, record.check):
        with says("data/results/02.json is not JSON"):
            command()


@pytest.mark.fault
def test_check_says_when_a_results_file_is_gone_or_a_notebook_too_big(recorded):
    (recorded.data / "02.json").unlink()
    recorded.edit(recorded.one, "title", "x" * 1_000_001)
    faults = "\n".join(record.check())
    assert "02:seconds:.1f is not measured yet" in faults and "01_one.ipynb has more than 1 MB" in faults


def test_the_address_is_written_everywhere_and_taken_out_again(recorded):
    before = recorded.committed()
    prose.address("https://github.com/some-one/a.series.git/")
    assert 'Repository = "https://github.com/some-one/a.series"' in (recorded.root / "pyproject.toml").read_text()
    assert 'ADDRESS = "https://github.com/some-one/a.series"' in recorded.text(recorded.two, "machinery")
    assert "/github/some-one/a.series/blob/main/notebooks/01_one.ipynb)" in recorded.text(recorded.one, "title")
    assert "/github/some-one/a.series/blob/main/notebooks/A_help.ipynb)" in recorded.text(recorded.help, "title")
    readme = (recorded.root / "README.md").read_text()
    assert "(https://github.com/some-one/a.series)" in readme and "02_two.ipynb)" in readme
    assert record.check() == []
    prose.address("")
    assert recorded.committed() == before


def test_a_picture_of_the_recorded_run_comes_into_the_readme(recorded):
    with open(recorded.root / "README.md", "a") as file:
        file.write("\n![old](data/results/02_body.png)\n")
    assert any("02_body.png is not the picture" in fault for fault in record.check())
    output = {"output_type": "display_data", "data": {"image/png": "QUJD"}, "metadata": {"image/png": {"alt": "It rises."}}}
    recorded.edit(recorded.two, "body", recorded.text(recorded.two, "body"), outputs=[output])
    prose.fill()
    assert (recorded.data / "02_body.png").read_bytes() == b"ABC"
    assert "![It rises.](data/results/02_body.png)" in (recorded.root / "README.md").read_text()
    assert record.check() == []


@pytest.mark.fault
@pytest.mark.parametrize("url", ["github.com/a/b", "https://github.com/a", "https://github.com/a/b/c", 'https://github.com/a/b"',
                                 "https://example.org/a/b", "git@github.com:a/b.git"])
def test_an_address_of_another_form_is_refused(recorded, url):
    before = recorded.committed()
    with says("https://github.com/OWNER/NAME"):
        prose.address(url)
    assert recorded.committed() == before


# ---- running --------------------------------------------------------------------------------------

def tool(*arguments, **more):
    """Start a tool as a reader does."""
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, **more)


@pytest.mark.fault
@pytest.mark.parametrize("name,arguments,words", [
    ("run.py", ["--here", "--preset", "fast"], "choose from"), ("run.py", ["--here", "--chapters", "9"], "There is no chapter 9; there are 1, 2, 3"),
    ("run.py", ["--here", "--chapters", "one"], "not a list of numbers"), ("run.py", ["--here", "--seeds", "0;1"], "not a list of numbers"),
    ("run.py", ["--here", "--seeds", "-1"], "not a list of numbers"), ("run.py", ["--speed"], "unrecognized arguments"),
    ("record.py", ["--chapters", "1,Z"], "There is no page Z"), ("record.py", ["--preset", "smoke"], "choose from")])
def test_bad_arguments_end_in_a_sentence(name, arguments, words):
    done = tool(TOOLS / name, *arguments)
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr


def test_a_reader_s_run_ends_with_a_table_and_leaves_the_repository_as_it_was(recorded, monkeypatch, capsys):
    (recorded.root / "requirements.txt").write_text("numpy>=1\n")
    nb = nbtools.read(recorded.one)  # as Colab saves it
    nb["nbformat_minor"] = 0
    for cell in nb["cells"]:
        cell["metadata"]["id"] = cell.pop("id")
    nbtools.write(recorded.one, nb)
    before = recorded.committed()
    monkeypatch.setenv("NOLABELS_RESULTS", "../data/runs")
    monkeypatch.setattr(sys, "argv", ["run.py", "--here", "--preset", "quick", "--chapters", "1,2", "--seeds", "0,1,2"])
    assert run.main() == 0
    shown = capsys.readouterr().out
    assert "this run (quick)" in shown and "recorded run (full)" in shown
    assert re.search(r"supervised +– +50\.0 +50\.0 +– +– +50\.0 +50\.0", shown)
    assert (recorded.root / "data/runs/notebooks/02_two.ipynb").exists() and recorded.committed() == before


def test_of_two_rows_with_one_name_the_table_shows_the_earlier_chapter_s(tmp_path):
    for name, rows in (("03", {"bt_linear": {"100": {"mean": 68.8}}}), ("05", {"bt_linear": {"1": {"mean": 39.9}}, "moco_linear": {}})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"preset": "quick", "rows": rows}))
    rows, presets = run.rows(tmp_path, ["03", "04", "05"])
    assert rows == {"bt_linear": {"100": {"mean": 68.8}}, "moco_linear": {}} and presets == "quick"


def test_the_table_never_shows_generated_accuracies_unmarked_or_beside_recorded_ones():
    ours, recorded = {"supervised": {"100": {"mean": 86.04}}}, {"supervised": {"100": {"mean": 89.5}}, "bt_spread": {}}
    assert re.search(r"supervised +86\.0 +– +– +– +89\.5 +– +– +–\n?$", run.table(ours, recorded, "quick", "full"))
    generated = run.table(ours, recorded, "smoke", "full")
    assert "generated pictures: means nothing" in generated and "89.5" not in generated and "recorded" not in generated


@pytest.mark.fault
@pytest.mark.parametrize("path", sorted(TOOLS.glob("*.py")), ids=lambda path: path.name)
def test_an_older_python_can_read_the_tools_as_far_as_the_sentence(path):
    old = (3, 7) if path.name in ("run.py", "nbtools.py", "test.py") else (3, 10)
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=old)
    if old == (3, 7):  # and nothing has to be installed to read them
        modules = {name.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for name in node.names}
        assert modules <= set(sys.stdlib_module_names) | {"nbtools"}


@pytest.mark.fault
@pytest.mark.parametrize("version", [(3, 6), (3, 9)])
def test_an_older_python_is_told_so(monkeypatch, capsys, version):
    monkeypatch.setattr(sys, "version_info", version)
    assert nbtools.guarded(lambda: 0) == 1
    assert "needs Python 3.10 or newer" in capsys.readouterr().err


@pytest.mark.fault
def test_ctrl_c_in_a_tool_is_no_traceback(capsys):
    def main():
        raise KeyboardInterrupt
    assert nbtools.guarded(main) == 130 and "same command continues" in capsys.readouterr().err


@pytest.mark.fault
def test_a_cut_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "x"
    nbtools.write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with says("cannot be written: No space left on device"):
        nbtools.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# ---- the environment ------------------------------------------------------------------------------

@pytest.fixture
def home(tmp_path, monkeypatch):
    """A repository without an environment, where nothing is downloaded: pip notes what it was asked for."""
    (tmp_path / "requirements.txt").write_text("# what a chapter imports\npip >= 1  # any\n")
    (tmp_path / "pyproject.toml").write_text('[dependency-groups]\ndev = [\n    "nbclient>=0.1",\n]\n')
    monkeypatch.setattr(nbtools, "ROOT", tmp_path)
    asked = []
    monkeypatch.setattr(run, "pip", lambda python, *given: asked.append(given))
    return tmp_path, asked


def test_the_repository_s_own_requirements_are_the_six_packages():
    names = [re.match(r"[\w-]+", line).group() for line in run.requirements()]
    assert names == ["torch", "torchvision", "numpy", "matplotlib", "jupyter", "tqdm"]
    assert all(re.search(r">=[\d.]+,<[\d.]+$", line) for line in run.requirements(dev=True))


def test_an_environment_is_made_once_and_used_again(home):
    root, asked = home
    python = run.environment()
    assert Path(python).exists() and asked == [("pip>=1",)] and not (root / ".venv" / "unfinished").exists()
    assert run.environment() == python and len(asked) == 1


def test_the_cpu_build_is_asked_for_first(home, monkeypatch):
    root, asked = home
    (root / "requirements.txt").write_text("torch>=2.9,<3\ntorchvision>=0.24\nnumpy>=1\n")
    monkeypatch.setattr(run, "missing", lambda python, wanted: [])
    monkeypatch.setattr(run.subprocess, "call", lambda command: 0)
    run.environment(cpu=True)
    assert asked == [("--index-url", run.CPU_BUILD, "torch>=2.9,<3", "torchvision>=0.24"), tuple(run.requirements())]


@pytest.mark.fault
@pytest.mark.parametrize("fault", [KeyboardInterrupt, Stop("no network"), MemoryError])
def test_an_interrupted_installation_leaves_no_half_environment(home, monkeypatch, fault):
    root, _ = home

    def pip(*_):
        assert (root / ".venv" / "unfinished").exists()
        raise fault
    monkeypatch.setattr(run, "pip", pip)
    monkeypatch.setattr(run.subprocess, "call", lambda command: 0)  # making the empty environment is not the point here
    with pytest.raises(type(fault) if isinstance(fault, Stop) else fault):
        run.environment()
    assert not (root / ".venv").exists()


@pytest.mark.fault
def test_a_killed_installation_is_made_anew(home):
    root, asked = home
    (root / ".venv").mkdir()
    (root / ".venv" / "unfinished").touch()
    (root / ".venv" / "half").touch()
    run.environment()
    assert len(asked) == 1 and not (root / ".venv" / "half").exists() and not (root / ".venv" / "unfinished").exists()


@pytest.mark.fault
def test_somebody_s_own_environment_is_completed_and_never_removed(home):
    root, asked = home
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    with says(".venv is there but lacks pip>=1"):
        run.environment()
    assert asked == [("pip>=1",)] and (root / ".venv" / "pyvenv.cfg").exists()


@pytest.mark.fault
def test_an_environment_without_pip_as_uv_makes_it_gets_one(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    python = tmp_path.joinpath("v", *(["Scripts", "python.exe"] if os.name == "nt" else ["bin", "python"]))
    with says("pip could not install"):  # so there is one now
        run.pip(python, "--no-index", "no-package-of-this-name")
    assert subprocess.call([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL) == 0


@pytest.mark.fault
def test_where_pip_cannot_be_made_the_sentence_has_the_command(tmp_path, monkeypatch):
    for name in ("pip", "ensurepip"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with says("has no pip", f'uv pip install --python {sys.executable} "numpy>=1"', "remove the folder .venv"):
        run.pip(sys.executable, "numpy>=1")


@pytest.mark.fault
@pytest.mark.parametrize("part", ["venv", "ensurepip"])
def test_a_python_without_venv_s_parts_says_what_to_install(home, monkeypatch, part):
    root, _ = home
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name == part else True)
    with says("sudo apt install python3-venv"):
        run.environment()
    assert not (root / ".venv").exists()


@pytest.mark.fault
@pytest.mark.parametrize("have,wanted,lacks", [
    ("2.8.1", "flame>=2.9,<3", True), ("3.0", "flame>=2.9,<3", True), ("2.10.0+cpu", "flame>=2.9,<3", False),
    ("2.9", "flame>=2.9.0,<3", True), ("2.9.0", "flame>=2.9,<3", False), ("2.14.1.dev2", "flame>=2.9,<3", False)])
def test_versions_are_compared_as_numbers(tmp_path, monkeypatch, have, wanted, lacks):
    info = tmp_path / f"flame-{have}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: flame\nVersion: {have}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = [line for line in run.missing(sys.executable, [wanted]) if have in line]
    assert bool(found) == lacks


@pytest.mark.fault
def test_here_says_what_is_missing_and_how_to_get_it(home):
    root, _ = home
    (root / "requirements.txt").write_text("numpy>=99\nno-such-package>=1\n")
    with says("This environment lacks numpy>=99 (there is", "no-such-package>=1", "pip install"):
        run.environment(here=True)


@pytest.mark.fault
def test_a_torch_that_does_not_import_is_missing(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so is not there')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "a PyTorch that starts: libcudart.so is not there" in run.missing(sys.executable, ["torch>=2.9,<3"])


# ---- benchmark and search -------------------------------------------------------------------------

SMALL = dict(batch=16, projector=[8, 8], widths=[8, 16], sizes=[16, 16], weight=0.05, lr=0.02, adam_lr=0.002, steps=4)


def test_the_benchmark_measures_every_figure_with_the_chapters_code(chapter3):
    import bench
    m = chapter3
    found = bench.measure(m, m.CIFAR10(m.get_cifar10(), train=True), SMALL, rounds=1, count=2, image_counts=(500, 1500))
    assert found["speedup"] == pytest.approx(found["pairs_per_second"]["ours"] / found["pairs_per_second"]["plain"])
    assert 0 < found["augmentation_share"] < 1 and found["share_of_peak"] > 0
    assert found["two_processes"]["speedup"] == pytest.approx(
        found["two_processes"]["pairs_per_second"] / found["pairs_per_second"]["ours"])
    assert set(found["images"]) == {"500", "1500"} and not list(m.DATA.rglob("bench*.pt"))


def test_the_benchmark_of_a_gpu_times_each_preset(chapter3):
    import bench
    found = bench.each_preset(chapter3.load_split(chapter3.get_cifar10(), train=True)[0], ("smoke",), count=2)
    assert found["smoke"]["minutes"] == pytest.approx(found["smoke"]["milliseconds"] * 6 / 60_000)  # its six steps


FROZEN = {"knn", "knn_whitened", "linear_100", "linear_1"}


@pytest.mark.parametrize("kind,changes,reached", [
    ("pretraining", {}, FROZEN), ("pretraining", {"grey": 0.1, "small": (0.1, 0.5)}, FROZEN), ("supervised", {"percent": 10}, {"validation"})])
def test_a_trial_reaches_figures_for_every_seed_on_validation_pictures(chapter3, kind, changes, reached):
    import search
    found = search.run(chapter3, f"test-{kind}", kind, [0, 1], {"lr": 0.01, **changes})
    assert found["settings"]["lr"] == 0.01 and reached <= set(found)
    assert all(len(found[key]["seeds"]) == 2 and 0 <= found[key]["mean"] <= 100 for key in reached)


def test_a_fine_tuning_trial_starts_from_the_published_network_and_a_probe(chapter3, monkeypatch):
    import search
    m, asked, began = chapter3, [], []
    donor = m.make_classifier(5, m.pretraining_settings("smoke")["widths"])[0]

    def recorded_network(name, modules):
        asked.append(name)
        modules["backbone"].load_state_dict(donor.state_dict())

    def train_supervised(model, *given):
        began.append((model[0].state_dict(), model[1].weight.clone()))
        return {"seconds": 1.0}

    monkeypatch.setattr(m, "recorded_network", recorded_network)
    monkeypatch.setattr(m, "train_supervised", train_supervised)
    found = search.run(m, "test", "finetuning", [0], {"percent": 10, "backbone_lr": 0.1})
    assert asked == ["barlow-twins-seed0"] and set(found) >= {"validation", "seconds"}
    (backbone, head), = began
    assert all(m.torch.equal(backbone[name], value) for name, value in donor.state_dict().items()) and head.abs().max() > 0


def test_a_trial_draws_the_views_that_its_settings_say(chapter3):
    import search
    torch = chapter3.torch
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    views = {name: search.view(chapter3, {"sizes": (24, 16), **settings}) for name, settings in
             {"same": {}, "grey": {"grey": 1.0}, "small": {"small": (1.0, 1.0)}}.items()}
    drawn = {name: {size: view(images, chapter3.seeded(0), size) for size in (24, 16)} for name, view in views.items()}
    assert torch.equal(drawn["same"][24], chapter3.random_view(images, chapter3.seeded(0), 24))
    colours = drawn["grey"][24] * chapter3.STD + chapter3.MEAN
    assert (colours - colours.mean(1, keepdim=True)).abs().max() < 1e-3
    assert torch.equal(drawn["small"][24], drawn["same"][24]) and not torch.equal(drawn["small"][16], drawn["same"][16])
