"""What the tests share: the pages' kept cells as modules, at preset smoke and in a folder of their own."""

import pytest
import torch
import weave


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory):
    """Where the modules below keep files."""
    return tmp_path_factory.mktemp("smoke") / "data"


def kept(upto, data):
    """All machinery and the teaching cells of chapters 1 to `upto`, or of a list of chapters."""
    return weave.namespace(upto, PRESET="smoke", SEEDS="0", DEVICE="cpu", NETWORK="train", DATA=data, RESULTS=data / "runs")


def chapter(upto):
    """A fixture that is this module, one for all tests."""
    return pytest.fixture(scope="session")(lambda smoke_data: kept(upto, smoke_data))


chapter1, chapter2, chapter3, chapter4 = (chapter(upto) for upto in range(1, 5))
chapter5 = chapter(["01", "02", "03", "05"])


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Gives a module of kept cells folders that the test has alone, and float32."""
    def give(module):
        monkeypatch.setattr(module, "DATA", tmp_path)
        monkeypatch.setattr(module, "RESULTS", tmp_path / "runs")
        monkeypatch.setattr(module, "MACHINE", {**module.MACHINE, "precision": torch.float32, "scaler": None, "units": []})
        return module
    return give


@pytest.fixture(scope="module")
def one_thread():
    """For networks as small as the tests' a second thread is a hindrance, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
