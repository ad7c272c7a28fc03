"""Standard benchmarks: our models in lm-evaluation-harness (extra `eval`), whatever checkpoint they come from.

The harness asks for three things: `loglikelihood` of an answer (by `answer_likelihood`), `loglikelihood_rolling` of a
text (by the bound, window by window), and `generate_until` (by our sampler). Each result depends on its request, the
model and the options alone, not on batches, processes or order. `llada-harness` is the harness's command with this
model.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import lm_eval.models  # noqa: F401  # fills the harness's own table, which it leaves empty behind a model of ours
import torch
import torch.distributed as dist
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import simple_parse_args_string
from torch import Tensor
from tqdm import tqdm

from llada.checkpoints.load import open_to_measure
from llada.evaluation.answer_likelihood import Item, generator_of, log_likelihoods, predict_by_model
from llada.evaluation.causal import causal_log_likelihoods
from llada.evaluation.distributed import Shard, join
from llada.evaluation.greedy import are_greedy
from llada.evaluation.lm_eval.chat_strings import Spelling
from llada.evaluation.lm_eval.options import HarnessOptions, Writing, company_batches, unused_settings
from llada.evaluation.lm_eval.rolling import text_bound
from llada.evaluation.nelbo import BoundOptions, nll_by_model
from llada.models.predictor import block_length_of
from llada.sampling.guidance import suppress
from llada.sampling.unmask import unmask
from llada.system.device import choose_device, choose_precision
from llada.system.errors import UserError
from llada.tokenizers.base import speechless_rows
from llada.tokenizers.chat_template import chat_format, cut_at_end
from llada.tokenizers.message import Message

DEFAULT_LENGTH = 256  # tokens of an answer if neither the options nor the task say; the harness's own default
logger = logging.getLogger("lm_eval.models.llada")  # shown as the harness's own log is (--verbosity)


@register_model("llada")
class HarnessModel(LM):  # type: ignore[misc]  # the harness has no types
    """A masked diffusion language model, as the harness sees it."""

    def __init__(self, options: HarnessOptions) -> None:
        """Open the checkpoint on its device.

        Raises:
            UserError: the checkpoint or the device is not available.
        """
        super().__init__()
        self.options, shard = options, join()
        self._rank, self._world_size = shard.rank, shard.processes
        self._device = _find_device(options.device, shard)
        precision = choose_precision(options.precision, self._device)
        logger.info("%s: %s, %s (%s)", options.checkpoint, self._device, precision.dtype, precision.reason)
        checkpoint = self.checkpoint = open_to_measure(
            options.checkpoint, self._device, options.dtype, options.precision, options.base
        )
        self.precision = precision
        self.mask_id, self.max_length = checkpoint.tokenizer.mask_id, checkpoint.config.max_sequence_length
        self.is_causal = checkpoint.model.is_causal
        if self.is_causal and options.sampler.cfg_scale:
            raise UserError(f"{options.checkpoint} is autoregressive, and has no guidance: leave out cfg_scale.")
        self.form = chat_format(checkpoint.tokenizer)
        self.end_ids = self.form.end_ids | checkpoint.further_end_ids
        self.spelling = Spelling(checkpoint.tokenizer, self.form)
        self.predict_at = predict_by_model(checkpoint.model, precision)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """Make a model as the harness does from its command line."""
        given = {key: value for key, value in (additional_config or {}).items() if value is not None}
        given.pop("max_batch_size", None)  # for batch sizes found automatically
        return cls(HarnessOptions.read({**arg_dict, **given}))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # -- likelihood ---------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) the estimate of log p in nats, and whether it is written greedily."""
        whole = [Item(*self.spelling.read_pair(*request.args)) for request in requests]
        items = [item.fitted(self.max_length) for item in whole]
        self._tell_of_cut(sum(len(a) < len(b) for a, b in zip(items, whole, strict=True)))
        unique = list(dict.fromkeys(items))
        answers = self._causal_answers(unique) if self.is_causal else self._answers(unique, disable_tqdm)
        results = dict(zip(unique, answers, strict=True))
        return self._remember("loglikelihood", requests, [results[item] for item in items])

    def _answers(self, unique: Sequence[Item], disable_tqdm: bool) -> list[tuple[float, bool]]:
        options, is_greedy, quiet = self.options, [False] * len(unique), self._is_quiet(disable_tqdm)
        with tqdm(total=1.0, desc="likelihoods", disable=quiet, bar_format="{l_bar}{bar} {elapsed}") as bar:
            likelihoods = log_likelihoods(
                self.predict_at, unique, self.mask_id, mc_num=options.mc_num, cfg_scale=options.sampler.cfg_scale,
                batch_size=options.batch_size, seed=options.seed, device=self._device,
                on_progress=lambda fraction_done: bar.update(fraction_done - bar.n),
            )  # fmt: skip
        errors = [likelihood.stderr for likelihood in likelihoods if likelihood.stderr]
        if errors:
            logger.info(
                "%d of %d answers are drawn, with a standard error of %.3g nats (root mean square); others are exact.",
                len(errors), len(unique), (sum(error**2 for error in errors) / len(errors)) ** 0.5,
            )  # fmt: skip
        if options.check_greedy:
            is_greedy = are_greedy(
                self.predict_at, unique, self.mask_id, forbidden=self.checkpoint.tokenizer.forbidden_rows,
                cfg_scale=options.sampler.cfg_scale, batch_size=options.batch_size, device=self._device,
            )  # fmt: skip
        return [(x.nats, y) for x, y in zip(likelihoods, is_greedy, strict=True)]

    def _causal_answers(self, unique: Sequence[Item]) -> list[tuple[float, bool]]:
        answers = causal_log_likelihoods(
            self.predict_at, unique, forbidden=self.checkpoint.tokenizer.forbidden_rows,
            batch_size=self.options.batch_size, device=self._device,
        )  # fmt: skip
        return [(likelihood.nats, is_greedy) for likelihood, is_greedy in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return for each (text,) the bound on log p in nats, over windows of the model's length."""
        nll, own = nll_by_model(self.checkpoint.model, self.precision), self.options
        options = BoundOptions(own.masks_per_window, batch_size=own.batch_size, seed=own.seed, device=self._device)
        results = [
            -text_bound(nll, self.spelling.read(request.args[0]), self.max_length, options)
            for request in tqdm(requests, desc="texts", disable=self._is_quiet(disable_tqdm))
        ]
        return self._remember("loglikelihood_rolling", requests, results)

    # -- writing ------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Write for each (context, settings) a text, up to the first of the strings `until`."""
        seen: Counter[str] = Counter()
        writings = []
        for request in requests:
            context, settings = request.args
            writings.append(self._writing(context, settings, seen[str(request.args)]))
            seen[str(request.args)] += 1
        self._tell_of_cut(sum(writing.n_cut > 0 for writing in writings))
        for setting in unused_settings(request.args[1] for request in requests):
            logger.warning("The tasks ask for %s, which this sampler does not have: it is left out.", setting)
        texts = [""] * len(writings)
        with tqdm(total=len(writings), desc="writing", disable=self._is_quiet(disable_tqdm)) as bar:
            for batch in company_batches(writings, self.options.batch_size):
                for i, text in zip(batch, self._write([writings[i] for i in batch]), strict=True):
                    texts[i] = text
                bar.update(len(batch))
        return self._remember("generate_until", requests, texts)

    def _writing(self, context: str, settings: Mapping[str, Any], repeat: int) -> Writing:
        settings = _normalised(settings)
        gen_length = self.options.gen_length or settings["max_gen_toks"]
        ids = self.spelling.read(context)
        room = self.max_length - gen_length
        if room < (1 if ids else 0):
            raise UserError(
                f"An answer of {gen_length} tokens leaves no room for its prompt in the {self.max_length} of this "
                "model: put a smaller gen_length into `model_args`."
            )
        config = self.options.writing_config(gen_length, settings)
        try:
            config = replace(config, block_length=block_length_of(self.checkpoint.model, config.block_length))
        except ValueError as error:
            raise UserError(f"block_length={config.block_length} cannot be used: {error}.") from error
        n_cut = max(0, len(ids) - room)
        return Writing(
            tuple(ids[n_cut:]),
            n_cut,
            gen_length,
            config,
            tuple(settings["until"]),
            repeat,
        )

    def _write(self, writings: Sequence[Writing]) -> list[str]:
        """Write the texts of one batch of requests; it ends early when all have found their end."""
        first = writings[0]
        canvas = [[*writing.prompt, *[self.mask_id] * first.gen_length] for writing in writings]
        template = torch.tensor(canvas, device=self._device)
        generators = [generator_of(self.options.seed, writing.repeat, writing.prompt) for writing in writings]
        model = predict_by_model(self.checkpoint.model, self.precision)
        predict = suppress(model, speechless_rows(self.checkpoint.tokenizer, self.end_ids))
        texts: list[str] = []
        for state in unmask(predict, template, self.mask_id, first.config, generators, end_ids=self.end_ids):
            rows = state.x_t[:, len(first.prompt) :].tolist()
            read = [self._read_text(row, writing.until) for row, writing in zip(rows, writings, strict=True)]
            texts = [text for text, _ in read]
            if all(has_ended for _, has_ended in read):
                break
        return texts

    def _read_text(self, ids: Sequence[int], until: Sequence[str]) -> tuple[str, bool]:
        """Return the text that is decided without a gap, and whether it has come to its end."""
        decided = cut_at_end(ids, frozenset({self.mask_id}))
        kept = cut_at_end(decided, self.end_ids)
        text = self.checkpoint.tokenizer.decode(kept)
        ends = [text.index(stop) for stop in until if stop and stop in text]
        return text[: min(ends, default=len(text))], bool(ends) or len(kept) < len(decided)

    # -- what else the harness asks -----------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        return self.spelling.prompt(messages, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The chat template for the harness's records."""
        return getattr(self.checkpoint.tokenizer, "template", None) or self.form.name

    @property
    def tokenizer_name(self) -> str:
        """The key under which the harness caches this model's requests."""
        return str(self.checkpoint.folder).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Facts about the model for the harness's records."""
        parameters = sum(parameter.numel() for parameter in self.checkpoint.model.parameters())
        return {
            "model_num_parameters": parameters,
            "model_dtype": str(self.precision.dtype),
            "options": self.options.to_json(),
        }

    # -- several processes, which exchange numbers on the CPU ---------------------------------------------------------

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Gather the tensors of all processes, of one shape, one after the other; numbers become (P,)."""
        mine = tensor.cpu() if tensor.dim() else tensor.cpu()[None]
        gathered = [torch.empty_like(mine) for _ in range(self._world_size)]
        dist.all_gather(gathered, mine)
        return torch.cat(gathered)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Gather the objects of all processes at process `dst`; returns None at the others."""
        gathered: list[Any] | None = [None] * self._world_size if self._rank == dst else None
        dist.gather_object(obj, gathered, dst)
        return gathered

    def barrier(self) -> None:
        dist.barrier()

    # -----------------------------------------------------------------------------------------------------------------

    def _is_quiet(self, disable_tqdm: bool) -> bool:
        return disable_tqdm or self._rank != 0

    def _tell_of_cut(self, n_cut: int) -> None:
        if n_cut:
            logger.warning(
                "%d prompts do not fit the %d tokens of the model with what follows: their beginnings are left out.",
                n_cut,
                self.max_length,
            )

    def _remember(self, kind: str, requests: Sequence[Any], results: list[Any]) -> list[Any]:
        """Put results into the harness's cache, if it keeps one."""
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial(kind, request.args, result)
        return results


def _normalised(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the settings of a request to the harness's own names, whichever of the usual ones the task uses.

    Raises:
        UserError: a number cannot be used.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        normalised = dict(normalize_gen_kwargs(given, DEFAULT_LENGTH))
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"The task's generation settings cannot be used ({error}): correct its generation_kwargs."
        ) from error
    if normalised["max_gen_toks"] < 1:
        raise UserError(
            f"The task asks for an answer of {normalised['max_gen_toks']} tokens: correct its generation_kwargs, or "
            "put a gen_length into `model_args`."
        )
    return normalised


def _find_device(name: str, shard: Shard) -> torch.device:
    """Choose the device of a process; the harness asks for cuda:0 by default, also where there is no GPU."""
    try:
        device = choose_device("auto") if name == "auto" else torch.device(name)
    except RuntimeError as error:
        raise UserError(f"`device={name}` is not a device: use auto, cpu or cuda:0, for example.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        return choose_device("auto")
    if device.type == "mps":
        return choose_device("mps")
    return shard.device(device)
