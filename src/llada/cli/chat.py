"""The command `llada chat`: a dialogue with a checkpoint."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.live import Live
from rich.text import Text

from llada.checkpoints.folder import Checkpoint, DtypeName, weights_dtype
from llada.checkpoints.load import open_model
from llada.cli import Program
from llada.cli.drawing import draw_tokens
from llada.cli.ending import INTERRUPTED, USAGE_ERROR
from llada.cli.flags import in_flags
from llada.cli.options import check_positive, parse, sampler_for
from llada.models.block_cache import NO_CACHE, CacheOptions
from llada.sampling.config import ANSWER, SamplerConfig
from llada.sampling.dialogue import Answer
from llada.system.console import StderrConsole
from llada.system.device import DeviceName, choose_device
from llada.system.errors import UserError
from llada.system.terminal import tell
from llada.tokenizers.chat_template import cut_at_end
from llada.tokenizers.message import Message, is_unicode

NEW, LEAVE, HELP = "/new", ("/exit", "/quit"), "/help"
COMMANDS = f"{NEW} begins anew, {LEAVE[0]} or Ctrl-D leaves, Ctrl-C stops an answer; all else is said to the model."
DEFAULT_LENGTH = 128

DESCRIPTION = """Chat with a checkpoint, and watch its answers appear.

The checkpoint's own chat template is used, or the plain form of `llada finetune --chat` if it has none. When a dialogue
outgrows the model's length, its oldest turns are left out. Without a terminal, each line read is a message."""


@dataclass(frozen=True)
class ChatOptions:
    checkpoint: str
    """A run folder, a checkpoint folder, an adapter, or a name on the Hugging Face hub."""
    prompt: str | None = None
    """Answer this message and exit."""
    system: str | None = None
    """System message at the start of the dialogue."""
    gen_length: int | None = None
    """Greatest number of tokens in an answer; if left out, 128, or half of the model's length if that is less."""
    sampler: SamplerConfig = ANSWER
    caching: CacheOptions = NO_CACHE
    seed: int = 0
    """Seed of the answers, which matters if the temperature is above 0."""
    device: DeviceName = "auto"
    """Device that computes; "auto" is the GPU if there is one, and the CPU if not."""
    dtype: DtypeName = "auto"
    """Type of the weights in memory; "auto" is the one that they are stored in, with bf16 for fp16."""
    base: str | None = None
    """Base of an adapter, if it is not where the adapter says: a checkpoint folder, or a name on the Hugging Face
    hub."""
    show: bool = True
    """Show answers as they appear step by step, in a terminal."""


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(ChatOptions, program.name, arguments, DESCRIPTION)
    check_positive(options, "gen_length")
    device, dtype = choose_device(options.device), weights_dtype(options.dtype)
    checkpoint = open_model(options.checkpoint, device, dtype, options.base)
    gen_length = options.gen_length or max(1, min(DEFAULT_LENGTH, checkpoint.config.max_sequence_length // 2))
    config = sampler_for(checkpoint.model, options.sampler)
    chat = Chat(checkpoint, config, options, gen_length)
    if options.prompt is not None:
        chat.say(options.prompt)
        return 0
    return chat.talk()


class Chat:
    """A dialogue with a model in a terminal."""

    def __init__(self, checkpoint: Checkpoint, config: SamplerConfig, options: ChatOptions, gen_length: int) -> None:
        self.checkpoint, self.config, self.options, self.gen_length = checkpoint, config, options, gen_length
        self.assistant = checkpoint.assistant(caching=options.caching, block_length=config.block_length)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.console = StderrConsole()
        self.messages: list[Message] = []
        self.begin()

    def begin(self) -> None:
        """Begin a new dialogue: forget all messages but the system's."""
        self.messages = [Message("system", self.options.system)] if self.options.system else []

    def say(self, text: str) -> None:
        """Print the answer to a message; both become part of the dialogue.

        Raises:
            UserError: the message cannot be answered; the dialogue is as before.
        """
        if not is_unicode(text):
            raise UserError("This message is not UTF-8 text: send it in that encoding.")
        messages = [*self.messages, Message("user", text)]
        start, last = time.perf_counter(), None
        shows = self.options.show and self.console.is_terminal
        with Live(console=self.console, transient=True, auto_refresh=False) as live:
            for last in self.assistant.answer(messages, self.gen_length, self.config, self.generator):
                if shows:
                    live.update(self._draw(last), refresh=True)
        assert last is not None  # at least one step
        reply = self.checkpoint.tokenizer.decode(cut_at_end(last.ids, self.assistant.end_ids)).strip()
        self.messages = [*messages, Message("assistant", reply)]
        tell(reply)
        if last.n_forgotten:
            self._note(f"the first {last.n_forgotten} messages no longer fit, and were left out")
        saved = f", {last.nfe_saved} saved by its end" if last.nfe_saved else ""
        self._note(f"{last.nfe} evaluations of the network in {time.perf_counter() - start:.1f} s{saved}")

    def talk(self) -> int:
        """Answer the messages of standard input until it ends; return the exit code."""
        has_failed = False
        if sys.stdin.isatty():
            self._note(f"{HELP} lists the commands, {LEAVE[0]} or Ctrl-D leaves.")
        while True:
            try:
                line = self.console.input("[bold]> [/bold]") if sys.stdin.isatty() else input()
            except EOFError:
                return USAGE_ERROR if has_failed and not sys.stdin.isatty() else 0
            except KeyboardInterrupt:
                return INTERRUPTED
            if line.strip() in LEAVE:
                return 0
            if line.strip() == NEW:
                self.begin()
            elif line.strip() == HELP:
                self._note(COMMANDS)
            elif line.strip():
                try:
                    self.say(line)
                except UserError as error:  # the next message may do better
                    has_failed = True
                    self.console.print(in_flags(str(error)), style="yellow", highlight=False, markup=False)
                except KeyboardInterrupt:
                    if not sys.stdin.isatty():
                        return INTERRUPTED
                    self._note("stopped; the message is not part of the dialogue")

    def _draw(self, state: Answer) -> Text:
        """Draw an answer for the terminal, up to its end if that is decided."""
        ids = cut_at_end(state.ids, self.assistant.end_ids)
        picture = draw_tokens(self.checkpoint.tokenizer, ids)
        return picture.append(f"\n\n{state.nfe} evaluations", style="dim")

    def _note(self, text: str) -> None:
        self.console.print(text, style="dim", highlight=False, markup=False)
