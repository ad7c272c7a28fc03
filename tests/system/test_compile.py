"""Compiled code is used only where it is right: with bad compilers, runs end as if nothing had been compiled."""

import io
import os
import stat
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from torch import Tensor

from llada.data.prepared import PreparedText
from llada.system import compile as checked
from llada.system import toolchains as toolchains_module
from llada.system.compile import Compiled, VerdictMemory, compile_checked, probe, try_in_child
from llada.system.compile_check import Finding, Recipe, Subject, compare, judge, rotation
from llada.system.cxx import find_compilers
from llada.system.toolchains import (
    Toolchain,
    has_compiler,
    processor_march,
    program_of,
    toolchains,
    trouble_of_compiler,
)
from llada.training import compilation
from llada.training.config import NetworkOptions, TrainConfig
from llada.training.plan import RunPlan
from llada.training.progress_bar import Display
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not has_compiler(CPU), reason="there is no C++ compiler")
ROTATION = Recipe("llada.system.compile_check:rotation", {})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLADA_COMPILE_CACHE", str(tmp_path / "compiled"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def script(path: Path, content: str) -> Path:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(content).lstrip(), encoding="utf-8")
    path.chmod(stat.S_IRWXU)
    return path


# -- the comparison


def tensors(**values: list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def many(value: float, off: float = 0.0) -> list[float]:
    """100 numbers, enough to be judged by themselves, alternately off by that much."""
    return [value + off * (-1) ** place for place in range(100)]


def test_bf16_may_be_off_as_much_as_plain_bf16_is() -> None:
    """Plain is off by 0.02 of 1: allowed are 1.5 times that and 2^-8, 0.034."""
    exact, plain = tensors(w=many(1)), tensors(w=many(1, 0.02))
    for off, is_right in ((0.02, True), (0.033, True), (0.035, False), (-0.04, False)):
        assert judge(plain, tensors(w=many(1, off)), exact, torch.bfloat16).is_right is is_right


def test_one_wrong_element_is_found_though_the_norm_hides_it() -> None:
    """Of 10,000 ones, off by 0.01 each, one is off by 0.2: 0.02 of the norm is allowed, and 0.034 of the largest."""
    exact, plain = {"w": torch.ones(10_000)}, {"w": torch.full((10_000,), 1.01)}
    found = {"w": torch.full((10_000,), 1.01)}
    assert judge(plain, found, exact, torch.bfloat16).is_right
    found["w"][77] = 1.2
    assert torch.linalg.vector_norm(found["w"] - 1) / 100 < 0.015
    assert not judge(plain, found, exact, torch.bfloat16).is_right


def test_without_anything_more_precise_plain_and_compiled_are_compared() -> None:
    plain = tensors(w=many(1))
    for dtype, right, wrong in ((torch.float32, 0.9e-3, 1.1e-3), (torch.bfloat16, 0.09, 0.11)):
        assert judge(plain, tensors(w=many(1, right)), None, dtype).is_right
        assert not judge(plain, tensors(w=many(1, wrong)), None, dtype).is_right


def test_what_is_missing_or_non_finite_is_named() -> None:
    plain = tensors(a=many(1), b=many(2))
    assert judge(plain, tensors(a=many(1)), None, torch.float32).reason == "a is missing or has another shape"
    nan = tensors(a=many(1), b=many(float("nan")))
    assert judge(plain, nan, None, torch.float32) == Finding(False, "b is non-finite")
    assert "b is off by 1e+03 times" in judge(plain, tensors(a=many(1), b=many(4)), None, torch.float32).reason


def test_weights_of_zeros_hide_nothing_and_are_as_before() -> None:
    """Behind a last matmul with weights of zero, every gradient is zero, whatever the compiled code does."""
    first, last = torch.nn.Linear(80, 80), torch.nn.Linear(80, 80, bias=False)
    torch.nn.init.zeros_(last.weight)
    weights = {"first": first.weight, "last": last.weight}
    x = torch.randn(4, 80)
    state = torch.get_rng_state()
    subject = Subject(lambda x: last(first(x).relu()), (x,), weights)
    assert compare(subject, lambda x: last(first(x).relu())).is_right
    # Wrong in the backward pass of the first layer only: the weight counts twice there.
    wrong = compare(subject, lambda x: last((first(x) + (first(x) - first(x).detach())).relu()))
    assert wrong.reason.startswith("the gradient of first is off")
    assert not last.weight.any()
    assert torch.equal(torch.get_rng_state(), state)


# -- toolchains


def test_the_march_is_the_newest_that_the_processor_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    information = tmp_path / "cpuinfo"
    monkeypatch.setattr(toolchains_module, "CPU_INFORMATION", information)
    avx2, avx512 = "fpu avx2 fma bmi2", "avx512f avx512bw avx512dq avx512vl avx512cd"
    cases = {
        "fpu sse2": None,
        avx2: "haswell",
        f"{avx2} {avx512}": "skylake-avx512",
        f"{avx2} {avx512} avx512_bf16 avx512_vnni": "cooperlake",
        f"{avx2} {avx512} avx512_bf16 avx512_vnni avx512_fp16 amx_tile": "sapphirerapids",
    }
    for flags, expected in cases.items():
        information.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : x\nflags : later\n")
        assert processor_march() == expected
    information.unlink()
    assert processor_march() is None
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert processor_march() is None


def test_compilers_are_found_once_each_and_cxx_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = script(tmp_path / "bin" / "g++-12", "#!/bin/sh\n")
    (tmp_path / "bin" / "g++").symlink_to(real)
    other = script(tmp_path / "elsewhere" / "my-g++", "#!/bin/sh\n")
    script(tmp_path / "bin" / "clang++-16", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    assert find_compilers() == ["g++", "clang++-16"]
    monkeypatch.setenv("CXX", f"{other} -pipe")
    assert find_compilers() == [f"{other} -pipe", "g++", "clang++-16"]
    monkeypatch.setenv("CXX", str(tmp_path / "not-there"))
    assert find_compilers() == ["g++", "clang++-16"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compilers() == []
    assert toolchains(CPU) == []
    assert not has_compiler(CPU)
    assert [each.name for each in toolchains(torch.device("cuda"))] == ["triton"]
    assert toolchains(torch.device("mps")) == []


def test_the_order_of_toolchains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchains_module, "find_compilers", lambda: ["g++", "clang++"])
    monkeypatch.setattr(toolchains_module, "processor_march", lambda: "cooperlake")
    assert [str(each) for each in toolchains(CPU)] == [
        "g++", "g++ -march=cooperlake", "g++ -O2", "clang++", "g++ -march=haswell 256-bit vectors"
    ]  # fmt: skip
    assert len({each.folder for each in toolchains(CPU)}) == 5


def test_options_are_replaced_and_all_others_kept(tmp_path: Path) -> None:
    fake = script(tmp_path / "g++", '#!/bin/sh\nfor each; do echo "<$each>"; done\n')
    toolchain = Toolchain("explicit-march", f"{fake} -first", (("-march=native", "-march=x"), ("-O3", "-O2")))
    command = program_of(toolchain)
    assert Path(command).name == "g++"
    arguments = "-O3 -march=native 'two words' '$HOME' '*' -O33 ''"
    said = os.popen(f"{command} {arguments}").read()
    assert said.split("\n")[:-1] == [
        "<-first>", "<-O2>", "<-march=x>", "<two words>", "<$HOME>", "<*>", "<-O33>", "<>"
    ]  # fmt: skip
    assert Path(command).stat().st_mode & 0o077 == 0
    assert program_of(Toolchain("native", str(fake))) == str(fake)


def test_a_compiler_that_fails_hangs_or_is_not_there(tmp_path: Path) -> None:
    fails = script(tmp_path / "fails", "#!/bin/sh\necho 'no licence' >&2\nexit 3\n")
    hangs = script(tmp_path / "hangs", "#!/bin/sh\nexec sleep 60\n")
    nothing = script(tmp_path / "nothing", "#!/bin/sh\nexit 0\n")
    assert trouble_of_compiler(Toolchain("native", str(fails))) == "it failed (exit code 3: no licence)"
    start = time.monotonic()
    assert trouble_of_compiler(Toolchain("native", str(hangs)), 0.5) == "it took longer than 0.5 s"
    assert time.monotonic() - start < 20
    assert trouble_of_compiler(Toolchain("native", str(nothing))) == "it makes nothing"
    gone = trouble_of_compiler(Toolchain("native", str(tmp_path / "gone")))
    assert gone == "it cannot be run: No such file or directory"


@needs_compiler
def test_a_good_compiler_has_no_trouble() -> None:
    assert trouble_of_compiler(toolchains(CPU)[0]) is None


# -- the process in which a toolchain is tried


CHILD = """
import os, signal, sys, time
from llada.system.compile_check import rotation

def crash(): os.kill(os.getpid(), signal.SIGSEGV)
def fail(): raise RuntimeError("no room")
def hang():
    open(os.environ["PID_FILE"], "w").write(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recipe]:
    """Recipes that a child fails on."""
    (tmp_path / "strange_recipes.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    monkeypatch.setattr(checked, "trouble_of_compiler", lambda toolchain: None)
    return lambda name: Recipe(f"strange_recipes:{name}", {})


def test_a_child_that_crashes_or_fails_is_a_finding(strange: Callable[[str], Recipe]) -> None:
    toolchain = Toolchain("native", "g++")
    assert try_in_child(toolchain, strange("crash")).reason == "the code that it made crashed (SIGSEGV)"
    assert try_in_child(toolchain, strange("fail")).reason == "compiling failed (RuntimeError: no room)"


def test_a_child_that_hangs_is_ended(strange: Callable[[str], Recipe], tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="compiling took longer than 20 s"):
        try_in_child(Toolchain("native", "g++"), strange("hang"), seconds=20)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_compiler_that_hangs_at_two_lines_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "trouble_of_compiler", lambda toolchain: "it took longer than 60 s")
    with pytest.raises(TimeoutError, match="it took longer than 60 s"):
        try_in_child(Toolchain("native", "g++"), ROTATION)


def test_verdicts_are_remembered_except_of_failures(
    strange: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(
        [Finding(False, "compiling failed (disk full)"), Finding(False, "w is off"), Finding(True, "unused")]
    )
    monkeypatch.setattr(checked, "_ask_child", lambda *_: next(answers))
    toolchain, recipe = Toolchain("native", "g++"), strange("any")
    assert try_in_child(toolchain, recipe).reason == "compiling failed (disk full)"
    assert try_in_child(toolchain, recipe).reason == try_in_child(toolchain, recipe).reason == "w is off"
    assert try_in_child(toolchain, strange("other")).is_right
    (toolchain.folder / "verdicts.json").write_text("[broken")
    assert VerdictMemory(toolchain, recipe).recall() is None


def test_a_compiler_that_hung_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hang(toolchain: Toolchain, recipe: Recipe, seconds: float) -> Finding:
        asked.append(toolchain.name)
        if toolchain.compiler == "g++":
            raise TimeoutError("compiling took longer than 600 s")
        return Finding(False, "it is wrong")

    monkeypatch.setattr(checked, "try_in_child", hang)
    every = [Toolchain("native", "g++"), Toolchain("O2", "g++"), Toolchain("other-compiler", "clang++")]
    monkeypatch.setattr(checked, "toolchains", lambda device: every)
    said: list[str] = []
    assert compile_checked(rotation(), ROTATION, CPU, say=said.append) is None
    assert asked == ["native", "other-compiler"]
    assert said == ["g++ is not used: compiling took longer than 600 s.", "clang++ is not used: it is wrong."]
    asked.clear()
    compile_checked(rotation(), ROTATION, CPU, preferred="other-compiler")
    assert asked == ["other-compiler", "native"]
    assert [verdict.toolchain for verdict in probe(CPU)] == ["native", "other-compiler"]


def test_a_cache_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLADA_COMPILE_CACHE", "/dev/null/cache")
    monkeypatch.setattr(checked, "toolchains", lambda device: [Toolchain("native", "g++")])
    said: list[str] = []
    assert compile_checked(rotation(), ROTATION, CPU, say=said.append) is None
    assert said == ["g++ is not used: compiling failed ([Errno 20] Not a directory: '/dev/null/cache/native')."]


# -- with real compilers


def equals_eager(found: Compiled | None) -> bool:
    assert found is not None
    subject = rotation()
    with torch.no_grad():
        expected, result = subject.function(*subject.inputs), found.function(*subject.inputs)
    torch.testing.assert_close(result, expected, rtol=0.02, atol=0.02)
    return True


@needs_compiler
def test_the_rotation_that_was_miscompiled_is_right() -> None:
    assert equals_eager(compile_checked(rotation(), ROTATION, CPU))


BAD_TUNING = """
    #!/usr/bin/env python3
    # g++ 12.2 makes NaN of a rotation with these options, on a processor with AVX-512.
    import os, sys
    generic = ["-march=icelake-server", "-mtune=generic"]
    options = [generic if option == "-march=native" else [option] for option in sys.argv[1:]]
    os.execvp("g++", ["g++", *sum(options, [])])
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif("avx512f" not in toolchains_module.processor_flags(), reason="the processor has no AVX-512")
def test_the_rotation_is_right_with_the_options_that_miscompile_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "bad" / "g++", BAD_TUNING)))
    said: list[str] = []
    found = compile_checked(rotation(), ROTATION, CPU, say=said.append)
    assert equals_eager(found)
    # Where this compiler is right even so, nothing was to be found.
    assert said in ([], ["g++ is not used: the result is non-finite."])
    assert found is not None
    assert found.toolchain.name == ("explicit-march" if said else "native")


