"""Chapter 4's algorithms, with scikit-learn and scipy as referees, on data of their own and on real handwritten digits."""

import math

import nbtools
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import DBSCAN, KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture


@pytest.fixture
def m(chapter4):
    """Chapter 4's kept cells."""
    return chapter4


@pytest.fixture(scope="module")
def digits():
    """1,797 handwritten digits of 8 x 8 pixels in their first 20 principal directions, and their labels."""
    x, labels = load_digits(return_X_y=True)
    return torch.tensor(PCA(20, random_state=0).fit_transform(x), dtype=torch.float32), torch.tensor(labels)


def crowds(centres, n=60, spread=0.1, seed=0):
    """n points around each centre, and which centre."""
    noise = torch.randn(len(centres), n, 2, generator=torch.Generator().manual_seed(seed))
    points = torch.tensor(centres, dtype=torch.float32)[:, None] + spread * noise
    return points.flatten(0, 1), torch.arange(len(centres)).repeat_interleave(n)


FOUR = [[0, 0], [3, 0], [0, 3], [4, 4]]


def same_groups(a, b):
    """Whether two clusterings are one but for the names; noise (-1) keeps its name."""
    pairs = set(zip(np.asarray(a).tolist(), np.asarray(b).tolist()))
    return len(pairs) == len({p[0] for p in pairs}) == len({p[1] for p in pairs}) and all((x < 0) == (y < 0) for x, y in pairs)


# ---- PCA ------------------------------------------------------------------------------------------

def test_spectrum_is_that_of_scikit_learn(m, digits):
    x = digits[0] - digits[0].mean(0)
    shares, directions = m.spectrum(x)
    referee = PCA().fit(x.numpy())
    assert np.allclose(shares, referee.explained_variance_ratio_, atol=1e-5)
    assert np.allclose(np.abs((directions.T.numpy() * referee.components_).sum(1)), 1, atol=1e-3)


def test_spectrum_of_fewer_points_than_numbers(m):
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    shares, _ = m.spectrum(x - x.mean(0))
    assert torch.equal(shares, shares.sort(descending=True).values) and abs(shares.sum() - 1) < 1e-5 and shares[4] < 1e-6


@pytest.mark.parametrize("shares, rank", [([1, 0, 0], 1), ([0.5, 0.5, 0], 2), ([0.1] * 10, 10)])
def test_effective_rank(m, shares, rank):
    assert m.effective_rank(torch.tensor(shares, dtype=torch.float32)) == pytest.approx(rank, rel=1e-5)


# ---- marks ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(10, 10), (3, 10), (50, 10), (4, 2), (1, 1)])
def test_matching_is_the_best_there_is(m, shape):
    counts = np.random.default_rng(0).integers(0, 100, shape)
    rows, columns = linear_sum_assignment(-counts)
    assert m.matched(counts) == counts[rows, columns].sum()


def test_marks_are_those_of_scikit_learn(m):
    random = np.random.default_rng(0)
    for clusters, classes in ((10, 10), (3, 7), (30, 4), (1, 5)):
        a, b = random.integers(0, clusters, 500), random.integers(0, classes, 500)
        b[:200] = a[:200] % classes
        marks = m.clustering_marks(a, b)
        assert marks["nmi"] == pytest.approx(normalized_mutual_info_score(b, a), abs=1e-6)
        assert marks["ari"] == pytest.approx(adjusted_rand_score(b, a), abs=1e-6)


def test_noise_is_wrong(m):
    assert m.clustering_marks([0, 0, -1, -1], [1, 1, 0, 0])["matched"] == 50
    assert m.clustering_marks([-1, -1, -1], [0, 1, 2])["matched"] == 0
    assert m.clustering_marks([0], [0]) == {"matched": 100, "nmi": 1, "ari": 1}


# ---- K-Means --------------------------------------------------------------------------------------

def test_k_means_finds_what_scikit_learn_finds(m):
    points, truth = crowds(FOUR)
    centres, nearest, inertia = m.k_means(points, 4)
    referee = KMeans(4, n_init=10, random_state=0).fit(points.numpy())
    assert same_groups(nearest, referee.labels_) and same_groups(nearest, truth)
    assert inertia == pytest.approx(referee.inertia_, rel=1e-4)
    assert torch.allclose(centres, torch.stack([points[nearest == k].mean(0) for k in range(4)]), atol=1e-5)


def test_k_means_is_as_good_on_digits(m, digits):
    _, nearest, inertia = m.k_means(digits[0], 10)
    assert inertia < 1.005 * KMeans(10, n_init=10, random_state=0).fit(digits[0].numpy()).inertia_
    assert inertia == pytest.approx(sum((x - x.mean(0)).square().sum().item() for x in (
        digits[0][nearest == k] for k in range(10))), rel=1e-3)


def test_more_starts_are_never_worse(m, digits):
    few, many = (m.k_means(digits[0], 10, starts=n)[2] for n in (1, 8))
    assert many <= few


