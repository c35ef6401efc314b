"""What chapters 2 and 3 teach, checked against definitions written another way; and what a bad evening does to a training."""

import ast
import io
import itertools
import json
import linecache
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbtools
import numpy as np
import pytest
import record
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")
TOOLS = Path(__file__).resolve().parent.parent / "tools"
SUPERVISED = dict(steps=8, batch=16, lr=0.02, adam_lr=0.005, augment="crop", sizes=[16, 32], widths=[8, 16])
COUNT = itertools.count()
PRETRAINING = dict(steps=8, batch=16, lr=0.02, adam_lr=0.002, sizes=[16, 24], projector=[16, 16], weight=0.05, widths=[8, 16])


@pytest.fixture(scope="module")
def pictures(chapter3):
    """Generated pictures and their labels."""
    images, labels = chapter3.load_split(chapter3.get_cifar10(), train=True)
    return images[:400], labels[:400]


@pytest.fixture
def m(chapter3, alone):
    """The kept cells, with folders that this test has alone."""
    return alone(chapter3)


def seeded(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def supervised(m, pictures, name="test", **changes):
    """A short supervised training; its classifier and history."""
    settings = {**SUPERVISED, **changes}
    model = m.make_classifier(0, settings["widths"])
    return model, m.train_supervised(model, *pictures, settings, 0, name)


def pretrained(m, pictures, **changes):
    """A short pretraining; its backbone and history."""
    backbone, _, history = m.pretrain(pictures[0], m.barlow_twins, {**PRETRAINING, **changes}, 0, "test")
    return backbone, history


RUNS = {"supervised": supervised, "pretraining": pretrained}


def same(one, other):
    """Whether two modules hold the same weights and buffers to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def cell(space, text):
    """Run a text as a cell of a notebook with these globals; return them."""
    name, text = f"<cell {next(COUNT)}>", textwrap.dedent(text) + "\n"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), space)
    return space


# ---- definitions ------------------------------------------------------------------------------------

def test_barlow_twins_loss_is_its_definition_in_float64(m):
    random = np.random.default_rng(0)
    z1, z2 = random.normal(3, 2, (50, 7)), random.normal(-1, 5, (50, 7))
    expected = 0.0
    for i in range(7):
        for j in range(7):
            c = np.corrcoef(z1[:, i], z2[:, j])[0, 1]
            expected += (1 - c) ** 2 if i == j else 0.3 * c ** 2
    got = m.barlow_twins_loss(torch.tensor(z1), torch.tensor(z2), 0.3).item()
    assert got == pytest.approx(expected, rel=1e-4)
    z = [torch.tensor(part[:9, :4], requires_grad=True) for part in (z1, z2)]
    assert torch.autograd.gradcheck(lambda a, b: m.barlow_twins_loss(a, b, 0.3), z)


@pytest.mark.parametrize("views", [2, 3])
def test_barlow_twins_compares_each_view_with_the_mean_of_the_others(m, views):
    torch.manual_seed(0)
    backbone = m.Backbone([8, 16])
    method = m.barlow_twins(backbone, PRETRAINING)
    x = torch.randn(views, 20, 3, 16, 16)
    loss = method.loss(list(x), 0)
    z = [method.modules["projector"](backbone(view)).detach().double().numpy() for view in x]
    expected = 0.0
    for k in range(views):
        other = np.mean([z[i] for i in range(views) if i != k], axis=0)
        c = np.corrcoef(z[k], other, rowvar=False)[:16, 16:]
        expected += ((1 - np.diag(c)) ** 2).sum() + 0.05 * ((c ** 2).sum() - (np.diag(c) ** 2).sum())
    assert loss.item() == pytest.approx(expected / views, rel=2e-3)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_directions(m, shape):
    matrix = torch.randn(shape, generator=seeded(1))
    (u, values, v), (a, _, b) = (torch.linalg.svd(x, full_matrices=False) for x in (m.orthogonalize(matrix, steps=6), matrix))
    assert values.min() > 0.5 and values.max() < 1.4
    if shape[0] != shape[1]:  # a square one has directions that are nearly zero
        assert torch.linalg.matrix_norm(u @ v - a @ b) / min(shape) ** 0.5 < 0.02


def test_muon_is_torchs_muon_for_filters_and_torchs_adamw_for_the_rest(m):
    filters, matrix = (nn.Parameter(torch.ones(shape)) for shape in ((8, 3, 2, 2), (8, 12)))
    rest, other = (nn.Parameter(torch.ones(5)) for _ in range(2))
    ours = m.Muon([dict(params=[filters], lr=0.1, weight_decay=0.01, muon=True), dict(params=[rest], lr=0.1, muon=False)],
                  weight_decay=0.0)
    theirs = [torch.optim.Muon([matrix], lr=0.1, weight_decay=0.01, momentum=0.9, ns_steps=4),
              torch.optim.AdamW([other], lr=0.1, weight_decay=0.0)]
    for step in range(3):
        gradient, more = torch.randn(8, 12, generator=seeded(step)), torch.randn(5, generator=seeded(step))
        filters.grad, matrix.grad, rest.grad, other.grad = gradient.clone().view(8, 3, 2, 2), gradient, more.clone(), more
        for optimizer in (ours, *theirs):
            optimizer.step()
    assert torch.equal(rest, other)
    assert torch.allclose(filters.flatten(1), matrix, atol=1e-2)  # theirs multiplies in bfloat16
    assert (filters.detach() - 1).abs().mean() > 0.03


def test_the_optimizer_gives_filters_to_muon_and_nothing_twice(m):
    model = m.make_classifier(0, [8, 16])
    groups = m.make_optimizer(model[0], [model[1]], {**SUPERVISED, "backbone_lr": 0.5}).param_groups
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, model.parameters()))
    for group in groups:
        assert all((p.ndim == 4) == group["muon"] for p in group["params"])
        heads = any(p is model[1].weight for p in group["params"])
        assert group["full_lr"] == (0.01 if group["muon"] else 0.005 if heads else 0.0025)


def test_the_learning_rate_warms_up_and_follows_a_cosine(m):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    optimizer.param_groups[0]["full_lr"] = 2.0
    rates = []
    for step in range(1000):
        m.set_learning_rate(optimizer, step, 1000)
        rates.append(optimizer.param_groups[0]["lr"])
    for step in (0, 10, 49, 50, 300, 999):
        progress = (step + 0.5) / 1000
        assert rates[step] == pytest.approx(min(1, 20 * progress) * 2 * math.cos(math.pi * progress / 2) ** 2)


def test_features_are_mean_and_root_mean_square_of_each_block(m):
    backbone, seen = m.Backbone([8, 16]).eval(), []
    for block in backbone.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out.detach().double().flatten(2).numpy()))
    features = backbone(torch.randn(3, 3, 32, 32, generator=seeded()))
    expected = np.concatenate([part for x in seen for part in (x.mean(2), np.sqrt((x ** 2).mean(2)))], axis=1)
    assert features.shape == (3, backbone.features) and [x.shape[2] for x in seen] == [256, 64]
    np.testing.assert_allclose(features.detach().numpy(), expected, rtol=1e-3, atol=4e-3)  # 1e-5 stands under the root


def test_a_dead_channel_has_a_gradient_without_nan(m):
    backbone = m.Backbone([8, 16])
    with torch.no_grad():
        backbone.blocks[1].norm2.bias.fill_(-100)
        backbone.blocks[1].shortcut[2].weight.zero_()
    features = backbone(torch.randn(4, 3, 16, 16))
    assert (features[:, -32:-16] == 0).all()
    features.sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("side", [28, 32, 50, 100])
def test_the_backbone_takes_pictures_of_any_size(m, side):
    features = m.Backbone([8, 16, 24])(torch.randn(2, 3, side, side))
    assert features.shape == (2, 96) and features.isfinite().all()


def test_knn_is_its_slow_definition(m):
    random = np.random.default_rng(0)
    centres = random.normal(size=(7, 12))
    labels, asked = random.integers(0, 7, 300), random.integers(0, 7, 90)
    known, queries = (centres[some] + random.normal(0, 1.5, (len(some), 12)) for some in (labels, asked))
    right = 0
    for query, truth in zip(queries, asked):
        cosine = known @ query / np.linalg.norm(known, axis=1) / np.linalg.norm(query)
        votes = np.zeros(7)
        for i in np.argsort(-cosine)[:20]:
            votes[labels[i]] += np.exp(cosine[i] / 0.07)
        right += votes.argmax() == truth
    given = [torch.tensor(part).float() if part.ndim == 2 else torch.tensor(part) for part in (known, labels, queries, asked)]
    assert m.knn_accuracy(*given) == pytest.approx(100 * right / 90) and 20 < right < 85
    assert m.knn_accuracy(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3)) == 100  # fewer than 20


def probabilities(x, targets, strength):
    """Those of scikit-learn's softmax regression with the same penalty; soft targets as weighted copies."""
    from sklearn.linear_model import LogisticRegression
    classes = targets.shape[1]
    rows, labels = np.repeat(x, classes, axis=0), np.tile(np.arange(classes), len(x))
    fitted = LogisticRegression(C=1 / (2 * strength * len(x)), max_iter=5000, tol=1e-8)
    return fitted.fit(rows, labels, sample_weight=targets.flatten()).predict_proba(x)


@pytest.mark.parametrize("kind, n, d", [("labels", 400, 20), ("soft", 300, 10), ("labels", 40, 70), ("soft", 30, 50)])
def test_the_probe_finds_scikit_learns_optimum(m, kind, n, d):
    random = np.random.default_rng(0)
    labels = np.arange(n) % 5
    features = random.normal(2, 3, (5, d))[labels] + random.normal(0, 6, (n, d)) * np.linspace(0.3, 3, d)
    targets = np.eye(5)[labels]
    if kind == "soft":
        targets = 0.5 * targets + 0.5 * random.dirichlet(np.ones(5), n)
    x = torch.tensor(features).float()
    given = torch.tensor(targets).float() if kind == "soft" else torch.tensor(labels)
    probe = m.linear_probe(x, given, x, torch.tensor(labels), strengths=(1e-2,))
    standardised = (features - features.mean(0)) / features.std(0, ddof=1)
    expected = probabilities(standardised, targets, 1e-2)
    np.testing.assert_allclose(probe(x).softmax(1).numpy(), expected, atol=0.02)


def test_the_probes_strength_is_chosen_on_validation_alone(m):
    noise, labels = torch.randn(60, 200, generator=seeded()), torch.arange(60) % 10
    truth = torch.arange(300) % 10
    signal = F.one_hot(truth, 10).float() @ torch.randn(10, 200, generator=seeded(1))
    both, validation = noise + 0.3 * signal[:60], 0.3 * signal + torch.randn(300, 200, generator=seeded(2))
    scores = [m.accuracy(m.linear_probe(both, labels, validation, truth, strengths)(validation), truth)
              for strengths in ((1e-6,), (1.0,), (1e-6, 1.0), (1.0, 1e-6))]
    assert scores[0] != scores[1] and scores[2] == scores[3] == max(scores)


def test_whitened_features_have_the_identity_as_covariance(m):
    features = torch.randn(500, 8, generator=seeded()) @ torch.randn(8, 8, generator=seeded(1)) + 3
    white = m.whitening(features)(features)
    assert torch.allclose(white.mean(0), torch.zeros(8), atol=1e-4)
    assert torch.allclose(white.T @ white / 500, torch.eye(8), atol=0.02)


def test_spread_labels_is_the_dense_matrix_version(m):
    features, answers = torch.randn(60, 5, generator=seeded()), torch.rand(60, 3, generator=seeded(1)).softmax(1)
    known = torch.tensor([1, 5, 9])
    x = F.normalize(features, dim=1).double().numpy()
    graph, cosine = np.zeros((60, 60)), x @ x.T
    for i in range(60):
        others = [j for j in np.argsort(-cosine[i]) if j != i][:7]
        graph[i, others] = cosine[i, others].clip(0) ** 4
    graph /= graph.sum(1, keepdims=True)
    start = spread = answers.double().numpy()
    for _ in range(4):
        spread = 0.8 * graph @ spread + 0.2 * start
        spread[known.numpy()] = start[known.numpy()]
    spread = (spread / spread.sum(0)) ** 2
    got = m.spread_labels(features, known, answers.clone(), k=7, rounds=4, keep=0.8)
    np.testing.assert_allclose(got.numpy(), spread / spread.sum(1, keepdims=True), atol=1e-4)


def test_features_are_frozen(m, pictures):
    backbone = m.Backbone([8, 16])
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    m.features_of(backbone, pictures[0][:40])
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items()) and backbone.training
    moving = m.Backbone([8, 16])
    moving.eval = lambda: None  # a "frozen" backbone whose BatchNorm goes on adapting
    with pytest.raises(AssertionError, match="moved"):
        m.features_of(moving, pictures[0][:40])


