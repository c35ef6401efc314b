"""Measure how fast the chapters' pretraining is, with their own code, and write data/results/bench.json.

    python3 tools/bench.py              about ten minutes on two cores that do nothing else
    python3 tools/bench.py --rounds 1   a quick look, not written down

Every figure is the median over rounds. In a round all of them are measured in turn, each in a process of its own, so
that none profits from what another has set:
pairs of views a second of chapter 3's training step, against the plain way (float32, PyTorch's default memory
format, torchvision's transforms picture by picture in a DataLoader with the better of 0 and 2 workers, AdamW; same
network, batch and sizes of views); the same without each of chapter 2's two speed tricks; the share of a step that
augmentation takes; the floating-point operations a second of a step's forward and backward pass, as a share of what
a large matrix product in the same precision reaches; pairs a second with 1 to all threads; seconds an epoch with
12,500 to 50,000 pictures; pairs a second in float32, and in float32 with the libraries held to AVX2, which most
laptops have.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from chain import NOTEBOOKS, RESULTS, ROOT, namespace
from run import Stop, guarded, write_text

WARM = 3  # steps before the clock starts


def now(m):
    """Seconds on the clock, when the device has done its work."""
    if m.DEVICE.type == "cuda":
        m.torch.cuda.synchronize()
    elif m.DEVICE.type == "mps":
        m.torch.mps.synchronize()
    return time.perf_counter()


def ours(m, dataset, settings, count, threads=None, pictures=None, without=None):
    """Seconds a step of chapter 3's own loop, without its checkpoints, and the share of augmentation in it."""
    marks, spent, random_view = [], [], m.random_view
    if threads:
        m.torch.set_num_threads(threads)

    def steps(state, name, header, code, steps, **_):
        m.keep_freed_memory()
        for step in range(steps):
            marks.append(now(m))
            yield step
        marks.append(now(m))

    def view(*given):
        began = now(m)
        made = random_view(*given)
        spent.append(now(m) - began)
        return made

    changes = {"resumable": steps, "random_view": view}
    if without == "memory":
        changes["keep_freed_memory"] = lambda: None
    elif without == "few_pixels":
        changes["FewPixels"] = mock.Mock(apply=lambda x, filters, stride: m.F.conv2d(
            x, filters, stride=stride, padding=filters.shape[-1] // 2))
    with mock.patch.multiple(m, **changes):
        m.pretrain(dataset.images[:pictures], dict(settings, steps=WARM + count), 0, "bench")
    views = len(spent) // (WARM + count)
    return [(marks[-1] - marks[WARM]) / count, sum(spent[views * WARM:]) / (marks[-1] - marks[WARM])]


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


def best_of(m, work, rounds=6):
    """Seconds of the fastest of a few rounds of work, after one to warm up."""
    seconds = []
    for _ in range(rounds):
        began = now(m)
        work()
        seconds.append(now(m) - began)
    return min(seconds[1:])


def peak(m, dataset, settings, count, side=4096):
    """Floating-point operations a second of a product of two square matrices."""
    a, b = (m.torch.randn(side, side, device=m.DEVICE, dtype=getattr(m.torch, settings["precision"])) for _ in "ab")
    return 2 * side ** 3 / best_of(m, lambda: a @ b)


def last_layer(m, dataset, settings, count):
    """Seconds for the gradient of the last layer's filters, as PyTorch does it over as chapter 2 does it."""
    m.keep_freed_memory()
    wide, side = settings["widths"][-1], math.ceil(settings["sizes"][0] / 2 ** len(settings["widths"]))
    x = m.torch.randn(settings["batch"], wide, side, side, device=m.DEVICE, dtype=getattr(m.torch, settings["precision"]))
    x = x.contiguous(memory_format=m.torch.channels_last)
    filters = m.torch.randn(wide, wide, 3, 3, dtype=x.dtype, device=x.device).contiguous(memory_format=m.torch.channels_last)
    filters.requires_grad_()
    seconds = []
    for way in (lambda: m.F.conv2d(x, filters, padding=1), lambda: m.FewPixels.apply(x, filters, 1)):
        y = way()
        to_y = m.torch.randn_like(y)
        seconds.append(best_of(m, lambda y=y, to_y=to_y: m.torch.autograd.grad(y, filters, to_y, retain_graph=True)))
    return seconds[0] / seconds[1]


AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
WAYS = {"ours": ours, "plain": plain, "peak": peak, "last_layer": last_layer}


def measured(m, way, settings, count, more, place):
    """What one of WAYS finds in a process of its own that has the same kept cells, preset, data and device as m.

    more: arguments for the way; place: further environment variables.
    """
    place = dict(os.environ, NOLABELS_PRESET=m.PRESET, NOLABELS_DATA=str(Path(m.DATA).resolve()), NOLABELS_DEVICE=str(m.DEVICE),
                 **place)
    child = subprocess.run([sys.executable, __file__, "--measure", json.dumps([way, settings, count, more])],
                           env=place, cwd=NOTEBOOKS, stdout=subprocess.PIPE, text=True)
    if child.returncode:
        raise Stop(f"{way} could not be measured; the lines above say why.")
    return json.loads(child.stdout.splitlines()[-1])


def measure(m, dataset, settings, rounds=3, count=20, image_counts=(12_500, 25_000, 50_000)):
    """All figures, as bench.json holds them. settings: chapter 3's, with "precision"."""
    pairs, everything = settings["batch"], m.torch.get_num_threads()
    thread_counts = sorted({1, everything, *(2 ** n for n in range(10) if 2 ** n < everything)})
    wanted = {"ours": ("ours", {}), "peak": ("peak", {}), "last layer": ("last_layer", {}),
              "memory": ("ours", {"without": "memory"}), "few_pixels": ("ours", {"without": "few_pixels"}),
              **{f"plain, {workers} workers": ("plain", {"workers": workers}) for workers in (0, 2)},
              **{("threads", n): ("ours", {"threads": n}) for n in thread_counts},
              **{("images", n): ("ours", {"pictures": n}) for n in image_counts}, "float32": ("ours", {}), "avx2": ("ours", {})}
    seen = {name: [] for name in wanted}
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", flush=True)
        for name, (way, more) in wanted.items():
            told = dict(settings, precision="float32") if name in ("float32", "avx2") else settings
            seen[name].append(measured(m, way, told, count, more, AVX2 if name == "avx2" else {}))
    step = {name: statistics.median(value[0] if isinstance(value, list) else value for value in values)
            for name, values in seen.items()}
    plain_step = min(step[name] for name in step if str(name).startswith("plain"))
    speed = operations(m, dataset.images, settings) / step["ours"]
    return {
        "hardware": m.hardware(),
        "versions": {"python": platform.python_version(), "torch": m.torch.__version__,
                     "torchvision": m.torchvision.__version__},
        "precision": settings["precision"], "rounds": rounds, "steps": count, "view_sizes": settings["sizes"],
        "batch": settings["batch"], "widths": settings["widths"],
        "pairs_per_second": {"ours": pairs / step["ours"], "plain": pairs / plain_step},
        **{name: {"pairs_per_second": pairs / step[name], "times_slower": step[name] / step["ours"]} for name in ("float32", "avx2")},
        "speedup": plain_step / step["ours"],
        "tricks": {"memory": step["memory"] / step["ours"],
                   "few_pixels": {"step": step["few_pixels"] / step["ours"], "layer": step["last layer"]}},
        "augmentation_share": statistics.median(share for _, share in seen["ours"]),
        "share_of_peak": speed / step["peak"], "flops": {"step": speed, "matrix_product": step["peak"]},
        "threads": {str(n): pairs / step["threads", n] for n in thread_counts},
        "images": {str(n): n // settings["batch"] * step["images", n] for n in image_counts},
    }


def main():
    """Measure on the real pictures, print the figures and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="steps timed in each measurement")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one figure, asked for by the process that collects them
    given = parser.parse_args()
    os.chdir(NOTEBOOKS)
    if given.measure:
        m = namespace(3)
        way, settings, count, more = json.loads(given.measure)
        print(json.dumps(WAYS[way](m, m.CIFAR10(m.get_cifar10(), train=True), settings, count, **more)))
        return 0
    m = namespace(3, PRESET="full")
    dataset = m.CIFAR10(m.get_cifar10(), train=True)
    settings = m.pretraining_settings("full")
    settings["data"] = "bench"
    some = m.random_view(dataset.images[:64].to(m.DEVICE), m.seeded(0), settings["sizes"][0])
    settings["precision"] = str(m.fastest_precision(m.make_classifier(0, settings["widths"]), some)[0]).removeprefix("torch.")
    figures = measure(m, dataset, settings, given.rounds, given.steps)
    text = json.dumps(json.loads(json.dumps(figures), parse_float=lambda x: float(f"{float(x):.4g}")), indent=1) + "\n"
    print(text)
    if given.rounds > 1:
        write_text(RESULTS / "bench.json", text)
        print(f"written to {(RESULTS / 'bench.json').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