def test_an_empty_cluster_moves(m, monkeypatch):
    points, _ = crowds(FOUR[:2])
    far = torch.tensor([[0.0, 0], [3, 0], [99, 99]])  # nothing is near the third
    monkeypatch.setattr(m, "spread_centres", lambda points, k, generator: far)
    centres, nearest, _ = m.k_means(points, 3, starts=1)
    assert nearest.bincount(minlength=3).min() > 0 and centres.isfinite().all()


@pytest.mark.parametrize("points", [torch.zeros(1, 2), torch.ones(50, 3)])
def test_one_point_or_copies_of_one(m, points):
    centres, nearest, inertia = m.k_means(points, 1)
    assert torch.equal(centres[0], points[0]) and inertia == 0 and not nearest.any()
    with pytest.raises(ValueError, match="fewer different points than 2 clusters"):
        m.k_means(points, 2)


def test_spread_centres_are_different_points(m):
    points = torch.tensor([[0.0], [0], [0], [5], [9]])
    assert sorted(m.spread_centres(points, 3, torch.Generator().manual_seed(0)).flatten().tolist()) == [0, 5, 9]


def test_a_shuffling_of_the_coordinates_changes_nothing(m, digits):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    plain, mixed = digits[0].double(), digits[0].double()[:, order]
    assert torch.equal(m.k_means(plain, 10, 2)[1], m.k_means(mixed, 10, 2)[1])
    assert torch.equal(m.dbscan(plain, 20.0), m.dbscan(mixed, 20.0))
    assert torch.allclose(m.spectrum(plain - plain.mean(0))[0], m.spectrum(mixed - mixed.mean(0))[0])


# ---- Gaussian mixtures ----------------------------------------------------------------------------

def test_densities_are_those_of_torch(m):
    g = torch.Generator().manual_seed(0)
    x, means, a = (torch.randn(*shape, generator=g).double() for shape in ((7, 3), (2, 3), (2, 3, 3)))
    covariances = a @ a.mT + 0.1 * torch.eye(3)
    referee = torch.distributions.MultivariateNormal(means, covariances)
    assert torch.allclose(m.log_densities(x, means, covariances), referee.log_prob(x[:, None]), atol=1e-8)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_scikit_learn_cannot_improve_the_mixture(m, digits, kind):
    for points in (crowds(FOUR)[0], digits[0][:, :5]):
        ours = m.gaussian_mixture(points, 4, full=kind == "full")
        inverse = torch.linalg.inv(ours["covariances"])
        start = {"weights_init": ours["weights"], "means_init": ours["means"],
                 "precisions_init": inverse if kind == "full" else inverse.diagonal(dim1=1, dim2=2)}
        referee = GaussianMixture(4, covariance_type=kind, reg_covar=1e-4, max_iter=500, tol=1e-6,
                                  **{name: value.numpy() for name, value in start.items()})
        likely = referee.fit(points.double().numpy()).score(points.double().numpy()) * len(points)
        assert abs(ours["log_likelihood"] - likely) < 0.02 * len(points)
        charged = ours["bic"] + 2 * ours["log_likelihood"]
        assert charged == pytest.approx(referee._n_parameters() * math.log(len(points)))
        assert ours["weights"].sum() == pytest.approx(1, abs=1e-6)


def test_mixture_finds_the_crowds(m):
    points, truth = crowds(FOUR, spread=0.3)
    assert same_groups(m.mixture_clusters(m.gaussian_mixture(points, 4), points), truth)


def test_a_singular_covariance_is_named(m):
    with pytest.raises(ValueError, match="singular.*fewer directions"):
        m.gaussian_mixture(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), 1, ridge=0)
    assert math.isfinite(m.gaussian_mixture(torch.ones(5, 2), 1)["log_likelihood"])


# ---- DBSCAN ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("radius", [10.0, 18.0, 22.0, 30.0])
def test_dbscan_is_scikit_learns(m, digits, radius):
    ours = m.dbscan(digits[0].double(), radius, least=10, block=300)
    assert same_groups(ours, DBSCAN(eps=radius, min_samples=10).fit(digits[0].double().numpy()).labels_)


def test_dbscan_all_noise_one_point_and_copies(m):
    points, truth = crowds(FOUR)
    assert (m.dbscan(points, 1e-4) == -1).all() and same_groups(m.dbscan(points, 1.0), truth)
    assert m.dbscan(torch.zeros(1, 2), 1.0).tolist() == [-1] and not m.dbscan(torch.zeros(20, 2), 0.0).any()


def test_distances_to_the_tenth_neighbour(m, digits):
    squared = (digits[0][:200, None] - digits[0][None, :200]).square().sum(2)
    assert torch.allclose(m.neighbour_distances(digits[0][:200]), squared.sqrt().sort().values[:, 9], atol=1e-2)
    assert m.neighbour_distances(digits[0][:3]).shape == (3,)


def test_the_bend_is_where_the_curve_turns(m):
    assert m.bend(torch.cat([torch.linspace(0, 1, 81), torch.linspace(1.5, 10, 20)])) == 80
    assert m.bend(torch.zeros(5)) == 0 and m.bend(torch.ones(1)) == 0


