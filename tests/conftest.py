"""What the tests share: the chapters' kept cells as modules, at preset smoke and in a folder of their own."""

import chain
import pytest


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory):
    """Where the modules below keep files."""
    return tmp_path_factory.mktemp("smoke") / "data"


def kept(upto, data):
    """The kept cells of chapters 1 to `upto`."""
    return chain.namespace(upto, PRESET="smoke", SEEDS="0", DEVICE="cpu", DATA=data, RESULTS=data / "runs")


@pytest.fixture(scope="session")
def chapter1(smoke_data):
    """Chapter 1's kept cells."""
    return kept(1, smoke_data)


@pytest.fixture(scope="session")
def chapter2(smoke_data):
    """The kept cells of chapters 1 and 2."""
    return kept(2, smoke_data)


@pytest.fixture(scope="session")
def chapter3(smoke_data):
    """The kept cells of chapters 1 to 3."""
    return kept(3, smoke_data)
