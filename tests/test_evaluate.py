"Evaluation: its protocol, its options, several runs at once; what goes wrong with it never costs a training."
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import run, said

from rlstudio.core.options import EnvConfig, EvalConfig, config_from_dict
from rlstudio.core.registry import envs
from rlstudio.core.seeding import Streams
from rlstudio.runs.checkpoint import CheckpointError, checkpoints, load_checkpoint, save_checkpoint
from rlstudio.runs.config import Settings
from rlstudio.runs.folder import RunError
from rlstudio.runs.run import Run
from rlstudio.train.evaluate import EvalError, evaluate, untrained_score
from rlstudio.train.trainer import Trainer

SMALL = ["train.total_steps=4096", "checkpoint.every=1024", "checkpoint.keep=10", "eval.episodes=4", "eval.every=1024"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    r = Run.from_config("ppo/cartpole", SMALL, runs_dir=tmp_path_factory.mktemp("runs"), name="a")
    r.train()
    return r


# In Python

def test_the_options(trained: Run) -> None:
    base = trained.evaluate()
    assert base == trained.evaluate() and len(base.returns) == 4 and base.greedy and base.seed == 1
    assert len(trained.evaluate(episodes=7).returns) == 7 and trained.evaluate(episodes=7).returns[:4] == base.returns
    other = trained.evaluate(seed=5)
    assert other.seed == 5 and other.returns != base.returns and other == trained.evaluate(seed=5)
    assert not trained.evaluate(greedy=False).greedy
    with pytest.warns(UserWarning, match="no episode of the evaluation ended within 3 env steps"): short = trained.evaluate(max_steps=3)
    assert short.lengths == (3, 3, 3, 3) and short.cut == (0, 1, 2, 3) and "4 of them cut at 3 steps" in str(short)
    kept = trained.read("evaluations.json")
    assert {(e["seed"], len(e["returns"])) for e in kept} == {(1, 4), (1, 7), (5, 4)}


def test_the_weights_of_a_checkpoint(trained: Run) -> None:
    by_step = {s: trained.evaluate(checkpoint=s) for s in (0, 1024, 4096)}
    assert {s: e.env_steps for s, e in by_step.items()} == {0: 0, 1024: 1024, 4096: 4096} and by_step[4096] == trained.evaluate()
    scores = {e["env_steps"]: e["mean"] for e in trained.read("evaluations.json") if e["seed"] == 1 and len(e["returns"]) == 4 and e["greedy"] and not e["cut"]}
    best = trained.evaluate(checkpoint="best")
    assert best.mean == scores[best.env_steps] == max(v for k, v in scores.items() if k), "the same weights, the same episodes"
    for wrong in ("bset", 77, "-1"):
        with pytest.raises(CheckpointError, match=r"expected best or .*0, 1024, 2048, 3072, 4096"): trained.evaluate(checkpoint=wrong)


def test_a_film_on_demand(trained: Run) -> None:
    trained.evaluate(checkpoint=1024, video=True)
    assert (trained.folder / "videos/step_000000001024.webp").is_file()


# The protocol

def test_starts_are_apart_from_training() -> None:
    "No seed of an evaluation is one of a training, whatever the two seeds"
    trains = {Streams(s).seed("env", i) for s in range(20) for i in range(50)}
    judges = {Streams(s).seed("eval", i) for s in range(20) for i in range(50)}
    assert len(trains) == len(judges) == 1000 and not trains & judges


def test_the_untrained_score(trained: Run) -> None:
    noted, result = trained.manifest["untrained"], trained.read("result.json")
    config = trained.config
    again = untrained_score(Trainer(config).algo.module, config)
    assert (noted["mean"], noted["episodes"]) == (again.mean, 4) and result["untrained"] == noted["mean"]
    assert noted["mean"] == trained.evaluate(checkpoint=0, greedy=False).mean < 100, "that of the first checkpoint, sampled: greedy it would be 500, a whim of seed 1"
    assert noted["greedy"] is result["untrained_greedy"] is False and result["eval_greedy"] is True
    said_ = run("rlstudio", "show", trained.folder).stdout
    assert f"untrained {noted['mean']:,.1f} sampled" in said_ and "greedy episodes" in said_, "a sampled score beside a greedy verdict: each says what it is"


@pytest.mark.faults(28)
def test_nan_has_no_score(trained: Run, tmp_path: Path) -> None:
    newest = load_checkpoint(checkpoints(trained.folder / "checkpoints")[0])
    module = newest.state["algo"]["module"]
    name = next(k for k, v in module.items() if k.endswith("weight"))
    module[name].view(-1)[0] = float("nan")
    bad = tmp_path / "bad"
    for f in ("config.yaml", "manifest.json"):
        bad.mkdir(exist_ok=True)
        (bad / f).write_text((trained.folder / f).read_text())
    save_checkpoint(bad / "checkpoints", newest.step, newest.state, newest.meta)
    with pytest.raises(EvalError, match="NaN or infinity .*--checkpoint STEP"): Run.open(bad).evaluate()
    done = run("rlstudio", "evaluate", bad)
    assert done.returncode == 2 and "NaN or infinity" in done.stderr and "Traceback" not in done.stderr, said(done)


# Worlds that are no good

import gymnasium as gym  # noqa: E402


class Odd(gym.Env[np.ndarray, int]):
    "A bandit that can be drawn, never ends, or breaks where it is told to"
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, breaks: str = "", endless: bool = False, render_mode: str | None = None):
        self.breaks, self.endless, self.render_mode = breaks if render_mode or breaks == "judged" else "", endless, render_mode

    def bang(self, where: str) -> None:
        if self.breaks == where: raise SystemExit("no screen") if where == "close" else RuntimeError("no screen")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.bang("reset")
        if self.breaks == "judged": raise SystemExit(3)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.bang("step")
        return np.zeros(2, np.float32), 1., not self.endless, False, {}

    def render(self) -> Any: return np.zeros((20, 20, 3), np.uint8)
    def close(self) -> None: self.bang("close")