@pytest.mark.parametrize("classes", [4, 10, 12])
def test_subsets_are_balanced_drawn_anew_and_from_the_training_pictures(m, classes):
    labels = torch.arange(24000) % classes
    train, validation = m.split_indices(labels)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(24000)) and len(validation) == 2400
    one, two = (m.labelled_subset(labels, train, 5, seed) for seed in (0, 1))
    assert torch.bincount(labels[one]).tolist() == [round(1080 / classes)] * classes
    assert set(one.tolist()) <= set(train.tolist()) and set(one.tolist()) != set(two.tolist())
    assert torch.equal(one, m.labelled_subset(labels, train, 5, 0))
    assert torch.equal(m.labelled_subset(labels, train, 100, 0), train)


def test_every_picture_comes_once_an_epoch(m):
    indices = torch.arange(100, 164)
    first = torch.cat([m.minibatch(indices, 16, step, 0) for step in range(4)])
    second = torch.cat([m.minibatch(indices, 16, step, 0) for step in range(4, 8)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == indices.tolist()
    assert not torch.equal(first, second)


def test_the_untrained_classifier_guesses_predict_leaves_the_mode_and_fine_tuning_takes_weights(m, pictures):
    model = m.make_classifier(0, [8, 16]).train()
    outputs = m.predict(model, pictures[0][:100])
    assert F.cross_entropy(outputs, pictures[1][:100]).item() == pytest.approx(math.log(10), abs=1e-5)
    assert model.training and torch.equal(outputs, m.predict(model, m.normalize(pictures[0][:100])))
    weights = m.Backbone([8, 16]).state_dict()
    tuned = m.make_classifier(5, [8, 16], weights=weights)[0].state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in tuned.items())


@pytest.mark.parametrize("sizes", [[16, 24], [24, 16, 16]])
def test_a_method_is_called_around_each_step_with_a_view_for_each_size(m, pictures, sizes):
    calls = []

    def method(backbone, settings):
        head = nn.Linear(backbone.features, 3)

        def loss(views, step):
            calls.append(("loss", step, [view.shape[-1] for view in views]))
            return sum(head(backbone(view)).square().mean() for view in views)

        def look(name):
            return lambda step: calls.append((name, step, head.weight.detach().clone(), head.weight.grad is None))
        return m.Method({"head": head}, loss, look("before"), look("after"))

    m.pretrain(pictures[0], method, {**PRETRAINING, "sizes": sizes, "steps": 3}, 0, "test")
    assert [call[:2] for call in calls] == [(name, step) for step in range(3) for name in ("loss", "before", "after")]
    assert all(call[2] == sizes for call in calls[::3]) and not any(call[3] for call in calls[1::3])
    assert not torch.equal(calls[1][2], calls[2][2]) and torch.equal(calls[2][2], calls[4][2])


# ---- precision --------------------------------------------------------------------------------------

@pytest.mark.parametrize("bf16, capability, expected", [(True, (8, 0), "bfloat16"), (False, (7, 5), "float16"), (False, (6, 1), "float32")])
def test_a_gpus_generation_decides_its_precision(m, monkeypatch, bf16, capability, expected):
    asked = []
    monkeypatch.setattr(m, "GENERATED", False)
    monkeypatch.setattr(m, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation) or bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: f"scaler for {device}")
    m.MACHINE["precision"] = None
    m.choose_precision()
    assert m.MACHINE["precision"] == getattr(torch, expected) and asked == [False]
    assert m.MACHINE["scaler"] == ("scaler for cuda" if expected == "float16" else None)


