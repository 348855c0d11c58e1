"""The command line: quick where nothing is computed, clear where something is wrong, and its exit codes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from regraft import cli, cli_text
from regraft.spec import Study, presets

HEAVY = ("torch", "torchvision", "timm", "sklearn", "scipy", "altair", "numpy", "PIL")

TINY = """
study: tiny
seeds: [0, 1]
sources:
  random: {network: resnet18, stem: cifar}
targets:
  few: {data: digits, per_class: 5, validation: 0.2, test_images: 40}
recipes:
  probe: {optimizer: lbfgs, epochs: 20}
rows:
  - {name: random features, source: random, cut: layer1.0, method: frozen, target: few, recipe: probe}
"""

Outcome = tuple[int, str, str]
Call = Callable[..., Outcome]


@pytest.fixture
def regraft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call the command in this process: (exit code, stdout, stderr)."""

    def call(*words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["regraft", *map(str, words)])
        monkeypatch.delenv("REGRAFT_DEBUG", raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        code = end.value.code
        return int(code) if code is not None else 0, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


# --- answers at once ----------------------------------------------------------------------------------------


def heavy_modules_after(*words: str | Path) -> tuple[list[str], float]:
    """Modules of HEAVY that a fresh process has loaded after a command, and the CPU seconds it took."""
    code = (
        "import sys\nfrom regraft.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=60, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout.splitlines()[-1].split()[1:], seconds


@pytest.mark.parametrize(
    "words",
    [("--help",), ("run", "--help"), ("--version",), ("schema",), ("presets",), ("plan", "quickstrat")],
)
def test_what_computes_nothing_loads_nothing_heavy_and_takes_less_than_half_a_second(
    words: tuple[str, ...],
) -> None:
    loaded, cpu_seconds = heavy_modules_after(*words)
    assert loaded == []
    assert cpu_seconds < 0.5 or min(heavy_modules_after(*words)[1] for _ in range(3)) < 0.5


@pytest.mark.parametrize("command", ["run", "plan", "status", "prune"])
def test_an_error_in_a_study_file_loads_nothing_heavy(command: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(TINY.replace("method: frozen", "metod: frozen"))
    loaded, cpu_seconds = heavy_modules_after(command, wrong)
    assert loaded == []
    assert cpu_seconds < 0.5 or min(heavy_modules_after(command, wrong)[1] for _ in range(3)) < 0.5


def test_importing_the_package_loads_nothing_heavy_and_its_names_exist() -> None:
    code = (
        f"import sys, regraft\nassert not [m for m in {HEAVY!r} if m in sys.modules]\n"
        "for name in regraft.__all__: getattr(regraft, name)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_completion_offers_presets_and_study_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.yaml").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "dogs.yml").touch()
    complete = cli_text.complete_study
    assert complete("") == sorted([*presets(), "cats.yaml"])
    assert complete("qui") == ["quickstart"]
    assert complete("sub/") == ["sub/dogs.yml"]


# --- wrong words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("method: frozen", "metod: frozen"), "rows[0].metod: unknown field; did you mean 'method'?"),
        (("target: few", "target: fwe"), "rows[0].target: no target 'fwe'; did you mean 'few'?"),
        (("cut: layer1.0", "cut: layer1.00"), "resnet18 has no cut 'layer1.00'; did you mean 'layer1.0'?"),
        (("per_class: 5", "per_class: 5000"), "5000"),
        (("network: resnet18", "network: resnet81"), "resnet18"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_starts(
    regraft: Call, tiny: Path, change: tuple[str, str], said: str
) -> None:
    tiny.write_text(TINY.replace(*change))
    for command in ("plan", "run"):
        code, out, err = regraft(command, tiny, *(["--out", tiny.parent / "out"] if command == "run" else []))
        assert code == 2
        assert said in err
        assert err.startswith("error: ")
        assert "Traceback" not in err + out
    assert not (tiny.parent / "out").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "regraft.cli"]
    for words, environment in ((["--debug"], {}), ([], {"REGRAFT_DEBUG": "1"})):
        done = subprocess.run(
            [*command, *words, "plan", str(tmp_path / "absent.yaml")],
            capture_output=True, text=True, env={**os.environ, **environment}, timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" in done.stderr
        assert "absent.yaml" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("rnu",),
        ("run", "--devise", "cpu"),
        ("run", "--device", "tpu"),
        ("run", "--threads", "0"),
        ("data", "got"),
    ],
)
def test_wrong_usage_ends_with_2(regraft: Call, words: tuple[str, ...]) -> None:
    code, _, err = regraft(*words)
    assert code == 2
    assert "Traceback" not in err


def test_an_unknown_data_set_or_network_is_named_with_the_nearest(regraft: Call) -> None:
    for words, near in ((("data", "info", "cifar11"), "cifar10"), (("cuts", "resnet19"), "resnet18")):
        code, _, err = regraft(*words)
        assert code == 2
        assert near in err


# --- small commands -----------------------------------------------------------------------------------------


def test_schema_is_the_json_schema_of_a_study(regraft: Call) -> None:
    code, out, _ = regraft("schema")
    assert code == 0
    assert json.loads(out) == Study.model_json_schema()


def test_presets_are_listed_and_printed_as_files_that_parse(regraft: Call, tmp_path: Path) -> None:
    code, out, _ = regraft("presets")
    assert code == 0
    for name in presets():
        assert name in out
        code, text, _ = regraft("presets", name)
        mine = tmp_path / "mine.yaml"
        mine.write_text(text)
        assert code == 0
        assert Study.from_yaml(mine) == Study.from_yaml(name)
    assert regraft("presets", "quickstrat")[0] == 2


def test_cuts_lists_valid_cuts_with_their_shapes(regraft: Call) -> None:
    code, out, _ = regraft("cuts", "resnet18", "--image-size", "32", "--stem", "cifar")
    assert code == 0
    line = next(line for line in out.splitlines() if line.split() and line.split()[0] == "layer2.1")
    assert "128 x 16 x 16" in line


def test_data_is_listed_and_described(regraft: Call) -> None:
    code, out, _ = regraft("data", "list")
    assert code == 0
    assert {"digits", "cifar10", "cifar100"} <= set(out.split())
    code, out, _ = regraft("data", "info", "digits")
    assert code == 0
    assert "10 classes" in " ".join(out.split())
    assert regraft("data", "get", "digits")[0] == 0


def test_doctor_names_versions_device_disk_and_folder(regraft: Call, home: Path) -> None:
    code, out, _ = regraft("doctor")
    assert code == 0
    for word in ("torch", "device", "threads", "disk", str(home), "npm", "digits"):
        assert word in out


# --- a study, from plan to prune ----------------------------------------------------------------------------


def test_a_study_is_planned_run_found_again_shown_and_pruned(regraft: Call, tiny: Path, tmp_path: Path) -> None:
    out_folder, store = tmp_path / "out", tmp_path / "store"
    code, out, _ = regraft("plan", tiny, "--store", store)
    assert code == 0
    assert "2 trainings for 2 cells" in out

    code, out, err = regraft("status", tiny, "--store", store)
    assert code == 0
    assert "0 of 2 cells scored" in out

    words = ("run", tiny, "--store", store, "--out", out_folder, "--device", "cpu", "--threads", "1")
    code, out, err = regraft(*words)
    assert code == 0, err
    assert "random features" in out
    assert sorted(file.name for file in out_folder.iterdir()) == [
        "report.html",
        "results.csv",
        "results.json",
    ]
    first_csv = (out_folder / "results.csv").read_bytes()

    start = time.perf_counter()
    code, out, _ = regraft(*words, "--quiet", "--offline")
    assert (code, out) == (0, "")
    assert time.perf_counter() - start < 10
    assert (out_folder / "results.csv").read_bytes() == first_csv

    assert "2 of 2 cells scored" in regraft("status", tiny, "--store", store)[1]

    key = json.loads((out_folder / "results.json").read_text())["cells"][0]["key"]
    code, out, _ = regraft("show", key[:16], "--store", store)
    assert code == 0
    assert key in out
    assert json.loads(regraft("show", key, "--store", store, "--json")[1])["key"] == key
    assert regraft("show", "f" * 64, "--store", store)[0] == 2

    kept = sorted(store.glob("objects/??/*"))
    assert regraft("prune", tiny, "--store", store)[0] == 0
    assert sorted(store.glob("objects/??/*")) == kept
    code, out, _ = regraft("prune", "quickstart", "--store", store, "--dry-run")
    assert code == 0
    assert "would be removed" in out
    assert sorted(store.glob("objects/??/*")) == kept
    regraft("prune", "quickstart", "--store", store)
    assert not list(store.glob("objects/??/*"))


def test_json_prints_one_object_a_line_and_the_results_last(regraft: Call, tiny: Path, tmp_path: Path) -> None:
    code, out, _ = regraft("run", tiny, "--out", tmp_path / "out", "--json", "--threads", "1")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert "plan_ready" in [line["event"] for line in lines]
    assert lines[-1]["event"] == "results"
    assert lines[-1]["results"] == json.loads((tmp_path / "out" / "results.json").read_text())


def test_rows_that_cannot_be_had_are_named_and_the_exit_code_is_3(regraft: Call, tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(
        TINY.replace("targets:", "targets:\n  away: {data: cifar10, per_class: 5}")
        + "  - {name: away, source: random, cut: layer1.0, method: frozen, target: away, recipe: probe}\n"
    )
    words = ("run", tiny, "--out", tmp_path / "out", "--offline", "--threads", "1")
    code, out, err = regraft(*words)
    assert code == 3
    assert "missing: away [seed 0], away [seed 1]: " in err
    assert "random features" in out
    assert "go on with: regraft run" in err
    missing = json.loads((tmp_path / "out" / "results.json").read_text())["missing"]
    assert {cell["row"] for cell in missing} == {"away"}


def test_an_error_message_moves_no_cursor(regraft: Call, tmp_path: Path) -> None:
    code, _, err = regraft("plan", tmp_path / "away\x1b[2J.yaml")
    assert code == 2
    assert "away" in err
    assert "\x1b" not in err


def test_an_out_folder_that_cannot_be_written_is_refused_before_anything_is_computed(
    regraft: Call, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = regraft("run", tiny, "--out", tmp_path / "file" / "out", "--store", tmp_path / "store")
    assert code == 1
    assert "--out" in err
    assert not (tmp_path / "store").exists()


def test_a_time_limit_stops_with_what_is_there_and_exit_code_3(regraft: Call, tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(TINY.replace("optimizer: lbfgs, epochs: 20", "epochs: 100000").replace("frozen", "finetune"))
    code, _, err = regraft("run", tiny, "--out", tmp_path / "out", "--minutes", "0.05", "--threads", "1")
    assert code == 3
    assert "missing: random features" in err
    assert (tmp_path / "out" / "results.csv").is_file()


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(TINY.replace("optimizer: lbfgs, epochs: 20", "epochs: 100000").replace("frozen", "finetune"))
    for executor in ("serial", "processes"):
        words = ["run", str(tiny), "--store", str(tmp_path / executor), "--executor", executor]
        process = subprocess.Popen(
            [sys.executable, "-m", "regraft.cli", *words], stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        time.sleep(12)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert f"Go on with: regraft run {tiny}" in err
        assert "Traceback" not in err


def test_what_the_disk_refuses_is_one_clear_message(
    regraft: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "file" / "home"))
    code, _, said = regraft("data", "get", "digits")
    assert code == 1
    assert said.startswith("error: ") and "Traceback" not in said
    assert os.strerror(20) in said.replace("\n", " ") and "run again" in said.replace("\n", " ")
