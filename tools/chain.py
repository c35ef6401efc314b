"""The maintainers' tool: keeps the chapters, their recorded run and their prose in step.

    python3 tools/chain.py weave         write each chapter's recap and recorded cell
    python3 tools/chain.py record        run the chapters at preset full and keep what they show
    python3 tools/chain.py fill          write measured numbers into the prose and the README
    python3 tools/chain.py address URL   write where the series is published ("" takes it out)
    python3 tools/chain.py check         say what does not fit together

The notebooks are the source. A code cell that later chapters need carries the tag `keep`; `weave`
copies the kept cells that a chapter uses into its recap, and `namespace` makes a module of them for
tests and benchmarks, so no line of code exists twice. Needs the standard library, and for `record`
what requirements.txt brings.
"""

import argparse
import ast
import base64
import getpass
import hashlib
import json
import linecache
import os
import pprint
import re
import shutil
import socket
import statistics
import symtable
import sys
import types
from pathlib import Path

from run import Stop, chapter_paths, execute, guarded, numbers, write_text

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS, RESULTS = ROOT / "notebooks", ROOT / "data" / "results"
SITTING = ROOT / "data" / "runs" / "record"  # where a recording in progress keeps its figures
BACKBONES, CHECKPOINTS = ROOT / "data" / "backbones", ROOT / "data" / "checkpoints"
RECAP = ("#@title Recap: what the earlier chapters built (written by tools/chain.py, do not edit)"
         ' { display-mode: "form" }\n\n')
RECORDED = ("#@title Recorded figures to compare with (written by tools/chain.py, do not edit)"
            ' { display-mode: "form" }\n\n')
PERCENTS = ("1", "2", "5", "10", "20", "100")
ROWS = re.compile(r"raw_pixels|random_frozen|supervised|bt_projector|bt_finetuned"
                  r"|(bt|simclr|moco|swav|vicreg)_(linear|knn)")


# ---- notebooks ------------------------------------------------------------------------------------

def chapters():
    """The chapters' paths in order."""
    return chapter_paths(NOTEBOOKS)


def number(path):
    """The two digits that name a chapter's results: "03"."""
    return path.name[:2]


def read(path):
    """A notebook as a dict, checked for what the tools rely on."""
    try:
        nb = json.loads(path.read_text(encoding="utf-8"))
        ids = [cell["id"] for cell in nb["cells"]]
        kinds = [(cell["cell_type"], "".join(cell["source"])) for cell in nb["cells"]]
    except FileNotFoundError:
        raise Stop(f"{path.name} is not there.") from None
    except KeyError as fault:
        raise Stop(f"{path.name}: a cell or the notebook itself has no {fault}. Open and save it with a"
                   " current Jupyter (nbformat 4.5), or take it back with git checkout.") from None
    except (ValueError, TypeError) as fault:
        raise Stop(f"{path.name} is not a whole notebook ({fault}). Take it back with git checkout.") from None
    twice = {i for i in ids if ids.count(i) > 1}
    if twice:
        raise Stop(f"{path.name}: two cells have the id {', '.join(sorted(twice))}. Rename one.")
    for cell, (kind, text) in zip(nb["cells"], kinds):
        if kind == "code":
            try:
                ast.parse(text)
            except SyntaxError as fault:
                raise Stop(f"{path.name}, cell {cell['id']}: {fault.msg} in line {fault.lineno}.") from None
    return nb