def test_timing_decides_on_a_processor_and_draws_no_random_number(m, monkeypatch):
    monkeypatch.setattr(m, "GENERATED", False)
    before, real = torch.get_rng_state(), m.step_seconds
    assert 0 < real(torch.float32) < math.inf and torch.equal(torch.get_rng_state(), before)
    for seconds, expected in (({torch.float32: 1.3, torch.bfloat16: 1}, torch.bfloat16), ({torch.float32: 1.1, torch.bfloat16: 1}, torch.float32),
                              ({torch.float32: 1, torch.bfloat16: math.inf}, torch.float32)):
        monkeypatch.setattr(m, "step_seconds", lambda dtype, limit=0, seconds=seconds: seconds[dtype])
        assert m.fastest_precision() == expected


def test_float16_trains_with_scaled_gradients_and_drops_a_step_that_overflows(m, pictures):
    m.choose_precision(torch.float16)
    torch.manual_seed(0)
    network, x = nn.Linear(8, 1), torch.randn(16, 8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    with m.autocast():
        y = network(x)
    assert y.dtype == torch.float16
    loss = y.float().square().mean()
    expected = torch.autograd.grad(network(x).square().mean(), network.parameters())
    m.backward(loss, optimizer)
    for parameter, grad in zip(network.parameters(), expected):
        assert torch.allclose(parameter.grad, grad, rtol=0.02, atol=1e-3)
    scale, before = m.MACHINE["scaler"].get_scale(), network.weight.detach().clone()
    with m.autocast():
        loss = network(x).float().square().mean() * 1e6  # gradients beyond 65,504 once they are scaled
    optimizer.zero_grad()
    m.backward(loss, optimizer)
    optimizer.step()
    assert torch.equal(network.weight, before) and m.MACHINE["scaler"].get_scale() == scale / 2
    _, history = supervised(m, pictures, steps=20)  # begins with a new scale
    assert m.MACHINE["scaler"].get_scale() == scale and history["loss"][-1] < history["loss"][0]


def test_operations_are_those_counted_by_hand(m):
    network, found = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)), {}
    optimizer = m.Muon([dict(params=[network[0].weight], lr=0.1, muon=True), dict(params=[network[4].weight], lr=0.1, muon=False)])
    with m.counted(found, 0, 10):
        with m.autocast():
            y = network(torch.randn(5, 3, 16, 16))
        m.backward(y.mean(), optimizer)
        optimizer.step()
    forward = [2 * 5 * 64 * 27 * 8, 2 * 5 * 512 * 10]
    assert found["counts"] == [2 * forward[0] + 3 * forward[1]]  # no gradient for the pictures
    assert found["update_counts"] == [4 * 2 * (8 * 27 * 8 + 8 * 8 * 8 + 8 * 8 * 27)]  # Newton-Schulz, four times
    with m.counted(found, 3, 100):
        m.backward(network(torch.randn(5, 3, 16, 16)).mean(), optimizer)
    assert len(found["counts"]) == 1


# ---- fingerprints -----------------------------------------------------------------------------------

