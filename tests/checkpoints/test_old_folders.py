"""Runs, checkpoints and adapters that earlier versions wrote: they open, measure the same and go on as they would have.

Numbers are compared to 1e-5 anywhere; the weights of a resumed run to the bit where they were recorded: on the same
processor with the same torch, since others add in another order.
"""

import hashlib
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.runs import losses_of

OLD = Path(__file__).parents[1] / "data" / "old"
VERSIONS = sorted(path.stem for path in OLD.glob("*.json"))
RUNS = {"run": "train", "local": "train", "adapter": "finetune"}
MEASURED = "--data_dir data --windows 4 --masks_per_window 4 --precision fp32 --device cpu --json"
SAMPLED = "--gen_length 12 --steps 6 --seed 1 --device cpu --json"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a version recorded, in a folder with what it wrote."""
    with tarfile.open(OLD / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    config = Path("adapter", "config.json")  # which names the base by the folder of that time
    config.write_text(config.read_text(encoding="utf-8").replace("/tmp/models", str(tmp_path)), encoding="utf-8")
    return json.loads((OLD / f"{request.param}.json").read_text(encoding="utf-8"))


def has_its_bits(expected: dict[str, Any]) -> bool:
    """Whether this machine computes as the recording one did."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else platform.processor()
    return f": {expected['processor']}\n" in processor and torch.__version__ == expected["torch"]


def hash_of_weights(folder: Path) -> str:
    (path,) = folder.glob("*model.safetensors")
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def nelbo(llada: Any, folder: str, *further: str) -> float:
    result = llada("evaluate", "--checkpoint", folder, *MEASURED.split(), *further)
    assert result.code == 0, result.err
    return float(json.loads(result.out)["nelbo_nats_per_token"])


@pytest.mark.parametrize("name", ["checkpoint", *RUNS])
def test_they_open_and_measure_the_same_and_write(name: str, old: dict[str, Any], llada: Any) -> None:
    """The text of a seed belongs to a version of the sampler; only its prompt and its length are the same."""
    further = []
    if name == "adapter":
        pytest.importorskip("peft")
        further = ["--base", "checkpoint"]
    assert nelbo(llada, name, *further) == pytest.approx(old[name]["nelbo"], rel=1e-5)
    written = llada("sample", "--checkpoint", name, "--prompt", "to be", *SAMPLED.split(), *further)
    (text,) = json.loads(written.out)["samples"]
    assert text.startswith("to be")
    assert old[name]["sample"].startswith("to be")
    assert name == "checkpoint" or len(text) == len(old[name]["sample"])


@pytest.mark.parametrize(("name", "command"), RUNS.items(), ids=RUNS)
def test_they_go_on_as_they_would_have(name: str, command: str, old: dict[str, Any], llada: Any) -> None:
    if name == "adapter":
        pytest.importorskip("peft")
    result = llada(command, "--resume", name)
    assert result.code == 0, result.err
    assert "Going on after step 7" in result.err + result.out
    expected, last = old[name], Path(name, "checkpoints", "last")
    assert losses_of(Path(name)) == pytest.approx(expected["losses"], rel=1e-5)
    further = ["--base", "checkpoint"] if name == "adapter" else []
    assert nelbo(llada, str(last), *further) == pytest.approx(expected["nelbo_of_last"], rel=1e-5)
    if has_its_bits(old) and expected["weights_sha256"]:
        assert hash_of_weights(last) == expected["weights_sha256"]
