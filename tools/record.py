"""Run the pages and keep what they show: the recorded run.

    python3 tools/record.py                                    every page whose record is missing, stale or not whole
    python3 tools/record.py --chapters 2,3                     these, recorded or not
    python3 tools/record.py --preset quick --seeds 0           a partial record, marked so
    python3 tools/record.py --seeds 1 --figures-only --commit  the trainings of one seed, and a commit after each
    python3 tools/record.py --check                            say what does not fit together

A record grows training by training: a page writes each finished one into data/results/NN.json (the cell `remember` of
appendix B), where the next run finds it, on any machine. With --figures-only that is all that is kept; a last run with
all seeds then trains nothing and keeps the outputs: seed 0's networks, which it draws from, are taken from data/networks.
Stopped or killed, the same command continues.
"""

import argparse
import getpass
import hashlib
import json
import re
import socket
import statistics
import subprocess
import sys
import textwrap

import nbtools
from nbtools import (
    Stop,
    appendices,
    chapters,
    code_cells,
    execute,
    guarded,
    number,
    numbers,
    read,
    results,
    source,
    the_cell,
    write,
    write_text,
)
from prose import PICTURE, fill, marker_faults, prose, recorded_picture
from weave import code_hash, namespace, weave, woven_faults

KINDS = {"chapter": str, "preset": str, "complete": bool, "seconds": (int, float), "hardware": str, "versions": dict,
         "data_md5": str, "seeds": list, "rows": dict}
ONE_SEED = ("01", "06")  # chapters whose figures are those of the first seed: a whole record of them has no other
UNIT = {"fingerprint", "parts", "figures", "log", "seconds", "hardware"}


def results_path(name):
    """The results file of a chapter."""
    return nbtools.ROOT / "data" / "results" / f"{name}.json"


def put_results(name, found):
    """Write a results file."""
    results_path(name).parent.mkdir(parents=True, exist_ok=True)
    write_text(results_path(name), json.dumps(found, indent=1, allow_nan=False) + "\n")


def series(nb, path, preset, complete):
    """What a recorded notebook's metadata say of its run."""
    return {"code_hash": code_hash(nb), "preset": preset, "complete": complete,
            "results": f"data/results/{number(path)}.json" if path in chapters() else None}


def is_recorded(path, seeds, preset):
    """Whether the record of a page is one of its present code, with these seeds, and as whole as it can be."""
    nb, found, complete = read(path), results(number(path)) or {}, is_complete(number(path), preset, seeds)
    whole = path in appendices() or found.get("seeds") == seeds and found.get("complete") == complete
    return whole and nb["metadata"].get("series") == series(nb, path, preset, complete)


def is_complete(name, preset, seeds):
    """What a complete record of a chapter is: three seeds at preset full, or the one that its figures depend on."""
    return preset == "full" and seeds == ([0] if name in ONE_SEED else [0, 1, 2])


# ---- running --------------------------------------------------------------------------------------

def commit(name, message):
    """Commit data/results and data/networks, and nothing else that may lie about."""
    places = [place for place in ("data/results", "data/networks") if (nbtools.ROOT / place).exists()]
    git = ["git", "-C", str(nbtools.ROOT)]
    added = subprocess.run([*git, "add", "--", *places], capture_output=True, text=True)
    done = subprocess.run([*git, "commit", "-q", "-m", message, "--", *places], capture_output=True, text=True)
    if added.returncode or done.returncode:  # the figures are on the disk all the same
        print(f"git did not commit {name}: {(added.stderr or done.stderr or done.stdout).strip()}", flush=True)


class Watch:
    """Called whenever a running page says something: commits each unit of work that has come into its results file."""

    def __init__(self, name, wanted):
        self.name, self.wanted, self.changed = name, wanted, None
        self.known = self.units()

    def units(self):
        """{unit: fingerprint} of the results file."""
        return {unit: kept["fingerprint"] for unit, kept in (results(self.name) or {}).get("remembered", {}).items()}

    def __call__(self):
        path = results_path(self.name)
        changed = path.stat().st_mtime_ns if self.wanted and path.exists() else None
        if changed == self.changed:
            return
        self.changed, now = changed, self.units()
        fresh = [unit for unit in now if now[unit] != self.known.get(unit)]
        self.known = now
        if fresh:
            named = ", ".join(textwrap.shorten(unit, 60) for unit in fresh)  # a unit's name holds its arguments
            commit(self.name, f"Record of chapter {self.name}: {named}")


