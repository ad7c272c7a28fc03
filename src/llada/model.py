"""A model for use from Python: opened by its name, strings in and strings out.

`load` opens whatever the commands open, and a `Model` calls the same functions as the commands: a seed gives the text
that `llada sample` prints for it. The functions underneath, over token ids and any mask predictor, are public as well:
`llada.unmask`, `llada.infill`, `llada.masked_nll` and so on.

Shape letters: B batch, L length, V vocabulary rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack, overload

import torch
from torch import Generator, Tensor

from llada.checkpoints.folder import Checkpoint, DtypeName, weights_dtype
from llada.checkpoints.load import open_model
from llada.checkpoints.sampling_default import default_unless
from llada.evaluation.text_bound import TextBound, bound_of_text
from llada.models import MaskPredictor, Network, NetworkConfig, block_length_of
from llada.sampling.batches import seeds_from, unmask_together
from llada.sampling.config import ANSWER, FREE_TEXT, Remasking, SamplerConfig
from llada.sampling.constraints import TextsAt, constrain_all
from llada.sampling.long_text import generate_by_sliding
from llada.sampling.policies import Order, PolicyName
from llada.sampling.template import read_template
from llada.system.device import DeviceName, choose_device
from llada.system.errors import UserError
from llada.tokenizers.base import Tokenizer
from llada.tokenizers.char import MASK
from llada.tokenizers.chat_template import cut_at_end
from llada.tokenizers.message import Message, check_turns

OPEN = "_"  # stands for a masked token in the text of a step
ANSWER_LENGTH = 128  # tokens at most


class SamplerFields(TypedDict, total=False):
    """The fields of `SamplerConfig`, as keyword arguments."""

    steps: int | None
    block_length: int | None
    temperature: float
    cfg_scale: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    remasking: Remasking
    policy: PolicyName | None
    threshold: float
    factor: float
    entropy_bound: float
    run_threshold: float
    order: Order | None
    stable_entropy: float | None
    remdm_eta: float
    p2_tokens: int
    mask_schedule: str


@dataclass(frozen=True)
class Step:
    """The state of the texts after a step of the sampler, passed to the callback."""

    texts: tuple[str, ...]
    """All texts that are being written, with "_" for each token that is still masked."""
    n_open: int
    """Number of tokens still masked, over all texts."""
    nfe: int
    """Number of function evaluations of the network so far."""

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0]


OnStep = Callable[[Step], object]
Texts = list[str] | tuple[str, ...]  # not Sequence[str], since a string is a sequence of strings


def load(
    name: str | Path,
    *,
    device: DeviceName | torch.device = "auto",
    dtype: DtypeName | torch.dtype = "auto",
    base: str | Path | None = None,
) -> "Model":
    """Open a model: a run (its best checkpoint), a checkpoint, an adapter with its base, or a name on the hub.

    Args:
        device: "auto" is the GPU where there is one.
        dtype: of the weights in memory; "auto" is the one that they are stored in, with bf16 for fp16.
        base: where an adapter's base is, if not where the adapter says.

    Raises:
        UserError: there is no such model, it is damaged, or it does not fit into memory.
    """
    place = device if isinstance(device, torch.device) else choose_device(device)
    weights = dtype if isinstance(dtype, torch.dtype) else weights_dtype(dtype)
    return Model(open_model(name, place, weights, None if base is None else str(base)))


@dataclass(frozen=True)
class Model:
    """A model that continues texts, fills in masks, answers and measures likelihoods."""

    checkpoint: Checkpoint

    @property
    def network(self) -> Network:
        """The torch module that takes rows of the embedding (B, L) to logits (B, L, V)."""
        return self.checkpoint.model.network

    @property
    def predictor(self) -> MaskPredictor:
        """The mask predictor: it takes token ids (B, L), MASK among them, to logits (B, L, V), with gradients."""
        return self.checkpoint.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.checkpoint.tokenizer

    @property
    def config(self) -> NetworkConfig:
        """The shape of the network."""
        return self.checkpoint.config

    @property
    def device(self) -> torch.device:
        return next(self.predictor.parameters()).device

    @property
    def max_length(self) -> int:
        """The longest text in tokens: the length that the model was trained on."""
        return self.config.max_sequence_length

    def ids(self, template: str) -> Tensor:
        """Encode a text, in which `<MASK>` or `<MASK*20>` stands for masked tokens, as token ids (1, L)."""
        ids = read_template(template, self.tokenizer, self.checkpoint.check_length)
        return torch.tensor([ids], device=self.device)

    def text(self, ids: Tensor) -> list[str]:
        """Decode token ids (B, L) to B texts, with "_" for MASK."""
        return [self.tokenizer.decode(row, OPEN) for row in ids.tolist()]

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Compute logits (B, L, V) for token ids (B, L), MASK among them; those at a position predict the token there.

        Column v belongs to token id v. The only column that no text uses is MASK's.
        """
        return self.predictor(ids.to(self.device))

    @overload
    def generate(
        self, prompt: str = "", *, length: int | None = None, seed: int = 0, config: SamplerConfig | None = None,
        on_step: OnStep | None = None, banned: TextsAt | None = None, required: TextsAt | None = None,
        slide: bool = False, **sampler: Unpack[SamplerFields],
    ) -> str: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Texts, *, length: int | None = None, seed: int = 0, config: SamplerConfig | None = None,
        on_step: OnStep | None = None, banned: TextsAt | None = None, required: TextsAt | None = None,
        slide: bool = False, **sampler: Unpack[SamplerFields],
    ) -> list[str]: ...  # fmt: skip

    def generate(
        self,
        prompt: str | Texts = "",
        *,
        length: int | None = None,
        seed: int = 0,
        config: SamplerConfig | None = None,
        on_step: OnStep | None = None,
        banned: TextsAt | None = None,
        required: TextsAt | None = None,
        slide: bool = False,
        **sampler: Unpack[SamplerFields],
    ) -> str | list[str]:
        """Continue a prompt, or each of several; the prompt is part of the returned text.

        Args:
            length: tokens to add; None fills the model's length.
            seed: fixes the texts. Several go through the network together, and each is what it would be alone, text i
                with the seed `seed + i`.
            config: how to sample. If None, the defaults are those of `llada sample`: the checkpoint's own, if
                `llada frontier` has written one, else temperature 1, one step a token.
            on_step: called after each step with the texts so far; not where the text slides.
            banned: tokens that must not stand at a position, which is the number of a token of the whole text from 0:
                `{4: "e", 5: ["a", "e"]}`.
            required: tokens of which one must stand at a position.
            slide: write texts that are longer than the model's length piece by piece, each conditioned on the end of
                the text so far.
            sampler: fields of `SamplerConfig`, which override those of `config` and the defaults.

        Raises:
            UserError: the text would be longer than the model's length, or has a character that the vocabulary lacks;
                or tokens are required that the prompt contradicts.
        """
        prompts = [self.tokenizer.encode(one) for one in _listed(prompt)]
        if slide and length is not None and any(len(ids) + length > self.max_length for ids in prompts):
            if length < 1:
                raise UserError(f"The length must be at least 1 in a text that slides, not {length}: correct it.")
            if banned or required:
                raise UserError("Tokens cannot be banned or required in a text that slides: leave out one of the two.")
            texts = self._slide(prompts, length, seed, self._config(config or self._default(sampler), sampler))
        else:
            templates = [self._appended(ids, length) for ids in prompts]
            texts = self._fill(templates, seed, config, on_step, sampler, banned, required)
        return texts[0] if isinstance(prompt, str) else texts

    @overload
    def infill(
        self, template: str, *, seed: int = 0, config: SamplerConfig | None = None, on_step: OnStep | None = None,
        banned: TextsAt | None = None, required: TextsAt | None = None, **sampler: Unpack[SamplerFields],
    ) -> str: ...  # fmt: skip

    @overload
    def infill(
        self, template: Texts, *, seed: int = 0, config: SamplerConfig | None = None, on_step: OnStep | None = None,
        banned: TextsAt | None = None, required: TextsAt | None = None, **sampler: Unpack[SamplerFields],
    ) -> list[str]: ...  # fmt: skip

    def infill(
        self,
        template: str | Texts,
        *,
        seed: int = 0,
        config: SamplerConfig | None = None,
        on_step: OnStep | None = None,
        banned: TextsAt | None = None,
        required: TextsAt | None = None,
        **sampler: Unpack[SamplerFields],
    ) -> str | list[str]:
        """Fill a template, or each of several, where it says `<MASK>` or `<MASK*20>`, and keep the rest.

        The other arguments, and the errors, are those of `generate`.
        """
        read = [read_template(one, self.tokenizer, self.checkpoint.check_length) for one in _listed(template)]
        texts = self._fill(read, seed, config, on_step, sampler, banned, required)
        return texts[0] if isinstance(template, str) else texts

    def chat(
        self,
        messages: str | Sequence[Message | Mapping[str, str]],
        *,
        length: int | None = None,
        seed: int = 0,
        config: SamplerConfig | None = None,
        on_step: OnStep | None = None,
        **sampler: Unpack[SamplerFields],
    ) -> str:
        """Answer the last message of a dialogue, in the checkpoint's own chat format.

        Args:
            messages: a question, or a dialogue of `Message`s or of mappings with "role" and "content". Its oldest turns
                are left out if it does not fit the model's length with the answer.
            length: tokens of the answer at most; 128 if None, or half of the model's length if that is less.
            config: how to sample. If None, the defaults are those of `llada chat`: temperature 0, blocks of 32.

        The other arguments are those of `generate`.

        Raises:
            UserError: the last message does not fit, or the messages are not a dialogue.
        """
        length = max(1, min(ANSWER_LENGTH, self.max_length // 2)) if length is None else length
        assistant = self.checkpoint.assistant()
        how = self._config(config or ANSWER, sampler)
        reply: list[int] = []
        for state in assistant.answer(_dialogue(messages), length, how, Generator().manual_seed(seed)):
            reply = cut_at_end(state.ids, assistant.end_ids)
            if on_step is not None:
                on_step(Step((self.tokenizer.decode(reply, OPEN),), reply.count(self.tokenizer.mask_id), state.nfe))
        return self.tokenizer.decode(reply).strip()

    @overload
    def nelbo(self, text: str, *, masks: int = 128, seed: int = 0) -> TextBound: ...

    @overload
    def nelbo(self, text: Texts, *, masks: int = 128, seed: int = 0) -> list[TextBound]: ...

    def nelbo(self, text: str | Texts, *, masks: int = 128, seed: int = 0) -> TextBound | list[TextBound]:
        """Bound the negative log-likelihood of a text, or of each of several, from above, with the standard error.

        Args:
            text: one longer than the model's length is cut into pieces of it, each scored by itself.
            masks: how often the text is masked, an even number; the error falls with its square root.
            seed: fixes the masks.
        """
        if isinstance(text, str):
            return bound_of_text(self.predictor, self.tokenizer, text, masks=masks, seed=seed)
        return [self.nelbo(one, masks=masks, seed=seed) for one in text]

    def _appended(self, prompt: list[int], length: int | None) -> list[int]:
        if length is not None and length < 0:
            raise UserError(f"The length must be at least 0, not {length}: correct it.")
        added = max(0, self.max_length - len(prompt)) if length is None else length
        self.checkpoint.check_length(len(prompt) + added)
        return prompt + [self.tokenizer.mask_id] * added

    def _fill(
        self,
        templates: Sequence[list[int]],
        seed: int,
        config: SamplerConfig | None,
        on_step: OnStep | None,
        sampler: SamplerFields,
        banned: TextsAt | None = None,
        required: TextsAt | None = None,
    ) -> list[str]:
        """Fill the templates together and decode them; text i has the seed `seed + i`."""
        mask_id, rows = self.tokenizer.mask_id, [list(template) for template in templates]
        for template in templates:
            self._check_fillable(template)
        if not rows:
            return []
        how, seeds = self._config(config or self._default(sampler), sampler), seeds_from(seed, len(rows))
        predict = constrain_all(self.checkpoint.predict, templates, self.tokenizer, banned, required)
        pad_id = self.tokenizer.pad_id
        for rows, state in unmask_together(predict, templates, mask_id, pad_id, how, seeds, self.device):
            if on_step is not None:
                texts = tuple(self.tokenizer.decode(row, OPEN) for row in rows)
                on_step(Step(texts, sum(row.count(mask_id) for row in rows), state.nfe))
        return [self.tokenizer.decode(row) for row in rows]

    def _slide(self, prompts: Sequence[list[int]], length: int, seed: int, config: SamplerConfig) -> list[str]:
        """Continue each prompt beyond the model's length; text i has the seed `seed + i`."""
        texts, mask_id = [], self.tokenizer.mask_id
        for ids, own in zip(prompts, seeds_from(seed, len(prompts)), strict=True):
            prompt, generator = torch.tensor([ids], dtype=torch.long, device=self.device), Generator().manual_seed(own)
            *_, text = generate_by_sliding(
                self.checkpoint.predict, prompt, length, mask_id, config, generator, context=self.max_length
            )
            texts.append(self.tokenizer.decode(text[0].tolist()))
        return texts

    def _check_fillable(self, template: Sequence[int]) -> None:
        mask_id = self.tokenizer.mask_id
        if mask_id not in template:
            raise UserError(
                f"There is nothing to fill in: shorten the prompt below {self.max_length} tokens, or add {MASK}."
            )
        if self.predictor.is_causal and mask_id in template[: -template.count(mask_id)]:
            raise UserError("This model sees only what is before a gap: let the template end with its one gap.")

    def _default(self, sampler: SamplerFields) -> SamplerConfig:
        """The checkpoint's own default, unless the choice of positions is given."""
        return default_unless(sampler.keys(), self.checkpoint.folder) or FREE_TEXT

    def _config(self, config: SamplerConfig, sampler: SamplerFields) -> SamplerConfig:
        """Return the sampler's configuration: `config` with the given fields replaced."""
        try:
            config = replace(config, **sampler)
            given = config.block_length if "block_length" in sampler or not self.predictor.is_causal else None
            return replace(config, block_length=block_length_of(self.predictor, given))
        except (TypeError, ValueError) as error:
            raise UserError(f"These settings do not work: {error}.") from error


def _listed(text: str | Texts) -> Texts:
    return [text] if isinstance(text, str) else text


def _dialogue(messages: str | Sequence[Message | Mapping[str, str]]) -> list[Message]:
    """Read messages from a question, or from mappings such as other libraries use."""
    if isinstance(messages, str):
        return [Message("user", messages)]
    try:
        read = [one if isinstance(one, Message) else Message(one["role"], one["content"]) for one in messages]
    except KeyError as error:
        raise UserError(f"A message has no {error.args[0]!r}: give each a role and a content.") from error
    try:
        check_turns(read)
    except ValueError as error:
        raise UserError(f"These messages are not a dialogue: {error}.") from error
    return read