BEGIN = '''
    import functools
    import torch
    from torch import nn
    RATE = 0.1
    TABLE = {"a": [1, 2], "b": torch.tensor([1.0, 2.0])}

    def scaled(by):
        def outer(function):
            @functools.wraps(function)
            def inner(x):
                return by * function(x)
            return inner
        return outer

    def closure(power):
        def inner(x):
            nonlocal power
            return x ** power
        return inner

    cubed = closure(3)

    class Base:
        slope = 2
        def value(self, x): return self.slope * x

    class Model(Base):
        def __init__(self): self.bias = 1
        @property
        def twice(self): return 2 * self.bias

    @torch.no_grad()
    def helper(x, by=(1, 2)):
        return sum(part * x for part in by) + RATE

    @scaled(2)
    def train(x):
        first, second = (lambda: 1), (lambda: 2)
        return helper(x) + cubed(x) + Model().value(x) + TABLE["a"][0] + first() + autocast(x)

    def autocast(x): return x
'''


def tied(m, text, *arguments):
    """What `train` of a notebook of one cell depends on."""
    return m.dependencies(cell({"__name__": "__main__"}, text)["train"], *(arguments or (1,)))


@pytest.mark.parametrize("old, new, name", [
    ("RATE = 0.1", "RATE = 0.2", "RATE"), ("[1, 2]", "[1, 3]", "TABLE"), ("[1.0, 2.0]", "[1.0, 2.5]", "TABLE"),
    ("by=(1, 2)", "by=(1, 3)", "helper"), ("+ RATE", "- RATE", "helper"), ("closure(3)", "closure(4)", "cubed"),
    ("x ** power", "x * power", "cubed"), ("slope = 2", "slope = 3", "Model"), ("self.slope * x", "self.slope + x", "Model"),
    ("self.bias = 1", "self.bias = 2", "Model"), ("2 * self.bias", "3 * self.bias", "Model"), ("@scaled(2)", "@scaled(3)", "train"),
    ("by * function", "by + function", "train"), ("lambda: 2", "lambda: 3", "train"), ("    @torch.no_grad()\n", "", "helper")])
def test_the_fingerprint_sees_every_edit_and_names_it(m, old, new, name):
    assert BEGIN.count(old) == 1
    differs = m.difference(tied(m, BEGIN), tied(m, BEGIN.replace(old, new)))
    assert name in differs.split(", ")


@pytest.mark.parametrize("old, new", [
    ("+ RATE", "+ RATE  # a comment"), ("def helper(x, by=(1, 2)):\n", 'def helper(x, by=(1, 2)):\n        """A sentence."""\n'),
    ("helper(x) + cubed(x)", "(helper(x)\n            + cubed(x))"), ('{"a": [1, 2], "b": torch.tensor([1.0, 2.0])}', '{"b": torch.tensor([1.0, 2.0]), "a": [1, 2]}'),
    ("def autocast(x): return x", "def autocast(x): return 2 * x"), ("RATE = 0.1", "RATE = 1e-1\n    unused = 3")])
def test_the_fingerprint_does_not_see_what_changes_nothing(m, old, new):
    assert BEGIN.count(old) == 1
    assert m.difference(tied(m, BEGIN), tied(m, BEGIN.replace(old, new))) == ""


def test_values_count_by_what_they_are(m):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), cell({"nn": nn, "__name__": "__main__"}, "class Own(nn.Module):\n    scale = 2")["Own"]())
    array, big = np.arange(3), torch.arange(20.0)

    def seen():
        return m.fingerprint(tied(m, "def train(*given): pass", network, {"lr": 0.1}, array, big, Path("a"), torch.device("cpu")))
    before = seen()
    try:
        torch.set_printoptions(precision=1, threshold=2)
        np.set_printoptions(threshold=1)
        assert seen() == before
    finally:
        torch.set_printoptions(profile="default")
        np.set_printoptions(threshold=1000)
    for place, key, new, old in (
            (network, "training", False, True), (network[1], "p", 0.4, 0.5), (network[0], "stride", (2, 2), (1, 1)),
            (network[0].weight, "requires_grad", False, True), (network[0].bias, "data", torch.ones(4), network[0].bias.data.clone()),
            (type(network[2]), "scale", 3, 2)):
        setattr(place, key, new)
        assert seen() != before, key
        setattr(place, key, old)
        assert seen() == before
    for place in (array, big, big.numpy()):
        place[2] += 1
        assert seen() != before
        place[2] -= 1
    assert seen() == before


PARTS = {"pretrain", "Backbone", "Block", "Muon", "orthogonalize", "set_learning_rate", "minibatch", "seeded", "random_view",
         "barlow_twins_loss", "cross_correlation", "MEAN", "settings['lr']", "seed", "images"}


def test_a_jupyter_cell_and_an_imported_module_have_the_same_fingerprint(m):
    given = (torch.arange(5), m.barlow_twins, PRETRAINING, 0, "test")
    m.make_optimizer(m.Backbone([8]), [], SUPERVISED)  # torch wraps a class's step when it makes the first one
    ours = m.dependencies(m.pretrain, *given)
    assert PARTS <= set(ours) and not {"resumable", "autocast", "DEVICE", "DATA"} & set(ours)
    script = textwrap.dedent(f"""
        import sys, os, json
        sys.path.insert(0, {str(TOOLS)!r})
        from IPython.core.interactiveshell import InteractiveShell
        from weave import header, kept, pages, read, source, tags, the_cell
        shell = InteractiveShell.instance()
        pieces = kept()[0]
        last = [path for path in pages() if path.name.startswith("03")][0]
        imports = sorted({{statement for one in pieces for statement in one.imports}})
        cells = [source(the_cell(last, read(last), "parameters")), header(last, pieces) + "\\n" + "\\n".join(imports)]
        for tag in ("machinery", "keep"):
            cells += [source(cell) for path in pages() for cell in read(path)["cells"] if tag in tags(cell)
                      and (tag == "machinery" or path.name[:2] in ("01", "02", "03"))]
        cells.append('''given = (torch.arange(5), barlow_twins, {PRETRAINING!r}, 0, "test")
        print("PARTS", json.dumps(dependencies(pretrain, *given)))''')
        for text in cells:
            shell.run_cell(text, store_history=True).raise_error()
        """).replace("\n        print(\"PARTS", "\nprint(\"PARTS")
    place = dict(os.environ, NOLABELS_PRESET="smoke", NOLABELS_DEVICE="cpu", NOLABELS_DATA=str(m.DATA), MPLBACKEND="agg")
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=place)
    line = [line for line in ran.stdout.splitlines() if line.startswith("PARTS ")]
    assert line, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert m.difference(ours, json.loads(line[0][6:])) == ""


PYTHONS = '''
import ast, functools, hashlib, json, linecache, symtable, textwrap
{code}
text = open({file!r}, encoding="utf-8").read()
trees = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.Lambda))]
read = [[plain(node), sorted(names_in(node, ["power", "function", "by", "__class__"]))] for node in trees]
print(hashlib.md5(json.dumps([plain(ast.parse(text)), read]).encode()).hexdigest())
'''


