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


TRIALS = {
    "all blocks, 100 %": supervised(100, 400),
    "all blocks, 100 %, learning rate 0.08": supervised(100, 400, lr=0.08),
    "all blocks, 100 %, 24 and 32 pixels": supervised(100, 535, sizes=[24, 24, 32]),
    "all blocks, pretraining": pretraining(680),
    "all blocks, fine-tuned, 10 %, view": fine_tuned(10, 1200, "view"),
    "all blocks, fine-tuned, 10 %, view, factor 0.5": fine_tuned(10, 1200, "view", backbone_lr=0.5),
}


def run(name, settings):
    """Run one trial; return what it reached on validation, in percent, and the seconds its training took."""
    m = namespace(3, PRESET="full")
    folder = m.get_cifar10()
    images, labels = m.load_split(folder, train=True)
    train, validation = m.split_indices(labels)
    recorded = dict(m.pretraining_settings("full"), data=m.data_md5(folder))
    model = m.make_classifier(0, recorded["widths"])
    precision, _ = m.fastest_precision(model, m.normalize(images[:64]))
    recorded["precision"] = str(precision).removeprefix("torch.")
    if settings["kind"] == "pretraining":
        backbone, _, history = m.pretrain(images[train], {**recorded, **settings}, 0, file_name(name))
        return {"seconds": history["seconds"], **judged(m, backbone, images, labels, train, validation, precision)}
    chosen, reached = m.labelled_subset(labels, train, settings["percent"], 0), {}
    if "backbone_lr" in settings:
        backbone, _, _ = m.pretrain(images[train], recorded, 0, "barlow-twins-full-seed0")
        at_chosen, at_validation = m.features_of(backbone, images, (chosen, validation), precision)
        probe = m.linear_probe(at_chosen, labels[chosen], at_validation, labels[validation])
        model[0].load_state_dict(backbone.state_dict())
        model[1].load_state_dict(probe.state_dict())
        reached["probe"] = m.accuracy(probe(at_validation), labels[validation])
    settings = dict(settings, precision=recorded["precision"])
    history = m.train_supervised(model, images[chosen], labels[chosen], settings, 0, file_name(name))
    reached["validation"] = m.accuracy(m.predict(model, images[validation], precision), labels[validation])
    return {"seconds": history["seconds"], **reached}


def file_name(name):
    """A trial's name as its checkpoint has it."""
    return "search-" + "".join(c if c.isalnum() else "-" for c in name)


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


def facts(table):
    """The figures that the chapters' prose takes from this table."""
    import torch
    trials = {**table["earlier"]["trials"], **table["trials"]}
    reached = {name: trial.get("validation", trial.get("linear_45000")) for name, trial in trials.items()}
    measured = muon_ratio() if torch.backends.cpu.get_cpu_capability() == "AVX2" else {}  # the processors it speaks of
    wide = "bfloat16, pretraining, last stage 384 wide"
    return {**table["facts"], **measured,
            "crop_1": reached["1 %, crop"], "view_1": reached["1 %, view"],
            "crop_10": reached["bfloat16, 10 %, crop"], "view_10": reached["bfloat16, 10 %, view"],
            "narrow": reached["bfloat16, pretraining"], "wide": reached[wide],
            "all_128": reached["bfloat16, 100 %, batch 128"], "all_256": reached["bfloat16, 100 %"],
            "lr_0_04": reached.get("all blocks, 100 %"), "lr_0_08": reached.get("all blocks, 100 %, learning rate 0.08"),
            "batch_128": reached[wide + ", batch 128"], "batch_512": reached[wide + ", batch 512"],
            "all_muon": reached["bfloat16, pretraining, Muon for the projector too"],
            "sgd": max(value for name, value in reached.items() if "SGD" in name)}


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
    for name in args.names or [name for name in TRIALS if name not in table["trials"]]:
        started = time.strftime("%H:%M")
        reached = run(name, TRIALS[name])
        table["trials"][name] = {"settings": TRIALS[name], **{key: round(value, 2) for key, value in reached.items()}}
        table["facts"] = facts(table)
        write_text(TABLE, json.dumps(table, indent=1) + "\n")
        print(started, name, table["trials"][name], flush=True)


if __name__ == "__main__":
    main()
