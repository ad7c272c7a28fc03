"""Training with attention within each document of a window.

Shape letters: B batch, L length.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llada.data.corpus import Corpus
from llada.data.prepared import PreparedText, prepare
from llada.evaluation.nelbo import nll_by_model
from llada.evaluation.windows import scored_windows
from llada.objective import loss_weights
from llada.system.compile import Compiled
from llada.system.compile_check import Finding, Subject
from llada.system.errors import UserError
from llada.system.toolchains import Toolchain
from llada.training import compilation
from llada.training.config import DataOptions, NetworkOptions, NoiseOptions, TrainConfig
from llada.training.metrics import LossByTime, read_metrics
from llada.training.run_folder import RunFolder
from tests.support.corpora import some_documents
from tests.support.runs import losses, train, trainer_of, weights


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> PreparedText:
    corpus = Corpus.of_documents([text[:18] for text in some_documents(150)], "file", "made up")
    return prepare(corpus, tmp_path_factory.mktemp("documents") / "prepared", sequence_length=40)


@pytest.fixture
def run(small_run: TrainConfig, documents: PreparedText) -> TrainConfig:
    data = DataOptions((documents.folder,), sequence_length=24, within_documents=True)
    return replace(small_run, data=data, steps=6)


NETWORKS = {
    "llada": NetworkOptions(d_model=16, n_heads=2, n_layers=2),
    "local": NetworkOptions("local", d_model=16, n_heads=2, n_layers=2),
}


@pytest.mark.parametrize("windows", ["random", "stored"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_the_loss_and_the_gradients_of_a_step_are_those_of_its_documents_alone(
    network: NetworkOptions, windows: Any, run: TrainConfig, documents: PreparedText
) -> None:
    config = replace(run, network=network, data=replace(run.data, windows=windows), batch_size=8)
    steps = trainer_of(config, documents).steps
    batch, noisy = steps.make_batch(0)
    numbers = batch.attention_mask
    assert numbers is not None
    assert (numbers.amax(1) > 1).all()
    model, of_rows = steps.model, loss_weights(noisy, config.noise.weight_power)
    for weight in model.parameters():  # away from the zeros of a fresh layer
        weight.data.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    total = torch.zeros(())
    for row in range(len(batch)):
        for number in numbers[row][numbers[row] > 0].unique():
            places = numbers[row] == number
            is_masked = noisy.is_masked[row, places]
            logits = model(noisy.x_t[row, places][None])[0]
            nll = F.cross_entropy(logits[is_masked], batch.x_0[row, places][is_masked], reduction="sum")
            total = total + nll * of_rows[row, 0]
    together = steps.loss(batch, noisy, of_rows, LossByTime(steps.device))
    assert float(together.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    parameters = list(model.parameters())
    for ours, expected in zip(
        torch.autograd.grad(together, parameters), torch.autograd.grad(total, parameters), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_run_that_is_interrupted_or_cut_into_pieces_is_the_same_run(
    run: TrainConfig, documents: PreparedText, tmp_path: Path
) -> None:
    expected, parts = train(run, documents), replace(run, output_dir=tmp_path / "parts")
    train(parts, documents, stop_at=3)
    resumed = train(RunFolder.read_config(parts.output_dir), documents, resume=True)
    assert torch.equal(weights(resumed), weights(expected))
    assert losses(parts) == losses(run)
    pieces = replace(
        run, batch_size=2, accumulate=2, activation_checkpointing=True, draws="by_row", output_dir=tmp_path / "pieces"
    )
    train(pieces, documents)
    assert losses(pieces) == pytest.approx(losses(run), rel=1e-4)


def test_the_bound_of_a_run_is_measured_within_documents(run: TrainConfig, documents: PreparedText) -> None:
    """By the network alone: the cross-entropies of each document by itself, under the masks of the evaluation."""
    trainer = train(run, documents)
    with trainer.state.averaged():
        result = trainer.evaluations.estimate_nelbo()
        nll, seen = nll_by_model(trainer.model, trainer.precision), []

        def at_masked(noisy: Any, batch: Any) -> torch.Tensor:
            seen.append(batch.attention_mask)
            parts = []
            for row, x_t in enumerate(noisy.x_t):
                of_row = torch.zeros(len(x_t))
                for number in batch.attention_mask[row].unique():
                    places = batch.attention_mask[row] == number
                    of_row[places] = F.cross_entropy(
                        trainer.model(x_t[places][None])[0], batch.x_0[row, places], reduction="none"
                    )
                parts.append(of_row[noisy.is_masked[row]])
            return torch.cat(parts)

        alone = trainer.steps.source.estimate_nelbo(replace(nll, at_masked=at_masked))
    assert result.within_documents
    assert result.nelbo_nats_per_token == pytest.approx(alone.nelbo_nats_per_token, rel=1e-5)
    in_metrics = [row["nelbo"] for row in read_metrics(run.output_dir / "metrics.jsonl") if "nelbo" in row]
    assert in_metrics[-1] == pytest.approx(result.nelbo_nats_per_token, rel=1e-6)
    windows, _ = scored_windows(documents.tokens("val"), 24, documents.tokenizer.eos_id, run.evaluation_windows)
    ends = (windows == documents.tokenizer.eos_id)[:, :-1].any(1)
    assert ends.any()
    assert torch.cat([part.amax(1) for part in seen]).max() > 1


def test_the_shape_of_the_run_is_compiled_with_its_documents(
    run: TrainConfig, documents: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_for = []

    def compile_nothing(subject: Subject, *_: object) -> Compiled:
        def function(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            compiled_for.append((tuple(rows.shape), tuple(numbers.shape), numbers.dtype))
            return subject.function(rows, numbers)

        assert len(subject.inputs) == 2
        assert int(subject.inputs[1].max()) > 1
        return Compiled(function, Toolchain("native"), Finding(True, "nothing was compiled"))

    monkeypatch.setattr(compilation, "compile_checked", compile_nothing)
    compiled = replace(run, compile=True, noise=NoiseOptions(random_length=0.5))
    train(compiled, documents)
    assert set(compiled_for) == {((4, 24), (4, 24), torch.int32)}
    plain = replace(compiled, compile=False, output_dir=run.output_dir.with_name("plain"))
    train(plain, documents)
    assert losses(compiled) == losses(plain)


def test_another_process_makes_the_same_subject(documents: PreparedText) -> None:
    """From JSON alone, numbers of documents included."""
    from llada.models import config_to_json
    from tests.support.configurations import ODD_LLADA

    rows, numbers = [[1, 2, 3]], [[1, 1, 2]]
    subject = compilation.random_subject(config_to_json(ODD_LLADA), 10, rows, False, numbers)
    assert [each.tolist() for each in subject.inputs] == [rows, numbers]
    assert subject.inputs[1].dtype == torch.int32
    assert subject.function(*subject.inputs).shape == (1, 3, ODD_LLADA.d_model)


def test_dialogues_are_refused() -> None:
    with pytest.raises(UserError, match="leave out `within_documents`"):
        TrainConfig(
            data=DataOptions(chat=Path("chat.jsonl"), within_documents=True), noise=NoiseOptions(weight_power=1)
        )
