"""examples/minimal.py: its mathematics is the package's, and it learns."""

import importlib.util
import math
from types import ModuleType

import pytest
import torch
from torch import Generator

from llada.forward_process import mask_bernoulli
from llada.objective import loss_weights, masked_nll, weighted_loss
from tests.support.documents import ROOT

PATH = ROOT / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_stands_alone_on_a_few_pages() -> None:
    source = PATH.read_text(encoding="utf-8")
    assert "import llada" not in source
    assert "from llada" not in source
    assert len(source.splitlines()) <= 170


def test_forward_process_and_loss_are_those_of_the_package(minimal: ModuleType) -> None:
    """On the same batch, from the same random numbers; the loss for any logits."""
    x_0 = torch.randint(0, 10, (6, 20), generator=Generator().manual_seed(1))
    x_t, is_masked, p_mask = minimal.forward_process(x_0, 10, Generator().manual_seed(2))
    noisy = mask_bernoulli(x_0, 10, Generator().manual_seed(2))
    assert torch.equal(x_t, noisy.x_t)
    assert torch.equal(p_mask[:, :1], noisy.p_mask)
    logits = torch.randn(6, 20, 11, generator=Generator().manual_seed(3))
    weights = noisy.at_masked(loss_weights(noisy))
    expected = weighted_loss(masked_nll(logits, x_0, noisy), weights)
    torch.testing.assert_close(minimal.loss_of(logits, x_0, is_masked, p_mask), expected)


def test_it_learns_a_small_text_and_writes_in_its_characters(
    minimal: ModuleType, text: str, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    vocabulary = minimal.Vocabulary(text)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    model = minimal.MaskPredictor(vocabulary.size, 32, width=32, heads=2, layers=1)
    losses = minimal.train(model, ids, vocabulary.mask_id, steps=100, length=32, batch=16)
    assert abs(sum(losses[:5]) / 5 - math.log(vocabulary.size)) < 0.5  # it knows nothing yet
    assert sum(losses[-20:]) / 20 < 2.8  # from log 22, 3.1
    assert "nats per character" in capsys.readouterr().out

    template = torch.cat((vocabulary.encode("to be"), torch.full((10,), vocabulary.mask_id)))
    filled = minimal.sample(model, template, vocabulary.mask_id, 4, Generator().manual_seed(0))
    assert vocabulary.decode(filled).startswith("to be")
    assert vocabulary.mask_id not in filled
