"""Pretrain as chapter 3 does, on as many processes, GPUs or machines as there are. Appendix C explains it.

    python tools/pretrain.py --preset quick                             one process: chapter 3's own training
    torchrun --nproc-per-node 4 tools/pretrain.py --preset full         four processes, one for each GPU where there are any
    torchrun --nproc-per-node 4 --max-restarts 3 tools/pretrain.py --preset full     goes on when a process is killed
    torchrun --nproc-per-node 4 tools/pretrain.py --preset full --images data/stores/NAME.u8     a store of chapter 6

Run them with .venv/bin/python and .venv/bin/torchrun. NOLABELS_DATA and NOLABELS_DEVICE count as in the chapters. The
minibatch is shared out, so N processes see the pictures and the views that one would see. The same command goes on from
the checkpoint, with another number of processes too.

On GPUs BatchNorm is synchronised: the training is chapter 3's, and chapter 3 loads it. PyTorch has no such layer for
CPUs. There each process normalises with its own pictures, which is another training, kept under another fingerprint.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import warnings
from pathlib import Path
from unittest import mock

import nbtools
import torch
import torch.distributed as dist
from nbtools import Stop, guarded
from torch import nn
from weave import namespace


def join(m):
    """Join the processes that torchrun has started; all compute in the precision that suits the first."""
    if m.DEVICE.type == "mps":
        raise Stop("Several processes share CPUs or NVIDIA GPUs, not Apple's: set NOLABELS_DEVICE=cpu.")
    if m.DEVICE.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    place, store = os.environ, None
    if place.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and place["LOCAL_WORLD_SIZE"] == place["WORLD_SIZE"]:
        # torchrun's one store keeps the addresses of processes that died (pytorch issue 135712): each life gets its own part
        store = dist.TCPStore(place["MASTER_ADDR"], int(place["MASTER_PORT"]), is_master=False)
        store = dist.PrefixStore(f"life {place['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group("nccl" if m.DEVICE.type == "cuda" else "gloo", store=store,
                            rank=int(place["RANK"]), world_size=int(place["WORLD_SIZE"]))
    if dist.get_rank():
        sys.stdout = open(os.devnull, "w")  # one process speaks for all
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of the small filters of the shortcuts alone
    m.choose_precision()
    precision = [m.MACHINE["precision"]]
    dist.broadcast_object_list(precision)
    m.choose_precision(precision[0])


def own(rows):
    """This process's part of what was drawn for a whole minibatch."""
    return rows.chunk(dist.get_world_size())[dist.get_rank()]


def spread(m, method):
    """The method with its networks in DistributedDataParallel."""
    def start(backbone, settings):
        chosen, wrapped = method(backbone, settings), []

        def loss(views, step):
            if not wrapped:  # not before the networks are on their device and a checkpoint is loaded
                whole = m.Together([backbone, *chosen.modules.values()], chosen.loss)
                if m.DEVICE.type == "cuda":
                    whole = nn.SyncBatchNorm.convert_sync_batchnorm(whole)
                wrapped.append(nn.parallel.DistributedDataParallel(whole))
            return wrapped[0](views, step)

        def before_update(step):
            if m.MACHINE["tally"]:  # the operations of all processes
                m.MACHINE["tally"]["network"] *= dist.get_world_size()
            chosen.before_update(step)

        return m.Method(chosen.modules, loss, before_update, chosen.after_update)
    return start


