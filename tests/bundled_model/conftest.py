"""What the tests of the bundled model's making share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encoder():  # type: ignore[no-untyped-def]
    """A small tokenizer, trained in about a second."""
    from tools.bundled_model import tokenizer
    from tools.bundled_model.encoding import ChatEncoder

    return ChatEncoder(tokenizer.train(seed=0, conversations=200, vocab_size=1024))
