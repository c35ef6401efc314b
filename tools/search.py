"""Try settings on the validation split, outside the chapters, with the chapters' own code.

    python3 tools/search.py              every trial below that data/results/search.json does not hold yet
    python3 tools/search.py NAME ...     these trials
    python3 tools/search.py --list       what there is

A trial trains with seed 0 on the 45,000 training pictures and is judged on the 5,000 validation pictures; the
test pictures are never read. What it reached is written to data/results/search.json, the table that the chapters
cite, and stays there whether it was good or bad. Run it with the environment that tools/run.py makes.
"""

import argparse
import json
import sys
import time

from chain import RESULTS, namespace
from run import write_text

TABLE = RESULTS / "search.json"
SIZES = [16, 16, 24, 24, 32]  # the sides of the pictures, an equal share of the steps each


PLAIN = {"widths": [64, 128, 256], "precision": "float32"}  # on a processor with AVX2
WIDE = {"widths": [64, 128, 384], "precision": "bfloat16"}  # on one that multiplies in bfloat16


def supervised(percent, steps, batch=128, lr=0.04, augment="crop", sizes=SIZES, **more):
    """A supervised training with `percent` % of the labels."""
    return dict(kind="supervised", percent=percent, steps=steps, batch=batch, lr=lr, weight_decay=0.01,
                **{"adam_lr": 0.005, **PLAIN, **more}, augment=augment, sizes=sizes)


def fine_tuned(percent, steps, augment, sizes, lr, backbone_lr, adam_lr=0.001, **more):
    """A training that starts from a pretrained backbone and the linear probe on it."""
    return supervised(percent, steps, lr=lr, augment=augment, sizes=sizes, backbone_lr=backbone_lr, adam_lr=adam_lr,
                      **{"start": PRETRAINED, **more})


def pretraining(steps, batch=256, sizes=(16, 16, 24), projector=(1024, 1024), weight=0.0078, lr=0.04, adam_lr=0.002, **more):
    """A Barlow Twins pretraining, judged by k-NN and by linear probes."""
    return dict(kind="pretraining", steps=steps, batch=batch, sizes=list(sizes), projector=list(projector),
                weight=weight, lr=lr, adam_lr=adam_lr, weight_decay=0.01, **{**PLAIN, **more})


