"""What the tools share: how they stop, and how pages are found, read, run and written.

A page is a notebook: a chapter NN_*.ipynb or an appendix A_*.ipynb. Like run.py, which uses it, this file needs only the
standard library when it is imported, and is written so that an older Python can read it and be told what it lacks.
"""

import ast
import asyncio
import json
import os
import re
import shutil
import signal
import symtable
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
URL = re.compile(r'(?m)^(Repository = )"(.*)"$')  # where the series is published, in pyproject.toml


class Stop(Exception):
    """Something a person has to decide or repair, in one sentence that says how."""


def guarded(main):
    """Run a main function; a Stop or Ctrl-C ends it with a sentence instead of a traceback."""
    try:
        if sys.version_info < (3, 10):
            raise Stop("This needs Python 3.10 or newer, and {} is {}.{}. Install a newer one from your system's"
                       " packages or python.org and start this with it, as in: python3.12 {}".format(
                           sys.executable, sys.version_info[0], sys.version_info[1], " ".join(sys.argv)))
        return main()
    except Stop as fault:
        print("\n{}".format(fault), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command continues.", file=sys.stderr)
        return 130


def numbers(text):
    """ "1,3" as [1, 3]; nothing as None."""
    if text and not re.fullmatch(r"\d+(,\d+)*", text):
        raise Stop("{} is not a list of numbers like 1,2,3".format(text))
    return [int(part) for part in text.split(",")] if text else None


def write_text(path, text):
    """Write a text file so that a cut write leaves the old one whole."""
    part = "{}.part".format(path)
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(part, path)
    except OSError as fault:
        if os.path.exists(part):
            os.remove(part)
        raise Stop("{} cannot be written: {}.".format(path, fault.strerror)) from None


# ---- pages ----------------------------------------------------------------------------------------

def chapters(folder=None):
    """The chapters' paths in order."""
    return sorted((folder or ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def appendices(folder=None):
    """The appendices' paths in order."""
    return sorted((folder or ROOT / "notebooks").glob("[A-Z]_*.ipynb"))


def pages(folder=None):
    """All pages in the order of woven code: what a chapter needs is explained in the appendices, so they come first."""
    return appendices(folder) + chapters(folder)


def number(path):
    """What stands before the first _ of a page's name: "03", "A"."""
    return path.name.split("_")[0]


def results(name):
    """What data/results/NAME.json holds; None when there is no such file."""
    path = ROOT / "data" / "results" / (name + ".json")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=int)
    except FileNotFoundError:
        return None
    except ValueError as fault:
        raise Stop("data/results/{} is not JSON with plain numbers ({}).".format(path.name, fault)) from None


def address():
    """Where the series is published, from pyproject.toml; "" while that is not set."""
    found = URL.search((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found.group(2) if found else ""


def read(path, ids=True):
    """A notebook as a dict, checked for what the tools rely on.

    Colab saves cells without ids. A committed notebook must have them; with ids=False they are made up.
    """
    try:
        nb = json.loads(path.read_text(encoding="utf-8"))
        if not ids:
            nb["nbformat"], nb["nbformat_minor"] = 4, 5
            for k, cell in enumerate(nb["cells"]):
                cell.setdefault("id", "cell-{}".format(k + 1))
        names = [cell["id"] for cell in nb["cells"]]
        kinds = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"]) for cell in nb["cells"]]
    except FileNotFoundError:
        raise Stop("{} is not there.".format(path.name)) from None
    except KeyError as fault:
        raise Stop("{}: a cell or the notebook itself has no {}. Open and save it with a current Jupyter (nbformat"
                   " 4.5), or take it back with git checkout.".format(path.name, fault)) from None
    except (ValueError, TypeError, AttributeError) as fault:
        raise Stop("{} is not a whole notebook ({}). Take it back with git checkout.".format(path.name, fault)) from None
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise Stop("{}: two cells have the id {}. Rename one.".format(path.name, ", ".join(sorted(twice))))
    for name, (kind, text, _) in zip(names, kinds):
        if kind == "code" and ids:
            try:
                ast.parse(text)
            except SyntaxError as fault:
                raise Stop("{}, cell {}: {} in line {}.".format(path.name, name, fault.msg, fault.lineno)) from None
    return nb


def write(path, nb):
    """Write a notebook the way the repository keeps it, if anything changed."""
    text = json.dumps(nb, indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def source(cell):
    """A cell's text."""
    return "".join(cell["source"])


def tags(cell):
    """A cell's tags."""
    return cell["metadata"].get("tags", [])


def tagged(nb, tag):
    """The notebook's cells that carry a tag."""
    return [cell for cell in nb["cells"] if tag in tags(cell)]


def the_cell(path, nb, tag):
    """The one code cell that carries a tag."""
    cells = tagged(nb, tag)
    if len(cells) != 1 or cells[0]["cell_type"] != "code":
        raise Stop("{} needs exactly one code cell tagged {}; it has {} tagged so.".format(path.name, tag, len(cells)))
    return cells[0]


def code_cells(nb, *without):
    """The notebook's code cells, without those that carry one of the tags."""
    return [cell for cell in nb["cells"] if cell["cell_type"] == "code" and not set(without) & set(tags(cell))]


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


# ---- running --------------------------------------------------------------------------------------

def execute(label, nb, folder, settings, copy, watch=None):
    """Run a notebook (a dict) in a folder and return it with its outputs; a copy is kept whatever happens.

    The kernel is this Python's own. settings go to the page's parameter cell; watch is called whenever the
    kernel says something. Standard output is merged and keeps the last state of each progress line.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    node = nbformat.reads(json.dumps(nb), as_version=4)
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    progress = Progress(label, node)
    interrupts = []

    class Client(NotebookClient):
        """Shows progress, and hands Ctrl-C to the notebook, which then keeps what it has trained."""

        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] == "stream":
                progress.show(msg["content"]["text"])
            if watch:
                watch()
            return super().process_message(msg, cell, cell_index)

    def interrupt():
        interrupts.append(True)
        asyncio.ensure_future(client.km.interrupt_kernel() if len(interrupts) == 1
                              else client.km.shutdown_kernel(now=True))

    async def ready(notebook):
        try:
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
        except NotImplementedError:  # Windows: Ctrl-C reaches the kernel by itself
            pass

    def after(cell, cell_index, **_):
        progress.end()
        if interrupts:
            raise KeyboardInterrupt

    # without a folder of kernels to look in, "python3" is the kernel of this Python
    kernels = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = Client(node, km=kernels, timeout=None, record_timing=False, on_notebook_start=ready,
                    extra_arguments=["--log-level=ERROR"], on_cell_executed=after,
                    on_cell_start=lambda cell, cell_index: progress.start(cell_index))
    place = dict(os.environ, PYDEVD_DISABLE_FILE_VALIDATION="1",
                 **{"NOLABELS_" + name: str(value) for name, value in settings.items()})
    try:
        client.execute(env=place, cwd=str(folder), cleanup_kc=True)
    except CellExecutionError as fault:
        if interrupts or fault.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        raise Stop("{}, cell {}: {}: {}\nWhat ran is in {}.".format(
            label, progress.cell, fault.ename, fault.evalue[:1000], copy)) from None
    except DeadKernelError:
        if interrupts:
            raise KeyboardInterrupt from None
        raise Stop("{}, cell {}: the Python that ran it was ended from outside; most often the memory was full."
                   " Finished trainings and the last checkpoint are kept: the same command continues.".format(
                       label, progress.cell)) from None
    finally:
        progress.end()
        for cell in node.cells:
            if cell.cell_type == "code":
                cell.outputs = tidy(cell.outputs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_text(copy, nbformat.writes(node) + "\n")
    return json.loads(nbformat.writes(node))


def tidy(outputs):
    """A cell's outputs with each stream in one piece, and of lines written over themselves the last state."""
    merged = []
    for output in outputs:
        streams = [old for old in merged if old.get("name") and old.get("name") == output.get("name")]
        if streams:
            streams[0]["text"] += output["text"]
        else:
            merged.append(output)
    for output in merged:
        if output["output_type"] == "stream":
            text = re.sub(r"[^\n]*\r(?=[^\n])", "", output["text"].replace("\r\n", "\n"))
            output["text"] = re.sub(r" *\r\Z", "", text)  # a progress bar that was wiped away
    return merged


class Progress:
    """One live line while a cell runs; a cell that took time leaves its last one."""

    def __init__(self, label, node):
        self.label, self.cells, self.cell, self.line = label, [c.id for c in node.cells], "", ""
        self.live, self.shown = sys.stdout.isatty(), 0

    def start(self, index):
        """A cell begins."""
        self.cell, self.index, self.line, self.since = self.cells[index], index, "", time.time()
        self.show("")

    def show(self, text):
        """The running cell has written something."""
        self.line = ([part.strip() for part in re.split("[\r\n]", text) if part.strip()] or [self.line])[-1]
        if self.live:
            print("\r\033[K" + self.text()[:shutil.get_terminal_size().columns - 1], end="", flush=True)
        elif time.time() - max(self.shown, self.since) > 30:
            self.shown = time.time()
            print(self.text(), flush=True)

    def text(self):
        """The line that says where the run is."""
        return "{} {:3.0f} %  {:.0f} s  {}  {}".format(
            self.label, 100 * self.index / len(self.cells), time.time() - self.since, self.cell, self.line)

    def end(self):
        """The running cell is done."""
        if self.cell and self.live:
            print("\r\033[K", end="", flush=True)
        if self.cell and time.time() - self.since > 3:
            print(self.text(), flush=True)
        self.since = time.time()
