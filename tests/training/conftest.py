"""What the training tests share: one thread, so that their bits do not hang on the machine, and a place to train in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.training.tiny_fixture import Place


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("tiny"))