PRETRAINED, PRETRAINED_WIDE = "pretraining, 1,200 steps", "bfloat16, pretraining, last stage 384 wide"
LATER = dict(WIDE, start=PRETRAINED_WIDE)
BATCH_128 = "bfloat16, pretraining, last stage 384 wide, batch 128"
BATCH_512 = dict(WIDE, start="bfloat16, pretraining, last stage 384 wide, batch 512")
TRIALS = {
    "bfloat16, pretraining": pretraining(1494, sizes=[24], precision="bfloat16"),
    PRETRAINED_WIDE: pretraining(1134, sizes=[24], **WIDE),
    BATCH_512["start"]: pretraining(567, 512, sizes=[24], **WIDE),
    BATCH_128: pretraining(2268, 128, sizes=[24], **WIDE),
    "bfloat16, pretraining, Muon for the projector too": pretraining(1237, sizes=[24], precision="bfloat16", optimizer="all muon"),
    "bfloat16, 1 %, view": supervised(1, 713, augment="view", **WIDE),
    "bfloat16, 1 %, view, 24 and 32 pixels": supervised(1, 586, augment="view", sizes=[24, 32], **WIDE),
    "bfloat16, 10 %, crop": supervised(10, 1224, **WIDE),
    "bfloat16, 10 %, view": supervised(10, 1267, augment="view", **WIDE),
    "bfloat16, 10 %, view, 24 and 32 pixels": supervised(10, 1074, augment="view", sizes=[24, 32], **WIDE),
    "bfloat16, 100 %": supervised(100, 875, 256, sizes=[32], **WIDE),
    "bfloat16, 100 %, SGD 0.05": supervised(100, 875, 256, lr=0.05, sizes=[32], optimizer="sgd", **WIDE),
    "bfloat16, 100 %, SGD 0.15": supervised(100, 875, 256, lr=0.15, sizes=[32], optimizer="sgd", **WIDE),
    "bfloat16, 100 %, SGD 0.5": supervised(100, 875, 256, lr=0.5, sizes=[32], optimizer="sgd", **WIDE),
    "bfloat16, 100 %, batch 128": supervised(100, 1750, 128, sizes=[32], **WIDE),
    "bfloat16, 100 %, 24 and 32 pixels": supervised(100, 1095, 256, sizes=[24, 24, 32], **WIDE),
    "bfloat16, 100 %, growing, eight minutes": supervised(100, 4000, 256, **WIDE),
    "bfloat16, fine-tuned, 1 %, crop, factor 0.03": fine_tuned(1, 200, "crop", [32], 0.04, 0.03, adam_lr=0.0003, **LATER),
    "bfloat16, fine-tuned, 1 %, crop, factor 0.1": fine_tuned(1, 200, "crop", [32], 0.04, 0.1, **LATER),
    "bfloat16, fine-tuned, 1 %, crop, factor 0.3": fine_tuned(1, 200, "crop", [32], 0.04, 0.3, **LATER),
    "bfloat16, fine-tuned, 1 %, view, factor 0.03": fine_tuned(1, 200, "view", [32], 0.04, 0.03, adam_lr=0.0003, **LATER),
    "bfloat16, fine-tuned, 1 %, view, factor 0.1": fine_tuned(1, 200, "view", [32], 0.04, 0.1, **LATER),
    "bfloat16, fine-tuned, 1 %, view, factor 0.3": fine_tuned(1, 300, "view", [32], 0.04, 0.3, **LATER),
    "bfloat16, fine-tuned, 10 %, crop": fine_tuned(10, 600, "crop", [24, 32], 0.04, 1.0, adam_lr=0.002, **LATER),
    "bfloat16, fine-tuned, 10 %, view": fine_tuned(10, 600, "view", [24, 32], 0.04, 1.0, adam_lr=0.002, **LATER),
    "bfloat16, fine-tuned, 10 %, view, factor 0.5": fine_tuned(10, 600, "view", [24, 32], 0.04, 0.5, adam_lr=0.002, **LATER),
    "bfloat16, fine-tuned from batch 512, 1 %, crop, factor 0.3": fine_tuned(1, 100, "crop", [32], 0.04, 0.3, **BATCH_512),
    "bfloat16, fine-tuned from batch 512, 1 %, crop, factor 1": fine_tuned(1, 100, "crop", [32], 0.04, 1.0, **BATCH_512),
    "bfloat16, fine-tuned from batch 512, 10 %, crop": fine_tuned(10, 1200, "crop", [24, 32], 0.04, 1.0, adam_lr=0.002, **BATCH_512),
    PRETRAINED: pretraining(1200),
    "pretraining, short": pretraining(440, sizes=(16, 24)),
    "1 %, crop": supervised(1, 150),
    "1 %, view": supervised(1, 150, augment="view"),
    "1 %, view, twice the steps": supervised(1, 300, augment="view"),
    "5 %, crop": supervised(5, 300),
    "5 %, view": supervised(5, 300, augment="view"),
    "10 %, crop": supervised(10, 250),
    "10 %, view": supervised(10, 250, augment="view"),
    "10 %, crop, twice the steps": supervised(10, 500),
    "fine-tuned, 1 %, view, 24 pixels, factor 0.1": fine_tuned(1, 60, "view", [24], 0.04, 0.1),
    "fine-tuned, 1 %, view, 24 pixels, factor 0.3": fine_tuned(1, 60, "view", [24], 0.02, 0.3),
    "fine-tuned, 1 %, crop, factor 0.1": fine_tuned(1, 60, "crop", [32], 0.04, 0.1),
    "fine-tuned, 1 %, crop, factor 0.3, longer": fine_tuned(1, 120, "crop", [32], 0.04, 0.3),
    "fine-tuned, 10 %, crop, 24 pixels, factor 0.3": fine_tuned(10, 120, "crop", [24], 0.04, 0.3),
    "fine-tuned, 10 %, crop, 24 pixels, factor 1": fine_tuned(10, 120, "crop", [24], 0.04, 1.0),
    "fine-tuned, 10 %, crop, factor 1, longer": fine_tuned(10, 250, "crop", [24, 32], 0.04, 1.0, adam_lr=0.002),
}


def sgd_instead(module):
    """Make the module's trainings use SGD with Nesterov momentum for the backbone, the usual choice."""
    def make_optimizers(backbone, others, settings, precision):
        params = [*backbone.parameters(), *(p for other in others for p in other.parameters())]
        optimizer = module.torch.optim.SGD(params, settings["lr"], momentum=0.9, nesterov=True, weight_decay=5e-4)
        optimizer.param_groups[0]["initial_lr"] = settings["lr"]
        return [optimizer]
    module.make_optimizers = make_optimizers