def test_every_python_reads_the_same_tree_and_the_same_names(m, tmp_path):
    import weave
    kept = [one for one in weave.kept()[0]]
    code = "\n".join(one.text for one in kept if {"plain", "names_in"} & one.defined)
    odd = 'def odd(x, w):\n    return f"{x:}", f"{x!r:}" f"a{x:.1f}b{w:>{x}}" "c", f"{x = }", rf"\\d{x}", -1, 1_000, 1e-3, b"a" b"b", ...\n'
    (tmp_path / "all.py").write_text("\n".join([one.text for one in kept] + [textwrap.dedent(BEGIN), odd]), encoding="utf-8")
    (tmp_path / "run.py").write_text(PYTHONS.format(code=code, file=str(tmp_path / "all.py")), encoding="utf-8")
    pythons = [sys.executable, *sorted(map(str, (Path.home() / ".pyenv/versions").glob("3.1[0-9].*/bin/python")))]
    said = {python: subprocess.run([python, tmp_path / "run.py"], capture_output=True, text=True, check=True).stdout for python in pythons}
    assert len(set(said.values())) == 1, said
    tree = m.plain(ast.parse(odd))
    assert m.sha(json.dumps(tree)) == "8bb2e2d3d427"  # what every Python must find, also where only one is installed


@pytest.fixture
def edited(m, monkeypatch):
    """A function that runs a cell in the chapters' namespace, as a reader would, until the test ends."""
    def edit(name, old, new):
        text = "".join(linecache.getlines(getattr(m, name).__code__.co_filename))
        assert text.count(old) == 1
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                monkeypatch.setitem(vars(m), node.name, getattr(m, node.name))  # put back at the end
        cell(vars(m), text.replace(old, new))
    return edit


@pytest.mark.fault
@pytest.mark.parametrize("function, old, new", [("barlow_twins_loss", "weight * redundancy", "2 * weight * redundancy"),
                                                ("set_learning_rate", "0.05", "0.06")])
def test_an_edited_cell_trains_anew_and_the_sentence_says_what_differs(m, pictures, edited, capsys, function, old, new):
    pretrained(m, pictures)
    edited(function, old, new)
    pretrained(m, pictures)
    said = capsys.readouterr().out
    assert f"test was trained before. What differs now: {function}. It is trained anew." in said and "loaded" not in said
    edited(function, new, old)
    edited(function, f"def {function}", f"# a comment\ndef {function}")
    pretrained(m, pictures)
    assert "loaded" in capsys.readouterr().out


# ---- a bad evening ----------------------------------------------------------------------------------

def checkpoint(m):
    """The one checkpoint there is."""
    (path,) = (m.DATA / "checkpoints").glob("*.pt")
    return path


@pytest.mark.fault
@pytest.mark.parametrize("training", RUNS)
def test_a_finished_training_is_loaded_with_its_log_and_gives_the_same_outputs(m, pictures, training, capsys):
    first, history = RUNS[training](m, pictures)
    log = capsys.readouterr().out.splitlines()
    again, same_history = RUNS[training](m, pictures)
    said = capsys.readouterr().out
    assert "step 8 of 8 loaded" in said and all(line in said for line in log if line.startswith("test: step"))
    assert history == same_history and len(history["loss"]) == 8 and history["operations"] > 0
    assert same(first, again) and torch.equal(m.predict(first, pictures[0]), m.predict(again, pictures[0]))
    assert all(torch.equal(value, value.half().float()) for value in first.parameters())
    assert {value.dtype for part in torch.load(checkpoint(m), weights_only=True)["modules"].values() for value in part.values()
            if value.is_floating_point()} == {torch.float16}


def unfinished(m, pictures, after=5):
    """Leave the checkpoint of a supervised training that was stopped."""
    real = m.minibatch

    def stopping(indices, size, step, seed):
        if step + 1 == after:
            signal.raise_signal(signal.SIGINT)
        return real(indices, size, step, seed)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(m, "minibatch", stopping)
        patch.setattr(m, "dependencies", lambda *_: DEPENDENCIES)
        supervised(m, pictures)
    return checkpoint(m)


DEPENDENCIES = {"stands for": "all"}


class Runs:
    """An object that, unpickled, would leave a file behind."""

    def __reduce__(self):
        return Path.touch, (Path("code-was-run"),)


