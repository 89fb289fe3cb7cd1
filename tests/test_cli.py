"The command line from outside: what it prints, writes and returns, and that a run repeats bit for bit whatever happens to it."
import json
import os
import random
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, child_env, run, said, snapshot
from typer.testing import CliRunner

CARTPOLE = ROOT / "configs" / "ppo" / "cartpole.yaml"
SHORT = ("train.total_steps=20480", "checkpoint.every=4096", "eval.episodes=5")
KEYS = {"run", "algo", "env", "seed", "total_steps", "env_steps_per_second", "eval_return_mean", "eval_return_std", "eval_episodes",
        "weights_sha256", "status"}


def train(folder: Path, *args: object, config: Path = CARTPOLE, **env: str) -> dict[str, Any]:
    "A short run's JSON object"
    done = run("rlstudio", "run", config, *SHORT, "--runs-dir", folder, "--json", *args, cwd=folder, **env)
    assert done.returncode == 0, said(done)
    return one_object(done.stdout)


def one_object(text: str) -> dict[str, Any]:
    "The one JSON object that standard output holds, and nothing else"
    found = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path: return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, Any]:
    "The run that the others are compared with"
    return train(folder, "--name", "reference")


# What a run says and leaves

def test_run_prints_one_object(reference: dict[str, Any]) -> None:
    assert reference.keys() >= KEYS
    assert (reference["algo"], reference["env"], reference["seed"]) == ("ppo", "CartPole-v1", 1)
    assert reference["total_steps"] == 20480 and reference["eval_episodes"] == 5
    assert reference["env_steps_per_second"] > 0 and 1 <= reference["eval_return_mean"] <= 500 and reference["eval_return_std"] >= 0
    assert re.fullmatch("[0-9a-f]{64}", reference["weights_sha256"])


def test_run_leaves_its_files(reference: dict[str, Any]) -> None:
    path = Path(reference["run"])
    names = {p.relative_to(path).as_posix() for p in path.rglob("*")}
    assert names >= {"config.yaml", "manifest.json", "metrics.jsonl", "checkpoints"}
    assert any(n.endswith(".webp") for n in names), "no film of the agent"
    assert any(n.endswith((".png", ".svg")) for n in names), "no learning curve"
    assert len(list(path.glob("checkpoints/step_*"))) <= 3 + 1
    assert len([json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]) >= 20


def test_films_move(reference: dict[str, Any]) -> None:
    from PIL import Image
    film = next(Path(reference["run"]).rglob("*.webp"))
    with Image.open(film) as image: assert getattr(image, "n_frames", 1) > 1


def test_plain_output_has_no_escape_codes(folder: Path) -> None:
    done = run("rlstudio", "run", CARTPOLE, *SHORT, "--runs-dir", folder)
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr, said(done)
    assert "rlstudio show" in done.stdout + done.stderr, "the next commands are missing"


def test_quiet_is_quiet(folder: Path) -> None:
    "One line: the verdict"
    done = run("rlstudio", "run", CARTPOLE, *SHORT, "--runs-dir", folder, "--quiet")
    assert done.returncode == 0 and not done.stderr, said(done)
    assert re.fullmatch(r"(not )?solved, eval .* at 20,480 steps, .*", done.stdout.rstrip("\n")), said(done)


# The same command, the same weights

def test_same_seed_same_weights(folder: Path, reference: dict[str, Any]) -> None:
    "Also in another time zone, with other hashes of strings, from another folder, and with the seed as an option"
    (elsewhere := folder / "elsewhere").mkdir()
    again = train(elsewhere, "--seed", "1", TZ="Asia/Tokyo", PYTHONHASHSEED="7")
    assert again["weights_sha256"] == reference["weights_sha256"]
    assert again["eval_return_mean"] == reference["eval_return_mean"]


def test_other_seed_other_weights(folder: Path, reference: dict[str, Any]) -> None:
    assert train(folder, "--seed", "2")["weights_sha256"] != reference["weights_sha256"]


def test_resolved_config_runs_again(folder: Path, reference: dict[str, Any]) -> None:
    done = run("rlstudio", "run", Path(reference["run"]) / "config.yaml", "--runs-dir", folder, "--json")
    assert done.returncode == 0, said(done)
    assert one_object(done.stdout)["weights_sha256"] == reference["weights_sha256"]