def muon_for_all(module):
    """Make the module's trainings use Muon for the projector's matrices as well."""
    def make_optimizers(backbone, others, settings, precision):
        params = [p for part in (backbone, *others) for p in part.parameters()]
        muon = module.Muon([p for p in params if p.ndim == 2], settings["lr"], settings["weight_decay"], dtype=precision)
        adam = module.torch.optim.AdamW([p for p in params if p.ndim != 2], settings["adam_lr"], weight_decay=0.0)
        for group in muon.param_groups + adam.param_groups:
            group["initial_lr"] = group["lr"]
        return [muon, adam]
    module.make_optimizers = make_optimizers


def run(name, settings):
    """Run one trial; return what it reached on validation, in percent, and the seconds its training took."""
    m = namespace(3, PRESET="full")
    folder = m.get_cifar10()
    images, labels = m.load_split(folder, train=True)
    train, validation = m.split_indices(labels)
    if "optimizer" in settings:
        {"sgd": sgd_instead, "all muon": muon_for_all}[settings["optimizer"]](m)
    precision = getattr(m.torch, settings["precision"])
    if settings["kind"] == "pretraining":
        backbone, history = pretrained(m, images[train], name)
        return {"seconds": history["seconds"], **judged(m, backbone, images, labels, train, validation, precision)}
    chosen, reached = m.labelled_subset(labels, train, settings["percent"], 0), {}
    if "backbone_lr" in settings:
        backbone, _ = pretrained(m, images[train], settings["start"])
        at_chosen, at_validation = m.features_of(backbone, images, (chosen, validation), precision)
        probe = m.linear_probe(at_chosen, labels[chosen], at_validation, labels[validation])
        model = m.make_classifier(0, settings["widths"], backbone.state_dict())
        model[1].load_state_dict(probe.state_dict())
        reached["probe"] = m.accuracy(probe(at_validation), labels[validation])
    else:
        model = m.make_classifier(0, settings["widths"])
    history = m.train_supervised(model, images[chosen], labels[chosen], settings, 0, file_name(name))
    reached["validation"] = m.accuracy(m.predict(model, images[validation], precision), labels[validation])
    return {"seconds": history["seconds"], **reached}


def file_name(name):
    """A trial's name as its checkpoint has it."""
    return "search-" + "".join(c if c.isalnum() else "-" for c in name)


def pretrained(m, images, name):
    """The backbone of a pretraining trial and its history, trained or loaded."""
    backbone, _, history = m.pretrain(images, TRIALS[name], 0, file_name(name))
    return backbone, history


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


def facts(trials, known):
    """The figures that the chapters' prose takes from this table; `known` is what the table held before."""
    import torch
    reached = {name: trial.get("validation", trial.get("linear_45000")) for name, trial in trials.items()}
    measured = muon_ratio() if torch.backends.cpu.get_cpu_capability() == "AVX2" else {}  # the processors it speaks of
    return {**known, **measured,
            "crop_1": reached.get("1 %, crop"), "view_1": reached.get("1 %, view"),
            "crop_10": reached.get("bfloat16, 10 %, crop"), "view_10": reached.get("bfloat16, 10 %, view"),
            "narrow": reached.get("bfloat16, pretraining"), "wide": reached.get(PRETRAINED_WIDE),
            "batch_128": reached.get(BATCH_128), "batch_512": reached.get(BATCH_512["start"]),
            "all_muon": reached.get("bfloat16, pretraining, Muon for the projector too"),
            "muon": reached.get("bfloat16, 100 %"), "sgd": max((value for name, value in reached.items() if "SGD" in name), default=None)}


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
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {"facts": {}, "trials": {}}
    for name in args.names or [name for name in TRIALS if name not in table["trials"]]:
        started = time.strftime("%H:%M")
        reached = run(name, TRIALS[name])
        table["trials"][name] = {"settings": TRIALS[name], **{key: round(value, 2) for key, value in reached.items()}}
        table["facts"] = facts(table["trials"], table["facts"])
        write_text(TABLE, json.dumps(table, indent=1) + "\n")
        print(started, name, table["trials"][name], flush=True)


if __name__ == "__main__":
    main()
