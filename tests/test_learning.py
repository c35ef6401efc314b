"""What chapters 2 and 3 teach, checked against definitions written another way; and what a bad evening does to a training."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"
SUPERVISED = dict(steps=8, batch=16, lr=0.02, weight_decay=0.01, adam_lr=0.005, augment="crop", sizes=[16, 32],
                  widths=[8, 16], precision="float32", data="generated")
PRETRAINING = dict(steps=8, batch=16, lr=0.02, weight_decay=0.01, adam_lr=0.002, sizes=[16, 24], projector=[16, 16],
                   weight=0.05, widths=[8, 16], precision="float32", data="generated")


@pytest.fixture(scope="module")
def pictures(chapter3):
    """Generated pictures and their labels."""
    return chapter3.load_split(chapter3.get_cifar10(), train=True)


@pytest.fixture
def m(chapter3, tmp_path, monkeypatch):
    """The kept cells, with a folder for checkpoints that this test has alone."""
    monkeypatch.setattr(chapter3, "DATA", tmp_path)
    return chapter3


def supervised(m, pictures, name="test", **changes):
    """A short supervised training; its classifier and history."""
    settings = {**SUPERVISED, **changes}
    model = m.make_classifier(0, settings["widths"])
    return model, m.train_supervised(model, *pictures, settings, 0, name)


def same(one, other):
    """Whether two modules hold the same weights and buffers to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


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


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_orthogonalize_brings_singular_values_near_one(m, shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(m.orthogonalize(matrix, steps=6))
    assert values.min() > 0.5 and values.max() < 1.4


def test_orthogonalize_keeps_the_directions(m):
    matrix = torch.randn(6, 20, generator=torch.Generator().manual_seed(2))
    u, _, v = torch.linalg.svd(m.orthogonalize(matrix), full_matrices=False)
    a, _, b = torch.linalg.svd(matrix, full_matrices=False)
    aligned = torch.linalg.matrix_norm(u @ v - a @ b) / 6 ** 0.5
    assert aligned < 0.02


def test_muon_moves_against_the_gradient_of_what_torch_muon_moves(m):
    ours, theirs = (torch.nn.Parameter(torch.ones(4, 12)) for _ in range(2))
    gradient = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    m.Muon([ours], lr=0.1, weight_decay=0.01, momentum=0.9).step()
    torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, momentum=0.9, ns_steps=4).step()
    assert torch.allclose(ours, theirs, atol=3e-3)  # theirs multiplies in bfloat16


def test_convolution_is_torchs(m):
    conv = m.Conv(3, 5, 3, stride=2)
    x = torch.randn(2, 3, 8, 8)
    expected = torch.nn.functional.conv2d(x, conv.weight.view(5, 3, 3, 3), stride=2, padding=1)
    assert torch.allclose(conv(x), expected, atol=1e-6)


def test_features_are_mean_and_root_mean_square_of_each_block(m):
    backbone, seen = m.Backbone([8, 16]).eval(), []
    for block in backbone.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out.detach().double().flatten(2).numpy()))
    features = backbone(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    expected = np.concatenate([part for x in seen for part in (x.mean(2), np.sqrt((x ** 2).mean(2)))], axis=1)
    assert features.shape == (3, backbone.features) and [x.shape[2] for x in seen] == [256, 64]
    np.testing.assert_allclose(features.detach().numpy(), expected, rtol=1e-3, atol=4e-3)  # 1e-5 stands under the root


def test_a_channel_that_is_dead_has_a_gradient_without_nan(m):
    backbone = m.Backbone([8, 16])
    with torch.no_grad():
        backbone.blocks[1].norm2.bias.fill_(-100)
        backbone.blocks[1].shortcut[2].weight.zero_()
    features = backbone(torch.randn(4, 3, 16, 16))
    assert (features[:, -32:-16] == 0).all()
    features.sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (1, 2)])
