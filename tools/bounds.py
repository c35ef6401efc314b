"""Run the tests with the oldest and with the newest packages that requirements.txt allows, each in a throw-away environment.

    python3 tools/bounds.py                  both ends; downloads about 6 GB and takes as long as the tests do, twice
    python3 tools/bounds.py oldest           the lower bounds alone: torch==2.9.*, numpy==1.26.*, ...
    python3 tools/bounds.py newest -m fault  what follows goes to pytest
    python3.13 tools/bounds.py newest        with another Python: the environment is of the one this is started from

Ends with a table of the versions that were tried and of how the tests came out.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

from run import ROOT, Stop, guarded, pip, requirements

PRINT = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"


def oldest(lines):
    """Requirements with their lower bounds alone: "torch>=2.9,<3" as "torch==2.9.*"."""
    return [re.sub(r">=([\d.]+).*", r"==\1.*", line) for line in lines]


def attempt(end, rest):
    """(versions, how it came out, seconds) of the tests at one end of the bounds."""
    since = time.time()
    with tempfile.TemporaryDirectory() as folder:
        python = os.path.join(folder, "Scripts" if os.name == "nt" else "bin", "python")
        if subprocess.call([sys.executable, "-m", "venv", folder]):
            raise Stop("Making an environment failed; the lines above say why.")
        ours = requirements()
        pip(python, "--upgrade", *(oldest(ours) if end == "oldest" else ours), *requirements(dev=True)[len(ours):])
        names = [re.match(r"[\w.-]+", line).group() for line in ours]
        versions = subprocess.run([python, "-c", PRINT, *names], stdout=subprocess.PIPE, text=True).stdout.strip()
        status = subprocess.call([python, "-m", "pytest", *rest], cwd=ROOT)
    return versions, "passed" if status == 0 else f"FAILED (pytest says {status})", time.time() - since


def main():
    """Read the command line and try the ends that it names."""
    ends, rest = [], sys.argv[1:]
    while rest and rest[0] in ("oldest", "newest"):
        ends.append(rest.pop(0))
    rows = [(end, *attempt(end, rest)) for end in ends or ["oldest", "newest"]]
    for end, versions, outcome, seconds in rows:
        print(f"{end}: {outcome} in {seconds / 60:.0f} minutes with {versions}")
    return int(any(outcome != "passed" for _, _, outcome, _ in rows))


if __name__ == "__main__":
    sys.exit(guarded(main))