def record(which=None, seeds=(0, 1, 2), preset="full", commits=False, figures_only=False):
    """Run pages in order and keep their figures and outputs; leaves out those recorded already, unless `which` names them."""
    given = list(seeds)
    if preset == "smoke":
        raise Stop("What smoke finds on generated pictures is no record.")
    faults = weave()
    if faults:
        raise Stop("\n".join(faults))
    restore(preset)
    for path in chapters() + appendices():
        name = number(path)
        seeds = given[:1] if name in ONE_SEED else given
        if name not in which if which else is_recorded(path, seeds, preset):
            continue
        before = results(name)
        if before and not is_recorded(path, seeds, preset):
            put_results(name, {**before, "complete": False})
        nb, watch = read(path), Watch(name, commits)
        sitting = nbtools.ROOT / "data" / "runs" / "record" / path.name
        settings = {"PRESET": preset, "SEEDS": ",".join(map(str, seeds)), "NETWORK": "train", "DATA": "",
                    "RESULTS": "../data/results" if path in chapters() else ""}
        done = execute(path.stem, nb, path.parent, settings, sitting, watch)
        watch()
        faults = [] if figures_only else output_faults(done)
        if faults:
            raise Stop("\n".join([f"{path.name} is not recorded; its run is in {sitting.relative_to(nbtools.ROOT)}.", *faults]))
        if path in chapters():
            keep_figures(name, path, preset, seeds, before, figures_only)
        if not figures_only:
            keep_outputs(path, nb, done, series(nb, path, preset, is_complete(name, preset, seeds)))
        if commits:
            commit(name, f"Record of chapter {name}: figures at preset {preset}, seeds {', '.join(map(str, seeds))}")
    weave()
    try:
        fill()
    except Stop as fault:  # numbers of pages that are still to be recorded
        print(fault, flush=True)


def keep_figures(name, path, preset, seeds, before, figures_only):
    """Finish the results file that a page has written: publish its networks, and say whether it is complete."""
    found = results(name)
    if not found or "rows" not in found:
        raise Stop(f"{path.name} wrote no results file.")
    found["networks"] = publish(name, found, preset) if preset == "full" else found.get("networks", {})
    if figures_only:  # the rows are of these seeds alone; the last run, with all seeds, writes those that count
        found = {**{**(before or {}), "complete": False}, **{key: found[key] for key in ("remembered", "networks") if key in found}}
    else:
        found["complete"] = is_complete(name, preset, seeds)
    if found["complete"]:
        lacks = [training for training in found.get("publish", []) if f"{training}.pt" not in found["networks"]]
        if lacks:
            raise Stop(f"The networks {', '.join(lacks)} were trained on another machine and not published there:"
                       " delete what the results file remembers of them and record again.")
    if preset == "full" and not figures_only:  # a first look's units have served
        found["remembered"] = {unit: kept for unit, kept in found.get("remembered", {}).items() if unit.startswith("full ")}
    put_results(name, found)
    wanted = networks()
    for file in (nbtools.ROOT / "data" / "networks").glob("*.pt"):
        if file.name not in wanted:
            file.unlink()


def publish(name, found, preset):
    """{file: sha256} of the trainings that a results file names under "publish"; those with a checkpoint here are written."""
    kept, m = dict(found.get("networks", {})), None
    for training in found.get("publish", []):
        there = list((nbtools.ROOT / "data" / "checkpoints").glob(f"{training}-{preset}-*.pt"))
        if there:
            m = m or namespace(int(name), PRESET=preset)
            newest = max(there, key=lambda path: path.stat().st_mtime)
            kept.update(m.publish(newest, nbtools.ROOT / "data" / "networks"))
    return kept


def restore(preset):
    """Put published networks where their trainings look for checkpoints, so that no machine trains them again."""
    whole, m = {}, None
    for file in networks():
        m = m or namespace(1, PRESET=preset)
        content = m.torch.load(nbtools.ROOT / "data" / "networks" / file, weights_only=True)
        kept = whole.setdefault(content["header"]["name"], content)
        kept["modules"].update(content["modules"])
    for training, content in whole.items():
        header = content["header"]
        path = nbtools.ROOT / "data" / "checkpoints" / f"{training}-{preset}-{m.fingerprint(header['parts'])}.pt"
        if header["preset"] == preset and set(content["modules"]) != {"backbone"} and not path.exists():  # seed 0's are whole
            path.parent.mkdir(parents=True, exist_ok=True)
            m.torch.save({**content, "step": header["steps"]}, path)


def networks():
    """{file: sha256} of all published networks that the results files name."""
    return {file: sha for path in chapters() for file, sha in (results(number(path)) or {}).get("networks", {}).items()}


def keep_outputs(path, nb, done, metadata):
    """Write the outputs of a run back into the page."""
    fresh = read(path)
    if code_hash(fresh) != code_hash(nb):
        raise Stop(f"{path.name} was changed while it ran; record it again.")
    ran = {cell["id"]: cell for cell in done["cells"]}
    for cell in code_cells(fresh):
        cell.update({key: ran[cell["id"]][key] for key in ("outputs", "execution_count")})
    fresh["metadata"]["series"] = metadata
    write(path, fresh)


