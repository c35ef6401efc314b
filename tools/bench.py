"""Measure how fast the chapters' pretraining is, with their own code, and write data/results/bench.json.

    python3 tools/bench.py              some minutes on two cores that do nothing else
    python3 tools/bench.py --rounds 1   a quick look, not written down

Each figure is the median over rounds, in which all are measured in turn: pairs of views a second of chapter 3's training
step and of the plain way (float32, PyTorch's default memory format, torchvision's transforms picture by picture in a
DataLoader with the better of 0 and 2 workers, AdamW; same network, batch and sizes of views); the share of a step that
augmentation takes; the floating-point operations a second of a step as a share of what a large matrix product in the same
precision reaches; seconds an epoch with 12,500 to 50,000 pictures; the step of tools/pretrain.py, with two processes of one
thread each. On a GPU it measures one thing, and keeps it beside the figures of the processor: a step of chapter 3's training
at each preset, and the minutes of all its steps.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from unittest import mock

import nbtools
import pretrain
from nbtools import Stop, guarded, results, write_text
from weave import namespace

WARM = 3  # steps before the clock starts


def ours(m, images, settings, count, method=None):
    """(seconds a step of chapter 3's own loop, the share of augmentation in it, operations a step)."""
    marks, spent, counted = [], [], []

    def steps(state, *_, **__):
        state["history"] = {"counts": counted}
        for step in range(WARM + count):
            marks.append(m.clock())
            if step:
                yield step
            else:
                with m.counted(state["history"], 0, 1):
                    yield step
        marks.append(m.clock())

    def view(*given):
        began = m.clock()
        made = m.random_view(*given)
        spent.append(m.clock() - began)
        return made

    with mock.patch.object(m, "resumable", steps):
        m.pretrain(images, method or m.barlow_twins, dict(settings, steps=WARM + count), 0, "bench", None, view)
    views, seconds = len(spent) // (WARM + count), marks[-1] - marks[WARM]
    return seconds / count, sum(spent[views * WARM:]) / seconds, counted[0]


def plain(m, dataset, settings, count, workers):
    """Seconds a step of the plain way."""
    from torchvision.transforms import v2
    transforms = [v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=False), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(p=0.2),
        v2.ToDtype(m.torch.float32, scale=True), v2.Normalize(m.MEAN.flatten().tolist(), m.STD.flatten().tolist())])
        for size in settings["sizes"]]
    dataset.transform = lambda image: [transform(image) for transform in transforms]
    loader = m.torch.utils.data.DataLoader(dataset, settings["batch"], shuffle=True, drop_last=True, num_workers=workers,
                                           multiprocessing_context="fork" if workers else None)
    backbone = m.Backbone(settings["widths"]).to(m.DEVICE)
    projector = m.make_projector(backbone.features, settings["projector"]).to(m.DEVICE)
    adam = m.torch.optim.AdamW([*backbone.parameters(), *projector.parameters()], settings["adam_lr"])
    for step, (views, _) in enumerate(loader):
        if step == WARM:
            began = m.clock()
        one, *others = (projector(backbone(view.to(m.DEVICE))) for view in views)
        loss = sum(m.barlow_twins_loss(one, other, settings["weight"]) for other in others)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step + 1 == WARM + count:
            dataset.transform = None
            return (m.clock() - began) / count
    raise Stop(f"{count + WARM} batches of {settings['batch']} are more than there are pictures.")


