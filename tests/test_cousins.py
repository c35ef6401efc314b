"""The five losses of chapter 5, checked against lightly and against definitions written another way, and what methods remember."""

import math
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

loss = pytest.importorskip("lightly.loss", reason="lightly is a dependency of the tests alone: pip install lightly")
pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["bt", "simclr", "moco", "swav", "vicreg", "lejepa"]


@pytest.fixture
def m(chapter5, alone):
    """The kept cells, with folders that this test has alone."""
    return alone(chapter5)


@pytest.fixture(scope="module")
def pictures(chapter5):
    """Generated pictures."""
    return chapter5.load_split(chapter5.get_cifar10(), train=True)[0][:400]


def numbers(*shape, seed=0):
    """Random numbers in float64 that want a gradient."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def agree(ours, theirs, inputs):
    """Two losses and their gradients are the same in float64."""
    grads = [torch.autograd.grad(value, inputs, retain_graph=True) for value in (ours, theirs)]
    assert ours.dtype == torch.float64 and ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    for one, other in zip(*grads):
        assert one.abs().max() > 0 and torch.allclose(one, other, rtol=1e-7, atol=1e-12)


def settings(m, name, **changes):
    """Settings of a method for a very short training."""
    return {**m.cousins_settings("smoke")[name], "steps": 8, "widths": (8, 16), **changes}


def method(m, name):
    """The method with this name."""
    return m.barlow_twins if name == "bt" else getattr(m, name)


def started(m, name, **changes):
    """A fresh backbone and its method."""
    return m.start_pretraining(method(m, name), settings(m, name, **changes), 0)[:2]


def two_views(pictures, m, n=16):
    """Two views of n pictures."""
    return [m.random_view(pictures[:n], m.seeded(i), size) for i, size in enumerate((24, 16))]


# ---- losses -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_is_lightlys_and_its_slow_definition(m, temperature):
    z1, z2 = numbers(9, 5), numbers(9, 5, seed=1)
    ours = m.simclr_loss(z1, z2, temperature)
    agree(ours, loss.NTXentLoss(temperature)(z1, z2), (z1, z2))
    z = np.concatenate([z1.detach().numpy(), z2.detach().numpy()])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    slow = 0.0
    for i in range(18):
        others = [math.exp(z[i] @ z[k] / temperature) for k in range(18) if k != i]
        slow -= math.log(math.exp(z[i] @ z[(i + 9) % 18] / temperature) / sum(others)) / 18
    assert ours.item() == pytest.approx(slow)


def test_moco_is_lightlys_with_a_memory_bank(m):
    q, k, bank = numbers(6, 5), numbers(6, 5, seed=1), F.normalize(numbers(20, 5, seed=2).detach(), dim=1)
    theirs = loss.NTXentLoss(0.2, memory_bank_size=(20, 5))
    theirs.memory_bank.bank = bank.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    ours = m.moco_loss(F.normalize(q, dim=1), F.normalize(k.detach(), dim=1), bank, 0.2)
    agree(ours, theirs(q, k.detach()), (q,))


@pytest.mark.parametrize("iterations", [1, 3])
def test_swav_is_lightlys(m, iterations):
    scores = [numbers(12, 7, seed=seed).detach().tanh().requires_grad_() for seed in (0, 1)]
    theirs = loss.SwaVLoss(0.1, iterations, 0.05)(scores, [])
    agree(m.swav_loss(*scores, 0.1, 0.05, iterations), theirs.squeeze(), scores)


@pytest.mark.parametrize("weights", [(25, 25, 1), (10, 3, 4)])
def test_vicreg_is_lightlys_and_its_slow_definition(m, weights):
    z1, z2 = numbers(9, 5), (0.3 * numbers(9, 5, seed=1).detach()).requires_grad_()
    ours = m.vicreg_loss(z1, z2, weights)
    agree(ours, loss.VICRegLoss(*weights)(z1, z2), (z1, z2))
    slow = weights[0] * ((z1 - z2) ** 2).sum().item() / 45
    for z in (z1, z2):
        c = np.cov(z.detach().numpy(), rowvar=False)
        slow += weights[1] * np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4)).mean() / 2
        slow += weights[2] * ((c ** 2).sum() - (np.diag(c) ** 2).sum()) / 5
    assert ours.item() == pytest.approx(slow)


def test_lejepa_is_lightlys_and_its_slow_definition(m, monkeypatch):
    z = numbers(2, 9, 5)
    directions = F.normalize(numbers(5, 30, seed=1).detach(), dim=0)
    theirs = loss.LeJEPALoss(0.05, sigreg_num_vectors=30)
    t = torch.linspace(0, 3, 17, dtype=torch.float64)  # theirs are rounded to float32
    window, weights = (-t ** 2 / 2).exp(), torch.full((17,), 6 / 16, dtype=torch.float64)
    weights[[0, -1]] /= 2
    theirs.sigreg.t, theirs.sigreg.phi, theirs.sigreg.weights = t, window, weights * window
    monkeypatch.setattr(theirs.sigreg, "_generate_unit_vectors", lambda *_: directions)
    ours = m.lejepa_loss(z, directions, 0.05)
    invariance = loss.lejepa_loss.lejepa_invariance_loss(all_proj=z, global_proj=z)
    agree(ours, 0.05 * theirs.sigreg(z) + 0.95 * invariance, (z,))
    slow = 0.0
    for view in z.detach().numpy():
        for k in range(30):
            x, t = view @ directions[:, k].numpy(), np.linspace(-3, 3, 33)
            off = np.abs(np.exp(1j * np.outer(t, x)).mean(1) - np.exp(-t ** 2 / 2)) ** 2
            slow += 9 * np.trapezoid(off * np.exp(-t ** 2 / 2), t) / 60
    assert m.sigreg(z, directions).item() == pytest.approx(slow)


def test_barlow_twins_is_lightlys(m):
    z1, z2 = numbers(40, 5), numbers(40, 5, seed=1)
    theirs = loss.BarlowTwinsLoss(lambda_param=0.3)(z1, z2)
    assert m.barlow_twins_loss(z1, z2, 0.3).item() == pytest.approx(theirs.item(), rel=1e-3)  # 1e-5 is added elsewhere


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_small_differences(m, name):
    z1, z2, fixed = numbers(6, 4), numbers(6, 4, seed=1), F.normalize(numbers(8, 4, seed=2).detach(), dim=1)
    codes = [m.sinkhorn(z.detach().tanh(), 0.05) for z in (z1, z2)]  # they carry no gradient
    losses = {"bt": lambda a, b: m.barlow_twins_loss(a, b, 0.1), "simclr": lambda a, b: m.simclr_loss(a, b, 0.5),
              "moco": lambda a, b: m.moco_loss(F.normalize(a, dim=1), F.normalize(b, dim=1), fixed, 0.2),
              "swav": lambda a, b: F.cross_entropy(a.tanh() / 0.1, codes[1]) + F.cross_entropy(b.tanh() / 0.1, codes[0]),
              "vicreg": lambda a, b: m.vicreg_loss(a, b, (25, 25, 1)),
              "lejepa": lambda a, b: m.lejepa_loss(torch.stack([a, b]), fixed.T, 0.05)}
    assert torch.autograd.gradcheck(losses[name], (z1, z2))


# ---- what theory says -------------------------------------------------------------------------------

@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_orthogonal_embeddings_pay_the_logarithm_of_the_answers(m, temperature):
    eye = torch.eye(40, dtype=torch.float64)
    assert m.simclr_loss(eye[:20], eye[20:], temperature).item() == pytest.approx(math.log(39))
    assert m.moco_loss(eye[:5], eye[5:10], eye[10:], temperature).item() == pytest.approx(math.log(31))
    assert m.swav_loss(0 * eye, 0 * eye, temperature).item() == pytest.approx(math.log(40))


def test_collapse_has_its_price(m):
    same = torch.ones(32, 6)
    assert m.simclr_loss(same, same, 0.2).item() == pytest.approx(math.log(63), rel=1e-5)
    assert m.vicreg_loss(same, same, (25, 25, 1)).item() == pytest.approx(24.75, rel=1e-5)
    assert m.lejepa_loss(0 * same[None], torch.eye(6), 0.05).item() == pytest.approx(0.05 * 0.402 * 32, rel=1e-3)


def test_normal_embeddings_cost_105_whatever_their_number(m):
    for n in (50, 200):
        z = torch.randn(40, n, 8, generator=torch.Generator().manual_seed(n))
        assert m.sigreg(z, torch.eye(8)).item() == pytest.approx(1.0525, rel=0.1)


# ---- mechanisms -------------------------------------------------------------------------------------

def test_sinkhorn_shares_out(m):
    scores = numbers(60, 10).detach().tanh()
    codes, even = m.sinkhorn(scores, 0.05), m.sinkhorn(scores, 0.05, 300)
    assert torch.allclose(codes.sum(1), torch.ones(60, dtype=torch.float64))
    assert torch.allclose(even.sum(0), torch.full((10,), 6.0, dtype=torch.float64), atol=1e-4)
    plain = (scores / 0.05).softmax(1)
    assert (codes.sum(0) - 6).abs().max() < (plain.sum(0) - 6).abs().max()
    assert torch.allclose(codes, m.sinkhorn(scores + 3, 0.05))  # the maximum is subtracted
    extreme = m.sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0]]), 0.05)
    assert torch.allclose(extreme, torch.full((2, 2), 0.5)) and not m.sinkhorn(numbers(4, 3), 0.05).requires_grad


def test_the_queue_replaces_the_oldest(m):
    queue, held = m.Queue(12, 3), [None] * 3
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(12))
    for step in range(8):
        queue.push(torch.full((4, 3), float(step)))
        held[step % 3] = step
        expected = [value for value in held if value is not None]
        assert queue.keys[:4 * len(expected), 0].tolist() == [value for value in expected for _ in range(4)]
        assert queue.oldest.item() == (step + 1) * 4 % 12


def test_the_slow_copy_moves_first_then_keys_then_the_queue(m, pictures):
    backbone, chosen = started(m, "moco", momentum=0.9)
    slow, queue = chosen.modules["slow"], chosen.modules["queue"]
    assert not any(p.requires_grad for p in slow.parameters())
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(1.0)
    before, old = [p.clone() for p in slow[0].parameters()], queue.keys.clone()
    views = two_views(pictures, m)
    chosen.loss(views, 3).backward()
    for was, now, network in zip(before, slow[0].parameters(), backbone.parameters()):
        assert torch.allclose(now, 0.9 * was + 0.1 * network, atol=1e-6) and now.grad is None
    with torch.no_grad():
        keys = m.keys_of(slow, views, 1, 3).flatten(0, 1)  # of the copy as it is after its move
    assert torch.allclose(queue.keys[:32], keys, atol=1e-4) and torch.equal(queue.keys[32:], old[32:])


def test_a_query_never_meets_its_own_key_among_the_negatives(m, pictures):
    _, chosen = started(m, "moco")
    views, seen = two_views(pictures, m), []
    real = m.moco_loss

    def noting(queries, keys, queue, temperature):
        seen.append((keys @ queue.T).max().item())
        return real(queries, keys, queue, temperature)

    vars(m)["moco_loss"] = noting
    try:
        chosen.loss(views, 0)
    finally:
        vars(m)["moco_loss"] = real
    assert len(seen) == 2 and max(seen) < 0.999


def test_keys_come_back_in_the_order_of_their_pictures(m, pictures):
    backbone, chosen = started(m, "moco")
    slow, views = chosen.modules["slow"].eval(), two_views(pictures, m)
    with torch.no_grad():
        whole, parts = m.keys_of(slow, views, 1, 0), m.keys_of(slow, views, 4, 5)
    assert torch.allclose(whole, parts, atol=1e-4)  # in evaluation mode pieces do not matter
    slow.train()
    with torch.no_grad():
        assert not torch.allclose(m.keys_of(slow, views, 1, 0), m.keys_of(slow, views, 4, 5), atol=1e-2)


def test_prototypes_have_length_one_stand_still_at_first_and_are_adamws(m, pictures):
    backbone, chosen, optimizer = m.start_pretraining(m.swav, settings(m, "swav", still=0.5), 0)
    weight = chosen.modules["prototypes"].weight
    assert any(weight is p for group in optimizer.param_groups if not group["muon"] for p in group["params"])
    chosen.loss(two_views(pictures, m), 0).backward()
    assert torch.allclose(weight.norm(dim=1), torch.ones(len(weight)))
    chosen.before_update(3)
    assert weight.grad is None
    chosen.loss(two_views(pictures, m), 4).backward()
    chosen.before_update(4)
    assert weight.grad.abs().max() > 0


# ---- trainings --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_every_method_learns(m, pictures, name):
    told = settings(m, name, steps=40, lr=0.05, adam_lr=0.003, **({"queue": 32} if name == "moco" else {}))
    _, _, history = m.pretrain(pictures[:160], method(m, name), told, 0, "test")
    assert np.mean(history["loss"][-8:]) < np.mean(history["loss"][2:8])


@pytest.mark.parametrize("name", ["moco", "swav", "lejepa"])
def test_continued_is_bit_equal_to_never_interrupted(m, pictures, name, tmp_path, monkeypatch):
    def whole():
        return m.pretrain(pictures, method(m, name), settings(m, name, queue=64), 0, "test")
    backbone, modules, history = whole()
    monkeypatch.setattr(m, "DATA", tmp_path / "interrupted")
    real, calls = torch.Tensor.backward, []

    def interrupting(self, *given, **more):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return real(self, *given, **more)

    monkeypatch.setattr(torch.Tensor, "backward", interrupting)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5"):
        whole()
    again, its, other = whole()
    assert history["loss"] == other["loss"]
    for part, module in {"backbone": backbone, **modules}.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, {"backbone": again, **its}[part].state_dict()[key]), (part, key)


# ---- settings and bad input -------------------------------------------------------------------------

@pytest.mark.parametrize("preset", ["smoke", "quick", "full", "long"])
def test_all_six_get_the_same_but_for_their_own(m, preset):
    told = m.cousins_settings(preset)
    assert list(told) == NAMES
    for key in ("batch", "sizes", "widths"):
        assert len({one[key] for one in told.values()}) == 1
    assert told["moco"]["queue"] % (2 * told["moco"]["batch"]) == 0
    assert all(one["projector"][0] == told["bt"]["projector"][0] for one in told.values())


@pytest.mark.parametrize("name", ["simclr", "moco", "swav", "vicreg", "lejepa"])
def test_three_views_are_refused_in_one_sentence(m, pictures, name):
    with pytest.raises(ValueError, match="compares two views: settings\\['sizes'\\] needs two"):
        m.pretrain(pictures, method(m, name), settings(m, name, sizes=(24, 16, 16)), 0, "test")


def test_a_queue_that_batches_do_not_fill_is_refused(m, pictures):
    with pytest.raises(ValueError, match="do not divide a queue of 40: choose"):
        m.pretrain(pictures, m.moco, settings(m, "moco", queue=40), 0, "test")
    assert isinstance(m.Queue(8, 2), nn.Module)