def start(folder: Path, name: str, *more: str) -> "subprocess.Popen[str]":
    "A run in the background, past its first checkpoint; unmeasured, for a signal that arrives inside coverage's own lock leaves it locked"
    command = ["rlstudio", "run", str(CARTPOLE), *SHORT, *more, "--runs-dir", str(folder), "--name", name]
    child = subprocess.Popen(command, env=child_env(coverage=False), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while child.poll() is None and not list((folder / name).glob("checkpoints/step_*")): time.sleep(0.002)
    return child


@pytest.mark.faults(1, 7)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_and_resumed(folder: Path, reference: dict[str, Any], seed: int) -> None:
    "SIGKILL in the course of a random iteration of twenty, then resume: the weights of the uninterrupted run"
    name, records = f"killed-{seed}", random.Random(seed).randrange(1, 16)
    child = start(folder, name)
    metrics = folder / name / "metrics.jsonl"
    while child.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < records): time.sleep(0.001)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert "seed 1: killed" in run("rlstudio", "show", folder / name).stdout, "nobody works on it, so it does not run"
    done = run("rlstudio", "resume", folder / name, "--json")
    assert done.returncode == 0, said(done)
    assert one_object(done.stdout)["weights_sha256"] == reference["weights_sha256"]
    steps = [r["step"] for r in map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines()) if "step" in r]
    plain = [r["step"] for r in map(json.loads, (Path(reference["run"]) / "metrics.jsonl").read_text().splitlines()) if "step" in r]
    assert steps == plain, "steps are missing from the metrics, or appear twice"


@pytest.mark.faults(3)
def test_interrupted_and_resumed(folder: Path, reference: dict[str, Any]) -> None:
    "Ctrl-C writes a checkpoint, says how to go on, and exits with 130"
    child = start(folder, "interrupted")
    child.send_signal(signal.SIGINT)
    said_, _ = child.communicate(timeout=60)
    assert child.returncode == 130, said_
    assert "rlstudio resume" in said_ and "Traceback" not in said_, said_
    done = run("rlstudio", "resume", folder / "interrupted", "--json")
    assert done.returncode == 0, said(done)
    assert one_object(done.stdout)["weights_sha256"] == reference["weights_sha256"]


# The other commands

def test_evaluate(reference: dict[str, Any]) -> None:
    once, again = (run("rlstudio", "evaluate", reference["run"], "--episodes", "3", "--json") for _ in range(2))
    assert once.returncode == 0, said(once)
    assert one_object(once.stdout)["eval_episodes"] == 3 and one_object(once.stdout).keys() >= KEYS - {"env_steps_per_second"}
    assert one_object(once.stdout)["eval_return_mean"] == one_object(again.stdout)["eval_return_mean"]


def test_show(reference: dict[str, Any]) -> None:
    done = run("rlstudio", "show", reference["run"])
    assert done.returncode == 0 and "CartPole-v1" in done.stdout, said(done)


