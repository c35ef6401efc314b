"""Measure how fast the chapters' pretraining is, with their own code, and write data/results/bench.json.

    python3 tools/bench.py              about ten minutes on two cores that do nothing else
    python3 tools/bench.py --rounds 1   a quick look, not written down

Everything is measured in turn in one process and given as the median over rounds:
pairs of views a second of chapter 3's training step, against the plain way (float32, PyTorch's default memory
format, torchvision's transforms picture by picture in a DataLoader with the better of 0 and 2 workers, AdamW; same
network, batch and size of views); the share of a step that augmentation takes; the floating-point operations a
second of a step's forward and backward pass, as a share of what a large matrix product in the same precision
reaches; pairs a second with 1 to all threads; seconds an epoch with 12,500 to 50,000 pictures.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from unittest import mock

from chain import NOTEBOOKS, RESULTS, ROOT, namespace
from run import Stop, guarded, write_text

SETTINGS = {"batch": 256, "projector": [1024, 1024], "weight": 0.0078, "lr": 0.04, "adam_lr": 0.002,
            "weight_decay": 0.01, "widths": [64, 128, 256]}  # chapter 3's, preset full
SIZES = (24, 16, 32)  # of the views; the first is the one that counts
WARM = 2  # steps before the clock starts


def now(m):
    """Seconds on the clock, when the device has done its work."""
    if m.DEVICE.type == "cuda":
        m.torch.cuda.synchronize()
    elif m.DEVICE.type == "mps":
        m.torch.mps.synchronize()
    return time.perf_counter()


def ours(m, images, settings, count):
    """(seconds a step, share of augmentation) of chapter 3's own loop, without its checkpoints."""
    marks, spent, random_view = [], [], m.random_view

    def steps(state, name, header, code, steps, **_):
        for step in range(steps):
            marks.append(now(m))
            yield step
        marks.append(now(m))

    def view(*given):
        began = now(m)
        made = random_view(*given)
        spent.append(now(m) - began)
        return made

    with mock.patch.object(m, "resumable", steps), mock.patch.object(m, "random_view", view):
        m.pretrain(images, dict(settings, steps=WARM + count), 0, "bench")
    seconds = marks[-1] - marks[WARM]
    return seconds / count, sum(spent[2 * WARM:]) / seconds


