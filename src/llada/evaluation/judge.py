"""How likely a text is to a judge: an autoregressive model, one trained here or any of the Hugging Face library.

Shape letters: B batch, L length, V vocabulary rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llada.checkpoints.folder import Checkpoint
from llada.forward_process import score_all
from llada.objective import masked_nll, token_nll
from llada.system.device import Precision, to_fp64
from llada.system.errors import UserError, first_line

Judge = Callable[[str], float]
"""A text to its negative log-likelihood in nats."""


@dataclass(frozen=True)
class Piece:
    """A part of a text that fits a model, and from where on its tokens are scored."""

    begin: int
    end: int
    first_scored: int


def cut_pieces(n_tokens: int, longest: int) -> list[Piece]:
    """Pieces that score each token once, those behind the first with half of `longest` or more before it."""
    pieces = [Piece(0, min(n_tokens, longest), 0)]
    stride = max(1, longest // 2)
    while pieces[-1].end < n_tokens:
        end = min(n_tokens, pieces[-1].end + stride)
        pieces.append(Piece(max(0, end - longest), end, pieces[-1].end))
    return pieces


def judge_by_checkpoint(judge: Checkpoint, precision: Precision, device: torch.device) -> Judge:
    """An autoregressive model that was trained here.

    Raises:
        UserError: it is not autoregressive.
    """
    if not judge.model.is_causal:
        raise UserError(
            f"{judge.folder} is no judge, since it gives a bound only: name an autoregressive model (`llada train` "
            'with `preset="autoregressive"`).'
        )

    @torch.inference_mode()
    def nll(text: str) -> float:
        ids, total = torch.tensor([judge.tokenizer.encode(text)], device=device), 0.0
        for piece in cut_pieces(ids.shape[1], judge.config.max_sequence_length):
            x_0 = ids[:, piece.begin : piece.end]
            places = torch.arange(piece.begin, piece.end, device=device)
            noisy = score_all(x_0, (places >= piece.first_scored)[None])
            with precision.autocast(device):
                logits = judge.model(x_0, None, noisy.is_masked)
            total += float(to_fp64(masked_nll(logits, x_0, noisy)).sum())
        return total

    return nll


def judge_by_transformers(name: str, device: torch.device) -> Judge:
    """A causal language model of the Hugging Face library, a folder or a name on the hub, in fp32.

    Its first token is given if it has no token for the beginning of a text.

    Raises:
        UserError: the library is not installed, or there is no such model.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise UserError("A judge of the Hugging Face library needs it: pip install transformers.") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{name} is no causal language model that can be opened ({first_line(error)}).") from error
    longest = int(getattr(model.config, "max_position_embeddings", 1024))

    @torch.inference_mode()
    def nll(text: str) -> float:
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = torch.tensor([start + tokenizer.encode(text, add_special_tokens=False)], device=device)
        total = 0.0
        for piece in cut_pieces(ids.shape[1], longest):
            x_0 = ids[:, piece.begin : piece.end]
            first = max(1, piece.first_scored - piece.begin)
            logits: Tensor = model(x_0).logits[:, first - 1 : -1]
            total += float(to_fp64(token_nll(logits.flatten(0, 1), x_0[0, first:])).sum())
        return total

    return nll


def judge_all(judge: Judge, texts: Sequence[str]) -> list[float]:
    """Nats a character of each text that has any."""
    return [judge(text) / len(text) for text in texts if text]