@contextlib.contextmanager
def together(m, images, method, settings, seed, name, watch, view):
    """A block in which chapter 3's `pretrain` runs on all processes; yields its arguments.

    In the block the chapters' functions below do their part of a minibatch. What the training depends on is looked up
    before, so its fingerprint is that of one process, and says so where BatchNorm makes it another training.
    """
    world, batch = dist.get_world_size(), settings["batch"]
    if batch % world:
        raise Stop(f"{batch} pictures cannot be shared out to {world} processes: choose a --batch that can.")
    parts = m.dependencies(m.pretrain, images, method, settings, seed, name, watch, view)
    if m.DEVICE.type != "cuda":
        parts["BatchNorm"] = "of each process's own pictures"
    alone = {name: getattr(m, name) for name in (
        "minibatch", "cross_correlation", "dependencies", "load_checkpoint", "save_checkpoint")}
    drawn = {"boxes": m.random_boxes, "colours": m.random_colours, **getattr(view, "keywords", {})}

    def load_checkpoint(path, header, state):
        step, steps = alone["load_checkpoint"](path, header, state), [None] * world
        dist.all_gather_object(steps, step)
        if len(set(steps)) > 1:
            raise Stop("The processes find different checkpoints: NOLABELS_DATA must name a folder that all machines share.")
        if step < header["steps"]:
            said = f"{name}: from step {step:,} on with {world} process{'es' * (world > 1)}, {batch // world} pictures each"
            state["history"]["log"].append(said)
            print(said, flush=True)
        return step

    shared = {
        "minibatch": lambda *given: own(alone["minibatch"](*given)),
        "cross_correlation": m.correlation_of_all,
        "dependencies": lambda *given: dict(parts),
        "load_checkpoint": load_checkpoint,
        "save_checkpoint": lambda *given: None if dist.get_rank() else alone["save_checkpoint"](*given),
    }

    def look(*given):  # one process alone, with the chapters' functions as they are
        with mock.patch.multiple(m, **alone):
            watch(*given)

    part = functools.partial(  # draws for the whole minibatch and keeps its own
        view, boxes=lambda n, generator: own(drawn["boxes"](n * world, generator)),
        colours=lambda n, generator: tuple(map(own, drawn["colours"](n * world, generator))))
    with mock.patch.multiple(m, **shared):
        yield images, spread(m, method), settings, seed, name, look if watch and not dist.get_rank() else None, part


def pictures(m, store):
    """(uint8 pictures, what looks in on the training, what makes views): of chapter 3, or of a store that stays on the disk."""
    if not store:
        m.images, m.labels = m.load_split(m.get_cifar10(), train=True)
        m.train, m.validation = m.split_indices(m.labels)
        m.unlabelled = m.images[m.train]
        return m.unlabelled, m.watch, m.random_view
    try:
        about = json.loads(store.with_suffix(".json").read_text(encoding="utf-8"))
        images = torch.from_numpy(m.np.memmap(store, m.np.uint8, "c", shape=tuple(about["shape"])))
        mean, deviation = (torch.tensor(about[key]).view(1, 3, 1, 1) for key in ("mean", "deviation"))
    except (OSError, ValueError, LookupError, TypeError) as fault:
        raise Stop(f"{store.name} is no store of chapter 6 with its .json beside it ({fault}).") from None
    return images, None, functools.partial(m.random_view, mean=mean, std=deviation)


def main():
    """Read the command line and pretrain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["smoke", "quick", "full", "long"], default="quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--batch", type=int, help="pictures in a minibatch, of all processes together; instead of the preset's")
    parser.add_argument("--images", type=Path, help="a store of chapter 6 instead of CIFAR-10")
    parser.add_argument("--save-every", type=float, default=60, help="seconds between checkpoints")
    given = parser.parse_args()
    store = given.images and given.images.resolve()
    os.chdir(nbtools.ROOT / "notebooks")
    m = namespace(3, PRESET=given.preset, NETWORK="train")
    m.BETWEEN_SAVES, group = given.save_every, dist.is_torchelastic_launched()
    if group:
        join(m)
    images, watch, view = pictures(m, store)
    if m.DEVICE.type == "cuda" and images.nbytes < torch.cuda.mem_get_info()[0] / 4:
        images = images.to(m.DEVICE)
    settings = m.pretraining_settings(given.preset)
    settings.update({key: value for key, value in (("steps", given.steps), ("batch", given.batch)) if value})
    name = f"barlow-twins-{store.stem + '-' if store else ''}seed{given.seed}"
    what = images, m.barlow_twins, settings, given.seed, name, watch, view
    with together(m, *what) if group else contextlib.nullcontext(what) as what:
        m.pretrain(*what)
    if group:
        dist.destroy_process_group()
    print(f"The network is in {m.DATA.resolve() / 'checkpoints'}.")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
