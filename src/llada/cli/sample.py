"""The command `llada sample`: text from a prompt, a template, or nothing."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.live import Live
from torch import Tensor

from llada.checkpoints.folder import Checkpoint, DtypeName, weights_dtype
from llada.checkpoints.load import open_model
from llada.checkpoints.sampling_default import SAMPLING_FILE, default_unless
from llada.cli import Program
from llada.cli.drawing import OPEN
from llada.cli.options import given_values, parse, sampler_for
from llada.cli.watching import Watched, live_view, write_films
from llada.films.frames import ColourBy
from llada.films.write import check_film
from llada.models.block_cache import NO_CACHE, CacheOptions
from llada.models.predictor import PredictAt
from llada.sampling.batches import seeds_from
from llada.sampling.config import FREE_TEXT, SamplerConfig
from llada.sampling.constraints import constrain_all, read_texts_at
from llada.sampling.fills import Fill, advance, start
from llada.sampling.guidance import Predict, at_positions, takes_positions
from llada.sampling.long_text import generate_by_sliding
from llada.sampling.speculation import check_lossless, speculate
from llada.sampling.template import read_template
from llada.system.device import DeviceName, choose_device
from llada.system.errors import UserError
from llada.system.terminal import say, tell
from llada.tokenizers.base import Tokenizer
from llada.tokenizers.char import MASK

DESCRIPTION = """Write text with a checkpoint, from a prompt, a template, or nothing.

A template is filled where it says <MASK>, or <MASK*20> for 20 characters, and kept elsewhere."""

RENAMED = {"show": "watch"}


@dataclass(frozen=True)
class SampleOptions:
    checkpoint: str
    """A run folder (its best checkpoint is used), a checkpoint or adapter folder, or a name on the Hugging Face hub."""
    prompt: str = ""
    """Text that the sample continues."""
    template: str | None = None
    """Text with <MASK> or <MASK*N> where tokens are filled in, instead of a prompt."""
    n_samples: int = 1
    """Number of texts to write."""
    gen_length: int | None = None
    """Number of tokens to add to the prompt; if left out, the rest of the training length."""
    slide: bool = False
    """Let --gen_length go beyond the model's length: the text is written piece by piece, each after the end of the one
    before."""
    banned: str | None = None
    """Tokens that must not stand at a position of the text, as JSON: '{"0": "T", "5": ["a", "e"]}'; positions count
    tokens from 0, the prompt's among them."""
    required: str | None = None
    """Tokens of which one must stand at a position of the text, as JSON like that of --banned."""
    sampler: SamplerConfig = FREE_TEXT
    caching: CacheOptions = NO_CACHE
    speculate: int = 0
    """Guess this many steps ahead, and evaluate the guesses together: the same text at temperature 0, faster on a GPU
    with a large network, and slower where each text takes its own time."""
    seed: int = 0
    """Seed of the first text; the second has the next seed, and so on."""
    device: DeviceName = "auto"
    """Device that computes; "auto" is the GPU if there is one, and the CPU if not."""
    dtype: DtypeName = "auto"
    """Type of the weights in memory; "auto" is the one that they are stored in, with bf16 for fp16."""
    base: str | None = None
    """Base of an adapter, if it is not where the adapter says: a checkpoint folder, or a name on the Hugging Face
    hub."""
    watch: bool = False
    """Show the first text as it un-masks, in a terminal, at 30 steps a second at most."""
    film: tuple[Path, ...] = ()
    """Also keep how the first text un-masks: files whose names end in .gif, .html, .svg or .cast."""
    colour_by: ColourBy = "confidence"
    """What --watch and --film show by colours: how sure the model was of a token, or how new the token is."""
    frames: int = 0
    """Also print the first text at this many intermediate steps."""
    json: bool = False
    """Print one JSON object instead of text."""


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(SampleOptions, program.name, arguments, DESCRIPTION, renamed=RENAMED)
    for path in options.film:
        check_film(path)
    device = choose_device(options.device)
    checkpoint = open_model(options.checkpoint, device, weights_dtype(options.dtype), options.base)
    options = _with_default(options, checkpoint, arguments, program)
    write = _write_by_sliding if _slides(options, checkpoint) else _write
    _print(options, write(options, checkpoint, device), checkpoint.tokenizer)
    return 0


