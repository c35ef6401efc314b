"""Try settings on the validation split, outside the chapters, with the chapters' own code.

    python3 tools/search.py              every trial below that data/results/search.json does not hold yet
    python3 tools/search.py NAME ...     these trials; supervised, pretraining, finetuning or a method's name, simclr,
                                         means those of its trials that are not held yet
    python3 tools/search.py --list       what there is
    python3 tools/search.py --preset quick ...
                                         the same with the settings of that preset; the names begin with quick_

Stopped, the same command continues with the trial that was running.

A trial trains on the 45,000 training pictures or a share of them, once for each seed, and is judged on the 5,000
validation pictures; the test pictures are never read. What it reached is written to data/results/search.json, the table
that the chapters cite, and stays there whether it was good or bad.
"""

import argparse
import json
import os
import statistics
import sys
from functools import partial

import nbtools
from nbtools import Stop, guarded, results, write_text
from weave import namespace

# Chapter 5: for each method the same six trials, judged by a linear probe on 4,500 labels: half the steps of quick; an
# eighth of those of full, with learning rates round the best one at quick, and one rate more where the best lay at an edge
OTHER = {"bt": ("weight", 0.0078, 0.02), "simclr": ("temperature", 0.5, 0.2), "moco": ("temperature", 0.2, 0.1),
         "swav": ("prototypes", 100, 300), "vicreg": ("weights", (25, 25, 1), (25, 25, 4)), "lejepa": ("weight", 0.05, 0.02)}
TRIAL_STEPS = {"quick": (40, 48, 36, 48, 40, 44), "full": (150, 176, 138, 178, 156, 164)}  # equal seconds, as in the chapter
RATES = {"quick": dict.fromkeys(OTHER, (0.05, 0.1, 0.2)),
         "full": {**dict.fromkeys(OTHER, (0.05, 0.1, 0.2)), "bt": (0.025, 0.05, 0.1), "moco": (0.1, 0.2, 0.4),
                  "lejepa": (0.1, 0.2, 0.4)}}
BEYOND = {"bt": (0.2, 0.02), "simclr": (0.4, 0.2), "moco": (0.8, 0.2), "swav": (0.4, 300), "lejepa": (0.05, 0.02)}


def cousins(preset):
    """Chapter 5's trials: {name: (method, seeds, settings)}."""
    tried = [(method, lr, value) for method, (_, *values) in OTHER.items() for value in values for lr in RATES[preset][method]]
    tried += [(method, *more) for method, more in BEYOND.items() if preset == "full"]
    return {f"{method}_lr_{lr}_{OTHER[method][0]}_{value[-1] if method == 'vicreg' else value}":
            (method, [0], {"lr": lr, "adam_lr": lr / 100, OTHER[method][0]: value}) for method, lr, value in tried}


# Chapter 2: all labels in a sixth of the steps; 2 and 5 % of them in all steps
SUPERVISED = {f"supervised_100_lr_{lr}": ("supervised", [0], {"percent": 100, "steps": 600, "lr": lr}) for lr in (0.04, 0.08, 0.12)}
SUPERVISED |= {f"supervised_{percent}_{augment}_lr_{lr}": ("supervised", [0], {"percent": percent, "augment": augment, "lr": lr})
               for percent in (2, 5) for augment in ("view", "crop") for lr in (0.04, 0.08)}

# Chapter 3: one change each; at full, 300 steps where no other number is named
PRETRAINING = {"": {}, **{f"_lr_{lr}": {"lr": lr} for lr in (0.05, 0.2, 0.4)},
               **{f"_steps_1200_lr_{lr}": {"steps": 1200, "lr": lr} for lr in (0.1, 0.2)},
               **{f"_grey_{grey}": {"lr": 0.2, "grey": grey} for grey in (0.1, 0.4)},  # to be compared with _lr_0.2
               "_small_views": {"lr": 0.2, "small": (0.1, 0.5)},
               "_two_views": {"lr": 0.2, "sizes": (24, 16), "steps": 392},  # as many pixels as three views
               "_four_views": {"lr": 0.2, "sizes": (24, 16, 16, 16), "steps": 243},
               "_weight_0.004": {"weight": 0.004}, "_weight_0.015": {"weight": 0.015},
               "_projector_2048": {"projector": (2048, 2048), "weight": 0.0039}}
PRETRAINING = {f"pretraining{name}": ("pretraining", [0], changes) for name, changes in PRETRAINING.items()}

# Chapter 3: fine-tuning the published network, with 10 % of the labels as chapter 2 trains or mildly, and with 1 %
STRONG = {"percent": 10, "augment": "view", "batch": 128, "lr": 0.04, "sizes": (24, 32), "steps": 2400}
MILD = {"percent": 10, "augment": "crop", "batch": 64, "lr": 0.06, "sizes": (16, 24, 32), "steps": 800}
FINETUNING = {f"backbone_lr_{scale}": {**STRONG, "backbone_lr": scale} for scale in (1.0, 0.3)}
FINETUNING |= {"mild": MILD, "mild_32": {**MILD, "sizes": (32,)}, "mild_backbone_lr_0.3": {**MILD, "backbone_lr": 0.3},
               "mild_32_view": {**MILD, "sizes": (32,), "augment": "view"}}
FINETUNING = {f"finetuning_10_{name}": ("finetuning", [0], changes) for name, changes in FINETUNING.items()}
FINETUNING |= {f"finetuning_1_{augment}_steps_{steps}_backbone_lr_{scale}": (
    "finetuning", [0], {"percent": 1, "augment": augment, "steps": steps, "backbone_lr": scale})
    for augment, steps, scale in (("crop", 100, 0.3), ("crop", 100, 0.1), ("view", 300, 0.1), ("view", 300, 0.3))}