def test_the_gradient_for_few_pixels_is_the_convolution_s(m, kernel, stride):
    random = torch.Generator().manual_seed(0)
    x, filters = (torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)
                  for shape in ((2, 3, 5, 6), (4, 3, kernel, kernel)))
    expected = torch.nn.functional.conv2d(x, filters, stride=stride, padding=kernel // 2)
    got = m.FewPixels.apply(x, filters, stride)
    assert torch.equal(got, expected)
    to = torch.randn(got.shape, generator=random, dtype=torch.float64)
    for one, other in zip(torch.autograd.grad(got, (x, filters), to), torch.autograd.grad(expected, (x, filters), to)):
        assert torch.allclose(one, other, atol=1e-12)


def test_few_pixels_in_bfloat16_take_the_patches_and_many_do_not(m, monkeypatch):
    taken, real = [], m.FewPixels.apply
    monkeypatch.setattr(m.FewPixels, "apply", lambda x, *more: taken.append(x.shape[-1]) or real(x, *more))
    for side, stride in ((4, 1), (5, 1), (8, 2), (9, 2)):
        conv = m.Conv(4, 6, 3, stride)
        x = torch.randn(2, 4, side, side).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = conv(x)
        y.float().sum().backward()
        assert y.shape[-1] == (side + stride - 1) // stride and conv.weight.grad.abs().sum() > 0
    conv(x.float())
    assert taken == [4, 8]


def test_kept_memory_is_asked_for_and_missed_by_nobody(m, monkeypatch):
    asked = []
    monkeypatch.setattr(m.ctypes, "CDLL", lambda name: type("Library", (), {"mallopt": lambda self, *given: asked.append(given)})())
    m.keep_freed_memory()
    assert asked == [(option, size) for option in (-1, -3) for size in (1 << 30, 1 << 25)]  # a smaller one where the large is refused

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(m.ctypes, "CDLL", missing)
    m.keep_freed_memory()


def test_probe_agrees_with_scikit_learn(m):
    from sklearn.linear_model import LogisticRegression
    random = np.random.default_rng(0)
    centres = random.normal(0, 0.6, (10, 20))
    labels = random.integers(0, 10, 6000)
    features = torch.tensor(centres[labels] + random.normal(0, 1, (6000, 20)), dtype=torch.float32)
    labels = torch.tensor(labels)
    parts = [(features[a:b], labels[a:b]) for a, b in ((0, 2000), (2000, 3000), (3000, 6000))]
    probe = m.linear_probe(*parts[0], *parts[1], strengths=(1e-3,))
    x = (features - parts[0][0].mean(0)) / parts[0][0].std(0)
    referee = LogisticRegression(C=1 / (2 * 1e-3 * 2000), max_iter=2000, tol=1e-8).fit(x[:2000].numpy(), labels[:2000].numpy())
    expected = 100 * referee.score(x[3000:].numpy(), labels[3000:].numpy())
    assert m.accuracy(probe(parts[2][0]), parts[2][1]) == pytest.approx(expected, abs=0.5)


def test_probe_strength_is_chosen_on_validation_alone(m):
    random = torch.Generator().manual_seed(0)
    noise, labels = torch.randn(60, 200, generator=random), torch.arange(60) % 10
    signal = torch.nn.functional.one_hot(torch.arange(300) % 10, 10).float() @ torch.randn(10, 200, generator=random)
    both = noise + 0.3 * signal[:60]
    validation = signal[:300] * 0.3 + torch.randn(300, 200, generator=random)
    scores = {s: m.accuracy(m.linear_probe(both, labels, validation, torch.arange(300) % 10, (s,))(validation),
                            torch.arange(300) % 10) for s in (1e-5, 1e-1)}
    chosen = m.linear_probe(both, labels, validation, torch.arange(300) % 10, (1e-5, 1e-1))
    assert m.accuracy(chosen(validation), torch.arange(300) % 10) == max(scores.values())


def test_knn_votes_for_the_neighbours(m):
    corners = torch.eye(10).repeat(30, 1)
    labels = torch.arange(10).repeat(30)
    noisy = corners + 0.1 * torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    assert m.knn_accuracy(noisy, labels, corners, labels) == 100
    assert m.knn_accuracy(noisy, (labels + 1) % 10, corners, labels) == 0


def test_features_are_frozen(m, pictures):
    backbone = m.Backbone([8, 16])
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    m.features_of(backbone, pictures[0], [torch.arange(40)], torch.float32)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert backbone.training
    moving = m.Backbone([8, 16])
    moving.eval = lambda: None  # a "frozen" backbone whose BatchNorm goes on adapting
    with pytest.raises(AssertionError, match="moved"):
        m.features_of(moving, pictures[0], [torch.arange(40)], torch.float32)


def test_subsets_are_balanced_drawn_anew_and_from_the_training_pictures(m):
    labels = torch.arange(50000) % 10
    train, validation = m.split_indices(labels)
    assert len(train) == 45000 and len(validation) == 5000
    assert len(set(train.tolist()) & set(validation.tolist())) == 0
    one, two = (m.labelled_subset(labels, train, 1, seed) for seed in (0, 1))
    assert torch.bincount(labels[one]).tolist() == [45] * 10
    assert set(one.tolist()) <= set(train.tolist()) and set(one.tolist()) != set(two.tolist())
    assert torch.equal(one, m.labelled_subset(labels, train, 1, 0))
    assert torch.equal(m.labelled_subset(labels, train, 100, 0), train)


def test_every_picture_comes_once_an_epoch(m):
    indices = torch.arange(100, 164)
    first = torch.cat([m.minibatch(indices, 16, step, 0) for step in range(4)])
    second = torch.cat([m.minibatch(indices, 16, step, 0) for step in range(4, 8)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == indices.tolist()
    assert not torch.equal(first, second)


def test_a_seed_gives_the_same_result_twice_and_another_seed_another(m, pictures, tmp_path, monkeypatch):
    one = m.pretrain(pictures[0], PRETRAINING, 0, "test")[0]
    monkeypatch.setattr(m, "DATA", tmp_path / "again")
    two = m.pretrain(pictures[0], PRETRAINING, 0, "test")[0]
    other = m.pretrain(pictures[0], PRETRAINING, 1, "test")[0]
    assert same(one, two) and not same(one, other)


def test_the_untrained_classifier_guesses(m, pictures):
    model = m.make_classifier(0, [8, 16])
    loss = torch.nn.functional.cross_entropy(m.predict(model, pictures[0][:100]), pictures[1][:100])
    assert loss.item() == pytest.approx(math.log(10), abs=1e-5)


def test_predict_leaves_the_mode_as_it_was_and_takes_pictures_or_tensors(m, pictures):
    model = m.make_classifier(0, [8, 16]).train()
    outputs = m.predict(model, pictures[0][:30])
    assert model.training and outputs.shape == (30, 10)
    assert torch.equal(outputs, m.predict(model, m.normalize(pictures[0][:30])))


def test_fine_tuning_starts_from_the_weights_it_is_given(m):
    weights = m.Backbone([8, 16]).state_dict()
    model = m.make_classifier(5, [8, 16], weights)
    assert all(torch.equal(value, weights[name]) for name, value in model[0].state_dict().items())


# ---- a bad evening ----------------------------------------------------------------------------------

def checkpoint(m):
    """The one checkpoint there is."""
    (path,) = (m.DATA / "checkpoints").glob("*.pt")
    return path


@pytest.mark.fault
def test_a_finished_training_is_loaded_and_not_run_again(m, pictures, capsys):
    first, history = supervised(m, pictures)
    again, same_history = supervised(m, pictures)
    assert same(first, again) and history == same_history
    assert "loaded" in capsys.readouterr().out


@pytest.mark.fault
@pytest.mark.parametrize("change", [dict(lr=0.03), dict(steps=9), dict(data="other data"), dict(batch=17)])
def test_other_settings_never_load_old_weights(m, pictures, change, capsys):
    supervised(m, pictures)
    supervised(m, pictures, **change)
    assert "loaded" not in capsys.readouterr().out
    assert len(list((m.DATA / "checkpoints").glob("*.pt"))) == 2


@pytest.mark.fault
def test_the_fingerprint_sees_code_and_not_comments(m, tmp_path):
    def define(text):
        path = tmp_path / "cell.py"
        path.write_text(text)
        __import__("linecache").checkcache()
        space = {}
        exec(compile(text, str(path), "exec"), space)
        return m.fingerprint([space["f"]], {})
    plain = define("def f(x):\n    return x + 1\n")
    assert plain == define('def f(x):\n    """Add one."""\n    return x + 1  # why\n')
    assert plain != define("def f(x):\n    return x + 2\n")


def break_file(path, how):
    """Damage a checkpoint in one of the ways that happen."""
    raw = path.read_bytes()
    content = torch.load(path, weights_only=True)
    weights = content["modules"]["model"]
    if how == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>not found</html>")
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "code":
        path.write_bytes(pickle.dumps({"step": Runs()}))
    elif how == "code in a torch file":
        torch.save({**content, "step": Runs()}, path)
    else:
        if how == "NaN":
            weights["1.weight"][0, 0] = float("nan")
        elif how == "infinity":
            weights["0.stem.0.weight"][0, 0] = float("inf")
        elif how == "another architecture":
            weights["1.weight"] = torch.zeros(10, 99)
        elif how == "a weight missing":
            del weights["1.bias"]
        elif how == "another preset":
            content["header"]["name"] = "supervised-100pct-quick-seed0"
        elif how == "other data":
            content["header"]["settings"]["data"] = "0" * 32
        elif how == "an older layout":
            content = {"model": weights, "step": 8}
        elif how == "no step":
            del content["step"]
        elif how == "a step that cannot be":
            content["step"] = 10 ** 9
        torch.save(content, path)


class Runs:
    """An object that, unpickled, would leave a file behind."""

    def __reduce__(self):
        return Path.touch, (Path("somebody-ran-code"),)


@pytest.mark.fault
@pytest.mark.parametrize("how", ["truncated", "empty", "text", "a folder", "code", "code in a torch file", "NaN", "infinity",
                                 "another architecture", "a weight missing", "another preset", "other data",
                                 "an older layout", "no step", "a step that cannot be"])
def test_a_damaged_checkpoint_is_refused_and_kept(m, pictures, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    supervised(m, pictures)
    path = checkpoint(m)
    break_file(path, how)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match="move the file out of checkpoints/ and run this cell again"):
        supervised(m, pictures)
    assert path.exists() and (before is None or path.read_bytes() == before)
    assert not Path("somebody-ran-code").exists()


@pytest.mark.fault
def test_a_refused_checkpoint_changes_no_weight(m, pictures):
    supervised(m, pictures)
    break_file(checkpoint(m), "a weight missing")
    model = m.make_classifier(0, SUPERVISED["widths"])
    fresh = m.make_classifier(0, SUPERVISED["widths"])
    with pytest.raises(ValueError):
        m.train_supervised(model, *pictures, SUPERVISED, 0, "test")
    assert same(model, fresh)


@pytest.mark.fault
@pytest.mark.parametrize("step", [0, 3])
def test_a_loss_that_is_no_number_stops_with_step_rate_and_advice(m, pictures, step, monkeypatch):
    real, calls = torch.nn.functional.cross_entropy, []

    def poisoned(*given, **more):
        calls.append(1)
        loss = real(*given, **more)
        return loss * float("nan") if len(calls) == step + 1 else loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", poisoned)
    with pytest.raises(FloatingPointError, match=rf"nan at step {step}, learning rate .*half the learning rate"):
        supervised(m, pictures)
    assert not list(m.DATA.glob("checkpoints/*"))  # weights that are no numbers are not kept
    supervised(m, pictures)  # and the next call starts afresh


@pytest.mark.fault
def test_a_cut_write_leaves_the_old_checkpoint_whole(m, pictures, monkeypatch):
    supervised(m, pictures)
    before = checkpoint(m).read_bytes()

    def full(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="could not be written"):
        m.save_checkpoint(checkpoint(m), {"steps": 8}, 8, {"history": {}, "modules": {}, "optimizers": []})
    assert checkpoint(m).read_bytes() == before
    assert len(list((m.DATA / "checkpoints").iterdir())) == 1


@pytest.mark.fault
@pytest.mark.parametrize("training", ["supervised", "pretraining"])
def test_interrupt_is_answered_between_two_steps_and_loses_nothing(m, pictures, training, tmp_path, monkeypatch):
    run = (lambda: supervised(m, pictures)[0]) if training == "supervised" else (
        lambda: m.pretrain(pictures[0], PRETRAINING, 0, "test")[0])
    whole = run()
    monkeypatch.setattr(m, "DATA", tmp_path / "interrupted")
    real, calls, before = m.seeded, [], signal.getsignal(signal.SIGINT)

    def interrupting(*numbers):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)  # in the middle of a step
        return real(*numbers)

    monkeypatch.setattr(m, "seeded", interrupting)
    with pytest.raises(KeyboardInterrupt, match="run this cell again"):
        run()
    assert signal.getsignal(signal.SIGINT) is before  # the kernel answers Ctrl-C as it did
    assert torch.load(checkpoint(m), weights_only=True)["step"] > 0
    assert same(run(), whole)


KILLED = textwrap.dedent("""
    import sys
    sys.path.insert(0, {tools!r})
    import chain
    m = chain.namespace(3, PRESET="smoke", DEVICE="cpu", DATA={data!r}, RESULTS={data!r} + "/runs")
    m.torch.set_num_threads({threads})
    m.resumable.__defaults__ = (0,)  # a checkpoint after every step
    images, labels = m.load_split(m.get_cifar10(), train=True)
    print("ready", flush=True)
    if {training!r} == "supervised":
        model = m.make_classifier(0, {supervised!r}["widths"])
        m.train_supervised(model, images, labels, {supervised!r}, 0, "test")
    else:
        m.pretrain(images, {pretraining!r}, 0, "test")
""")


def kill_and_continue(training, data, kills, random, steps=40):
    """Kill a training `kills` times at random moments, then let it finish; return the final weights."""
    changes = dict(steps=steps)
    script = KILLED.format(tools=str(TOOLS), data=str(data), training=training, threads=torch.get_num_threads(),
                           supervised={**SUPERVISED, **changes}, pretraining={**PRETRAINING, **changes})
    for last in [False] * kills + [True]:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                                   env=dict(os.environ, PYTHONUNBUFFERED="1"))
        assert process.stdout.readline() == "ready\n"
        if not last:
            folder, wanted = data / "checkpoints", random.integers(0, 2 * steps // (kills + 1))
            seen = time.monotonic()
            while process.poll() is None and time.monotonic() - seen < 60:  # a killed one has at least begun
                if list(folder.glob("*.pt")) and random.integers(0, 1 + wanted) == 0:
                    break
                time.sleep(0.005)
            process.kill()
        process.communicate()
    assert process.returncode == 0
    (path,) = (data / "checkpoints").glob("*.pt")
    return torch.load(path, weights_only=True)


@pytest.mark.fault
@pytest.mark.parametrize("training", ["supervised", "pretraining"])
def test_killed_and_continued_is_bit_equal_to_never_killed(training, tmp_path):
    kills = int(os.environ.get("NOLABELS_KILLS", "2"))
    whole = kill_and_continue(training, tmp_path / "whole", 0, np.random.default_rng(0))
    broken = kill_and_continue(training, tmp_path / "broken", kills, np.random.default_rng(1))
    assert whole["step"] == broken["step"] == 40 and whole["history"]["loss"] == broken["history"]["loss"]
    for name, module in whole["modules"].items():
        assert all(torch.equal(value, broken["modules"][name][key]) for key, value in module.items()), name


@pytest.mark.fault
def test_one_thread_is_enough(m, pictures):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert len(supervised(m, pictures)[1]["loss"]) == 8
    finally:
        torch.set_num_threads(threads)


@pytest.mark.fault
@pytest.mark.parametrize("text, what", [("{", "cut"), ('{"chapter": "02"}', "keys"), ("[]", "a list"), ("", "empty"),
                                        ('{"chapter": "02", "preset": "smoke", "rows": NaN}', "NaN")])
def test_a_damaged_results_file_is_passed_over(m, text, what, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(m, "RESULTS", tmp_path)
    monkeypatch.setattr(m, "RECORDED", {"02": {"rows": {}}}, raising=False)
    (tmp_path / "02.json").write_text(text)
    results, whose = m.earlier("02")
    assert whose == "recorded run" and results == {"rows": {}}
    assert "passed over" in capsys.readouterr().out or json.loads(text or "null") is not None