@dataclass(frozen=True)
class Written:
    """Texts, and what they cost."""

    texts: list[Tensor]
    """Token ids (L,) of each."""
    nfe: int
    """Evaluations of the network."""
    seconds: float
    stages: list[Tensor] = field(default_factory=list)
    """The first text, (L,) ids, before and after each step; none of a text that slides."""


def _write(options: SampleOptions, checkpoint: Checkpoint, device: torch.device) -> Written:
    """Write texts that the model sees as a whole."""
    template, config = _make_template(options, checkpoint), sampler_for(checkpoint.model, options.sampler)
    _check_speculation(options, config)
    predict = _predictor(options, checkpoint, config, template)
    began, mask_id = time.perf_counter(), checkpoint.tokenizer.mask_id
    if options.speculate:
        canvas = torch.tensor([template], device=device)
        states = list(speculate(predict, canvas, mask_id, config, options.speculate, _generators(options)[0]))
        stages = [canvas[0], *(state.x_t[0] for state in states)]
        return Written(stages[-1:], states[-1].nfe, time.perf_counter() - began, stages)
    fills = [start(template, mask_id, config, generator, device) for generator in _generators(options)]
    with live_view(options.watch) as live:
        stages, watched = _fill(predict, fills, checkpoint, options, live)
    seconds = (watched.seconds() if watched else time.perf_counter()) - began
    if watched:
        write_films(watched.events, options.film, options.colour_by, options.n_samples)
    return Written([fill.ids for fill in fills], max(fill.nfe for fill in fills), seconds, stages)


def _generators(options: SampleOptions) -> list[torch.Generator]:
    """Make a generator for each text, with a seed of its own."""
    return [torch.Generator().manual_seed(seed) for seed in seeds_from(options.seed, options.n_samples)]


def _predictor(
    options: SampleOptions, checkpoint: Checkpoint, config: SamplerConfig, template: list[int]
) -> Predict | PredictAt:
    """What predicts the tokens of the template, with the cache and the constraints that are asked for."""
    banned, required = (
        None if content is None else read_texts_at(content, name)
        for name, content in (("banned", options.banned), ("required", options.required))
    )
    predict = checkpoint.predict_with(options.caching, config.block_length)
    return constrain_all(predict, [template], checkpoint.tokenizer, banned, required)


def _fill(
    predict: Predict | PredictAt,
    fills: Sequence[Fill],
    checkpoint: Checkpoint,
    options: SampleOptions,
    live: Live | None,
) -> tuple[list[Tensor], Watched | None]:
    """Fill in the texts together; return the stages of the first one, and its events if they are wanted."""
    first, pad_id, watched = fills[0], checkpoint.tokenizer.pad_id, None
    if live is not None or options.film:
        name = Path(options.checkpoint).name or options.checkpoint
        has_alternatives = any(path.suffix.lower() == ".html" for path in options.film)
        watched = Watched(first, checkpoint, name, options.seed, options.colour_by, live, has_alternatives)
    stages = [first.ids]
    while not all(fill.is_done for fill in fills):
        was_done, (result, *_) = first.is_done, advance(predict, fills, pad_id)
        if was_done:
            continue
        stages.append(first.ids)
        if watched:
            watched.step(result)
    if watched:
        watched.end()
    return stages, watched


def _print(options: SampleOptions, written: Written, tokenizer: Tokenizer) -> None:
    samples = [tokenizer.decode(ids.tolist()) for ids in written.texts]
    if options.json:
        tell(json.dumps({"samples": samples, "nfe": written.nfe, "seconds": written.seconds}))
        return
    for stage in _evenly(written.stages, options.frames):
        n_open, n_masks = (int((ids == tokenizer.mask_id).sum()) for ids in (stage, written.stages[0]))
        tell(f"--- {n_open} of {n_masks} masked\n{tokenizer.decode(stage.tolist(), mask_symbol=OPEN)}")
    tell(f"\n{'-' * 40}\n".join(samples))
    say(f"{written.nfe} evaluations of the network in {written.seconds:.1f} s")


def _check_speculation(options: SampleOptions, config: SamplerConfig) -> None:
    """Refuse guesses where the text could become another one.

    Raises:
        UserError: the options do not go together.
    """
    if options.speculate == 0:
        return
    if options.n_samples != 1:
        raise UserError("--speculate writes one text: leave out --n_samples.")
    if options.watch or options.film:
        raise UserError("--speculate takes several steps at once: leave out --watch and --film.")
    if options.caching.cache is not None:
        raise UserError("--speculate and --cache exclude each other, since texts under a cache differ: leave out one.")
    try:
        check_lossless(config, options.speculate)
    except ValueError as error:
        raise UserError(f"These options do not go together ({error}): leave out --speculate.") from error


