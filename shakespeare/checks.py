"""Runner for the checks of a test script: each with its name, what it prints, and what failed."""

import sys
import time
import traceback
from collections.abc import Callable, Iterable

import clone  # noqa: F401  for its side effect
from llada.system.errors import UserError

Check = Callable[[], None]


def run_checks(checks: Iterable[Check]) -> None:
    """Run the checks in order; exits with 1 if one of them failed."""
    failed = 0
    for check in checks:
        name = check.__name__.removeprefix("test_").replace("_", " ")
        print(f"\n{name}", flush=True)
        start = time.perf_counter()
        try:
            check()
        except UserError as error:
            print(f"  {error}", file=sys.stderr)
            sys.exit(2)
        except AssertionError:
            failed += 1
            print(f"  FAILED\n{traceback.format_exc()}")
        else:
            print(f"  ok ({time.perf_counter() - start:.1f} s)")
    print("\nAll checks passed." if not failed else f"\n{failed} checks failed.")
    sys.exit(1 if failed else 0)