@pytest.mark.parametrize("is_late", [False, True], ids=["as on a CPU, at once", "as on a GPU, when it is logged"])
def test_a_step_that_only_compiled_code_makes_non_finite_is_computed_without(
    is_late: bool, small_run: TrainConfig, data: PreparedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that passes its check, and is wrong at its fourth step: on a CPU, no step is lost."""
    calls = []

    def compile_wrongly(subject: Subject, *_: object) -> Compiled:
        def run(rows: Tensor) -> Tensor:
            calls.append(rows)
            return subject.function(rows) * (float("nan") if len(calls) == 4 else 1.0)

        return Compiled(run, Toolchain("native", "g++"), Finding(True, "it seems right"))

    monkeypatch.setattr(compilation, "compile_checked", compile_wrongly)
    noise = replace(small_run.noise, random_length=0.0)
    plain = replace(small_run, noise=noise, compile=False)
    run = replace(plain, compile=True, output_dir=small_run.output_dir.with_name("compiled"))
    expected, trained = (Trainer(RunPlan.of(each, data), RunFolder(each.output_dir)) for each in (plain, run))
    if is_late:
        monkeypatch.setattr(trained.compiled_steps, "gradients", trained.steps.gradients)
    shown = io.StringIO()
    for trainer in (expected, trained):
        trainer.folder.start(trainer.config)
        trainer.run(Display(Console(file=shown, width=200), None))
    assert (
        "Step 3 is non-finite by g++'s code and finite without it: the run goes on without compiling."
        in shown.getvalue()
    )
    assert len(calls) == 4
    assert not trained.is_compiled
    assert RunFolder.read_config(run.output_dir).toolchain == "none"
    same = [
        torch.equal(ours, theirs)
        for ours, theirs in zip(trained.model.parameters(), expected.model.parameters(), strict=True)
    ]
    assert all(same) if not is_late else not all(same)  # there, that step was left out


INJECTING = """
    #!{python}
    # The compiler, given other code than it was promised.
    import os, re, subprocess, sys
    kind, counts = {kind!r}, {counts!r}
    for path in sys.argv[1:]:
        if path.endswith(".cpp") and os.path.exists(path):
            code = open(path).read()
            if "kernel(" not in code:
                continue
            if kind == "nan":
                new = code.replace("static_cast<float>(2.0)", "std::numeric_limits<float>::quiet_NaN()")
            elif kind == "wrong":
                new = code.replace("static_cast<float>(2.0)", "static_cast<float>(2.1)")
            else:
                new = re.sub(r"(void\\s+kernel\\([^)]*\\)\\s*{{)", r"\\1 __builtin_trap();", code, count=1)
            if new != code:
                open(path, "w").write(new)
                open(counts, "a").write(path + "\\n")
    os.execvp({compiler!r}, [{compiler!r}, *sys.argv[1:]])
"""


@needs_compiler
@pytest.mark.parametrize(
    "kind", ["wrong", pytest.param("nan", marks=pytest.mark.slow), pytest.param("crash", marks=pytest.mark.slow)]
)
def test_a_run_with_a_bad_compiler_ends_as_one_without(
    kind: str, small_run: TrainConfig, data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.0 is the derivative of the square in the feed-forward layers; at 2.1 every gradient before it is off by 5 %."""
    compiler = find_compilers()[0]
    counts = tmp_path / "changed"
    content = INJECTING.format(python=sys.executable, kind=kind, counts=str(counts), compiler=compiler)
    monkeypatch.setenv("CXX", str(script(tmp_path / "bad" / "g++", content)))
    monkeypatch.setattr(checked, "toolchains", lambda device: toolchains(device)[:1])
    network = NetworkOptions("local", d_model=16, n_heads=1, n_layers=1, attention_every=1)
    plain = replace(small_run, network=network, steps=6, compile=False)
    run = replace(plain, compile=True, output_dir=small_run.output_dir.with_name("compiled"))
    expected, trained = (Trainer(RunPlan.of(each, data), RunFolder(each.output_dir)) for each in (plain, run))
    for trainer in (expected, trained):
        trainer.folder.start(trainer.config)
        trainer.run(Display(Console(file=io.StringIO()), None))
    assert counts.exists(), "nothing was injected"
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(trained.model.state_dict()[name], weight)
    assert not trained.is_compiled
    assert RunFolder.read_config(run.output_dir).toolchain == "none"
    assert not Trainer(
        RunPlan.of(replace(trained.config, steps=8), data), RunFolder(run.output_dir), resume=True
    ).is_compiled
