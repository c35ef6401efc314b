"""tools/pretrain.py: processes together do what one does alone, and go on after a crash, with fewer of them, too.

Started by torchrun, this file is the process that the tests below watch.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import nbtools
import pretrain
import pytest
import torch
import torch.distributed as dist
from nbtools import Stop
from weave import namespace

pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform == "win32",
                                reason="this PyTorch has no torch.distributed, or it is Windows, where this was not tried")
STORE = nbtools.ROOT / "data"
RECORDS = "CIFAR-10" if len(list(STORE.glob("cifar-10-batches-bin/*_batch*.bin"))) == 6 else "generated"


# ---- in a process of its own ----------------------------------------------------------------------

def step(out):
    """Two steps of chapter 3's pretraining with BatchNorm in evaluation mode: losses, gradients, operations."""
    m, found = namespace(3, NETWORK="train"), {"gradients": []}
    group = dist.is_torchelastic_launched()
    if group:
        pretrain.join(m)
    m.choose_precision(torch.float32)
    images, _, view = pretrain.pictures(m, None)
    m.DATA = out.parent / str(group)

    def held(backbone, settings):
        chosen = m.barlow_twins(backbone, settings)
        networks = torch.nn.ModuleList([backbone, *chosen.modules.values()]).eval()
        return m.Method(chosen.modules, chosen.loss, lambda step: found["gradients"].append(
            [p.grad.clone() for p in networks.parameters()]))

    what = images[:2000], held, dict(m.pretraining_settings(m.PRESET), steps=2, batch=64), 0, "held", None, view
    with pretrain.together(m, *what) if group else contextlib.nullcontext(what) as what:
        backbone, modules, history = m.pretrain(*what)
    found.update(loss=history["loss"], operations=history["operations"])
    if group:
        digests = [None] * dist.get_world_size()
        dist.all_gather_object(digests, m.fingerprint(m.Walk({}).digest([backbone, modules])))
        found["alike"] = len(set(digests)) == 1
        if dist.get_rank():
            return
    torch.save(found, out)


