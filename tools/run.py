"""Make an environment, get CIFAR-10, run the chapters and show what came out.

    python3 tools/run.py                  chapters 1 to 3 at preset quick: about a quarter of an hour on two cores
    python3 tools/run.py --cpu            the same, with the smaller PyTorch that has no CUDA inside
    python3 tools/run.py --here           in the Python environment this is started from
    python3 tools/run.py --preset full --chapters 2,3

The environment goes to .venv, the executed chapters to data/runs/notebooks; what is committed stays as
it is. Needs Python 3.10 or newer and nothing else. (This file is written so that an older Python can
still read it and say so.)
"""

import argparse
import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
UNFINISHED = os.path.join(VENV, "unfinished")  # lies in an environment until it is complete
CPU_BUILD = "https://download.pytorch.org/whl/cpu"


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


# ---- the environment ------------------------------------------------------------------------------

# Run by the Python in question: prints one line for each thing that is missing.
PROBE = r"""
import importlib.metadata, re, sys
def release(text):
    return [int(part) for part in re.match(r"[\d.]*\d", text).group().split(".")]
if sys.version_info < (3, 10):
    print("Python 3.10 or newer")
for line in sys.argv[1:]:
    name, bounds = re.fullmatch(r"([\w.-]+)(.*)", line).groups()
    try:
        have = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        print(line)
        continue
    for sign, bound in re.findall(r"(>=|<)([\d.]+)", bounds):
        if (release(have) >= release(bound)) != (sign == ">="):
            print(line, "(there is", have + ")")
            break
if "torch" in " ".join(sys.argv):
    try:
        import torch, torchvision, numpy, matplotlib, tqdm, nbclient, ipykernel
    except Exception as fault:
        print("packages that import:", fault)
"""


def requirements(dev=False):
    """The lines of requirements.txt, and with dev those of the dev group in pyproject.toml."""
    with open(os.path.join(ROOT, "requirements.txt"), encoding="utf-8") as file:
        lines = [line.split("#")[0].replace(" ", "").strip() for line in file]
    if dev:
        with open(os.path.join(ROOT, "pyproject.toml"), encoding="utf-8") as file:
            group = re.search(r"(?ms)^dev = \[(.*?)^\]", file.read())
        lines += re.findall(r'"([^"]+)"', group.group(1))
    return [line for line in lines if line]


def missing(python, wanted):
    """What an environment lacks of the wanted packages, as a list of texts."""
    try:
        probe = subprocess.run([python, "-c", PROBE] + wanted, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               universal_newlines=True)
    except OSError as fault:
        return ["a Python that starts: {}".format(fault)]
    return probe.stdout.splitlines() or (["a Python that works"] if probe.returncode else [])


def pip(python, *arguments):
    """Install packages with an environment's own pip."""
    if subprocess.call([python, "-m", "pip", "install", "--disable-pip-version-check"] + list(arguments)):
        raise Stop("pip could not install the packages; its last lines above say why. Without a network, or"
                   " without room on the disk, mend that and start again; with packages of your own, use --here.")


def environment(here=False, cpu=False, dev=False):
    """The path of a Python that has everything; makes .venv when there is none.

    An environment that is not complete is never left behind: it is removed when making it fails, and one
    whose making was killed carries a mark and is made anew.
    """
    wanted = requirements(dev)
    if here:
        lacks = missing(sys.executable, wanted)
        if lacks:
            raise Stop("This environment lacks {}. Install with: {} -m pip install {}".format(
                ", ".join(lacks), sys.executable, " ".join('"{}"'.format(line) for line in wanted)))
        return sys.executable
    python = os.path.join(VENV, *(["Scripts", "python.exe"] if os.name == "nt" else ["bin", "python"]))
    if os.path.exists(VENV) and not os.path.exists(UNFINISHED):
        lacks = missing(python, wanted)
        if lacks and not missing(python, []):
            print(".venv lacks {}: installing that.".format(", ".join(lacks)), flush=True)
            pip(python, *wanted)
            lacks = missing(python, wanted)
        if lacks:
            raise Stop(".venv is there but lacks {}. Remove that folder and start again.".format(", ".join(lacks)))
        return python
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise Stop("This Python comes without venv. Install it (on Debian and Ubuntu: sudo apt install python3-venv)"
                   " and start again, or use --here in an environment of your own.")
    big = sys.platform.startswith("linux") and not cpu
    print("Making an environment in .venv from requirements.txt, once. It downloads about {}.{}".format(
        "3 GB and takes 6 GB on the disk" if big else "0.5 GB and takes 1.5 GB on the disk",
        " Without an NVIDIA GPU, the smaller build does: stop with Ctrl-C and add --cpu (0.5 GB)." if big else ""),
        flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        os.mkdir(VENV)
        open(UNFINISHED, "w").close()
        if subprocess.call([sys.executable, "-m", "venv", VENV]):
            raise Stop("Making .venv failed; the lines above say why.")
        if cpu:
            pip(python, "--index-url", CPU_BUILD, *[line for line in wanted if line.startswith("torch")])
        pip(python, *wanted)
        lacks = missing(python, wanted)
        if lacks:
            raise Stop("The new environment lacks {}.".format(", ".join(lacks)))
        os.remove(UNFINISHED)
    except BaseException:
        shutil.rmtree(VENV, ignore_errors=True)
        raise
    return python


def in_environment(script, given, rest, dev=False):
    """Start a script again, with --here, by the Python of the environment; the script's exit status."""
    process = subprocess.Popen([environment(cpu=given.cpu, dev=dev), script, "--here"] + rest)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the script has got it too, and ends by itself
            pass


# ---- the chapters ---------------------------------------------------------------------------------

def numbers(text):
    """ "1,3" as [1, 3]; nothing as None."""
    if text and not re.fullmatch(r"\d+(,\d+)*", text):
        raise Stop("{} is not a list of numbers like 1,2,3".format(text))
    return [int(part) for part in text.split(",")] if text else None


def write_text(path, text):
    """Write a text file so that a cut write leaves the old one whole."""
    part = "{}.part".format(path)
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except OSError as fault:
        if os.path.exists(part):
            os.remove(part)
        raise Stop("{} cannot be written: {}.".format(path, fault.strerror)) from None


def chapter_paths(folder):
    """The chapters of a folder in order."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def execute(label, nb, folder, settings, copy):
    """Run a notebook (a dict) in a folder and return it with its outputs; a copy is kept whatever happens.

    The kernel is this Python's own. settings go to the chapter's parameter cell. Standard output is merged
    and keeps the last state of each progress line.
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
        """Shows progress, and hands Ctrl-C to the chapter, which then keeps what it has trained."""

        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] == "stream":
                progress.show(msg["content"]["text"])
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
            output["text"] = re.sub(r"[^\n]*\r(?=[^\n])", "", output["text"].replace("\r\n", "\n"))
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


