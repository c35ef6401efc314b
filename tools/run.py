"""Make an environment, get CIFAR-10, run the chapters and show what came out.

    python3 tools/run.py                  chapters 1 to 3 at preset quick: about a quarter of an hour on two cores
    python3 tools/run.py --cpu            the same, with the smaller PyTorch that has no CUDA inside
    python3 tools/run.py --here           in the Python environment this is started from
    python3 tools/run.py --preset full --chapters 2,3

The environment goes to .venv, the executed chapters to data/runs/notebooks; what is committed stays as it is. Needs
Python 3.10 or newer and nothing else. (This file and nbtools.py are written so that an older Python can still read
them and say so.)
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbtools
from nbtools import Stop, chapters, execute, guarded, number, numbers, read

CPU_BUILD = "https://download.pytorch.org/whl/cpu"

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
        if name == "torch":
            import torch, torchvision
    except importlib.metadata.PackageNotFoundError:
        print(line)
        continue
    except Exception as fault:
        print("a PyTorch that starts:", fault)
        continue
    for sign, bound in re.findall(r"(>=|<)([\d.]+)", bounds):
        if (release(have) >= release(bound)) != (sign == ">="):
            print(line, "(there is", have + ")")
            break
"""


# ---- the environment ------------------------------------------------------------------------------

