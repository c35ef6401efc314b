"""Try settings on the validation split, outside the chapters, with the chapters' own code.

    python3 tools/search.py              every trial below that data/results/search.json does not hold yet
    python3 tools/search.py NAME ...     these trials
    python3 tools/search.py --list       what there is

A trial trains with seed 0 on the 45,000 training pictures and is judged on the 5,000 validation pictures; the
test pictures are never read. What it reached is written to data/results/search.json, the table that the chapters
cite, and stays there whether it was good or bad. Under "earlier" stand the trials of an earlier backbone, whose
features were the means of its last block alone; under "explored" those that this file cannot repeat, each with a
sentence that says what it was. Run it with the environment that tools/run.py makes.
"""

import argparse
import json
import sys
import time

import torch
from chain import RESULTS, namespace
from run import write_text

TABLE = RESULTS / "search.json"


def supervised(percent, steps, augment="crop", sizes=(32,), batch=128, lr=0.04, **more):
    """A supervised training with `percent` % of the labels."""
    return dict(kind="supervised", percent=percent, steps=steps, batch=batch, lr=lr, weight_decay=0.01,
                **{"adam_lr": 0.005, **more}, augment=augment, sizes=list(sizes), widths=[64, 128, 384])


def fine_tuned(percent, steps, augment="crop", sizes=(24, 32), backbone_lr=1.0, **more):
    """A training that starts from chapter 3's backbone, preset `full`, seed 0, and from the linear probe on it."""
    return supervised(percent, steps, augment, sizes, backbone_lr=backbone_lr, **more)


def pretraining(steps, **more):
    """A Barlow Twins pretraining with chapter 3's settings where `more` names no others, judged by k-NN and by linear probes."""
    return dict(kind="pretraining", steps=steps, **more)


TRIALS = {  # each name can stand in a marker and in a file's name
    "supervised_100": supervised(100, 400),
    "supervised_100_lr_0_08": supervised(100, 400, lr=0.08),
    "supervised_100_growing": supervised(100, 535, sizes=[24, 24, 32]),
    "pretraining": pretraining(680),
    "fine_tuned_10": fine_tuned(10, 1200, "view"),
    "fine_tuned_10_factor_0_5": fine_tuned(10, 1200, "view", backbone_lr=0.5),
}


def run(name, settings):
    """Run one trial; return all its settings, the seconds its training took, and what it reached on validation, in percent."""
    m = namespace(3, PRESET="full")
    folder = m.get_cifar10()
    images, labels = m.load_split(folder, train=True)
    train, validation = m.split_indices(labels)
    recorded = dict(m.pretraining_settings("full"), data=m.data_md5(folder))
    precision, _ = m.fastest_precision(m.make_classifier(0, recorded["widths"]), m.normalize(images[:64]))
    recorded["precision"] = str(precision).removeprefix("torch.")
    if settings["kind"] == "pretraining":
        settings = {**recorded, **settings}
        backbone, _, history = m.pretrain(images[train], settings, 0, f"search-{name}")
        reached = judged(m, backbone, images, labels, train, validation, precision)
    else:
        settings, reached = dict(settings, precision=recorded["precision"]), {}
        chosen = m.labelled_subset(labels, train, settings["percent"], 0)
        model = m.make_classifier(0, settings["widths"])
        if "backbone_lr" in settings:
            backbone, _, _ = m.pretrain(images[train], recorded, 0, "barlow-twins-full-seed0")
            at_chosen, at_validation = m.features_of(backbone, images, (chosen, validation), precision)
            probe = m.linear_probe(at_chosen, labels[chosen], at_validation, labels[validation])
            model[0].load_state_dict(backbone.state_dict())
            model[1].load_state_dict(probe.state_dict())
            reached["probe"] = m.accuracy(probe(at_validation), labels[validation])
        history = m.train_supervised(model, images[chosen], labels[chosen], settings, 0, f"search-{name}")
        reached["validation"] = m.accuracy(m.predict(model, images[validation], precision), labels[validation])
    return {"settings": settings, "seconds": round(history["seconds"], 2), **{key: round(value, 2) for key, value in reached.items()}}


def judged(m, backbone, images, labels, known, asked, precision):
    """k-NN and linear probes on frozen features of the pictures `known`, in percent of the pictures `asked`."""
    at_known, at_asked = m.features_of(backbone, images, (known, asked), precision)
    reached = {"knn": m.knn_accuracy(at_known, labels[known], at_asked, labels[asked])}
    for percent in (100, 10, 1):
        some = m.labelled_subset(labels[known], m.torch.arange(len(known)), percent, 0)
        probe = m.linear_probe(at_known[some], labels[known][some], at_asked, labels[asked])
        reached[f"linear_{len(some)}"] = m.accuracy(probe(at_asked), labels[asked])
    return reached


def muon_ratio():
    """What the prose says of torch.optim.Muon on a processor without bfloat16: how many times as long as ours one step takes."""
    m = namespace(2, PRESET="full")
    matrices = [p for p in m.Backbone().parameters() if p.ndim == 2]
    for p in matrices:
        p.grad = m.torch.randn_like(p)
    seconds = {}
    for kind in (m.Muon, m.torch.optim.Muon):
        optimizer = kind(matrices, lr=0.0)
        for _ in range(3):  # the last of three, warm
            started = time.perf_counter()
            optimizer.step()
            seconds[kind] = time.perf_counter() - started
    return {"hardware": m.hardware(), "torch_muon_ratio": round(seconds[m.torch.optim.Muon] / seconds[m.Muon], 1)}


def main():
    """Run the trials asked for, one after another, and note each as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="trials to run; none: those not yet in the table")
    parser.add_argument("--list", action="store_true", help="print the trials' names")
    args = parser.parse_args()
    if args.list:
        print("\n".join(TRIALS))
        return
    unknown = [name for name in args.names if name not in TRIALS]
    if unknown:
        sys.exit(f"no such trial: {', '.join(unknown)}. --list prints the names.")
    table = json.loads(TABLE.read_text())
    if torch.backends.cpu.get_cpu_capability() == "AVX2":  # the processors that the prose speaks of
        table["facts"] = muon_ratio()
    for name in args.names or [name for name in TRIALS if name not in table["trials"]]:
        started = time.strftime("%H:%M")
        table["trials"][name] = run(name, TRIALS[name])
        write_text(TABLE, json.dumps(table, indent=1) + "\n")
        print(started, name, table["trials"][name], flush=True)


if __name__ == "__main__":
    main()