def break_file(path, how):
    """Damage the checkpoint of an unfinished training in one of the ways that happen."""
    raw, content = path.read_bytes(), torch.load(path, weights_only=True)
    weights, states = content["modules"]["model"], content["optimizer"]["state"]
    blunt = {"truncated": raw[: len(raw) // 2], "empty": b"", "text": b"<html>not found</html>", "code": pickle.dumps({"step": Runs()})}
    if how in blunt:
        path.write_bytes(blunt[how])
        return
    if how == "a folder":
        path.unlink()
        path.mkdir()
        return
    first = next(iter(states.values()))
    for place, key, value in [spot for name, *spot in [
            ("code in a torch file", content, "step", Runs()), ("a step that cannot be", content, "step", 10 ** 9),
            ("a step that is no number", content, "step", "5"), ("another training", content["header"], "name", "other"),
            ("another fingerprint", content["header"], "parts", {}), ("another shape", weights, "1.weight", torch.zeros(10, 99)),
            ("no optimizer", content, "optimizer", {}), ("no such precision", content, "precision", "float8"),
            ("no random state", content, "random", []), ("no history", content, "history", {})] if name == how]:
        place[key] = value
    if how == "NaN":
        weights["1.weight"][0, 0] = float("nan")
    if how == "infinity in the optimizer":
        next(value for value in first.values() if value.ndim)[:] = float("inf")
    if how == "a weight missing":
        del weights["1.bias"]
    torch.save({"model": weights, "step": 5} if how == "an older layout" else content, path)


@pytest.mark.fault
@pytest.mark.parametrize("how", [
    "truncated", "empty", "text", "a folder", "code", "code in a torch file", "NaN", "infinity in the optimizer", "another shape",
    "a weight missing", "another training", "another fingerprint", "an older layout", "a step that cannot be", "a step that is no number",
    "no optimizer", "no such precision", "no random state", "no history"])
def test_a_damaged_checkpoint_is_refused_and_neither_it_nor_a_weight_is_touched(m, pictures, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = unfinished(m, pictures)
    break_file(path, how)
    before = path.read_bytes() if path.is_file() else None
    monkeypatch.setattr(m, "dependencies", lambda *_: dict(DEPENDENCIES))
    model, fresh = (m.make_classifier(0, SUPERVISED["widths"]) for _ in range(2))
    with pytest.raises(ValueError, match="move the file out of checkpoints/ and run this cell again"):
        m.train_supervised(model, *pictures, SUPERVISED, 0, "test")
    assert path.exists() and (before is None or path.read_bytes() == before)
    assert same(model, fresh) and not Path("code-was-run").exists()


@pytest.mark.fault
@pytest.mark.parametrize("step", [0, 3])
def test_a_loss_that_is_nan_stops_with_a_sentence_and_leaves_no_bad_checkpoint(m, pictures, step, monkeypatch):
    real, calls = F.cross_entropy, []

    def poisoned(*given, **more):
        calls.append(1)
        return real(*given, **more) * (float("nan") if len(calls) == step + 1 else 1)

    monkeypatch.setattr(F, "cross_entropy", poisoned)
    with pytest.raises(FloatingPointError, match=rf"test: the loss is nan at step {step}\. .*half the learning rate"):
        supervised(m, pictures)
    assert not list(m.DATA.glob("checkpoints/*"))
    supervised(m, pictures)  # and the next call starts afresh


@pytest.mark.fault
@pytest.mark.parametrize("step", [4, 7])
def test_weights_that_become_nan_do_not_replace_a_good_checkpoint(m, pictures, step, monkeypatch):
    real, calls = m.Muon.step, []

    def poisoned(self):
        real(self)
        calls.append(1)
        if len(calls) == step + 1:
            self.param_groups[2]["params"][1].data[0] = float("nan")

    monkeypatch.setattr(m, "BETWEEN_SAVES", 0)
    monkeypatch.setattr(m.Muon, "step", poisoned)
    with pytest.raises(FloatingPointError, match="a weight has become NaN"):
        supervised(m, pictures)
    assert torch.load(checkpoint(m), weights_only=True)["step"] == step


@pytest.mark.fault
def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(m, pictures, monkeypatch):
    path = unfinished(m, pictures)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(m, "dependencies", lambda *_: dict(DEPENDENCIES))
    with pytest.raises(OSError, match="could not be written"):
        supervised(m, pictures)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


@pytest.mark.fault
@pytest.mark.parametrize("training", RUNS)
def test_ctrl_c_is_answered_between_two_steps_and_loses_nothing(m, pictures, training, tmp_path, monkeypatch):
    whole, history = RUNS[training](m, pictures)
    monkeypatch.setattr(m, "DATA", tmp_path / "interrupted")
    real, before = torch.Tensor.backward, signal.getsignal(signal.SIGINT)
    calls = []

    def interrupting(self, *given, **more):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)  # in the middle of a step
        return real(self, *given, **more)

    monkeypatch.setattr(torch.Tensor, "backward", interrupting)
    with pytest.raises(KeyboardInterrupt, match="test stopped after step 5; run this cell again"):
        RUNS[training](m, pictures)
    assert signal.getsignal(signal.SIGINT) is before  # the kernel answers Ctrl-C as it did
    assert torch.load(checkpoint(m), weights_only=True)["step"] == 5
    continued, other_history = RUNS[training](m, pictures)
    assert same(continued, whole) and history["loss"] == other_history["loss"]


@pytest.mark.fault
def test_an_error_in_the_loop_gives_ctrl_c_back_and_a_second_ctrl_c_stops_at_once(m, pictures, monkeypatch):
    before, kept = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(m, "augment", lambda *_: 1 / 0)
    try:
        supervised(m, pictures)
    except ZeroDivisionError as error:
        kept.append(error)  # as a kernel keeps the last traceback
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(m, "augment", lambda *_: [signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt) as stop:
        supervised(m, pictures)
    assert str(stop.value) == "" and signal.getsignal(signal.SIGINT) is before


def test_precision_and_random_state_come_from_the_checkpoint(m, pictures, monkeypatch):
    m.choose_precision(torch.bfloat16)
    path = unfinished(m, pictures)
    content = torch.load(path, weights_only=True)
    assert content["precision"] == "bfloat16"
    monkeypatch.setattr(m, "dependencies", lambda *_: dict(DEPENDENCIES))
    m.choose_precision(torch.float32)
    torch.save({**content, "random": [seeded(7).get_state()]}, path)
    supervised(m, pictures)
    assert m.MACHINE["precision"] == torch.bfloat16 and torch.equal(torch.get_rng_state(), seeded(7).get_state())
    torch.save({**content, "hardware": "another machine"}, path)
    m.choose_precision(torch.float32)
    supervised(m, pictures)
    assert m.MACHINE["precision"] == torch.float32


KILLED = """
import sys
sys.path.insert(0, {tools!r})
import weave
m = weave.namespace(3, PRESET="smoke", DEVICE="cpu", NETWORK="train", DATA={data!r}, RESULTS={data!r} + "/runs")
m.torch.set_num_threads(1)
m.BETWEEN_SAVES = 0  # a checkpoint after every step
images, labels = m.torch.load({data!r} + "/pictures.pt")
print("ready", flush=True)
if {training!r} == "supervised":
    m.train_supervised(m.make_classifier(0, [8, 16]), images, labels, {supervised!r}, 0, "test")
else:
    m.pretrain(images, m.barlow_twins, {pretraining!r}, 0, "test")
"""


@pytest.mark.fault
@pytest.mark.parametrize("training", RUNS)
def test_killed_and_continued_is_bit_equal_to_never_killed(m, pictures, training, tmp_path, monkeypatch):
    """NOLABELS_KILLS: how often each is killed."""
    whole, history = RUNS[training](m, pictures, steps=40)
    data, random, kills = tmp_path / "killed", np.random.default_rng(1), int(os.environ.get("NOLABELS_KILLS", "1"))
    data.mkdir()
    torch.save(pictures, data / "pictures.pt")
    script = KILLED.format(tools=str(TOOLS), data=str(data), training=training, supervised={**SUPERVISED, "steps": 40},
                           pretraining={**PRETRAINING, "steps": 40})
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None and not (list(data.glob("checkpoints/*.pt")) and random.integers(0, 20) == 0):
            time.sleep(0.005)  # killed at a random moment after its first step
        process.kill()
        process.communicate()
    monkeypatch.setattr(m, "DATA", data)
    assert 0 < torch.load(checkpoint(m), weights_only=True)["step"] <= 40
    continued, other_history = RUNS[training](m, pictures, steps=40)
    assert same(continued, whole) and history["loss"] == other_history["loss"] and checkpoint(m)


def test_a_forecast_counts_steps_and_changes_nothing(m, pictures, monkeypatch):
    now, asked, data, real = [0.0], [], m.DATA, m.minibatch

    def minibatch(indices, size, step, seed):
        asked.append(step)
        now[0] += 1 if step < 50 else 3  # pictures grow
        return real(indices, size, step, seed)

    monkeypatch.setattr(m, "clock", lambda: now[0])
    monkeypatch.setattr(m, "minibatch", minibatch)
    monkeypatch.setattr(m, "dependencies", lambda *_: dict(DEPENDENCIES))
    model = m.make_classifier(0, [8, 16])
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    given = (model, *pictures, {**SUPERVISED, "steps": 100}, 0, "test")
    assert m.forecast(m.train_supervised, *given) == 50 * 1 + 50 * 3
    assert len(set(asked)) <= 7 and max(asked) > 85 and min(asked) < 15
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and not list(m.DATA.glob("checkpoints/*"))
    monkeypatch.undo()
    monkeypatch.setattr(m, "DATA", data)
    m.forecast(m.pretrain, pictures[0], m.barlow_twins, PRETRAINING, 0, "other")
    assert torch.equal(random, torch.get_rng_state())
    after, _ = supervised(m, pictures, steps=8)
    assert m.forecast(m.train_supervised, m.make_classifier(0, [8, 16]), *pictures, SUPERVISED, 0, "test") == 0
    checkpoint(m).unlink()
    assert same(after, supervised(m, pictures, steps=8)[0])


# ---- figures and published networks -----------------------------------------------------------------

@pytest.fixture
def unit(m, monkeypatch):
    """A function of a notebook, for `remember`; it notes how often it was called."""
    monkeypatch.setattr(m, "CHAPTER", "98")
    for name in ("measure", "FACTOR", "calls"):
        monkeypatch.setitem(vars(m), name, None)
    m.calls = []
    cell(vars(m), "FACTOR = 2\ndef measure(percent, seed):\n    sys.modules[__name__].calls.append(1)\n    return {'value': FACTOR * seed, 'list': (1, 2)}")
    monkeypatch.setitem(vars(m), "dependencies", lambda f, *given, real=m.dependencies: {
        key: value for key, value in real(f, *given).items() if key != "calls"})
    return m


@pytest.mark.fault
def test_figures_are_computed_once_and_anew_when_something_differs(unit, capsys):
    m = unit
    assert m.remember(m.measure, "100", 3) == m.remember(m.measure, "100", 3) == {"value": 6, "list": [1, 2]}
    assert len(m.calls) == 1 and "as computed before" in capsys.readouterr().out
    m.remember(m.measure, "100", 4)
    m.FACTOR = 5
    assert m.remember(m.measure, "100", 3)["value"] == 15
    assert "computed before. What differs now: FACTOR." in capsys.readouterr().out
    kept = json.loads((m.RESULTS / "98.json").read_text())["remembered"]
    assert set(kept) == {"smoke measure 100 3", "smoke measure 100 4"} and m.UNIT <= set(kept["smoke measure 100 4"])


@pytest.mark.fault
@pytest.mark.parametrize("figures", ["{'value': float('nan')}", "[torch.ones(1)]"])
def test_figures_that_no_file_can_hold_are_refused_and_the_others_stay(unit, figures):
    m = unit
    m.remember(m.measure, "1", 0)
    before = (m.RESULTS / "98.json").read_bytes()
    cell(vars(m), f"def measure(percent, seed):\n    return {figures}")
    with pytest.raises(ValueError, match="smoke measure 1 1 returned what a results file cannot hold"):
        m.remember(m.measure, "1", 1)
    with pytest.raises(ValueError):
        m.save_results("98", {"row": {"1": m.row({0: float("nan")})}}, 1.0)
    assert (m.RESULTS / "98.json").read_bytes() == before


@pytest.mark.fault
def test_log_operations_and_time_of_a_training_belong_to_its_unit(m, pictures, monkeypatch, capsys):
    monkeypatch.setattr(m, "CHAPTER", "98")
    for name in ("measure", "pictures"):
        monkeypatch.setitem(vars(m), name, None)
    m.pictures = pictures
    cell(vars(m), f"def measure(seed):\n    return train_supervised(make_classifier(0, [8, 16]), *pictures, {SUPERVISED!r}, seed, 'test')['loss']")
    monkeypatch.setattr(m, "log_line", lambda *given: "a line")
    losses, said = m.remember(m.measure, 0), capsys.readouterr().out
    (kept,) = m.kept_units().values()
    assert kept["log"] == ["a line"] * said.count("a line") and kept["operations"] > 1e6 and kept["hardware"] == m.hardware()
    assert m.remember(m.measure, 0) == losses and capsys.readouterr().out.startswith("a line\n" * len(kept["log"]))


@pytest.mark.fault
def test_a_training_that_another_unit_has_counted_does_not_count_again(m, pictures, monkeypatch):
    monkeypatch.setattr(m, "CHAPTER", "98")
    for name in ("pretend", "finetune", "pictures"):
        monkeypatch.setitem(vars(m), name, None)
    m.pictures = pictures
    code = "train_supervised(make_classifier(0, [8, 16]), *pictures, {}, seed, '{}')['loss']"
    first, second = (code.format({**SUPERVISED, "steps": steps}, name) for steps, name in ((8, "first"), (6, "second")))
    cell(vars(m), f"def pretend(seed):\n    return {first}")
    cell(vars(m), f"def finetune(seed):\n    {first}\n    return {second}")
    m.remember(m.pretend, 0)
    m.remember(m.finetune, 0)
    kept = m.kept_units()
    both, alone = kept["smoke finetune 0"], kept["smoke pretend 0"]
    assert {line.split(":")[0] for line in both["log"]} == {"second"} and {line.split(":")[0] for line in alone["log"]} == {"first"}
    assert both["operations"] == pytest.approx(0.75 * alone["operations"], rel=0.2)
    cell(vars(m), f"def pretend(seed):\n    return [*{first}]")
    m.remember(m.pretend, 0)  # loaded, and in no other unit: counted
    assert m.kept_units()["smoke pretend 0"]["log"] == alone["log"]


@pytest.mark.fault
@pytest.mark.parametrize("text", ["{", "[]", "", '{"rows": NaN}', '{"remembered": 3}', "[" * 100_000, "\udcff"])
def test_a_damaged_results_file_is_passed_over_and_kept(unit, text, monkeypatch, capsys):
    m = unit
    m.RESULTS.mkdir()
    raw = text.encode("utf-8", "surrogateescape")
    for name in ("97", "98"):
        (m.RESULTS / f"{name}.json").write_bytes(raw)
    monkeypatch.setattr(m, "GENERATED", False)
    monkeypatch.setattr(m, "RECORDED", {"97": {"rows": {}}})
    assert m.earlier("97") == ({"rows": {}}, "recorded run")
    assert "97.json is damaged" in capsys.readouterr().out and (m.RESULTS / "97.json").read_bytes() == raw
    m.remember(m.measure, "1", 0)
    assert "is now called 98.json.damaged1" in capsys.readouterr().out
    assert (m.RESULTS / "98.json.damaged1").read_bytes() == raw and len(m.kept_units()) == 1


def test_results_are_saved_found_again_and_compared_only_with_their_like(unit, monkeypatch, capsys):
    m = unit
    m.get_cifar10()
    rows = {"supervised": {"1": m.row({0: 50.0, 2: 53.0}), "100": m.row([80.0])}}
    assert rows["supervised"]["1"] == {"mean": 51.5, "std": pytest.approx(4.5 ** 0.5), "seeds": [50.0, 53.0], "seed_numbers": [0, 2]}
    m.remember(m.measure, "1", 0)
    assert m.save_results("98", rows, 12.0, curves=[1]) == "runs/98.json"
    found, whose = m.earlier("98")
    assert whose == "this machine's run" and found["rows"] == rows and found["curves"] == [1] and len(found["remembered"]) == 1
    monkeypatch.setattr(m, "RECORDED", {"98": {"preset": "full", "rows": {"supervised": {"1": m.row([99.0])}}}})
    m.compare("98", rows)
    said = capsys.readouterr().out
    assert "99.0" not in said and "generated" in said  # accuracies on drawn pictures never stand beside recorded ones
    (m.RESULTS / "98.json").unlink()
    assert m.earlier("98") == (None, "nothing")
    monkeypatch.setattr(m, "GENERATED", False)
    m.compare("98", rows)
    said = capsys.readouterr().out
    assert "51.5 ± 2.1" in said and "99.0" in said and "recorded (full)" in said and m.earlier("98")[1] == "recorded run"


@pytest.fixture
def network(m, pictures, monkeypatch):
    """A pretraining that is published, and taken from there from now on; its backbone and history."""
    backbone, modules, history = m.pretrain(pictures[0], m.barlow_twins, PRETRAINING, 0, "test-seed0")
    files = m.publish(checkpoint(m), m.DATA / "networks")
    monkeypatch.setattr(m, "RECORDED", {"03": {"networks": files}})
    monkeypatch.setattr(m, "NETWORK", "recorded")
    checkpoint(m).unlink()
    return backbone, modules["projector"], history, files


def test_a_published_network_replaces_its_training(m, pictures, network, capsys):
    backbone, projector, history, files = network
    assert set(files) == {"test-seed0.pt", "test-seed0-projector.pt"}
    again, modules, its = m.pretrain(pictures[0], m.barlow_twins, {**PRETRAINING, "lr": 0.5}, 0, "test-seed0")
    said = capsys.readouterr().out
    assert "the recorded network, not trained here" in said and "What differs from its training: settings['lr']" in said
    assert same(again, backbone) and same(modules["projector"], projector) and its["log"] == history["log"]
    assert not list(m.DATA.glob("checkpoints/*"))
    assert m.recorded_network("test-seed0")["header"]["name"] == "test-seed0"
    m.pretrain(pictures[0], m.barlow_twins, PRETRAINING, 1, "test-seed1")  # not published: trained
    assert len(list(m.DATA.glob("checkpoints/*"))) == 1


def test_the_recorder_makes_checkpoints_of_published_networks(m, pictures, network, monkeypatch, capsys):
    backbone, projector, history, files = network
    (m.DATA / "data").symlink_to(m.DATA)
    monkeypatch.setattr(nbtools, "ROOT", m.DATA)
    monkeypatch.setattr(record, "networks", lambda: files)
    monkeypatch.setattr(record, "namespace", lambda *which, **settings: m)
    monkeypatch.setattr(m, "NETWORK", "train")
    record.restore("full")  # the network is one of preset smoke
    assert not list((m.DATA / "checkpoints").glob("*"))
    record.restore(m.PRESET)
    before = checkpoint(m).stat().st_mtime_ns
    record.restore(m.PRESET)
    again, modules, its = m.pretrain(pictures[0], m.barlow_twins, PRETRAINING, 0, "test-seed0")
    assert f"step {PRETRAINING['steps']} of {PRETRAINING['steps']} loaded" in capsys.readouterr().out
    assert same(again, backbone) and same(modules["projector"], projector) and checkpoint(m).stat().st_mtime_ns == before
    assert its["loss_every"] == 1 and its["log"] == history["log"] and its["seconds"] == history["seconds"]


def test_a_backbone_published_without_its_projector_is_no_checkpoint(m, network, monkeypatch):
    (m.DATA / "data").symlink_to(m.DATA)
    files = {"test-seed0.pt": network[3]["test-seed0.pt"]}
    monkeypatch.setattr(nbtools, "ROOT", m.DATA)
    monkeypatch.setattr(record, "networks", lambda: files)
    monkeypatch.setattr(record, "namespace", lambda *which, **settings: m)
    record.restore(m.PRESET)
    assert not list((m.DATA / "checkpoints").glob("*"))


@pytest.mark.fault
@pytest.mark.parametrize("how, sentence", [("other bytes", "is damaged or another file"), ("missing", "copy it there from the repository"),
                                           ("widths", "those of another network")])
def test_a_published_network_that_does_not_fit_ends_in_one_sentence(m, pictures, network, how, sentence):
    path, settings = m.DATA / "networks" / "test-seed0.pt", dict(PRETRAINING)
    if how == "other bytes":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif how == "missing":
        path.unlink()
    else:
        settings["widths"] = [8, 17]
    with pytest.raises(ValueError, match=sentence):
        m.pretrain(pictures[0], m.barlow_twins, settings, 0, "test-seed0")


@pytest.mark.fault
def test_a_fetched_network_is_looked_at_before_it_is_kept(m, network, monkeypatch):
    path = m.DATA / "networks" / "test-seed0.pt"
    raw = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(m, "ADDRESS", "https://example.org/series")
    monkeypatch.setattr(m, "ask", lambda url, timeout: (io.BytesIO(raw[:-1]), 0))
    with pytest.raises(ValueError, match="sent another file"):
        m.network_file("test-seed0")
    assert not path.exists()
    monkeypatch.setattr(m, "ask", lambda url, timeout: (io.BytesIO(raw), 0))
    assert m.network_file("test-seed0") == path and path.read_bytes() == raw


def test_a_published_file_has_at_most_5_megabytes(m, pictures):
    m.pretrain(pictures[0], m.barlow_twins, {**PRETRAINING, "projector": [1600, 1600], "steps": 1, "batch": 4}, 0, "test-seed0")
    with pytest.raises(ValueError, match="more than 5 MB"):
        m.publish(checkpoint(m), m.DATA / "networks")