def test_a_run_by_its_name(folder: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    "A name is looked up in the folder of all runs"
    (tmp_path / "settings.ini").write_text(f"[DEFAULT]\nruns_dir = {folder}\n")
    done = run("rlstudio", "show", Path(reference["run"]).name, cwd=tmp_path)
    assert done.returncode == 0 and "completed" in done.stdout, said(done)


@pytest.mark.parametrize("what, expected", [("algos", "ppo"), ("envs", "CartPole-v1"), ("configs", "ppo/cartpole"), ("runs", "reference")])
def test_list(folder: Path, reference: dict[str, Any], what: str, expected: str) -> None:
    (folder / "settings.ini").write_text(f"[DEFAULT]\nruns_dir = {folder}\n")
    done = run("rlstudio", "list", what, cwd=folder)
    assert done.returncode == 0 and expected in done.stdout, said(done)


# Errors that help

def refused(*args: object, cwd: Path) -> str:
    done = run("rlstudio", *args, cwd=cwd)
    assert done.returncode == 2 and "Traceback" not in done.stderr, said(done)
    assert not (cwd / "runs").exists(), "a mistake left a run behind"
    return done.stderr


def test_all_errors_of_a_file_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("env:\n  id: CartPole-v1\n  num_env: 8\nalgo:\n  name: ppo\n  gama: 0.9\n  gae_lambda: 1.5\n")
    said_ = refused("run", "bad.yaml", "train.sede=3", cwd=tmp_path)
    for part in ("bad.yaml:3:3: env.num_env", "num_envs", "bad.yaml:6:3: algo.gama", "gamma", "bad.yaml:7:", "train.sede: unknown key; did you mean 'seed'"):
        assert part in said_, f"{part!r} is not in:\n{said_}"


@pytest.mark.parametrize("args, hint", [
    (["rum", "x.yaml"], "run"), (["run", "gone.yaml"], "gone.yaml"), (["run", CARTPOLE, "--name", "../../x"], "name"),
    (["run", CARTPOLE, "algo.n_steps=5"], "algo.num_steps"), (["run", CARTPOLE, "algo.batch_size=64"], "algo.num_minibatches"),
    (["run", CARTPOLE, "net.net_arch=[64]"], "net.hidden"), (["run", CARTPOLE, "algo.learning_rate=lin_3e-4"], "write learning_rate=3e-4 and learning_rate_schedule=linear"),
    (["run", CARTPOLE, "algo.name=pp0"], "ppo"), (["run", CARTPOLE, "env.id=CartPole-v99"], "CartPole-v1"),
    (["run", CARTPOLE, "env.id=os:system"], "os:system"), (["resume", "gone"], "gone"), (["show", "gone"], "gone"), (["list", "algo"], "given 'algo'; did you mean 'algos'?"),
    (["train", CARTPOLE], "fix: rlstudio run CONFIG"), (["run", "ppo"], "there are ppo/acrobot"),
], ids=lambda a: a if isinstance(a, str) else "")
def test_mistakes_are_explained(args: list[object], hint: str, tmp_path: Path) -> None:
    assert hint in refused(*args, cwd=tmp_path)


@pytest.mark.parametrize("typed, hint", [
    ("run", "Such as ppo/cartpole, or a file; see: rlstudio list configs"), ("resume", "see: rlstudio list runs"), ("check-env", "see: rlstudio list envs"),
    ("help", "fix: rlstudio --help"), ("version", "fix: rlstudio --version"), ("ppo/cartpole", "fix: rlstudio run ppo/cartpole"), ("mine.yaml", "fix: rlstudio run mine.yaml"),
    ("run ppo/cartpole --train.total_steps=1000", "it is a key of the config, without the dashes: train.total_steps=…"), ("run --algo ppo --env CartPole-v1", "algo.name=…; a config comes first"),
    ("run ppo/cartpole --env CartPole-v1", "env.id=…"), ("run ppo/cartpole --render", "each run makes a film"), ("run ppo/cartpole --seed abc", "expected a whole number, such as 3"),
    ("evaluate x --episodes 0", "expected a number ≥ 1"), ("resume ppo/cartpole", "a config, expected a run; begin one: rlstudio run ppo/cartpole"), ("resume mine.yaml", "begin one: rlstudio run mine.yaml"),
    ("run ppo/cartpole --runs-dir mine.yaml", "mine.yaml: cannot make a run here (it is no folder); choose another folder: --runs-dir DIR"), ("check-env mine.py", "fix: rlstudio check-env ID --import mine"),
    ("run mine.toml", "mine.toml:2:1: given TOML, expected YAML"), ("run cut.toml", "cut.toml:1:1: given TOML, expected YAML: write the section as `env:`"),
    ("run mine.yaml", "write env.id='CartPole-v1'"), ("run mine.yaml", "fix: env.id=CartPole-v1"), ("plugins explain nope", "see: rlstudio plugins"),
    ("study ppo/cartpol", "did you mean 'ppo/cartpole'?"),   # not the study of that name
])
def test_first_mistakes_name_the_fix(typed: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlstudio.studio.cli import app
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("env_id: CartPole-v1\nalgo: {name: ppo}\n")
    Path("mine.toml").write_text('seed = 1\n[env]\nid = "CartPole-v1"\n')
    Path("cut.toml").write_text('[env]\nid = "CartPole-v1\n')
    if typed.startswith("study"):
        Path("runs/ppo-cartpole").mkdir(parents=True)
        Path("runs/ppo-cartpole/study.yaml").touch()
    done = CliRunner().invoke(app, shlex.split(typed))
    assert done.exit_code == 2 and hint in done.output and not done.output.count("Traceback"), done.output
    assert typed.startswith("study") or not Path("runs").exists()


def test_check_env_writes_the_config_to_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlstudio import load_config
    from rlstudio.studio.cli import app
    monkeypatch.chdir(tmp_path)
    def asked() -> Any: return CliRunner().invoke(app, ["check-env", "rlstudio/Chain-v0", "--steps", "50", "--write", "chain.yaml"])
    done = asked()
    assert done.exit_code == 0 and "written: chain.yaml" in done.output, done.output
    assert load_config("chain.yaml")[0].env.id == "rlstudio/Chain-v0" and Path("chain.yaml").read_text() in done.output
    again = asked()
    assert again.exit_code == 2 and "which is there already" in again.output


def test_first_mistakes_in_python_name_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlstudio import Run
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="train: given 1000, expected callbacks; .*total_steps=1000"): Run.from_config("ppo/cartpole").train(1000)   # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected rlstudio.Settings"): Run.from_config("ppo/cartpole", settings=dict(engine="tape"))   # type: ignore[arg-type]
    with pytest.raises(ValueError, match="begin one: rlstudio run ppo/cartpole"): Run.open("ppo/cartpole")


# A quick start

@pytest.mark.parametrize("words", [["-h"], ["run", "-h"], ["profile", "--help"]])
def test_help_is_plain_and_whole(words: list[str]) -> None:
    "No boxes, no sentence cut short, and none of the notes on arguments in the code"
    from rlstudio.studio.cli import app
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "Usage:" in done.output and not re.search("[│╭]|[a-z,][.][.][.]$|Args:", done.output, re.M), done.output


def test_help_imports_nothing_heavy() -> None:
    done = run("rlstudio", "--help", coverage=False, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "resume" in done.stdout, said(done)
    modules = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.M))
    assert "rlstudio.studio.cli" in modules
    assert not modules & {"torch", "numpy", "matplotlib", "gymnasium", "scipy", "pydantic", "yaml", "safetensors", "PIL", "rich", "pygments", "markdown_it", "IPython"}


