"""The command `llada-harness`: lm-evaluation-harness with this package's models registered.

Up to version 0.4.13 the harness has no plug-ins: `--model` names an entry of its own registry, or a model that was
registered in the same process. So this command registers ours and passes its arguments on.
"""

import sys
from collections.abc import Sequence

from llada.cli import Program, run_command
from llada.system.errors import UserError

NAME, ADAPTER = "llada", "llada.evaluation.lm_eval.model:HarnessModel"
BATCH_SIZE = "32"  # the harness's own default, 1, is slow: each answer needs many masked copies


def run(arguments: Sequence[str], program: Program) -> int:
    try:
        import lm_eval.models  # noqa: F401  # fills the harness's registry, which it leaves empty once a model of ours is in it
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ModuleNotFoundError as error:
        raise UserError(
            f"lm-evaluation-harness is not installed here ({error.name} is missing): pip install lm_eval, or "
            "this package with its extra eval."
        ) from error
    if NAME not in model_registry:
        model_registry.register(NAME, target=ADAPTER)
    sys.argv = [program.name, *_with_defaults(arguments)]
    try:
        cli_evaluate()
    except ValueError as error:
        if not str(error).startswith("Tasks not found"):
            raise
        raise UserError(
            f"{error}. `{program.name} ls tasks` lists those that there are, and --include_path adds a folder of yours."
        ) from error
    finally:
        if "torch" in sys.modules and (distributed := sys.modules["torch"].distributed).is_initialized():
            distributed.destroy_process_group()
    return 0


def _with_defaults(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, with our model added to an evaluation that names none."""
    given = {argument.split("=")[0] for argument in arguments}
    is_evaluation = bool(given & {"--tasks", "-t"})
    added = []
    if is_evaluation and not given & {"--model", "-M", "--config", "-C"}:
        added += ["--model", NAME]
    if is_evaluation and not given & {"--batch_size", "-b", "--config", "-C"}:
        added += ["--batch_size", BATCH_SIZE]
    return [*arguments, *added]


def main() -> None:
    run_command("harness", sys.argv[1:], Program("llada-harness"))


if __name__ == "__main__":
    main()