def operations(m, images, settings):
    """Floating-point operations of one step's forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    def view(images, generator, size):
        return m.torch.zeros(len(images), 3, size, size, device=m.DEVICE)

    with mock.patch.multiple(m, random_view=view, make_optimizers=lambda *given: [], resumable=lambda *given: iter([0])), \
            FlopCounterMode(display=False) as counter:
        m.pretrain(images, dict(settings, steps=1), 0, "bench")
    return counter.get_total_flops()


def plain_convolutions(m, module):
    """Put PyTorch's own convolutions, of the same shapes, in place of the chapters'."""
    for name, child in module.named_children():
        if isinstance(child, m.Conv):
            outputs, inputs, kernel, _ = child.shape
            setattr(module, name, m.nn.Conv2d(inputs, outputs, kernel, child.stride, kernel // 2, bias=False))
        else:
            plain_convolutions(m, child)
    return module


def plain(m, dataset, settings, workers, count):
    """Seconds a step of the plain way."""
    from torchvision.transforms import v2
    transform = v2.Compose([
        v2.RandomResizedCrop(settings["sizes"][0], scale=(0.2, 1.0), antialias=False), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(p=0.2),
        v2.ToDtype(m.torch.float32, scale=True), v2.Normalize(m.MEAN.flatten().tolist(), m.STD.flatten().tolist())])
    dataset.transform = lambda image: (transform(image), transform(image))
    loader = m.torch.utils.data.DataLoader(dataset, settings["batch"], shuffle=True, drop_last=True, num_workers=workers,
                                           multiprocessing_context="fork" if workers else None)
    backbone = plain_convolutions(m, m.Backbone(settings["widths"])).to(m.DEVICE)
    projector = m.make_projector(backbone.features, settings["projector"]).to(m.DEVICE)
    adam = m.torch.optim.AdamW([*backbone.parameters(), *projector.parameters()], settings["adam_lr"])
    for step, ((one, two), _) in enumerate(loader):
        if step == WARM:
            began = now(m)
        z1, z2 = (projector(backbone(view.to(m.DEVICE))) for view in (one, two))
        loss = m.barlow_twins_loss(z1, z2, settings["weight"])
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step + 1 == WARM + count:
            return (now(m) - began) / count
    raise Stop(f"{count + WARM} batches of {settings['batch']} are more than there are pictures.")


def peak(m, precision, side):
    """Floating-point operations a second of a product of two square matrices, the best of five."""
    a, b = (m.torch.randn(side, side, device=m.DEVICE, dtype=precision) for _ in "ab")
    seconds = []
    for _ in range(6):
        began = now(m)
        a @ b
        seconds.append(now(m) - began)
    return 2 * side ** 3 / min(seconds[1:])


def measure(m, folder, settings, rounds=5, count=10, sizes=SIZES, image_counts=(12_500, 25_000, 50_000),
            side=2048):
    """All figures, as bench.json holds them."""
    dataset = m.CIFAR10(folder, train=True)
    images, batch = dataset.images, settings["batch"]
    if "precision" not in settings:  # as chapter 3 chooses it
        some = m.random_view(images[:64].to(m.DEVICE), m.seeded(0), sizes[0])
        dtype, _ = m.fastest_precision(m.make_classifier(0, settings["widths"]), some)
        settings = dict(settings, precision=str(dtype).removeprefix("torch."))
    of_size = {size: dict(settings, sizes=[size]) for size in sizes}
    everything = m.torch.get_num_threads()
    thread_counts = sorted({1, everything, *(2 ** n for n in range(10) if 2 ** n < everything)})
    seen = {}  # (what, of what) -> one figure a round

    def note(what, of, value):
        seen.setdefault((what, of), []).append(value)

    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", flush=True)
        for size, setting in of_size.items():
            seconds, share = ours(m, images, setting, count)
            note("ours", size, batch / seconds)
            if size == sizes[0]:
                note("augmentation", size, share)
                note("speed", size, operations(m, images, setting) / seconds)
                note("peak", size, peak(m, getattr(m.torch, settings["precision"]), side))
            for workers in (0, 2):
                note(f"plain, {workers} workers", size, batch / plain(m, dataset, setting, workers, count))
        for threads in thread_counts:
            m.torch.set_num_threads(threads)
            note("threads", threads, batch / ours(m, images, of_size[sizes[0]], count)[0])
        m.torch.set_num_threads(everything)
        for number in image_counts:
            note("images", number, number // batch * ours(m, images[:number], of_size[sizes[0]], count)[0])
    middle = {key: statistics.median(values) for key, values in seen.items()}
    pairs = {size: {"ours": middle["ours", size],
                    "plain": max(middle["plain, 0 workers", size], middle["plain, 2 workers", size])} for size in sizes}
    first = sizes[0]
    return {
        "hardware": m.hardware(),
        "versions": {"python": platform.python_version(), "torch": m.torch.__version__,
                     "torchvision": m.torchvision.__version__},
        "precision": settings["precision"], "rounds": rounds, "steps": count, "view_size": first, "batch": batch,
        "pairs_per_second": pairs[first], "speedup": pairs[first]["ours"] / pairs[first]["plain"],
        "augmentation_share": middle["augmentation", first],
        "share_of_peak": middle["speed", first] / middle["peak", first],
        "flops": {"step": middle["speed", first], "matrix_product": middle["peak", first]},
        "threads": {str(n): middle["threads", n] for n in thread_counts},
        "images": {str(n): middle["images", n] for n in image_counts},
        "sizes": {str(size): {**pairs[size], "speedup": pairs[size]["ours"] / pairs[size]["plain"]} for size in sizes},
    }


def main():
    """Measure on the real pictures, print the figures and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps timed in each measurement")
    given = parser.parse_args()
    os.chdir(NOTEBOOKS)
    m = namespace(3, PRESET="full")
    figures = measure(m, m.get_cifar10(), SETTINGS, given.rounds, given.steps)
    text = json.dumps(json.loads(json.dumps(figures), parse_float=lambda x: float(f"{float(x):.4g}")), indent=1) + "\n"
    print(text)
    if given.rounds > 1:
        write_text(RESULTS / "bench.json", text)
        print(f"written to {(RESULTS / 'bench.json').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