def write(path, nb):
    """Write a notebook the way the repository keeps it, if anything changed."""
    text = json.dumps(nb, indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def source(cell):
    """A cell's text."""
    return "".join(cell["source"])


def tagged(nb, tag):
    """The notebook's cells that carry a tag."""
    return [cell for cell in nb["cells"] if tag in cell["metadata"].get("tags", [])]


def the_cell(path, nb, tag):
    """The one cell that carries a tag."""
    cells = tagged(nb, tag)
    if len(cells) != 1 or cells[0]["cell_type"] != "code":
        raise Stop(f"{path.name} needs exactly one code cell tagged {tag}; it has {len(cells)} tagged so.")
    return cells[0]


def code_cells(nb, *without):
    """The notebook's code cells, without those that carry one of the tags."""
    return [cell for cell in nb["cells"] if cell["cell_type"] == "code"
            and not set(without) & set(cell["metadata"].get("tags", []))]


def kept_cells(nb):
    """The code cells that later chapters need."""
    return tagged(nb, "keep")


# ---- one source for each line of code -------------------------------------------------------------

class Generators(ast.NodeTransformer):
    """Makes generators of comprehensions: since Python 3.12 a comprehension's own names look like its surroundings'."""

    def visit_ListComp(self, node):
        self.generic_visit(node)
        return ast.GeneratorExp(node.elt, node.generators)

    def visit_DictComp(self, node):
        self.generic_visit(node)
        return ast.GeneratorExp(ast.Tuple([node.key, node.value], ast.Load()), node.generators)

    visit_SetComp = visit_ListComp


def names(text):
    """(defined, used): the global names that a piece of code binds at its top level and reads anywhere."""
    defined, used = set(), set()

    def visit(table, top):
        for symbol in table.get_symbols():
            if top and (symbol.is_assigned() or symbol.is_imported()):
                defined.add(symbol.get_name())
            if symbol.is_referenced() and (top or symbol.is_global()):
                used.add(symbol.get_name())
        for child in table.get_children():
            visit(child, False)

    text = ast.unparse(Generators().visit(ast.parse(text)))
    visit(symtable.symtable(text, "cell", "exec"), True)
    return defined, used


def recap(path):
    """The text of a chapter's recap: the kept cells of earlier chapters that it uses, and those they use."""
    kept, home = [], {}
    for earlier in [p for p in chapters() if p < path]:
        for cell in kept_cells(read(earlier)):
            defined, used = names(source(cell))
            place = f"{earlier.stem}: {cell['id']}"
            for name in defined - {"_"}:
                if name in home:
                    raise Stop(f"{name} is defined by two kept cells, {home[name]} and {place}. Keep one.")
                home[name] = place
            kept.append((place, source(cell), used))
    used_by = {place: used for place, _, used in kept}
    todo = {name for cell in code_cells(read(path), "recap", "recorded") for name in names(source(cell))[1]}
    needed = set()
    while todo:
        place = home.get(todo.pop())
        if place and place not in needed:
            needed.add(place)
            todo |= used_by[place]
    return RECAP + "\n\n\n".join(f"# from {place}\n{text}" for place, text, _ in kept if place in needed)


def recorded(path, own=True):
    """The text of a chapter's recorded cell: the committed figures of the earlier chapters and of its own."""
    wanted = [number(p) for p in chapters() if p < path or own and p == path]
    found = {name: results(name) for name in wanted if results(name)}
    return RECORDED + "RECORDED = " + pprint.pformat(found, width=110, compact=True, sort_dicts=False)


def weave():
    """Write recap and recorded cell of every chapter."""
    for path in chapters():
        nb = read(path)
        fold(the_cell(path, nb, "recorded"), recorded(path))
        if path != chapters()[0]:
            fold(the_cell(path, nb, "recap"), recap(path))
        write(path, nb)


def fold(cell, text):
    """Give a cell a text and fold it away in Jupyter, in Colab and on a site."""
    tags = [tag for tag in cell["metadata"].get("tags", []) if tag != "hide-input"] + ["hide-input"]
    cell["metadata"].update({"tags": tags, "jupyter": {"source_hidden": True}, "cellView": "form"})
    cell["source"] = text.splitlines(keepends=True)


def code_hash(nb):
    """A hash of a notebook's code: its syntax trees, so that comments, docstrings and layout do not count."""
    def plain(node):
        if isinstance(node, ast.AST):
            named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if named and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            fields = [(name, plain(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
            return [type(node).__name__, *(field for field in fields if field[0] not in ("kind", "type_comment"))]
        return [plain(item) for item in node] if isinstance(node, list) else repr(node)

    trees = [plain(ast.parse(source(cell))) for cell in code_cells(nb, "recorded")]
    return hashlib.sha256(json.dumps(trees).encode()).hexdigest()


def namespace(upto, **settings):
    """The kept cells of chapters 1 to `upto` as a module; settings as PRESET="smoke" go to the parameter cell.

    Each cell is compiled under a file name of its own that `inspect` can read, as in Jupyter.
    """
    module = types.ModuleType(f"chapters_1_to_{upto}")
    sys.modules[module.__name__] = module
    paths = chapters()[:upto]
    if len(paths) < upto:
        raise Stop(f"chapter {upto} is not in {NOTEBOOKS.name}/.")
    last = read(paths[-1])
    cells = [(paths[-1], the_cell(paths[-1], last, "parameters")), (paths[-1], the_cell(paths[-1], last, "recorded"))]
    cells += [(path, cell) for path in paths for cell in kept_cells(read(path))]
    before = dict(os.environ)
    os.environ.update({f"NOLABELS_{name}": str(value) for name, value in settings.items()})
    try:
        for path, cell in cells:
            name, text = f"<{path.stem}: {cell['id']}>", source(cell) + "\n"
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            exec(compile(text, name, "exec"), module.__dict__)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return module


# ---- the recorded run -----------------------------------------------------------------------------

def results(name):
    """What data/results/NAME.json holds; None when there is no such file."""
    path = RESULTS / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=int)
    except FileNotFoundError:
        return None
    except ValueError as fault:
        raise Stop(f"data/results/{path.name} is not JSON with plain numbers ({fault}).") from None


def is_recorded(path, seeds, preset):
    """Whether the committed run of a chapter is one of its present code, with these seeds."""
    nb, found = read(path), results(number(path)) or {}
    series = nb["metadata"].get("series", {})
    return (series.get("code_hash"), series.get("preset"), found.get("seeds")) == (
        code_hash(nb), preset, [int(seed) for seed in seeds.split(",")])


def record(which=None, seeds="0,1,2", preset="full"):
    """Run the chapters in order and keep their figures and outputs.

    Leaves out a chapter that is recorded already, unless `which` names it. Stopped or killed, the same
    call continues: a chapter's finished trainings and its last checkpoint are found again. The pretrained
    networks of a recorded chapter are published with it, so that another machine can go on from them.
    """
    weave()
    copy_missing(BACKBONES.glob("*.pt"), CHECKPOINTS)
    for path in chapters():
        name = number(path)
        if int(name) not in which if which else is_recorded(path, seeds, preset):
            continue
        SITTING.mkdir(parents=True, exist_ok=True)
        (SITTING / f"{name}.json").unlink(missing_ok=True)
        for earlier in RESULTS.glob("[0-9][0-9].json"):
            if earlier.stem < name:
                write_text(SITTING / earlier.name, earlier.read_text(encoding="utf-8"))
        nb = read(path)
        fold(the_cell(path, nb, "recorded"), recorded(path, own=False))
        settings = {"PRESET": preset, "SEEDS": seeds, "RESULTS": os.path.relpath(SITTING, NOTEBOOKS)}
        done = execute(path.stem, nb, NOTEBOOKS, settings, SITTING / path.name)
        faults = output_faults(done)
        if faults or not (SITTING / f"{name}.json").exists():
            raise Stop("\n".join([f"{path.name} is not recorded; its run is in {SITTING / path.name}.",
                                  *(faults or ["It wrote no results file."])]))
        fresh = read(path)
        if code_hash(fresh) != code_hash(nb):
            raise Stop(f"{path.name} was changed while it ran; record it again.")
        outputs = {cell["id"]: cell for cell in done["cells"]}
        for cell in code_cells(fresh):
            cell["outputs"] = outputs[cell["id"]]["outputs"]
            cell["execution_count"] = outputs[cell["id"]]["execution_count"]
        fresh["metadata"]["series"] = {"code_hash": code_hash(nb), "preset": preset,
                                       "results": f"data/results/{name}.json"}
        RESULTS.mkdir(parents=True, exist_ok=True)
        os.replace(SITTING / f"{name}.json", RESULTS / f"{name}.json")
        write(path, fresh)
        copy_missing((CHECKPOINTS / file for file in results(name).get("backbones", [])), BACKBONES)
    wanted = published_backbones()
    for path in BACKBONES.glob("*.pt"):
        if path.name not in wanted:
            path.unlink()
    weave()
    fill()


def published_backbones():
    """The file names of the pretrained networks that the recorded chapters name."""
    return {file for path in chapters() for file in (results(number(path)) or {}).get("backbones", [])}


def copy_missing(files, folder):
    """Copy files into a folder that does not hold them yet."""
    for file in files:
        if not (folder / file.name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / f"{file.name}.part")
            os.replace(folder / f"{file.name}.part", folder / file.name)


def output_faults(nb):
    """What a notebook's outputs show that a reader should not meet."""
    faults = []
    for cell in code_cells(nb):
        for output in cell["outputs"]:
            data = output.get("data", {})
            shown = ["".join(text) for kind, text in data.items() if kind.startswith("text/")]
            shown += ["".join(output.get("text", "")), "\n".join(output.get("traceback", []))]
            if output["output_type"] == "error":
                faults.append(f"cell {cell['id']} ended in an error: {output['ename']}: {output['evalue']}")
            if output.get("name") == "stderr":
                faults.append(f"cell {cell['id']} writes to stderr: {shown[-2].strip()[:200]}")
            if "image/png" in data and not output["metadata"].get("image/png", {}).get("alt"):
                faults.append(f"cell {cell['id']} shows a picture without alt text")
            faults += [f"cell {cell['id']} shows something private: {found}" for found in private("\n".join(shown))]
    return faults


def private(text):
    """Absolute paths, account and host names in a text."""
    host = socket.gethostname()
    patterns = [r"(?<![\w.:/~-])/(?:home|root|Users|tmp|work|mnt|opt|usr|var|srv|private|content)/[^\s'\"]*",
                r"\b[A-Za-z]:\\[^\s'\"]+", re.escape(str(ROOT)), rf"\b{re.escape(getpass.getuser())}@\S+"]
    if len(host) > 4 and host != "localhost":
        patterns.append(rf"\b{re.escape(host)}\b")
    return [found[0] for pattern in patterns for found in re.finditer(pattern, text)]


# ---- measured numbers and the address -------------------------------------------------------------

# A number in prose: <!--=03:rows.bt_linear.100.mean:.1f-->77.4<!--/-->, that is source, path and format; also
# 03:seconds / 60:.0f and 03:a.b - 02:c.d:.1f. Sources are 01, 02, …, bench and search, all in data/results/. It stands
# in the middle of a line, and not in code, maths, headings, links or alt text, where it would show.
# Others: <!--=colab-->, <!--=colab:02--> and <!--=repository-->, which depend on the address in pyproject.toml.
# A picture in the README, ![alt](data/results/03_label-curve.png), is the one that this chapter's cell has shown.
MARKER = re.compile(r"<!--=(.+?)-->(.*?)<!--/-->")
EXPRESSION = re.compile(r"(\d\d|bench|search):([\w.]+)(?: ([-+*/]) (?:(\d\d|bench|search):)?([\w.]+))?(?::([^:]*))?")
PICTURE = re.compile(r"!\[[^\]]*\]\((data/results/(\d\d)_([\w-]+)\.png)\)")
URL = re.compile(r'(?m)^(Repository = )"(.*)"$')


def look_up(name, dotted):
    """A value of a results file by its dotted path; a plain number stands for itself."""
    if re.fullmatch(r"[\d.]+", dotted):
        return float(dotted)
    value = results(name)
    for key in dotted.split("."):
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise Stop(f"data/results/{name}.json has no {dotted}") from None
    return value


def value(expression, path):
    """The text that belongs into a marker; None while the results file is missing."""
    if expression.partition(":")[0] in ("colab", "repository"):
        return published(expression, path)
    parts = EXPRESSION.fullmatch(expression)
    if not parts:
        raise Stop(f"{expression} is not a marker")
    name, first, sign, other, second, layout = parts.groups()
    if results(name) is None or other and results(other) is None:
        return None
    try:
        found = look_up(name, first)
        if sign:
            operate = {"+": float.__add__, "-": float.__sub__, "*": float.__mul__, "/": float.__truediv__}[sign]
            found = operate(float(found), float(look_up(other or name, second)))
        return format(found, layout or "")
    except (TypeError, ValueError, ZeroDivisionError) as fault:
        raise Stop(f"{expression}: {fault}") from None


def published(expression, path):
    """How to open a chapter in Colab, or where the repository is, by the address in pyproject.toml."""
    address = URL.search((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[2]
    if expression == "repository":
        return f"[{address.partition('://')[2]}]({address})" if address else "no address yet"
    wanted = expression.partition(":")[2] or number(path)
    name = next((p.name for p in chapters() if number(p) == wanted), None)
    if name is None:
        raise Stop(f"{expression}: there is no chapter {wanted}")
    if not address:
        return f"choose *File, Upload notebook* [there](https://colab.research.google.com) and give it `{name}`"
    place = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    return (f"press [![Open {name} in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"({place}/blob/main/notebooks/{name})")


def prose():
    """(path, cell id, text) of every piece of text that may hold markers."""
    for path in chapters():
        for cell in read(path)["cells"]:
            if cell["cell_type"] == "markdown":
                yield path, cell["id"], source(cell)
    if (ROOT / "README.md").exists():
        yield ROOT / "README.md", "", (ROOT / "README.md").read_text(encoding="utf-8")


def filled(text, path):
    """A text with the values that belong into its markers."""
    def put(found):
        new = value(found[1], path)
        return found[0] if new is None else f"<!--={found[1]}-->{new}<!--/-->"
    return MARKER.sub(put, text)


def fill():
    """Write measured numbers and addresses into the chapters' prose and the README."""
    for path in chapters():
        nb = read(path)
        for cell in nb["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = filled(source(cell), path).splitlines(keepends=True)
        write(path, nb)
    readme = ROOT / "README.md"
    text = filled(readme.read_text(encoding="utf-8"), readme)
    for found in PICTURE.finditer(text):
        png, alt = recorded_picture(*found.groups()[1:])
        if png:
            text = text.replace(found[0], f"![{alt}]({found[1]})")
            (ROOT / found[1]).write_bytes(png)
    write_text(readme, text)


def recorded_picture(name, cell_id):
    """(PNG bytes, alt text) of the picture that a chapter's cell has shown; (None, None) before it has."""
    for path in chapters():
        for cell in code_cells(read(path)):
            for output in cell["outputs"] if number(path) == name and cell["id"] == cell_id else []:
                if "image/png" in output.get("data", {}):
                    alt = output["metadata"].get("image/png", {}).get("alt", "")
                    return base64.b64decode("".join(output["data"]["image/png"])), alt
    return None, None


def address(url):
    """Set where the series is published: pyproject.toml, then badges and links everywhere."""
    url = re.sub(r"(\.git)?/*$", "", url.strip())
    if url and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise Stop('The address has the form https://github.com/OWNER/NAME (Colab opens notebooks from there),'
                   ' or "" for none.')
    project = ROOT / "pyproject.toml"
    write_text(project, URL.sub(rf'\1"{url}"', project.read_text(encoding="utf-8")))
    fill()


def marker_faults(path, place, text):
    """What is wrong with the markers of a piece of prose."""
    where = f"{path.name} {place}".strip()
    if text.count("<!--=") != len(MARKER.findall(text)):
        yield f"{where}: a marker is not closed by <!--/--> in its line"
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```") or line.count("$$") % 2:
            fenced = not fenced
        for found in MARKER.finditer(line):
            before = MARKER.sub("", line[:found.start()])
            if (fenced or re.match(r"\s*#|[\s>*+-]*(\d+[.)])?\s*$", before) or before.count("`") % 2
                    or before.count("$") % 2 or before.count("[") > before.count("]")):
                yield f"{where}: {found[0]} would show at a line's start, in code, maths, a heading or a link"
            try:
                new = value(found[1], path)
            except Stop as fault:
                yield f"{where}: {fault}"
            else:
                if new is None:
                    yield f"{where}: {found[1]} is not measured yet"
                elif new != found[2]:
                    yield f"{where}: {found[1]} is {new}, the text says {found[2]}"


# ---- what does not fit ----------------------------------------------------------------------------

def result_faults(name, found, preset="full"):
    """Where a chapter's results file leaves the agreed form."""
    wanted = {"chapter": str, "preset": str, "seconds": (int, float), "hardware": str, "versions": dict,
              "data_md5": str, "seeds": list, "rows": dict}
    found = found or {}
    faults = [f"{key} is missing or of another kind" for key, kind in wanted.items()
              if not isinstance(found.get(key), kind)]
    if faults:
        return faults
    if found["chapter"] != name or found["preset"] != preset:
        faults.append(f"it holds chapter {found['chapter']} at preset {found['preset']}")
    for row, columns in found["rows"].items():
        if not ROWS.fullmatch(row) or not {"1", "10", "100"} <= set(columns) <= set(PERCENTS):
            faults.append(f"{row} with the columns {', '.join(columns)} is not one of the agreed rows")
        for percent, cell in columns.items():
            values = cell.get("seeds")
            if (not values or len(values) not in (1, len(found["seeds"])) or not all(0 <= x <= 100 for x in values)
                    or abs(cell.get("mean", -1) - statistics.mean(values)) > 0.01
                    or abs(cell.get("std", -1) - (statistics.stdev(values) if len(values) > 1 else 0)) > 0.01):
                faults.append(f"{row}.{percent} does not hold mean and deviation of its seeds in percent")
    return faults


def check():
    """Everything that does not fit together, one sentence each."""
    faults, parameters = [], {source(the_cell(path, read(path), "parameters")) for path in chapters()}
    if len(parameters) > 1:
        faults.append("the chapters' parameter cells differ")
    for path in chapters():
        nb, name = read(path), number(path)
        series = nb["metadata"].get("series", {})
        if source(the_cell(path, nb, "recorded")) != recorded(path):
            faults.append(f"{path.name}: the recorded cell is not what weave writes")
        if path != chapters()[0] and source(the_cell(path, nb, "recap")) != recap(path):
            faults.append(f"{path.name}: the recap is not what weave writes; run tools/chain.py weave")
        if not results(name) or series.get("code_hash") != code_hash(nb):
            faults.append(f"{path.name}: its code is not the code of the recorded run; run tools/chain.py record")
        else:
            faults += [f"data/results/{name}.json: {fault}" for fault in result_faults(name, results(name))]
        faults += [f"{path.name}: {fault}" for fault in output_faults(nb)]
        if path.stat().st_size > 1e6:
            faults.append(f"{path.name} has more than 1 MB")
    there = {path.name for path in BACKBONES.glob("*.pt")}
    faults += [f"data/backbones/{file} is not what the results name; run tools/chain.py record"
               for file in sorted(there ^ published_backbones())]
    for path, place, text in prose():
        faults += marker_faults(path, place, text)
        for found in PICTURE.finditer(text):
            png, alt = recorded_picture(*found.groups()[1:])
            there = (ROOT / found[1]).exists() and (ROOT / found[1]).read_bytes()
            if not png or there != png or found[0] != f"![{alt}]({found[1]})":
                faults.append(f"{path.name}: {found[1]} is not the picture of the recorded run; run tools/chain.py fill")
    return faults


def main():
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("weave")
    commands.add_parser("fill")
    commands.add_parser("check")
    recorder = commands.add_parser("record")
    recorder.add_argument("--chapters", help="these alone, recorded or not: 2,3")
    recorder.add_argument("--seeds", default="0,1,2")
    commands.add_parser("address").add_argument("url")
    given = parser.parse_args()
    if given.command == "record":
        record(numbers(given.chapters), given.seeds)
    elif given.command == "address":
        address(given.url)
    elif given.command == "check":
        faults = check()
        print("\n".join(faults) or "Everything fits.")
        return 1 if faults else 0
    else:
        {"weave": weave, "fill": fill}[given.command]()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
