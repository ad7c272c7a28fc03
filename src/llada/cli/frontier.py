"""`llada frontier`."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from llada.checkpoints.folder import Checkpoint
from llada.checkpoints.load import open_to_measure
from llada.checkpoints.sampling_default import write_default
from llada.cli import Program
from llada.cli.options import check_positive, parse, sampler_for
from llada.cli.quality import HELD_OUT, open_judge
from llada.cli.scoring import Scored, ScoringOptions, showing, what_to_score
from llada.evaluation.answer_likelihood import predict_by_model
from llada.evaluation.distributed import ALONE
from llada.evaluation.exact_likelihood import ScoredWindows, score_windows
from llada.evaluation.frontier import PER, Frontier, Point, Setting, settings_of, sweep
from llada.evaluation.frontier_pictures import draw_frontier, draw_samples
from llada.evaluation.sample_frontier import Richness, SamplePoint, Written, sweep_temperatures
from llada.evaluation.samples import Judge, Mean
from llada.evaluation.standard_errors import in_words
from llada.evaluation.windows import cut_windows
from llada.sampling.batches import seeds_from
from llada.sampling.config import SamplerConfig
from llada.sampling.policies import PolicyName, make_policy
from llada.sampling.unmask import infill
from llada.system.device import Precision, choose_device, choose_precision
from llada.system.errors import UserError
from llada.system.files import check_writable, write_json
from llada.system.terminal import say, tell

DESCRIPTION = """Find out how a checkpoint is sampled best: the exact likelihood of held-out text under sampling
policies, against the evaluations of the network and the seconds that they need, and what is recommended.

Writes frontier.json and frontier.png; of samples over temperatures, samples.png."""

ALL_POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
RESULT_FILE, PICTURE_FILE, SAMPLES_FILE = "frontier.json", "frontier.png", "samples.png"
FEW_WINDOWS = ScoringOptions(windows=16, batch_size=16)  # each is evaluated thousands of times


@dataclass(frozen=True)
class FrontierOptions:
    checkpoint: str
    """A run folder (its best checkpoint is meant), a checkpoint or adapter folder, or a name on the hub."""
    scoring: ScoringOptions = FEW_WINDOWS
    output_dir: Path = Path("runs/frontier")
    """Folder for the results."""
    policies: tuple[PolicyName, ...] = ALL_POLICIES
    """Which policies."""
    budgets: tuple[int, ...] = (1, 2, 4, 8)
    """Positions that a step reveals, of the policies that do not decide that; 1 is always measured."""
    entropy_bounds: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Bounds of the policy entropy_bound that are measured, in nats."""
    thresholds: tuple[float, ...] = (0.9, 0.7, 0.5)
    """Probabilities of the policy threshold that are measured."""
    tolerance: float = 0.01
    """Nats per token that the recommended policy may cost over the best one at a time, standard error included."""
    minutes: float | None = None
    """Stop when so much time is over, after the setting that is being measured; no limit if left out."""
    samples: int | None = 8
    """Samples for each temperature and way to sample; None is none."""
    temperatures: tuple[float, ...] = (0.7, 0.8, 0.9, 1.0, 1.1)
    """Temperatures that samples are drawn at."""
    judge: str | None = None
    """An autoregressive model under which samples should be likely: a run of --preset autoregressive, or "hf:NAME"."""
    write_default: bool = False
    """Let `llada sample` follow the recommendation from now on, by sampling.json in the folder of the run."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: an option is out of range, or two do not go together.
        """
        self.scoring.check()
        check_positive(self, "minutes")
        if self.scoring.target_stderr is not None:
            raise UserError("--target_stderr is for a bound: leave it out.")
        if self.tolerance < 0 or any(budget < 1 for budget in self.budgets):
            raise UserError("--tolerance must be at least 0 and --budgets at least 1: correct them.")
        try:
            self.settings()
            [SamplerConfig(temperature=temperature) for temperature in self.temperatures]
        except ValueError as error:
            raise UserError(f"These options do not work: {error}.") from error
        if self.judge is not None and self.samples is None:
            raise UserError("--judge is for samples: leave it out, or --samples None.")

    def settings(self) -> list[Setting]:
        return settings_of(self.policies, self.budgets, self.thresholds, self.entropy_bounds)


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(FrontierOptions, program.name, arguments, DESCRIPTION)
    options.check()
    if options.write_default and not Path(options.checkpoint).exists():
        raise UserError("A default is written into a folder: leave out --write_default for a name on the hub.")
    check_writable(options.output_dir)
    scoring, device = options.scoring, choose_device(options.scoring.device)
    precision = choose_precision(scoring.precision, device)
    checkpoint = open_to_measure(options.checkpoint, device, scoring.dtype, scoring.precision, scoring.base)
    if checkpoint.model.is_causal:
        raise UserError("A causal model writes from left to right, one by one: there is nothing to choose.")
    scored = what_to_score(scoring, checkpoint)
    judge = open_judge(options.judge, checkpoint, device, precision) if options.judge else None
    sweeping = Sweeping(options, checkpoint, scored, device, precision)
    frontier = sweeping.likelihoods()
    samples, of_people = sweeping.samples(frontier, judge)
    return _report(options, sweeping, frontier, samples, of_people)