envs.add("Odd-v9", Odd)


def of_odd(tmp_path: Path, how: list[str]) -> tuple[Run, dict[str, Any], list[str]]:
    r = Run.from_config("ppo/cartpole", ["env.id=Odd-v9", "train.total_steps=2048", "env.num_envs=8", "algo.num_steps=128", "eval.episodes=2", *how],
                        runs_dir=tmp_path)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        summary = r.train()
    return r, summary, [str(w.message) for w in heard]


@pytest.mark.parametrize("where", ["reset", "step", "close"])
def test_a_render_mode_that_breaks_costs_the_film_only(tmp_path: Path, where: str) -> None:
    r, summary, heard = of_odd(tmp_path, [f"env.kwargs={{breaks: {where}}}"])
    assert summary["status"] == r.status == "completed" and r.read("result.json") == summary and summary["eval_episodes"] == 2
    assert [w for w in heard if w.startswith("no video: ")] == heard and len(heard) == 1, heard
    assert not (r.folder / "videos").exists()


def test_a_world_that_never_ends(tmp_path: Path) -> None:
    "Evaluated while training, at the end and on demand: cut, marked, with a warning"
    r, summary, heard = of_odd(tmp_path, ["env.kwargs={endless: true}", "eval.every=1024", "eval.max_steps=50"])
    assert summary["status"] == "completed" and (summary["eval_cut"], summary["eval_return_mean"]) == (2, 50.)
    assert heard and all("no episode of the evaluation ended within 50 env steps (eval.max_steps)" in w or w.startswith("no video") for w in heard), heard
    with pytest.warns(UserWarning, match="no episode of the evaluation ended within 20"): assert r.evaluate(max_steps=20).cut == (0, 1)


def test_a_world_that_cannot_be_judged(tmp_path: Path) -> None:
    "It even calls sys.exit: the training is complete, without a score"
    r, summary, heard = of_odd(tmp_path, ["env.eval_kwargs={breaks: judged}", "eval.every=1024"])
    assert summary["status"] == r.status == "completed" and summary["eval_return_mean"] is None and summary["untrained"] is None
    assert sum(w.startswith(("not evaluated", "the untrained agent was not evaluated")) for w in heard) >= 3, heard


def test_a_device_that_is_not_here(trained: Run) -> None:
    r = Run.open(trained.folder, settings=Settings(device="cuda"))
    import torch
    if torch.cuda.is_available(): pytest.skip("there is one")
    with pytest.raises(RunError, match="device cuda: .*; expected one that is here, such as cpu"): r.evaluate()


def test_an_endless_evaluation_in_python() -> None:
    config = config_from_dict(dict(env=dict(id="Odd-v9", kwargs=dict(endless=True)), algo=dict(name="ppo")))
    with pytest.warns(UserWarning, match="no episode"):
        e = evaluate(Trainer(config).algo.module, EnvConfig(id="Odd-v9", kwargs=dict(endless=True)), EvalConfig(episodes=3, max_steps=10))
    assert e.cut == (0, 1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(untrained_score(Trainer(config).algo.module, config).cut) == 5


# On the command line

def test_several_runs(trained: Run, tmp_path: Path) -> None:
    other = Run.from_config("ppo/cartpole", [*SMALL, "train.seed=2"], runs_dir=tmp_path, name="b")
    other.train()
    shown = run("rlstudio", "evaluate", trained.folder, other.folder, "--episodes", 3, "--seed", 9)
    lines = shown.stdout.splitlines()
    assert shown.returncode == 0 and re.match(r"run +env +total_steps +eval_return_mean", lines[0]) and len(lines) == 3, said(shown)
    done = run("rlstudio", "evaluate", trained.folder, other.folder, "--episodes", 3, "--seed", 9, "--json")
    rows = json.loads(done.stdout)
    assert [r["run"] for r in rows] == [str(trained.folder), str(other.folder)] and {r["eval_seed"] for r in rows} == {9}
    assert rows[0]["eval_return_mean"] == trained.evaluate(3, seed=9).mean


def test_options_on_the_command_line(trained: Run) -> None:
    done = run("rlstudio", "evaluate", trained.folder, "--episodes", 2, "--sampled", "--seed", 4, "--checkpoint", "best", "--max-steps", 5, "--video", "--json")
    row = json.loads(done.stdout)
    assert (row["eval_episodes"], row["greedy"], row["eval_seed"], row["eval_cut"]) == (2, False, 4, 2), said(done)
    assert (trained.folder / f"videos/step_{row['total_steps']:012d}.webp").is_file()
    for args, why in ((("--checkpoint", "bset"), "expected best or one of these steps"), (("--episodes", "0"), "--episodes")):
        wrong = run("rlstudio", "evaluate", trained.folder, *args)
        assert wrong.returncode == 2 and why in wrong.stderr and "Traceback" not in wrong.stderr, said(wrong)