# ---- patches --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pictures():
    """Sixty pictures of smooth noise, and mirror images of them."""
    small = torch.randint(0, 256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(small, 32, mode="bilinear").byte()


def test_patch_codes_are_their_definition(m, pictures):
    learned = m.learn_patches(pictures, 3, seed=0, rounds=2)
    x, codes = pictures[0].double(), m.encode(pictures[:1], learned)
    flipped = torch.stack([c.view(3, 6, 6).flip(2).flatten() for c in learned["centres"]])
    centres, total = torch.cat([learned["centres"], flipped]).double(), torch.zeros(27, 27, 6).double()
    for i in range(27):
        for j in range(27):
            p = x[:, i:i + 6, j:j + 6].flatten()
            p = (p - p.mean()) / ((p - p.mean()).square().mean() + 10).sqrt()
            p = (p - learned["mean"].double()) @ learned["turn"].double()
            distance = (centres - p).norm(dim=1)
            total[i, j] = (distance.mean() - distance).clamp(min=0)
    halves = slice(0, 14), slice(13, 27)
    means = torch.stack([total[a, b].mean((0, 1)) for a in halves for b in halves]).view(2, 2, 2, 3)
    expected = means[:, 0] + means[:, 1].flip(1)  # left with a centre, right with its mirror image
    assert codes.shape == (1, 12) and torch.allclose(codes.view(2, 2, 3).double(), expected, atol=1e-3)


def test_mirror_images_have_one_code(m, pictures):
    learned = m.learn_patches(pictures, 5, seed=0, rounds=2)
    assert torch.allclose(m.encode(pictures, learned), m.encode(pictures.flip(3), learned), atol=1e-4)


def test_flat_patches_stay_finite(m):
    assert m.same_light(torch.full((2, 108), 7.0)).abs().max() == 0


@pytest.fixture
def least_squares(m):
    """The function of the chapter, whose cell no later one needs."""
    page = next(path for path in nbtools.chapters() if nbtools.number(path) == "04")
    there = dict(vars(m))
    exec(nbtools.source(next(cell for cell in nbtools.read(page)["cells"] if cell["id"] == "least-squares")), there)
    return there["least_squares"]


def test_least_squares_is_scikit_learns_ridge(least_squares, digits):
    x, labels = digits
    train, rest, penalty = slice(0, 1000), slice(1000, None), 0.03
    layer = least_squares(x[train], labels[train], x[rest], labels[rest], (penalty,))
    scaled = (x[train] - x[train].mean(0)) / x[train].std(0)
    ridge = Ridge(alpha=penalty * 1000).fit(scaled.double(), 2 * torch.nn.functional.one_hot(labels[train]).double() - 1)
    expected = ridge.predict(((x[rest] - x[train].mean(0)) / x[train].std(0)).double())
    assert np.allclose(layer(x[rest]), expected, atol=1e-3)


def test_least_squares_takes_the_penalty_that_does_best_on_validation(m, least_squares, digits):
    x, labels = digits
    given, penalties = (x[:60], labels[:60], x[1000:], labels[1000:]), (1e-4, 1e-2, 1.0, 100.0)
    scores = [m.accuracy(least_squares(*given, (penalty,))(x[1000:]), labels[1000:]) for penalty in penalties]
    assert len(set(scores)) > 1 and m.accuracy(least_squares(*given, penalties)(x[1000:]), labels[1000:]) == max(scores)


def test_least_squares_with_fewer_pictures_than_numbers_or_a_constant_number_stays_finite(m, least_squares):
    x = torch.cat([torch.randn(8, 30, generator=torch.Generator().manual_seed(0)), torch.ones(8, 1)], 1)
    layer = least_squares(x, torch.arange(8) % 2, x, torch.arange(8) % 2)
    assert layer.weight.isfinite().all() and m.accuracy(layer(x), torch.arange(8) % 2) == 100


# ---- the map --------------------------------------------------------------------------------------

def kl(m, points, y):
    """What t-SNE minimises: how far the map's probabilities are from those of the points."""
    p, kernel = m.neighbour_probabilities(points), 1 / (1 + torch.cdist(y, y).square())
    q = kernel.fill_diagonal_(0) / kernel.sum()
    return (p * (p / q.clamp(min=1e-12)).clamp(min=1e-12).log()).sum().item()


def test_probabilities_have_the_perplexity(m, digits):
    p = m.neighbour_probabilities(digits[0][:300])
    assert torch.allclose(p, p.T) and p.sum() == pytest.approx(1, abs=1e-4) and not p.diagonal().any()


def test_the_map_is_as_good_as_scikit_learns(m, digits):
    points = digits[0][:400]
    theirs = torch.tensor(TSNE(perplexity=30, random_state=0).fit_transform(points.numpy()))
    ours = m.neighbour_map(points)
    assert kl(m, points, ours) < 1.1 * kl(m, points, theirs)
    assert m.neighbours_kept(points, ours) > m.neighbours_kept(points, points[:, :2]) + 10
    assert m.neighbours_kept(points, points) == 100
