"""What the tests share: the pages' kept cells as modules, at preset smoke and in a folder of their own."""

import pytest
import weave


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory):
    """Where the modules below keep files."""
    return tmp_path_factory.mktemp("smoke") / "data"


def kept(upto, data):
    """All machinery and the teaching cells of chapters 1 to `upto`."""
    return weave.namespace(upto, PRESET="smoke", SEEDS="0", DEVICE="cpu", NETWORK="train", DATA=data, RESULTS=data / "runs")


@pytest.fixture(scope="session")
def chapter1(smoke_data):
    """Chapter 1's teaching cells, and all machinery."""
    return kept(1, smoke_data)


@pytest.fixture(scope="session")
def chapter2(smoke_data):
    """The teaching cells of chapters 1 and 2, and all machinery."""
    return kept(2, smoke_data)


@pytest.fixture(scope="session")
def chapter3(smoke_data):
    """The teaching cells of chapters 1 to 3, and all machinery."""
    return kept(3, smoke_data)


@pytest.fixture(scope="session")
def chapter4(smoke_data):
    """The teaching cells of chapters 1 to 4, and all machinery."""
    return kept(4, smoke_data)