# ---- what does not fit ----------------------------------------------------------------------------

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
                r"\b[A-Za-z]:\\[^\s'\"]+", re.escape(str(nbtools.ROOT)), rf"\b{re.escape(getpass.getuser())}@\S+"]
    if len(host) > 4 and host != "localhost":
        patterns.append(rf"\b{re.escape(host)}\b")
    return [found[0] for pattern in patterns for found in re.finditer(pattern, text)]


def result_faults(name, found):
    """Where a chapter's results file leaves the agreed form."""
    found = found or {}
    faults = [f"{key} is missing or of another kind" for key, kind in KINDS.items() if not isinstance(found.get(key), kind)]
    if faults:
        return faults
    if found["chapter"] != name:
        faults.append(f"it holds chapter {found['chapter']}")
    if found["complete"] and not is_complete(name, found["preset"], found["seeds"]):
        faults.append(f"it is called complete with preset {found['preset']} and seeds {found['seeds']}")
    for row, columns in found["rows"].items():
        for percent, cell in columns.items():
            values = cell.get("seeds") or [-1]
            drawn = cell.get("seed_numbers", found["seeds"])
            spread = statistics.stdev(values) if len(values) > 1 else 0
            if (len(values) != len(drawn) or not set(drawn) <= set(found["seeds"]) or not all(0 <= x <= 100 for x in values)
                    or not re.fullmatch(r"\d+(\.\d+)?", percent) or abs(cell.get("mean", -1) - statistics.mean(values)) > 0.01
                    or abs(cell.get("std", -1) - spread) > 0.01):
                faults.append(f"{row}.{percent} does not hold mean and deviation of its seeds in percent")
    for unit, kept in found.get("remembered", {}).items():
        if not UNIT <= set(kept):
            faults.append(f"the unit {unit} lacks {', '.join(sorted(UNIT - set(kept)))}")
    return faults


def network_faults():
    """Where data/networks/ is not what the results files name, or a file has more than 5 MB."""
    there = {path.name: path for path in (nbtools.ROOT / "data" / "networks").glob("*")}
    wanted = networks()
    for file in sorted({*there, *wanted}):
        if file not in there or file not in wanted or hashlib.sha256(there[file].read_bytes()).hexdigest() != wanted[file]:
            yield f"data/networks/{file} is not what the results name; run tools/record.py"
        elif there[file].stat().st_size > 5e6:
            yield f"data/networks/{file} has more than 5 MB"


def page_faults(path):
    """What does not fit of one page: its code and its record, its results file, its outputs, its size."""
    nb, name = read(path), number(path)
    found, said = results(name) or {}, nb["metadata"].get("series")
    faults = [f"{path.name}: {fault}" for fault in output_faults(nb)]
    if path in chapters() and "rows" not in found or said != series(nb, path, found.get("preset", (said or {}).get("preset")),
                                                                    found.get("complete", (said or {}).get("complete"))):
        faults.append(f"{path.name}: its code is not the code of the recorded run; run tools/record.py")
    if path in chapters():
        faults += [f"data/results/{name}.json: {fault}" for fault in result_faults(name, found)]
    if path.stat().st_size > 1e6:
        faults.append(f"{path.name} has more than 1 MB")
    return faults


def check():
    """Everything that does not fit together, one sentence each."""
    faults = woven_faults()
    if len({source(the_cell(path, read(path), "parameters")) for path in chapters() + appendices()}) > 1:
        faults.append("the pages' parameter cells differ")
    for path in chapters() + appendices():
        faults += page_faults(path)
    faults += network_faults()
    for path, place, text in prose():
        faults += marker_faults(path, place, text)
        for found in PICTURE.finditer(text):
            png, alt = recorded_picture(*found.groups()[1:])
            at = nbtools.ROOT / found[1]
            if not png or not at.exists() or at.read_bytes() != png or found[0] != f"![{alt}]({found[1]})":
                faults.append(f"{path.name}: {found[1]} is not the picture of the recorded run; run tools/prose.py fill")
    return faults


def main():
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chapters", help="these alone, recorded or not: 2,3 (or A for an appendix)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--preset", choices=["quick", "full", "long"], default="full")
    parser.add_argument("--commit", action="store_true", help="git commit data/results after each finished training")
    parser.add_argument("--figures-only", action="store_true", help="keep what is finished, but no outputs")
    parser.add_argument("--check", action="store_true", help="run nothing; say what does not fit together")
    given = parser.parse_args()
    if given.check:
        faults = check()
        print("\n".join(faults) or "Everything fits.")
        return 1 if faults else 0
    which = [part.zfill(2) if part.isdigit() else part for part in given.chapters.split(",")] if given.chapters else None
    for name in which or []:
        if name not in map(number, chapters() + appendices()):
            raise Stop(f"There is no page {name}.")
    record(which, numbers(given.seeds), given.preset, given.commit, given.figures_only)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
