"""Write the two folded cells of every page: machinery from the appendices, teaching cells of earlier chapters.

    python3 tools/weave.py     writes what it can, and says what does not fit

The notebooks are the source of all code. A teaching cell carries the tag `keep`, a machinery cell the tag `machinery`,
each on the page where it is explained. A page gets those that it uses, and those that they use: machinery into the cell
tagged `woven`, teaching cells into the one tagged `recap`. `namespace` makes a module of them for tests and benchmarks,
so no line of code exists twice.
"""

import ast
import hashlib
import io
import itertools
import json
import linecache
import os
import re
import sys
import textwrap
import tokenize
import types
from typing import NamedTuple

import nbtools
from nbtools import (
    Stop,
    address,
    chapters,
    code_cells,
    guarded,
    names,
    number,
    pages,
    read,
    results,
    source,
    tags,
    the_cell,
    write,
)

FORM = ' { display-mode: "form" }\n# Written by tools/weave.py.\n\n'
WOVEN = "#@title Machinery (explained in the appendices)" + FORM
RECAP = "#@title Recap: what earlier chapters built" + FORM
WIDTH = 88
COUNT = itertools.count()
MISSING = '''except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"This kernel has no {error.name}. Choose the kernel of the series' own .venv,"
        " or run  %pip install torch torchvision numpy matplotlib tqdm  and restart."
    ) from None'''


class Piece(NamedTuple):
    """A kept cell: machinery or teaching."""

    page: str  # the stem of its home
    name: str  # the cell's id
    machinery: bool
    text: str  # without its imports
    defined: set
    used: set
    imports: dict  # {import statement: the name it binds}


def piece(path, cell):
    """A kept cell taken apart."""
    lines, imports = source(cell).splitlines(), {}
    for node in ast.parse(source(cell)).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            lines[node.lineno - 1:node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
            for alias in node.names:
                name = (alias.asname or alias.name).partition(".")[0]
                one = ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], node.level)
                imports[ast.unparse(one)] = name
    text = re.sub(r"\n{4,}", "\n\n\n", "\n".join(line for line in lines if line is not None)).strip("\n")
    return Piece(path.stem, cell["id"], "machinery" in tags(cell), text, *names(text), imports)


def kept():
    """(pieces of all readable pages in woven order, faults)."""
    pieces, faults = [], []
    for path in pages():
        try:
            nb = read(path)
        except Stop as fault:
            faults.append(str(fault))
            continue
        pieces += [piece(path, cell) for cell in code_cells(nb) if {"keep", "machinery"} & set(tags(cell))]
    home, imported = {}, {}
    for one in pieces:
        place = f"{one.page}: {one.name}"
        for name in sorted(one.defined - {"_"}):
            if name in home:
                faults.append(f"{name} is defined by two kept cells, {home[name]} and {place}. Keep one.")
            home.setdefault(name, place)
        for statement, name in one.imports.items():
            other = imported.setdefault(name, statement)
            if statement.split(".")[0] != other.split(".")[0]:  # import a.b and import a.c go together
                faults.append(f"{place}: {statement}, but elsewhere {other}. Write both alike.")
    for name in sorted(set(home) & set(imported)):
        faults.append(f"{name} is imported, but {home[name]} defines it too. Rename one.")
    return pieces, faults


def needed(path, nb, pieces):
    """(pieces that a page gets from others, in order; the import statements that it needs)."""
    home = {name: one for one in reversed(pieces) for name in one.defined}
    imports = {statement: name for one in pieces for statement, name in one.imports.items()}
    earlier = {p.stem for p in before(path)}
    todo = {name for cell in code_cells(nb, "woven", "recap", "parameters") for name in names(source(cell))[1]}
    todo |= {name for one in pieces if one.name == "environment" for name in one.defined}
    asked, found = set(), set()
    while todo:
        name = todo.pop()
        asked.add(name)
        one = home.get(name)
        if one and one.page != path.stem and (one.machinery or one.page in earlier):
            found.add((one.page, one.name))
            todo |= one.used - asked
    return [one for one in pieces if (one.page, one.name) in found], [s for s, name in imports.items() if name in asked]


def before(path):
    """The chapters whose teaching cells and figures a page may use: the earlier ones; all of them for an appendix."""
    return [p for p in chapters() if p < path or path not in chapters()]


def header(path, pieces):
    """The first lines of a woven cell: recorded figures, the address, and the names of all machinery."""
    shown = {}
    for name in [number(p) for p in chapters() if p == path or p in before(path)]:
        found = results(name) or {}
        if "rows" in found:  # else its first run is not finished
            kept = {key: value for key, value in found.items() if key not in ("remembered", "curves")
                    and (key == "rows" or len(json.dumps(value)) < 4000)}
            shown[name] = json.loads(json.dumps(kept), parse_float=lambda number: float(f"{float(number):.6g}"))
    given = {"RECORDED", "ADDRESS", "CHAPTER", "MACHINERY"}
    words = sorted(given.union(*(one.defined for one in pieces if one.machinery)))
    lines = [f'    "{line} "' for line in textwrap.wrap(" ".join(words), WIDTH - 7)]
    lines[-1] = lines[-1][:-2] + '"'
    return "\n".join([f"RECORDED = {literal(shown)}",
                      f'ADDRESS = "{address()}"', f'CHAPTER = "{number(path)}"', "MACHINERY = (", *lines, ")"])