# Chapter 3: the supervised network with few labels for its own steps and for more: with 10 % for as many seconds as
# pretraining and fine-tuning take together (the record's: 1,855 s where 2,400 steps take 294), with 1 % four times as many
# steps; what the chapters' own steps reach at full stands in their record
LONGER = {"quick": {0.2: (150, 600), 1: (150, 600), 10: (300, 800, 1950)}, "full": {1: (8800,), 10: (15_200,)}}


def trials(preset):
    """{name: (kind, seeds, settings that differ from the preset's)}; a name can stand in a marker."""
    longer = {f"supervised_{percent}_steps_{steps}": ("supervised", [0], {"percent": percent, "steps": steps})
              for percent, several in LONGER[preset].items() for steps in several}
    tuning = SUPERVISED | PRETRAINING | FINETUNING if preset == "full" else {
        name: trial for name, trial in PRETRAINING.items() if "steps" not in trial[2]}
    before = "" if preset == "full" else f"{preset}_"
    return {before + name.replace(".", "_"): trial for name, trial in {**tuning, **longer, **cousins(preset)}.items()}


def run(m, name, kind, seeds, changes):
    """Run one trial; return its settings, its seeds and what it reached on validation, in percent."""
    images, labels = m.load_split(m.get_cifar10(), train=True)
    train, validation = m.split_indices(labels)
    if kind == "supervised":
        settings = {**m.supervised_settings(m.PRESET)[changes["percent"]], **changes}
    elif kind == "finetuning":
        widths = m.pretraining_settings(m.PRESET)["widths"]
        settings = {**m.finetuning_settings(m.PRESET)[changes["percent"]], "widths": widths, **changes}
    elif kind == "pretraining":
        short = {"steps": 300} if m.PRESET == "full" else {}
        settings = {**m.pretraining_settings(m.PRESET), **short, **changes}
    else:
        steps = dict(zip(OTHER, TRIAL_STEPS[m.PRESET]))
        settings = {**m.cousins_settings(m.PRESET)[kind], **changes, "steps": steps[kind]}
    found = {}
    for seed in seeds:
        title = f"search-{name}-seed{seed}"
        if kind in ("supervised", "finetuning"):
            some = m.labelled_subset(labels, train, settings["percent"], seed)
            model = m.make_classifier(seed, settings["widths"])
            if kind == "finetuning":
                start_from_features(m, model, images[some], labels[some], images[validation], labels[validation], seed)
            history = m.train_supervised(model, images[some], labels[some], settings, seed, title)
            reached = {"validation": m.accuracy(m.predict(model, images[validation]), labels[validation])}
        else:
            method = m.barlow_twins if kind in ("pretraining", "bt") else getattr(m, kind)
            backbone, _, history = m.pretrain(images[train], method, settings, seed, title, view=view(m, settings))
            few = {"known": train[:4500], "percents": (100,)} if kind in OTHER else {"known": train, "percents": (100, 10, 1)}
            reached = judged(m, backbone, images, labels, asked=validation, **few)
        for key, value in {**reached, "seconds": history["seconds"]}.items():
            found.setdefault(key, []).append(round(value, 2))
    return {"kind": kind, "settings": settings, "seeds": seeds, "hardware": m.hardware(),
            **{key: {"mean": statistics.mean(values), "seeds": values} for key, values in found.items()}}


def start_from_features(m, model, known, targets, asked, answers, seed):
    """Load the published pretrained backbone into a classifier, and a linear probe on its features into the head."""
    m.recorded_network(f"barlow-twins-seed{seed}", {"backbone": model[0]})
    at_known, at_asked = m.features_of(model[0], known, asked)
    model[1].load_state_dict(m.linear_probe(at_known, targets, at_asked, answers).state_dict())


def view(m, settings):
    """The function that makes a trial's views: random_view, grey less often or small ones from smaller boxes."""
    colours = partial(m.random_colours, grey=settings["grey"]) if "grey" in settings else m.random_colours
    if "small" not in settings:
        return partial(m.random_view, colours=colours)
    small = partial(m.random_boxes, area=settings["small"])

    def two_kinds(images, generator, size):
        boxes = m.random_boxes if size == max(settings["sizes"]) else small
        return m.random_view(images, generator, size, boxes, colours)
    return two_kinds


def judged(m, backbone, images, labels, known, asked, percents):
    """k-NN and linear probes on frozen features of the pictures `known`, in percent of the pictures `asked`."""
    at_known, at_asked = m.features_of(backbone, images[known], images[asked])
    whiten = m.whitening(at_known)
    reached = {"knn": m.knn_accuracy(at_known, labels[known], at_asked, labels[asked]),
               "knn_whitened": m.knn_accuracy(whiten(at_known), labels[known], whiten(at_asked), labels[asked])}
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
    known = trials(given.preset)
    unknown = [name for name in given.names if name not in known and name not in {kind for kind, *_ in known.values()}]
    if unknown:
        raise Stop(f"There is no trial {', '.join(unknown)} at preset {given.preset}. --list prints the names.")
    if given.list:
        print("\n".join(known))
        return 0
    os.chdir(nbtools.ROOT / "notebooks")
    m, table = namespace(["01", "02", "03", "05"], PRESET=given.preset), results("search") or {"trials": {}}
    missing = [name for name in known if name not in table["trials"]]
    if given.names:
        missing = [name for name in known if name in given.names or known[name][0] in given.names and name in missing]
    for name in missing:
        table["trials"][name] = run(m, name, *known[name])
        write_text(nbtools.ROOT / "data" / "results" / "search.json", json.dumps(table, indent=1) + "\n")
        print(name, table["trials"][name], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