def killed(at):
    """The tool, in which the second process is killed in a step of its first life."""
    def deadly(*given, **settings):
        m = namespace(*given, **settings)
        check_loss = m.check_loss

        def dies(state, name, step):
            if (step, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (at, "1", "0"):
                os.kill(os.getpid(), signal.SIGKILL)
            return check_loss(state, name, step)
        m.check_loss = dies
        return m
    with mock.patch.object(pretrain, "namespace", deadly):
        return pretrain.main()


# ---- the tests ------------------------------------------------------------------------------------

def run(folder, *arguments, processes=0, restarts=0, preset="smoke", data=None, status=0):
    """Run a script with arguments, by torchrun unless processes is 0; what it prints."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    place = {"PRESET": preset, "SEEDS": "0", "DEVICE": "cpu", "NETWORK": "train", "DATA": data or folder, "RESULTS": folder / "runs"}
    done = subprocess.run([sys.executable, *(launch if processes else []), *map(str, arguments)], cwd=nbtools.ROOT / "notebooks",
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(nbtools.ROOT / "tools"),
                               **{f"NOLABELS_{name}": str(value) for name, value in place.items()}},
                          capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == (status == 0), done.stdout + done.stderr
    return done.stdout


TOOL = nbtools.ROOT / "tools" / "pretrain.py"


@pytest.fixture
def store(tmp_path):
    """A store as chapter 6 makes them."""
    path, about = tmp_path / "mine.u8", {"shape": [64, 3, 40, 40], "mean": [0.4, 0.5, 0.6], "deviation": [0.3, 0.2, 0.1]}
    path.write_bytes(bytes(torch.randint(256, (64 * 3 * 40 * 40,), generator=torch.Generator().manual_seed(0)).tolist()))
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


@pytest.fixture
def short(store):
    """Arguments of a short training, with a checkpoint after each step."""
    return "--preset", "smoke", "--steps", "12", "--save-every", "0", "--images", store


def kept(folder):
    """The one checkpoint in a folder."""
    (path,) = folder.glob("checkpoints/*.pt")
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("records", [RECORDS])
def test_two_processes_have_the_loss_and_gradients_of_one_with_twice_the_batch(records, tmp_path):
    place = dict(preset="quick", data=STORE) if records == "CIFAR-10" else {}
    run(tmp_path, __file__, "step", tmp_path / "one", **place)
    run(tmp_path, __file__, "step", tmp_path / "two", processes=2, **place)
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    assert two["alike"] and one["operations"] == two["operations"]
    assert two["loss"][0] == pytest.approx(one["loss"][0], rel=1e-5)
    assert two["loss"][1] == pytest.approx(one["loss"][1], rel=1e-3)  # Muon lifts what is left of rounding
    for alone, shared in zip(one["gradients"][0], two["gradients"][0], strict=True):
        assert (alone - shared).norm() <= 1e-5 * alone.norm()


@pytest.mark.fault
def test_a_killed_process_is_restarted_and_the_end_is_the_same(tmp_path, short):
    said = run(tmp_path / "a", __file__, "killed", 7, *short, processes=2, restarts=1)
    run(tmp_path / "b", TOOL, *short, processes=2)
    broken, whole = kept(tmp_path / "a"), kept(tmp_path / "b")
    assert re.search(r"step [78] of 12 loaded from", said)
    assert broken["step"] == len(broken["history"]["loss"]) == 12 and broken["header"] == whole["header"]
    assert broken["history"]["loss"] == whole["history"]["loss"]
    for name, weights in whole["modules"].items():
        assert all(torch.equal(value, broken["modules"][name][key]) for key, value in weights.items())


@pytest.mark.fault
def test_a_training_of_two_processes_goes_on_with_one_and_is_not_taken_for_chapter_3s(tmp_path, short, chapter3):
    run(tmp_path, __file__, "killed", 7, *short, processes=2, status=1)
    assert kept(tmp_path)["step"] in (7, 8)
    run(tmp_path, TOOL, *short, processes=1)
    found, m = kept(tmp_path), chapter3
    assert found["step"] == len(found["history"]["loss"]) == 12
    assert "from step 0 on with 2 processes" in found["history"]["log"][0]
    assert any(re.search("from step [78] on with 1 process,", line) for line in found["history"]["log"])
    images, watch, view = pretrain.pictures(m, short[-1])
    alone = m.dependencies(m.pretrain, images, m.barlow_twins, dict(m.pretraining_settings("smoke"), steps=12), 0,
                           found["header"]["name"], watch, view)
    assert m.difference(alone, found["header"]["parts"]) == "BatchNorm"


def test_a_minibatch_that_cannot_be_shared_out_is_refused(chapter3):
    with mock.patch.object(dist, "get_world_size", lambda: 3), pytest.raises(Stop, match="16 pictures cannot be shared out to 3"):
        with pretrain.together(chapter3, None, None, chapter3.pretraining_settings("smoke"), 0, "x", None, None):
            pass


def test_a_store_on_the_disk_takes_the_place_of_cifar10(tmp_path, store, monkeypatch, chapter3):
    monkeypatch.chdir(tmp_path)
    for name, value in {"DATA": tmp_path, "DEVICE": "cpu", "RESULTS": tmp_path / "runs"}.items():
        monkeypatch.setenv(f"NOLABELS_{name}", str(value))
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--preset", "smoke", "--steps", "2", "--images", "mine.u8"])
    assert pretrain.main() == 0 and kept(tmp_path)["header"]["name"] == "barlow-twins-mine-seed0"
    store.with_suffix(".json").unlink()
    with pytest.raises(Stop, match="mine.u8 is no store of chapter 6"):
        pretrain.pictures(chapter3, store)


if __name__ == "__main__":
    what, value, *sys.argv[1:] = sys.argv[1:]
    sys.exit(step(Path(value)) if what == "step" else killed(int(value)))