class Sweeping:
    """The two sweeps of one checkpoint, within one limit of time."""

    def __init__(
        self, options: FrontierOptions, checkpoint: Checkpoint, scored: Scored, device: torch.device,
        precision: Precision,
    ) -> None:  # fmt: skip
        self.options, self.checkpoint, self.scored = options, checkpoint, scored
        self.device, self.precision = device, precision
        self.start = time.perf_counter()
        self.length = scored.batch.x_0.shape[1]

    @property
    def minutes(self) -> float:
        return (time.perf_counter() - self.start) / 60

    def is_late(self) -> bool:
        return self.options.minutes is not None and self.minutes >= self.options.minutes

    def likelihoods(self) -> Frontier:
        settings, scoring, batch = self.options.settings(), self.options.scoring, self.scored.batch
        predict_at = predict_by_model(self.checkpoint.model, self.precision)
        with showing("likelihoods", "NLL", ALONE) as show:

            def score(setting: Setting) -> ScoredWindows:
                before = settings.index(setting)
                return score_windows(
                    predict_at, batch, self.checkpoint.tokenizer.mask_id,
                    policy=make_policy(setting.policy, setting.options),
                    positions_per_step=setting.positions_per_step, batch_size=scoring.batch_size, seed=scoring.seed,
                    device=self.device, on_progress=lambda part, mean: show((before + part) / len(settings), mean),
                )  # fmt: skip

            return sweep(score, settings, float(batch.is_maskable.sum()) / len(batch), self.is_late)

    def samples(self, frontier: Frontier, judge: Judge | None) -> tuple[list[SamplePoint], Richness | None]:
        """Samples over temperatures, and what held-out text is like."""
        options, data, tokenizer = self.options, self.scored.data, self.checkpoint.tokenizer
        if options.samples is None or data is None:
            return [], None
        ways = self.ways(frontier.recommend(options.tolerance))
        held_out = cut_windows(data.tokens(options.scoring.split), self.length, HELD_OUT)
        n_all, done = len(ways) * len(options.temperatures), [0]
        with showing("samples", "", ALONE) as show:

            def write(config: SamplerConfig) -> Written:
                written = self._write(config)
                done[0] += 1
                show(done[0] / n_all, float("nan"))
                return written

            points = sweep_temperatures(write, ways, options.temperatures, judge, self.is_late)
        return points, Richness.of([tokenizer.decode(row) for row in held_out.tolist()], judge)

    def ways(self, recommended: Point) -> dict[str, SamplerConfig]:
        """The recommended way, the default one, and LLaDA's own with as many evaluations as each of them."""
        chosen = SamplerConfig(**{"steps": None, **recommended.setting.sampler(self.length)})
        steps = max(1, round(recommended.evaluations / PER * self.length))
        ways = {recommended.setting.name: chosen, "random, 1 a step": SamplerConfig(steps=None, policy="random")}
        ways |= {f"low_confidence, {n} steps": SamplerConfig(steps=n) for n in (steps, self.length)}
        return {name: sampler_for(self.checkpoint.model, config) for name, config in ways.items()}

    def _write(self, config: SamplerConfig) -> Written:
        """Texts out of nothing, as many and as long as the options say."""
        tokenizer, n_samples = self.checkpoint.tokenizer, self.options.samples or 0
        start, nfe = time.perf_counter(), 0
        seeds, texts = seeds_from(self.options.scoring.seed, n_samples), list[str]()
        while len(texts) < n_samples:
            n_rows = min(self.options.scoring.batch_size, n_samples - len(texts))
            template = torch.full((n_rows, self.length), tokenizer.mask_id, device=self.device)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[len(texts) : len(texts) + n_rows]]
            canvas = infill(self.checkpoint.predict, template, tokenizer.mask_id, config, generators)
            texts += [tokenizer.decode(row) for row in canvas.x_t.tolist()]
            nfe += canvas.nfe * n_rows
        share = PER / self.length / len(texts)
        return Written(texts, nfe * share, (time.perf_counter() - start) * share)


# -- results ----------------------------------------------------------------------------------------------------------