def two_processes(m, settings, count):
    """Seconds a step of two processes, one thread each, that share the minibatch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    place = {"NOLABELS_PRESET": m.PRESET, "NOLABELS_DATA": str(m.DATA.resolve()), "NOLABELS_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--one-of-two", json.dumps([settings, count])], env={**os.environ, **place},
                          capture_output=True, text=True)
    if done.returncode:
        raise Stop(f"Two processes could not be timed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def one_of_two(settings, count):
    """Run by torchrun: the first process prints the seconds a step."""
    m = namespace(3, NETWORK="train")
    pretrain.join(m)
    images = m.load_split(m.get_cifar10(), train=True)[0]
    with pretrain.together(m, images, m.barlow_twins, settings, 0, "bench", None, m.random_view) as (_, method, *_):
        print(ours(m, images, settings, count, method)[0])


def peak(m, side=4096):
    """Floating-point operations a second of a product of two square matrices, the best of five."""
    a, b = (m.torch.randn(side, side, device=m.DEVICE, dtype=m.MACHINE["precision"]) for _ in "ab")
    taken = []
    for _ in range(6):
        began = m.clock()
        a @ b
        taken.append(m.clock() - began)
    return 2 * side ** 3 / min(taken[1:])


def measure(m, dataset, settings, rounds=3, count=20, image_counts=(12_500, 25_000, 50_000)):
    """All figures, as bench.json holds them. settings: chapter 3's."""
    with m.autocast():  # chooses the precision once
        pass
    seen = {}
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", flush=True)
        for name, work in {
            **{n: lambda n=n: ours(m, dataset.images[:n], settings, count) for n in image_counts},
            **{f"plain {workers}": lambda workers=workers: plain(m, dataset, settings, count, workers) for workers in (0, 2)},
            "two": lambda: two_processes(m, settings, count), "peak": lambda: peak(m),
        }.items():
            seen.setdefault(name, []).append(work())
    steps = {n: statistics.median(found[0] for found in seen[n]) for n in image_counts}
    step, pairs = steps[image_counts[-1]], settings["batch"]
    slow = min(statistics.median(seen[f"plain {workers}"]) for workers in (0, 2))
    _, shares, operations = zip(*seen[image_counts[-1]])
    two = statistics.median(seen["two"])
    return {
        **machine(m), "rounds": rounds,
        "pairs_per_second": {"ours": pairs / step, "plain": pairs / slow}, "speedup": slow / step,
        "augmentation_share": statistics.median(shares), "share_of_peak": operations[0] / step / statistics.median(seen["peak"]),
        "images": {str(n): n // pairs * steps[n] for n in image_counts},
        "two_processes": {"pairs_per_second": pairs / two, "speedup": step / two},
    }


def each_preset(images, presets=("quick", "full", "long"), count=60):
    """{preset: milliseconds a step of chapter 3's training, alone on the device, and the minutes of all its steps}."""
    found = {}
    for preset in presets:
        m = namespace(3, PRESET=preset)
        settings = m.pretraining_settings(preset)
        step = ours(m, images, settings, count)[0]
        found[preset] = {"milliseconds": 1000 * step, "minutes": step * settings["steps"] / 60}
    return found


def machine(m):
    """What the figures were measured on."""
    return {"hardware": m.hardware(), "precision": str(m.MACHINE["precision"]).removeprefix("torch."), "versions": {
        "python": platform.python_version(), "torch": m.torch.__version__, "torchvision": m.torchvision.__version__}}


def main():
    """Measure on the real pictures, print the figures and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="steps timed in each measurement")
    parser.add_argument("--one-of-two", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.chdir(nbtools.ROOT / "notebooks")
    if given.one_of_two:
        one_of_two(*given.one_of_two)
        return 0
    m = namespace(3, PRESET="full")
    began = time.time()
    kept, dataset = results("bench") or {}, m.CIFAR10(m.get_cifar10(), train=True)
    if m.DEVICE.type == "cpu":
        figures = {**kept, **measure(m, dataset, m.pretraining_settings("full"), given.rounds, given.steps)}
    else:
        m.choose_precision()
        figures = {**kept, "gpu": {**machine(m), "presets": each_preset(dataset.images)}}
    text = json.dumps(json.loads(json.dumps(figures), parse_float=lambda x: float(f"{float(x):.4g}")), indent=1) + "\n"
    print(f"{text}after {time.time() - began:.0f} s")
    if given.rounds > 1:
        write_text(nbtools.ROOT / "data" / "results" / "bench.json", text)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
