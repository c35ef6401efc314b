"""Try settings on the validation split, outside the chapters, with the chapters' own code.

    python3 tools/search.py              every trial below that data/results/search.json does not hold yet
    python3 tools/search.py NAME ...     these trials; a method's name, simclr, means those of its trials not yet held
    python3 tools/search.py --list       what there is
    python3 tools/search.py --preset quick bt simclr moco swav vicreg lejepa
                                         chapter 5's trials with the settings of that preset, noted as quick_NAME

Stopped, the same command continues with the trial that was running.

A trial trains on the 45,000 training pictures, once for each seed, and is judged on the 5,000 validation pictures; the
test pictures are never read. What it reached is written to data/results/search.json, the table that the chapters cite,
and stays there whether it was good or bad.
"""

import argparse
import json
import os
import statistics
import sys

import nbtools
from nbtools import Stop, guarded, results, write_text
from weave import namespace

# Chapter 5: for each method the same six trials, judged by a linear probe on 4,500 labels
OTHER = {"bt": ("weight", 0.0078, 0.02), "simclr": ("temperature", 0.5, 0.2), "moco": ("temperature", 0.2, 0.1),
         "swav": ("prototypes", 100, 300), "vicreg": ("weights", (25, 25, 1), (25, 25, 4)), "lejepa": ("weight", 0.05, 0.02)}
TRIAL_STEPS = {"quick": (40, 48, 36, 48, 40, 44), "full": (550, 640, 510, 650, 570, 600)}  # equal seconds, as in the chapter
COUSINS = {f"{method}_lr_{lr}_{key}_{value[-1] if key == 'weights' else value}".replace(".", "_"):
           (method, [0], {"lr": lr, "adam_lr": lr / 100, key: value})
           for method, (key, *values) in OTHER.items() for value in values for lr in (0.05, 0.1, 0.2)}

# {name: (kind, seeds, settings that differ from the preset's)}; a name can stand in a marker
TRIALS = {
    "pretraining": ("pretraining", [0], {"steps": 680}),
    "supervised_100": ("supervised", [0], {"steps": 400}),
    "supervised_100_lr_0_08": ("supervised", [0], {"steps": 400, "lr": 0.08}),
    **COUSINS,
}


def run(m, name, kind, seeds, changes):
    """Run one trial; return its settings, its seeds and what it reached on validation, in percent."""
    images, labels = m.load_split(m.get_cifar10(), train=True)
    train, validation = m.split_indices(labels)
    if kind == "pretraining":
        settings = {**m.pretraining_settings(m.PRESET), **changes}
    elif kind in OTHER:
        steps = dict(zip(OTHER, TRIAL_STEPS[m.PRESET]))
        settings = {**m.cousins_settings(m.PRESET)[kind], **changes, "steps": steps[kind]}
    else:
        settings = {**m.supervised_settings(m.PRESET)[100], **changes}
    found = {}
    for seed in seeds:
        if kind == "pretraining":
            backbone, _, history = m.pretrain(images[train], m.barlow_twins, settings, seed, f"search-{name}-seed{seed}")
            reached = judged(m, backbone, images, labels, train, validation)
        elif kind in OTHER:
            method = m.barlow_twins if kind == "bt" else getattr(m, kind)
            backbone, _, history = m.pretrain(images[train], method, settings, seed, f"search-{name}-seed{seed}")
            reached = judged(m, backbone, images, labels, train[:4500], validation, percents=(100,))
        else:
            model = m.make_classifier(seed, settings["widths"])
            history = m.train_supervised(model, images[train], labels[train], settings, seed, f"search-{name}-seed{seed}")
            reached = {"validation": m.accuracy(m.predict(model, images[validation]), labels[validation])}
        for key, value in {**reached, "seconds": history["seconds"]}.items():
            found.setdefault(key, []).append(round(value, 2))
    return {"kind": kind, "settings": settings, "seeds": seeds, "hardware": m.hardware(),
            **{key: {"mean": statistics.mean(values), "seeds": values} for key, values in found.items()}}


def judged(m, backbone, images, labels, known, asked, percents=(100, 10, 1)):
    """k-NN and linear probes on frozen features of the pictures `known`, in percent of the pictures `asked`."""
    at_known, at_asked = m.features_of(backbone, images[known], images[asked])
    reached = {"knn": m.knn_accuracy(at_known, labels[known], at_asked, labels[asked])}
    for percent in percents:
        some = m.labelled_subset(labels[known], m.torch.arange(len(known)), percent, 0)
        probe = m.linear_probe(at_known[some], labels[known][some], at_asked, labels[asked])
        reached[f"linear_{percent}"] = m.accuracy(probe(at_asked), labels[asked])
    return reached


def main():
    """Run the trials asked for, one after another, and note each as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="trials to run; none: those not yet in the table")
    parser.add_argument("--list", action="store_true", help="print the trials' names")
    parser.add_argument("--preset", choices=["quick", "full"], default="full")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in TRIALS and name not in OTHER]
    if unknown:
        raise Stop(f"There is no trial {', '.join(unknown)}. --list prints the names.")
    if given.list:
        print("\n".join(TRIALS))
        return 0
    os.chdir(nbtools.ROOT / "notebooks")
    m, table = namespace(["01", "02", "03", "05"], PRESET=given.preset), results("search") or {"trials": {}}
    before = "" if given.preset == "full" else f"{given.preset}_"
    missing = [name for name in TRIALS if before + name not in table["trials"]]
    named = [name for name in TRIALS if name in given.names or TRIALS[name][0] in given.names and name in missing]
    for name in named if given.names else missing:
        table["trials"][before + name] = run(m, name, *TRIALS[name])
        write_text(nbtools.ROOT / "data" / "results" / "search.json", json.dumps(table, indent=1) + "\n")
        print(before + name, table["trials"][before + name], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