def _slides(options: SampleOptions, checkpoint: Checkpoint) -> bool:
    """Whether the text is longer than the model's length and may be.

    Raises:
        UserError: other options do not go with that.
    """
    if not options.slide:
        return False
    if options.template is not None or options.gen_length is None:
        raise UserError("--slide is for a prompt: add --gen_length, and leave out --template.")
    if options.gen_length < 1:
        raise UserError(f"--gen_length must be at least 1 with --slide, not {options.gen_length}: correct it.")
    if options.speculate:
        raise UserError("--slide and --speculate exclude each other: leave out one.")
    if options.banned or options.required or options.frames or options.watch or options.film:
        raise UserError("--slide writes piece by piece: leave out --banned, --required, --frames, --watch and --film.")
    return len(checkpoint.tokenizer.encode(options.prompt)) + options.gen_length > checkpoint.config.max_sequence_length


def _write_by_sliding(options: SampleOptions, checkpoint: Checkpoint, device: torch.device) -> Written:
    """Write texts that are longer than the model's length."""
    assert options.gen_length is not None
    config, nfe = sampler_for(checkpoint.model, options.sampler), 0
    predict = at_positions(checkpoint.predict_with(options.caching, config.block_length))

    @takes_positions
    def counted(x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        nonlocal nfe
        nfe += 1
        return predict(x_t, attention_mask=attention_mask, positions=positions)

    began, tokenizer = time.perf_counter(), checkpoint.tokenizer
    prompt = torch.tensor([tokenizer.encode(options.prompt)] * options.n_samples, dtype=torch.long, device=device)
    *_, text = generate_by_sliding(
        counted, prompt, options.gen_length, tokenizer.mask_id, config, _generators(options),
        context=checkpoint.config.max_sequence_length,
    )  # fmt: skip
    return Written(list(text), nfe, time.perf_counter() - began)


def _with_default(
    options: SampleOptions, checkpoint: Checkpoint, arguments: Sequence[str], program: Program
) -> SampleOptions:
    """The options with the checkpoint's own default for sampling below what the command line says."""
    given = {flag.removeprefix("--") for flag in given_values(arguments)}
    default = default_unless(given, checkpoint.folder)
    if default is None:
        return options
    say(f"sampling as {SAMPLING_FILE} of the checkpoint says, by the policy {default.policy or default.remasking}")
    options = replace(options, sampler=default)
    return parse(SampleOptions, program.name, arguments, DESCRIPTION, options, renamed=RENAMED)


def _make_template(options: SampleOptions, checkpoint: Checkpoint) -> list[int]:
    """Return the ids to start from, with MASK where tokens are to be filled in.

    Raises:
        UserError: the options exclude each other, nothing is masked, or a causal model would have to look ahead.
    """
    tokenizer, longest = checkpoint.tokenizer, checkpoint.config.max_sequence_length
    if options.n_samples < 1 or (options.gen_length is not None and options.gen_length < 0):
        raise UserError("--n_samples must be at least 1 and --gen_length at least 0: correct them.")
    if options.template is not None:
        if options.prompt:
            raise UserError("--prompt and --template exclude each other: write the prompt into the template.")
        template = read_template(options.template, tokenizer, checkpoint.check_length)
    else:
        prompt = tokenizer.encode(options.prompt)
        gen_length = max(0, longest - len(prompt)) if options.gen_length is None else options.gen_length
        checkpoint.check_length(len(prompt) + gen_length)
        template = prompt + [tokenizer.mask_id] * gen_length
    if tokenizer.mask_id not in template:
        raise UserError(f"There is nothing to fill in: shorten the prompt below {longest} characters, or add {MASK}.")
    if checkpoint.model.is_causal and tokenizer.mask_id in template[: -template.count(tokenizer.mask_id)]:
        raise UserError("This model sees only what is before a gap: let the template end with its one gap.")
    return template


def _evenly(stages: list[Tensor], n: int) -> list[Tensor]:
    """Return `n` of the stages, evenly spread from the first to the last but one."""
    return [stages[i * (len(stages) - 1) // n] for i in range(n)]