@pytest.mark.parametrize("line, heavy", [
    ("import rlstudio", ["torch", "numpy", "gymnasium", "pydantic", "yaml", "typer", "dataclasses", "importlib.metadata"]),
    ("from rlstudio import *", ["matplotlib", "scipy", "pandas", "PIL", "imageio", "safetensors", "numba", "onnx", "onnxruntime", "optuna", "typer", "rich", "IPython", "fastcore", "requests",
                                "torch._dynamo", "torch.utils.tensorboard", "gymnasium.envs.classic_control", "gymnasium.envs.mujoco", "ale_py", "mujoco"]),
])
def test_an_import_brings_nothing_heavy(line: str, heavy: list[str]) -> None:
    "Modules, not seconds; what torch itself brings is not ours. Nor are the installed distributions looked through, or a config's checkers made, before something is asked for"
    code = ("import sys\nif '*' in sys.argv[1]: import torch\nbefore = set(sys.modules)\nexec(sys.argv[1])\nprint(*(set(sys.modules) - before))\n"
            "if '*' in sys.argv[1]:\n    from rlstudio.core import options, registry\n    assert not registry.entry_points_in.cache_info().currsize and not options._SPECS, 'looked through'")
    done = run("python", "-c", code, line, coverage=False)
    assert done.returncode == 0, said(done)
    assert not set(done.stdout.split()) & set(heavy)


@pytest.mark.faults(3)
def test_terminated(folder: Path, reference: dict[str, Any]) -> None:
    "SIGTERM is a polite request: a checkpoint, exit code 143, and the same end"
    child = start(folder, "terminated")
    child.send_signal(signal.SIGTERM)
    said_, _ = child.communicate(timeout=60)
    assert child.returncode == 143 and "Traceback" not in said_, said_
    done = run("rlstudio", "resume", folder / "terminated", "--json")
    assert done.returncode == 0, said(done)
    assert one_object(done.stdout)["weights_sha256"] == reference["weights_sha256"]