def requirements(dev=False):
    """The lines of requirements.txt, and with dev those of the dev group in pyproject.toml."""
    text = (nbtools.ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = [line.split("#")[0].replace(" ", "").strip() for line in text.splitlines()]
    if dev:
        group = re.search(r"(?ms)^dev = \[(.*?)^\]", (nbtools.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        lines += re.findall(r'"([^"]+)"', group.group(1))
    return [line for line in lines if line]


def missing(python, wanted):
    """What an environment lacks of the wanted packages, as a list of texts."""
    try:
        probe = subprocess.run([str(python), "-c", PROBE] + wanted, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               universal_newlines=True)
    except OSError as fault:
        return ["a Python that starts: {}".format(fault)]
    return probe.stdout.splitlines() or (["a Python that works"] if probe.returncode else [])


def pip(python, *arguments):
    """Install packages with an environment's own pip, which is made where there is none (uv leaves it out)."""
    def quiet(*command):
        return subprocess.call([str(python), "-m"] + list(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if quiet("pip", "--version") and quiet("ensurepip"):
        raise Stop("This environment has no pip (uv makes them so). Install with: uv pip install --python {} {}"
                   " and start again; or remove the folder .venv.".format(python, " ".join(
                       '"{}"'.format(line) for line in arguments)))
    if subprocess.call([str(python), "-m", "pip", "install", "--disable-pip-version-check"] + list(arguments)):
        raise Stop("pip could not install the packages; its last lines above say why. Without a network, or"
                   " without room on the disk, mend that and start again; with packages of your own, use --here.")


def environment(here=False, cpu=False, dev=False):
    """The path of a Python that has everything; makes .venv when there is none.

    An environment that is not complete is never left behind: it is removed when making it fails, and one whose making
    was killed carries a mark and is made anew.
    """
    wanted = requirements(dev)
    if here:
        lacks = missing(sys.executable, wanted)
        if lacks:
            raise Stop("This environment lacks {}. Install with: {} -m pip install {}".format(
                ", ".join(lacks), sys.executable, " ".join('"{}"'.format(line) for line in wanted)))
        return sys.executable
    venv = nbtools.ROOT / ".venv"
    unfinished = venv / "unfinished"  # lies in an environment until it is complete
    python = str(venv.joinpath(*(["Scripts", "python.exe"] if os.name == "nt" else ["bin", "python"])))
    if venv.exists() and not unfinished.exists():
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
    shutil.rmtree(str(venv), ignore_errors=True)
    try:
        venv.mkdir()
        unfinished.touch()
        if subprocess.call([sys.executable, "-m", "venv", str(venv)]):
            raise Stop("Making .venv failed; the lines above say why.")
        if cpu:
            pip(python, "--index-url", CPU_BUILD, *[line for line in wanted if line.startswith("torch")])
        pip(python, *wanted)
        lacks = missing(python, wanted)
        if lacks:
            raise Stop("The new environment lacks {}.".format(", ".join(lacks)))
        unfinished.unlink()
    except BaseException:
        shutil.rmtree(str(venv), ignore_errors=True)
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


# ---- what came out --------------------------------------------------------------------------------

ROWS = (("raw_pixels", "raw pixels, linear"), ("random_frozen", "untrained backbone, linear"),
        ("supervised", "supervised"), ("bt_linear", "Barlow Twins, linear"), ("bt_knn", "Barlow Twins, k-NN"),
        ("bt_knn_whitened", "the same, whitened"), ("bt_spread", "few labels, all pictures"),
        ("bt_finetuned", "Barlow Twins, fine-tuned"), ("patches_linear", "K-Means on patches, linear"))


def rows(folder, names):
    """(rows, presets) of the results files in a folder; of two rows with one name the earlier chapter's.

    Chapter 5 pretrains with Barlow Twins again, for a shorter time.
    """
    found, presets = {}, []
    for name in names:
        try:
            content = json.loads((folder / (name + ".json")).read_text(encoding="utf-8"))
            found = dict(content["rows"], **found)
            presets += [content["preset"]] if content["rows"] and content["preset"] not in presets else []
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not run, not recorded, or not readable: its places in the table stay empty
    return found, ", ".join(presets)


def table(ours, recorded, preset, recorded_preset):
    """This run's accuracies beside the recorded ones, as text; those of generated pictures stand alone and say so."""
    percents, sides = ("100", "10", "1", "0.2"), [ours, recorded]
    heads = ["this run ({})".format(preset), "recorded run ({})".format(recorded_preset) if recorded_preset else "recorded run"]
    if preset == "smoke":
        sides, heads = sides[:1], ["generated pictures: means nothing"]
    lines = ["{:27s}".format("test accuracy in %") + "".join("{:33s}".format(head) for head in heads).rstrip(),
             "{:27s}".format("with this share of labels") + " ".join("{:>6s}%".format(p) for p in percents * len(sides))]
    for key, label in ROWS:
        values = [side.get(key, {}).get(p, {}).get("mean") for side in sides for p in percents]
        if any(value is not None for value in values):
            cells = ["{:7.1f}".format(value) if value is not None else "      –" for value in values]
            lines.append("{:27s}".format(label) + " ".join(cells))
    return "\n".join(lines)


def main():
    """Read the command line, see to the environment, run the chapters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["quick", "full", "long", "smoke"], default="quick")
    parser.add_argument("--chapters", default="1,2,3", help="which ones: 1,3")
    parser.add_argument("--seeds", default="0", help="one run for each: 0,1,2")
    parser.add_argument("--here", action="store_true", help="use the environment this is started from")
    parser.add_argument("--cpu", action="store_true", help="install the smaller PyTorch without CUDA")
    given = parser.parse_args()
    numbers(given.seeds)
    there = {int(number(path)): path for path in chapters()}
    wanted = numbers(given.chapters) or []
    for chapter in wanted:
        if chapter not in there:
            raise Stop("There is no chapter {}; there are {}.".format(chapter, ", ".join(map(str, there)) or "none"))
    if not given.here:
        return in_environment(os.path.abspath(__file__), given, sys.argv[1:])
    environment(here=True)
    root = nbtools.ROOT
    data = Path(root, "notebooks", os.environ.get("NOLABELS_DATA") or root / "data")
    results = Path(root, "notebooks", os.environ.get("NOLABELS_RESULTS") or data / "runs")
    since = time.time()
    for path in [there[chapter] for chapter in wanted]:
        print("{} at preset {}".format(path.stem, given.preset), flush=True)
        execute(path.stem, read(path, ids=False), path.parent, {"PRESET": given.preset, "SEEDS": given.seeds},
                results / "notebooks" / path.name)
    names = [number(path) for path in there.values()]
    recorded, recorded_preset = rows(root / "data" / "results", names)
    print("\nDone in {:.1f} minutes.\n\n{}\n".format(
        (time.time() - since) / 60, table(rows(results, names)[0], recorded, given.preset, recorded_preset)))
    print("What ran is in {}. Open the chapters with: {} lab notebooks".format(
        os.path.relpath(str(results / "notebooks")), os.path.relpath(str(Path(sys.executable).parent / "jupyter"))))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