ROWS = (("raw_pixels", "raw pixels, linear"), ("random_frozen", "random backbone, linear"),
        ("supervised", "supervised"), ("bt_linear", "Barlow Twins, linear"), ("bt_knn", "Barlow Twins, k-NN"),
        ("bt_projector", "its projector, linear"), ("bt_finetuned", "Barlow Twins, fine-tuned"))


def rows(folder, names):
    """The rows of the results files in a folder, later chapters over earlier ones."""
    found = {}
    for name in names:
        try:
            found.update(json.loads((folder / (name + ".json")).read_text(encoding="utf-8"))["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not run, not recorded, or not readable: its places in the table stay empty
    return found


def table(ours, recorded, preset):
    """This run's accuracies beside the recorded ones, as text."""
    percents = ("100", "10", "1")
    lines = ["{:26s}{:24s}{}".format("test accuracy in %", "this run ({})".format(preset), "recorded run"),
             "{:26s}{}".format("with this share of labels", " ".join("{:>6s}%".format(p) for p in percents * 2))]
    for key, label in ROWS:
        values = [found.get(key, {}).get(p, {}).get("mean") for found in (ours, recorded) for p in percents]
        if any(value is not None for value in values):
            cells = ["{:7.1f}".format(value) if value is not None else "      –" for value in values]
            lines.append("{:26s}{}".format(label, " ".join(cells)))
    if preset == "smoke":
        lines.append("(smoke trains on a few generated pictures: this run's figures mean nothing)")
    return "\n".join(lines)


def main():
    """Read the command line, see to the environment, run the chapters."""
    from pathlib import Path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["quick", "full", "long", "smoke"], default="quick")
    parser.add_argument("--chapters", default="1,2,3", help="which ones: 1,3")
    parser.add_argument("--seeds", default="0", help="one run for each: 0,1,2")
    parser.add_argument("--here", action="store_true", help="use the environment this is started from")
    parser.add_argument("--cpu", action="store_true", help="install the smaller PyTorch without CUDA")
    given = parser.parse_args()
    numbers(given.seeds)
    there = {int(path.name[:2]): path for path in chapter_paths(Path(ROOT, "notebooks"))}
    wanted = numbers(given.chapters) or []
    for chapter in wanted:
        if chapter not in there:
            raise Stop("There is no chapter {}; there are {}.".format(chapter, ", ".join(map(str, there)) or "none"))
    if not given.here:
        return in_environment(os.path.abspath(__file__), given, sys.argv[1:])
    environment(here=True)
    data = Path(ROOT, "notebooks", os.environ.get("NOLABELS_DATA") or Path(ROOT, "data"))
    results = Path(ROOT, "notebooks", os.environ.get("NOLABELS_RESULTS") or data / "runs")
    since = time.time()
    for path in [there[chapter] for chapter in wanted]:
        with open(path, encoding="utf-8") as file:
            nb = json.load(file)
        print("{} at preset {}".format(path.stem, given.preset), flush=True)
        execute(path.stem, nb, path.parent, {"PRESET": given.preset, "SEEDS": given.seeds},
                results / "notebooks" / path.name)
    names = [path.name[:2] for path in there.values()]
    print("\nDone in {:.1f} minutes.\n\n{}\n".format((time.time() - since) / 60, table(
        rows(results, names), rows(Path(ROOT, "data", "results"), names), given.preset)))
    print("What ran is in {}. Open the chapters with: {} lab notebooks".format(
        os.path.relpath(results / "notebooks"), os.path.relpath(Path(sys.executable).parent / "jupyter")))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