@pytest.mark.faults(7)
def test_one_process_at_a_time(folder: Path) -> None:
    child = start(folder, "busy", "train.total_steps=100000000")   # it shall not end while the second one starts
    second = run("rlstudio", "resume", folder / "busy")
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert second.returncode == 2 and "another process" in second.stderr and "Traceback" not in second.stderr, said(second)


STRANGE = """
import sys
import gymnasium as gym
import numpy as np

class Strange(gym.Env):
    "Misbehaves at its 300th step"
    observation_space, action_space, steps = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), 0
    def __init__(self, trouble): self.trouble = trouble
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(2, np.float32), {}
    def step(self, action):
        Strange.steps += 1
        self.age += 1
        reward = 1.
        if self.trouble == 'prints': print('hello from the environment')
        elif Strange.steps > 300 and self.trouble == 'nan': reward = float('nan')
        elif Strange.steps > 300: raise KeyError('lost')
        return np.zeros(2, np.float32), reward, False, self.age == 20, {}

gym.register('Strange-v0', Strange)
from rlstudio.studio.cli import main
main()
"""


def strange(folder: Path, trouble: str) -> "subprocess.CompletedProcess[str]":
    (folder / "strange.yaml").write_text("env: {id: Strange-v0, num_envs: 2, kwargs: {trouble: nan}}\nalgo: {name: ppo, num_steps: 64}\n"
                                         "train: {total_steps: 1024}\neval: {episodes: 2, num_envs: 2}\n")
    return run(sys.executable, "-c", STRANGE, "run", folder / "strange.yaml", f"env.kwargs.trouble={trouble}", "--runs-dir", folder,
               "--name", trouble, "--json")


@pytest.mark.faults(24, 28)
@pytest.mark.parametrize("trouble, word", [("nan", "reward: given nan"), ("raises", "lost")])
def test_a_run_that_breaks(folder: Path, trouble: str, word: str) -> None:
    "Exit code 1, the step and the source, the last good checkpoint kept, and a manifest that says so"
    done = strange(folder, trouble)
    assert done.returncode == 1 and "Traceback" not in done.stderr, said(done)
    told = one_object(done.stdout)
    assert told["status"] == "failed" and word in told["error"] and word in done.stderr
    manifest = json.loads((folder / trouble / "manifest.json").read_text())
    assert manifest["status"] == "failed" and word in manifest["error"]
    assert list((folder / trouble / "checkpoints").glob("step_*"))


def test_an_env_that_prints(folder: Path) -> None:
    "Standard output belongs to the JSON object"
    done = strange(folder, "prints")
    assert done.returncode == 0 and one_object(done.stdout)["status"] == "completed", said(done)
    assert "hello from the environment" in done.stderr


def test_evaluations_are_kept(folder: Path) -> None:
    "One that was asked for between two halves of a run is there at its end, and every episode of it"
    child = start(folder, "asked")
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert run("rlstudio", "evaluate", folder / "asked", "--episodes", "4", "--sampled").returncode == 0
    assert run("rlstudio", "resume", folder / "asked", "--quiet").returncode == 0
    kept = json.loads((folder / "asked" / "evaluations.json").read_text())
    assert [(e["greedy"], len(e["returns"])) for e in kept if not e["greedy"]] == [(False, 4)]
    assert {(e["greedy"], len(e["returns"])) for e in kept if e["greedy"]} == {(True, 5)} and kept[-1]["env_steps"] == 20480


@pytest.mark.faults(16)
def test_damaged_files_are_named(folder: Path, reference: dict[str, Any]) -> None:
    (broken := folder / "broken").mkdir()
    (broken / "config.yaml").write_bytes((Path(reference["run"]) / "config.yaml").read_bytes())
    (broken / "manifest.json").write_text('{"status": ')
    for command in ("show", "resume", "evaluate"):
        done = run("rlstudio", command, broken)
        assert done.returncode == 2 and "manifest.json: damaged" in done.stderr and "Traceback" not in done.stderr, said(done)
    listed = run("rlstudio", "list", "runs", "--runs-dir", folder)
    assert listed.returncode == 0 and "damaged" in listed.stdout and "reference" in listed.stdout, said(listed)


