"""Make the environment with the dev group, then run ruff and all tests in it.

    python3 tools/test.py                 everything
    python3 tools/test.py -m fault        what follows goes to pytest as it is
    python3 tools/test.py --here          in the Python environment this is started from

Nothing is timed, so it may share the machine.
"""

import os
import subprocess
import sys

from nbtools import ROOT, guarded
from run import environment


def main():
    """Lint, then test; the exit status of the first that fails."""
    here, cpu = "--here" in sys.argv, "--cpu" in sys.argv
    rest = [argument for argument in sys.argv[1:] if argument not in ("--here", "--cpu")]
    python = environment(here=here, cpu=cpu, dev=True)
    for command in (["ruff", "check", "."], ["pytest", *rest]):
        status = subprocess.call([python, "-m", *command], cwd=ROOT)
        if status:
            return status
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(guarded(main))