def literal(value):
    """A dict as Python code in full lines, for cells that few open: pprint would fill them with blanks."""
    pieces, lines = [], [""]
    for token in tokenize.generate_tokens(io.StringIO(repr(value)).readline):
        if token.string in (",", ":"):
            pieces[-1] += f"{token.string} "
        else:
            pieces.append(token.string.strip())
    for piece in pieces:
        if len(f"RECORDED = {lines[-1]}{piece}".rstrip()) > WIDTH:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def import_lines(imports):
    """Import statements as text; what has to be installed stands in a block that says how."""
    def module(statement):
        return statement.split()[1].partition(".")[0]
    ours = sorted(set(imports), key=lambda line: (line.startswith("from"), line))
    standard = [line for line in ours if module(line) in sys.stdlib_module_names]
    others = [line for line in ours if line not in standard]
    text = "\n".join(standard)
    if others:
        text += "\n\ntry:\n" + "\n".join(f"    {line}" for line in others) + "\n" + MISSING
    return text.strip("\n")


def texts(path, nb, pieces):
    """The texts of a page's woven cell and of its recap; an empty recap where nothing is needed."""
    theirs, imports = needed(path, nb, pieces)
    cells = {machinery: [f"# from {one.page}: {one.name}\n{one.text}" for one in theirs if one.machinery == machinery and one.text]
             for machinery in (True, False)}
    woven = WOVEN + "\n\n\n".join(part for part in [header(path, pieces), import_lines(imports), *cells[True]] if part)
    return woven, RECAP + "\n\n\n".join(cells[False]) if cells[False] else ""


def fold(nb, tag, name, text, after):
    """Put a text into the page's folded cell with this tag, which is made, or taken away, where it has to be."""
    cells = [cell for cell in nb["cells"] if tag in tags(cell)]
    if not text:
        nb["cells"] = [cell for cell in nb["cells"] if tag not in tags(cell)]
        return
    if not cells:
        place = next(k for k, cell in enumerate(nb["cells"]) if after in tags(cell)) + 1
        cells = [{"cell_type": "code", "execution_count": None, "id": name, "metadata": {}, "outputs": [], "source": []}]
        nb["cells"][place:place] = cells
    cell = cells[0]
    cell["metadata"].update({"tags": [tag, "hide-input"], "jupyter": {"source_hidden": True}, "cellView": "form"})
    cell["source"] = text.splitlines(keepends=True)


def weave():
    """Write both folded cells of every page; return what is wrong, one sentence each."""
    pieces, faults = kept()
    for path in pages():
        try:
            nb = read(path)
            the_cell(path, nb, "parameters")
            woven, recap = texts(path, nb, pieces)
        except Stop as fault:
            if str(fault) not in faults:
                faults.append(str(fault))
            continue
        fold(nb, "woven", "machinery", woven, "parameters")
        fold(nb, "recap", "recap", recap, "woven")
        write(path, nb)
    return faults


def woven_faults():
    """Where the pages are not what `weave` writes."""
    pieces, faults = kept()
    for path in pages():
        nb = read(path)
        woven, recap = texts(path, nb, pieces)
        for tag, text in (("woven", woven), ("recap", recap)):
            if [source(cell) for cell in nbtools.tagged(nb, tag)] != [text] * bool(text):
                faults.append(f"{path.name}: its {tag} cell is not what tools/weave.py writes; run it.")
    return faults


# ---- what a recording is tied to ------------------------------------------------------------------

def plain(node):
    """A syntax tree as lists, without docstrings: the same on every supported Python, and as appendix B's fingerprint has it."""
    if isinstance(node, list):
        return [plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    if isinstance(node, ast.JoinedStr):  # Python 3.12 leaves empty pieces in f"{x:}"
        fields["values"] = [piece for piece in node.values if getattr(piece, "value", None) != ""]
    return [type(node).__name__, *([name, plain(value)] for name, value in fields.items()
                                   if value not in (None, []) and name not in ("kind", "type_comment"))]


def code_hash(nb):
    """A hash of the code that a page's figures depend on: its recap and its own cells, but no machinery.

    It is of syntax trees, so that comments, docstrings and layout do not count.
    """
    trees = [plain(ast.parse(source(cell))) for cell in code_cells(nb, "woven", "machinery", "parameters")]
    return hashlib.sha256(json.dumps(trees).encode()).hexdigest()


def namespace(upto, **settings):
    """The kept cells of chapters 1 to `upto`, and all machinery, as a module; settings as PRESET="smoke".

    upto may also be a list of chapters, ["01", "03"]. Settings go to the parameter cell. Each cell is compiled under
    a file name of its own that `inspect` and `linecache` can read, as in Jupyter.
    """
    wanted = [f"{k + 1:02d}" for k in range(upto)] if isinstance(upto, int) else list(upto)
    there = {number(path): path for path in pages()}
    for name in wanted:
        if name not in there:
            raise Stop(f"There is no chapter {name} in notebooks/.")
    pieces, _ = kept()
    imports = {statement for one in pieces for statement in one.imports
               if one.machinery or one.page.split("_")[0] in wanted}
    last = there[wanted[-1]] if wanted else pages()[0]
    cells = [("parameters", source(the_cell(last, read(last), "parameters"))),
             ("header", header(last, pieces) + "\n" + import_lines(imports))]
    for tag, homes in (("machinery", pages()), ("keep", [there[name] for name in sorted(wanted)])):
        cells += [(f"{path.stem}: {cell['id']}", source(cell)) for path in homes for cell in code_cells(read(path))
                  if tag in tags(cell)]
    module = types.ModuleType(f"chapters_{'_'.join(wanted)}_{next(COUNT)}")  # classes find their globals by this name
    sys.modules[module.__name__] = module
    before = dict(os.environ)
    os.environ.update({f"NOLABELS_{name}": str(value) for name, value in settings.items()})
    try:
        for place, text in cells:
            name, text = f"<{place}>", text + "\n"
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            exec(compile(text, name, "exec"), module.__dict__)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return module


def main():
    """Weave, and say what is wrong."""
    faults = weave()
    if faults:
        raise Stop("\n".join(faults))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