def test_mistakes_in_the_settings(tmp_path: Path) -> None:
    "A bad settings.ini is explained before a run's folder is made"
    for text, word in (("sinks = csv\n", "csv"), ("device = cuda\n" if not torch.cuda.is_available() else "device = cuda:99\n", "device"),
                       ("sinx = jsonl\n", "sinks")):
        (tmp_path / "settings.ini").write_text("[DEFAULT]\n" + text)
        done = run("rlstudio", "run", CARTPOLE, *SHORT, cwd=tmp_path)
        assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr, said(done)
        assert not (tmp_path / "runs").exists()


@pytest.mark.faults(3)
def test_terminated_while_evaluating(folder: Path) -> None:
    "What was learned is on disk, and the run says who interrupted it"
    command = ["rlstudio", "run", str(CARTPOLE), *SHORT, "eval.episodes=200000", "--runs-dir", str(folder), "--name", "evaluating"]
    child = subprocess.Popen(command, env=child_env(coverage=False), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while child.poll() is None and not (folder / "evaluating" / "checkpoints" / "step_000000020480").exists(): time.sleep(0.01)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    try: said_, _ = child.communicate(timeout=60)
    finally: child.kill()
    assert child.returncode == 143 and "Traceback" not in said_, said_
    assert json.loads((folder / "evaluating" / "manifest.json").read_text())["stopped_by"] == "SIGTERM"


def test_ascii_streams(folder: Path, reference: dict[str, Any]) -> None:
    done = run("rlstudio", "show", reference["run"], PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "+-" in done.stdout, said(done)


def test_a_stop_that_comes_with_the_last_step(tmp_path: Path) -> None:
    "It is not swallowed, and the run is completed later"
    from rlstudio.runs.run import Run
    from rlstudio.train.trainer import Callback, Trainer

    class Late(Callback):
        def on_train_end(self, trainer: Trainer) -> None: trainer.stop("SIGTERM", interrupt=True)

    run_ = Run.from_config("ppo/cartpole", ["train.total_steps=1024", "eval.episodes=2"], runs_dir=tmp_path)
    assert run_.train([Late()])["status"] == "interrupted" and run_.manifest["stopped_by"] == "SIGTERM"
    again = Run.open(run_.folder)
    assert again.train()["status"] == "completed" and again.manifest["status"] == "completed"


@pytest.mark.faults(21)
@pytest.mark.parametrize("name", ["ppo-completed", "dqn-interrupted", "sac-interrupted"])
def test_runs_of_version_1(tmp_path: Path, name: str) -> None:
    "A run of before the contracts changed is shown and listed; to go on with it is refused, and nothing in it is touched"
    old = tmp_path / name
    shutil.copytree(ROOT / "tests/fixtures/v1" / name, old)
    before = snapshot(old)
    for command in ("resume", "evaluate"):
        done = run("rlstudio", command, old)
        assert done.returncode == 2 and "made by an older RLStudio" in done.stderr and "Traceback" not in done.stderr, said(done)
    assert snapshot(old) == before
    for command in (("show", old), ("list", "runs", "--runs-dir", tmp_path)):
        done = run("rlstudio", *command)
        assert done.returncode == 0 and name in done.stdout and "damaged" not in done.stdout, said(done)


def test_the_engine_is_a_setting(tmp_path: Path) -> None:
    "It is noted in the manifest; in a config it is refused, with the place where it belongs"
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nengine = autograd\n")
    done = run("rlstudio", "run", CARTPOLE, "train.total_steps=512", "eval.episodes=0", "--quiet", "--name", "a", cwd=tmp_path)
    assert done.returncode == 0, said(done)
    manifest = json.loads((tmp_path / "runs/a/manifest.json").read_text())
    assert (manifest["engine"], manifest["machine"]["engine"]) == ("autograd", "autograd") and manifest["engine_why"]
    done = run("rlstudio", "run", CARTPOLE, "algo.engine=torch", cwd=tmp_path)
    assert done.returncode == 2 and "algo.engine: no key of a config any more" in done.stderr and "settings.ini" in done.stderr, said(done)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nengine = numpy\n")
    done = run("rlstudio", "run", CARTPOLE, cwd=tmp_path)
    assert done.returncode == 2 and "settings.ini:2:1: engine: given 'numpy', no engine; expected one of: auto, autograd, compiled, graphs, portable, tape" in done.stderr, said(done)


def test_what_each_algorithm_is_for() -> None:
    rows = {r["name"]: r for r in json.loads(run("rlstudio", "list", "algos", "--json").stdout)["algos"]}
    assert "discrete" in rows["dqn"]["actions"].split() and rows["sac"]["actions"] == "box"
    assert all(r["about"] for r in rows.values())


def test_the_curve_shows_every_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rlstudio.runs.run as chapter
    drawn, draw = list[list[int]](), chapter.learning_curve
    def watched(history: Any, evaluations: Any, *rest: Any) -> Any:
        drawn.append([e["env_steps"] for e in evaluations])
        return draw(history, evaluations, *rest)
    monkeypatch.setattr(chapter, "learning_curve", watched)
    chapter.Run.from_config("ppo/cartpole", ["train.total_steps=4096", "eval.every=1024", "eval.episodes=2"], runs_dir=tmp_path).train()
    assert drawn == [[1024, 2048, 3072, 4096]]


@pytest.mark.parametrize(("args", "word"), [
    (["run", CARTPOLE, "--name", ""], "for --name"), (["run", CARTPOLE, "--from="], "for --from"), (["study", CARTPOLE, "--seeds", ""], "for --seeds"),
    (["report", "a", "--out", ""], "for --out"), (["show", ""], "given an empty text,"), (["run", CARTPOLE, ""], "given an empty text,")])
def test_an_empty_argument_is_a_variable_that_was_never_set(args: list[object], word: str, tmp_path: Path) -> None:
    assert word in " ".join(refused(*args, cwd=tmp_path).replace("│", " ").split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("args", "word"), [
    (["run", "c.toml"], "c.toml:1:1: given TOML, expected YAML"), (["run", "d.yaml"], "d.yaml: no such file; did you mean 'do.yaml'?"),
    (["run", CARTPOLE, "dqn/cartpole"], "several configs are a study: rlstudio study CONFIG CONFIG"), (["run", CARTPOLE, "--device=gpu"], "--device: given 'gpu', expected cpu, mps, cuda, or cuda:1 and so on; did you mean 'cuda'?"),
    (["run", CARTPOLE, "train.steps=1000"], "write train.total_steps=1000"), (["run", CARTPOLE, "net.width=8"], "net.width: unknown key; here it is net.hidden=[64, 64]"),
    (["run", CARTPOLE, "foo.bar=1"], "override 'foo.bar=1': foo: unknown section"), (["run", CARTPOLE, "env.kwargs.gravity=3"], "override 'env.kwargs.gravity=3': env.kwargs: CartPole-v1: given kwargs gravity"),
    (["run", CARTPOLE, "enviroment.id=Acrobot-v1"], "enviroment: unknown section; did you mean 'env'?"), (["run", "do.yaml"], "do.yaml:1:1: algorithm: unknown section; did you mean 'algo'?")])
def test_what_a_newcomer_types_is_answered_with_what_was_meant(args: list[object], word: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[env]\nid = "CartPole-v1"\n')
    (tmp_path / "do.yaml").write_text("algorithm: {name: ppo}\n")
    answer = refused(*args, cwd=tmp_path)
    assert word in answer, answer


def test_a_key_that_stands_twice_in_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nengine = tape\nengine = auto\n")
    assert "settings.ini:3:1: engine: written twice; remove one" in refused("list", "runs", cwd=tmp_path)


def test_an_error_in_an_algorithm_of_the_user_is_one_line(tmp_path: Path) -> None:
    "With its place, and without sixty lines of frames"
    (tmp_path / "own_algo.py").write_text("from rlstudio.algos.ppo import PPO\nfrom rlstudio.core.registry import algos\n@algos.register('mine')\nclass Mine(PPO):\n"
                                          "    def losses(self, b): yield 'agent', b.nothing, {}\n@algos.register('late')\nclass Late(PPO):\n    def update(self, *args): return 1 / 0\n")
    for name, word in (("mine", "(own_algo.py, line 5)"), ("late", "ZeroDivisionError: division by zero (own_algo.py, line 8)")):
        done = run("rlstudio", "run", CARTPOLE, "--import=own_algo", f"algo.name={name}", *SHORT, cwd=tmp_path)
        assert done.returncode == 1 and word in done.stderr and "Traceback" not in done.stderr, said(done)


def test_where_runs_may_live(tmp_path: Path) -> None:
    "A file in the way of the folder is named at once; ~ is the home also where the shell leaves it"
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place in ("file", "nowhere"):
        text = refused("run", CARTPOLE, *SHORT, f"--runs-dir={place}", cwd=tmp_path)
        assert f"{place}: cannot make a run here (it is no folder)" in text
    (tmp_path / "home" / "runs").mkdir(parents=True)
    done = run("rlstudio", "list", "runs", "--runs-dir=~/runs", cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert done.returncode == 0 and "no runs here" in done.stdout
    for name in ("~nobody-here/c.yaml", "~nobody-here"): assert "no such file" in refused("run", name, cwd=tmp_path)
    assert "not a run" in refused("show", "~nobody-here/a", cwd=tmp_path)


def test_what_is_there_is_not_called_missing(tmp_path: Path) -> None:
    "A config that is a pipe or a folder; a run whose config is one; a study in the place of a run"
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "a" / "config.yaml").mkdir(parents=True)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.yaml").touch()
    assert "a folder without a config.yaml, a pipe" in refused("run", "pipe.yaml", cwd=tmp_path)
    assert "its config.yaml is a link, a pipe or a folder" in refused("verify", "a", cwd=tmp_path)
    assert "s: a study, expected one of its runs" in refused("verify", "s", cwd=tmp_path)
    assert "train.seed=…" in refused("run", CARTPOLE, "--train.seed=3", cwd=tmp_path)
    assert "write --import my_env" in refused("run", CARTPOLE, "--import", "a b", cwd=tmp_path)


def test_a_file_that_cannot_be_written_is_told_first(folder: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    "Before seconds of work; a device or a pipe is never replaced"
    os.mkfifo(tmp_path / "pipe")
    for args in (["drift", "--record", "no/x.json"], ["table", "--csv", "no/x.csv"], ["table", "--csv", "pipe"], ["report", reference["run"], "--out", "pipe"]):
        assert "no folder" in (text := " ".join(refused(*args, cwd=tmp_path).replace("│", " ").split())) or "a device or a pipe" in text
    from rlstudio.core.files import FileError, put_file
    try: os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError: return   # only root may make one, and only root could lose one
    with pytest.raises(FileError, match="a device"): put_file(tmp_path / "null", b"")
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)


def test_standard_output_closed_or_full(folder: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    "Closed: nobody wants to read. Full: what was printed is not whole, and the exit code says so"
    command = shlex.join([sys.executable, "-c", "from rlstudio.studio.cli import main; main()", "table", reference["run"], "--csv", "-"])
    for end, code in ((">&-", 0), ("> /dev/full", 1), (">&- <&-", 0), ("> /dev/null 2>&-", 0)):
        done = subprocess.run(["sh", "-c", f"{command} {end}"], cwd=tmp_path, capture_output=True, text=True, env=child_env())
        assert done.returncode == code and "Traceback" not in done.stderr, said(done)
        assert ("not all was printed (No space left on device)" in done.stderr) == (code == 1)


def test_the_current_folder_is_gone(folder: Path, tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-c", "from rlstudio.studio.cli import main; main()", "show", str(folder)])
    done = subprocess.run(["sh", "-c", f"mkdir gone; cd gone; rmdir ../gone; {command}"], cwd=tmp_path, capture_output=True, text=True, env=child_env())
    assert done.returncode == 2 and "the current folder is gone" in done.stderr, said(done)


def test_settings_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_bytes(b"\xef\xbb\xbf[DEFAULT]\nthreads = 1\n")
    assert "settings.ini:1:1: given a byte order mark" in refused("list", "runs", cwd=tmp_path)
