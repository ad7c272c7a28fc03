"""Commands set what libraries read from the environment; importing a module of the package sets nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llada.system.environment import DEFAULTS

AFTER_AN_IMPORT = """
import json, os, sys
before = dict(os.environ)
import llada.objective, llada.system.device, llada.training.trainer, llada.cli.train, llada.cli.sample
json.dump(sorted(before.items() ^ os.environ.items()), sys.stdout)
"""
# What the environment has when torch is imported for the first time, by a command.
AT_THE_IMPORT_OF_TORCH = """
import importlib.abc, json, os, sys, llada.cli
NAMES = json.loads(sys.argv[1])
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(json.dumps({name: os.environ.get(name) for name in NAMES}), flush=True)
            os._exit(0)  # before it takes its seconds
sys.meta_path.insert(0, Watch())
llada.cli.main(["sample", "--help"])
"""


def run(program: str, *arguments: str, **variables: str) -> Any:
    unset = {*DEFAULTS, "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | variables
    command = [sys.executable, "-c", program, *arguments]
    out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.splitlines()[0])


def test_importing_changes_no_environment() -> None:
    assert run(AFTER_AN_IMPORT) == []


def test_a_command_sets_it_before_torch_is_imported() -> None:
    assert run(AT_THE_IMPORT_OF_TORCH, json.dumps(sorted(DEFAULTS))) == {
        "GOMP_SPINCOUNT": "1000",
        "LRU_CACHE_CAPACITY": "128",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
        "PYTORCH_ENABLE_MPS_FALLBACK": "1",
    }


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_what_a_person_has_set_stays(name: str) -> None:
    assert run(AT_THE_IMPORT_OF_TORCH, json.dumps([name]), **{name: "7"}) == {name: "7"}


def test_a_wait_policy_that_a_person_has_set_stays() -> None:
    """A spin count would override it."""
    assert run(AT_THE_IMPORT_OF_TORCH, '["GOMP_SPINCOUNT"]', OMP_WAIT_POLICY="active") == {"GOMP_SPINCOUNT": None}


def test_what_a_code_page_lacks_is_escaped() -> None:
    """As in a pipe of Windows, whose encoding cannot show all that a model may write."""
    program = "from llada.system.environment import allow_any_text; allow_any_text(); print('a世b')"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout.strip() == rb"a\u4e16b"


@pytest.mark.skipif(os.name == "nt", reason="a shell there closes no streams")
def test_a_stream_that_is_closed_does_not_become_a_file(tmp_path: Path) -> None:
    """As by `2>&-`: the number 2 would else be that of the next file, and what libraries say be written into it."""
    program = (
        "import os, sys; from llada.system.environment import open_streams; open_streams(); file = open('file', 'w'); "
        "print('noise', file=sys.stderr); sys.stderr.flush(); os.write(2, b'noise'); sys.exit(file.fileno() <= 2)"
    )
    closed = "import os, sys; os.close(0); os.close(1); os.close(2); os.execv(sys.executable, sys.argv[1:])"
    arguments = [sys.executable, "-c", program]
    done = subprocess.run([sys.executable, "-c", closed, *arguments], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""