def _report(
    options: FrontierOptions,
    sweeping: Sweeping,
    frontier: Frontier,
    samples: list[SamplePoint],
    of_people: Richness | None,
) -> int:
    checkpoint, scored, length = sweeping.checkpoint, sweeping.scored, sweeping.length
    best, sentence = frontier.recommend(options.tolerance), frontier.in_one_sentence(options.tolerance)
    content = {
        "checkpoint": str(checkpoint.folder),
        "text": scored.in_words,
        "windows": len(scored.batch),
        "tolerance": options.tolerance,
        "reference": frontier.reference.setting.name,
        "points": [point.to_json(length) for point in frontier.points],
        "left_out": [setting.name for setting in frontier.left_out],
        "samples": [point.to_json() for point in samples],
        "recommended": best.to_json(length) | {"sentence": sentence},
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / RESULT_FILE, content)
    draw_frontier(frontier, best, checkpoint.tokenizer.unit, options.output_dir / PICTURE_FILE)
    if samples and of_people is not None:
        draw_samples(samples, of_people, options.output_dir / SAMPLES_FILE)
    if options.scoring.json:
        tell(json.dumps(content))
    else:
        tell(_in_words(frontier, best, scored, checkpoint))
        if samples and of_people is not None:
            tell(_samples_in_words(samples, of_people, options.samples or 0))
        tell(f"\n{sentence}")
    _tell_the_rest(options, sweeping, frontier, len(samples))
    if options.write_default:
        path = write_default(checkpoint.folder, best.setting.sampler(length), sentence)
        say(f"`llada sample` follows that from now on: {path}")
    return 0


def _tell_the_rest(options: FrontierOptions, sweeping: Sweeping, frontier: Frontier, n_samples: int) -> None:
    """What the numbers leave open, and where they are."""
    if doubtful := frontier.undecided(options.tolerance):
        say(
            f"{doubtful.setting.name} may be within {options.tolerance:g} nats with fewer evaluations, "
            f"{_difference(doubtful)}: more --windows would decide it"
        )
    if sweeping.is_late():
        n, n_all = len(frontier.points), len(frontier.points) + len(frontier.left_out)
        of_samples = f" and {n_samples} points of samples" if options.samples else ""
        say(f"stopped after --minutes {options.minutes:g}: {n} of {n_all} settings{of_samples} were measured")
    say(f"written to {options.output_dir} in {sweeping.minutes:.1f} minutes")


def _difference(point: Point) -> str:
    error = "" if point.difference_stderr is None else f" ± {point.difference_stderr:.4f}"
    return f"{point.difference:+.4f}{error}"


def _in_words(frontier: Frontier, best: Point, scored: Scored, checkpoint: Checkpoint) -> str:
    unit = checkpoint.tokenizer.unit
    lines = [
        f"Exact negative log-likelihood of {scored.in_words}, nats per {unit} (± standard error over windows);",
        f"evaluations and seconds per {PER} {unit}s, difference to the best one at a time, window by window;",
        f"* nothing is better with as few evaluations, > recommended; {checkpoint.folder}",
        f"  {'policy':36} {'evaluations':>11} {'seconds':>8}  {'nats':>15}  {'difference':>16}",
    ]
    rows = sorted(zip(frontier.points, frontier.is_best, strict=True), key=lambda row: -row[0].evaluations)
    for point, is_best in rows:
        mark = ">" if point is best else "*" if is_best else " "
        lines.append(
            f"{mark} {point.setting.name:36} {point.evaluations:11.1f} {point.seconds:8.3f}  "
            f"{in_words(point.nats, point.stderr):>15}  {_difference(point):>16}"
        )
    return "\n".join(lines)


def _samples_in_words(samples: Sequence[SamplePoint], of_people: Richness, n: int) -> str:
    judged = of_people.judge_nats_per_character is not None

    def cells(richness: Richness) -> str:
        means: list[Mean | None] = [richness.entropy_nats, richness.distinct]
        if judged:
            means.append(richness.judge_nats_per_character)
        return "".join(f"  {'-' if mean is None else in_words(mean.mean, mean.stderr, 3):>15}" for mean in means)

    head = f"  {'entropy, nats':>15}  {'different 6-gr.':>15}" + (f"  {'judge, nats':>15}" if judged else "")
    lines = [f"\n  {f'{n} samples each':36} {'temperature':>11} {'evaluations':>11}{head}"]
    lines += [
        f"  {point.name:36} {point.temperature:11g} {point.evaluations:11.1f}{cells(point.richness)}"
        for point in samples
    ]
    return "\n".join([*lines, f"  {'held-out text':36} {'':11} {'':11}{cells(of_people)}"])
