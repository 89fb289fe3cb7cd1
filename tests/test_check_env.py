"The env checker: small broken worlds, each with the right finding, and the real ones without a problem; a run of a broken one is refused."
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from support import run, said
from typer.testing import CliRunner

from rlstudio.core.options import EnvConfig
from rlstudio.envs.backends import InProcess
from rlstudio.envs.check import EnvReport, Finding, check_env, check_start
from rlstudio.envs.make import EnvError, env_ids, make_env
from rlstudio.runs.config import load_config
from rlstudio.runs.run import Run
from rlstudio.studio.cli import app


class World(gym.Env[Any, Any]):
    "A number that is drawn anew at each step; ten steps an episode. What is broken overrides one method"
    observation_space: gym.Space[Any] = Box(-1, 1, (2,))
    action_space: gym.Space[Any] = Discrete(3)

    def obs(self) -> Any: return self.np_random.uniform(-1, 1, 2).astype(np.float32)
    def reward(self) -> Any: return 1.
    def ends(self) -> tuple[Any, Any]: return self.age == 10, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.age = 0
        return self.obs(), {}

    def step(self, action: Any) -> Any:
        self.age += 1
        return self.obs(), self.reward(), *self.ends(), {}


def world(**parts: Any) -> str:
    "The id of a world with some parts exchanged"
    return register(type("Broken", (World,), parts))


def register(make: Callable[[], Any]) -> str:
    id = f"check/World{len(gym.registry)}-v0"
    gym.register(id, entry_point=make)
    return id


def find(report: EnvReport, status: str, check: str) -> Finding:
    found = [f for f in report.findings if (f.status, f.check) == (status, check)]
    assert found, str(report)
    return found[0]


@pytest.mark.parametrize("missing, tells", [(True, "action_mask: given none in step 1 with action"), (False, "action_mask: given no legal option for choice 0 in step 1 with action")])
def test_a_mask_that_is_missing_or_empty_is_told_before_a_training(missing: bool, tells: str) -> None:
    "Also where only the first reset has one; and what the check says of itself is no exception of the env"
    def step(self: Any, action: Any) -> Any: return *World.step(self, action)[:4], {} if missing else dict(action_mask=[0, 0, 0])
    def reset(self: Any, *, seed: Any = None, options: Any = None) -> Any: return World.reset(self, seed=seed)[0], dict(action_mask=[1, 1, 1])
    with pytest.raises(EnvError) as e: check_start(EnvConfig(id=world(step=step, reset=reset)))
    assert tells in str(e.value) and "exception" not in str(e.value) and str(e.value).count("; fix: ") == 1


def test_an_error_of_the_users_code_names_its_line() -> None:
    "Its own, not that of the library in which it ended"
    def step(self: Any, action: Any) -> Any: return np.zeros(2).reshape(7)
    def step_deep(self: Any, action: Any) -> Any: return json.loads("{")
    for ill in step, step_deep:
        with pytest.raises(EnvError, match=rf"\(test_check_env.py, line {ill.__code__.co_firstlineno}\) in step 1 with action"): check_start(EnvConfig(id=world(step=ill)))
        env = InProcess(EnvConfig(id=world(step=ill), num_envs=1))
        env.reset([0])
        with pytest.raises(EnvError, match=rf"sub-env 0 failed in step 1 with action 0: .*\(test_check_env.py, line {ill.__code__.co_firstlineno}\)$"): env.step(np.array([0]))
    def init(self: Any, render_mode: Any = None) -> None: raise OSError("no table")
    with pytest.raises(EnvError, match=rf"cannot be made with {{}}: no table \(test_check_env.py, line {init.__code__.co_firstlineno}\)"): make_env(EnvConfig(id=world(__init__=init)))


def test_a_reset_that_fails_after_an_episode_is_called_so() -> None:
    def reset(self: Any, *, seed: Any = None, options: Any = None) -> Any:
        if seed is None: raise OSError("socket closed")
        return World.reset(self, seed=seed)
    env = InProcess(EnvConfig(id=world(reset=reset), num_envs=1))
    env.reset([0])
    with pytest.raises(EnvError, match="sub-env 0 failed in the reset after an episode: OSError: socket closed"):
        for _ in range(20): env.step(np.array([0]))


def seeded(self: Any, seed: int | None) -> None: gym.Env.reset(self, seed=seed); self.age = 0


def no_pair(self: Any, *, seed: Any = None, options: Any = None) -> Any: return World.reset(self, seed=seed)[0]
def no_seed(self: Any) -> Any: return World.reset(self)
def four(self: Any, action: Any) -> Any: return self.obs(), 1., False, {}
def leaves_early(self: Any, action: Any) -> Any: sys.exit(0)
def raises(self: Any, action: Any) -> Any: return {}["key"]
def bad_info(self: Any, action: Any) -> Any: return self.obs(), 1., False, False, None
def escape(self: Any, action: Any) -> Any: raise ValueError("\x1b[31mred")
def fails(self: Any, **_: Any) -> Any: raise OSError("no display")


def own_generator(self: Any, *, seed: Any = None, options: Any = None) -> Any:
    self.np_random = np.random.RandomState(seed)
    self.age = 0
    return self.obs(), {}


def ignores(self: Any, *, seed: Any = None, options: Any = None) -> Any:
    self.age, self.rng = 0, np.random.default_rng()
    return self.rng.uniform(-1, 1, 2).astype(np.float32), {}


def later(self: Any, action: Any) -> Any:
    "Random from the third step on, whatever the seed"
    out = World.step(self, action)
    return (out[0] if self.age < 3 else np.random.default_rng().uniform(-1, 1, 2).astype(np.float32), *out[1:])


PROBLEMS: dict[str, tuple[dict[str, Any], str, str, str]] = {  # name → parts, check, given, fix
    "obs: shape": (dict(obs=lambda s: np.zeros(3, np.float32)), "observation", "float32 of shape (3,)", "reshape"),
    "obs: int for float": (dict(obs=lambda s: np.zeros(2, int)), "observation", "int64", "astype(np.float32)"),
    "obs: float for bytes": (dict(observation_space=Box(0, 255, (2,), np.uint8)), "observation", "float32", "astype(np.uint8)"),
    "obs: outside": (dict(obs=lambda s: np.array([0, 7], np.float32)), "observation", "7.0 at [1]", "widen the space"),
    "obs: nan": (dict(obs=lambda s: np.array([0, np.nan], np.float32)), "observation", "nan at [1]", "look"),
    "obs: inf": (dict(observation_space=Box(-np.inf, np.inf, (2,)), obs=lambda s: np.array([0, np.inf], np.float32)), "observation", "inf at [1]", "look"),
    "obs: list": (dict(obs=lambda s: [0., 0.]), "observation", "[0.0, 0.0] (list)", "np.asarray"),
    "obs: none": (dict(obs=lambda s: None), "observation", "None", "np.asarray"),
    "obs: choice": (dict(observation_space=Discrete(3), obs=lambda s: 3), "observation", "3", "widen"),
    "obs: choice as float": (dict(observation_space=Discrete(3), obs=lambda s: np.float32(1)), "observation", "float32", "astype(np.int64)"),
    "obs: choices": (dict(observation_space=MultiDiscrete([2, 3]), obs=lambda s: np.array([0, 3])), "observation", "3 at [1]", "widen"),
    "obs: switches": (dict(observation_space=MultiBinary(2), obs=lambda s: np.array([0, 2], np.int8)), "observation", "2 at [1]", "widen"),
    "obs: leaf of a dict": (dict(observation_space=Dict(a=Box(0, 1, (1,)), b=Dict(c=Discrete(2))),
                                 obs=lambda s: dict(a=np.zeros(1, np.float32), b=dict(c=5))), "observation.b.c", "5", "widen"),
    "obs: keys of a dict": (dict(observation_space=Dict(a=Discrete(2)), obs=lambda s: dict(b=0)), "observation", "dict of ['b']", "these"),
    "obs: leaf of a tuple": (dict(observation_space=Tuple([Discrete(2), Box(0, 1, (1,))]), obs=lambda s: (1, np.zeros(2, np.float32))),
                             "observation.1", "shape (2,)", "reshape"),
    "obs: text space": (dict(observation_space=Text(3), obs=lambda s: "abc"), "spaces", "Text space", "leave this entry"),
    "reward: text": (dict(reward=lambda s: "1.5"), "reward", "'1.5' (str)", "float(reward)"),
    "reward: array": (dict(reward=lambda s: np.ones(1)), "reward", "float64 of shape (1,)", "float(reward)"),
    "reward: none": (dict(reward=lambda s: None), "reward", "None", "float(reward)"),
    "reward: nan": (dict(reward=lambda s: float("nan")), "reward", "nan", "look"),
    "terminated: text": (dict(ends=lambda s: ("no", False)), "terminated", "'no' (str)", "bool(terminated)"),
    "truncated: none": (dict(ends=lambda s: (False, None)), "truncated", "None", "bool(truncated)"),
    "info": (dict(step=bad_info), "info", "None", "return {}"),
    "step of four": (dict(step=four), "step", "4 values", "terminated, truncated, info"),
    "step raises": (dict(step=raises), "step", "KeyError: 'key'", "look"),
    "step exits": (dict(step=leaves_early), "step", "sys.exit", "raise an error"),
    "step with escapes": (dict(step=escape), "step", r"\x1b[31mred", "look"),
    "reset without the pair": (dict(reset=no_pair), "reset", "float32 of shape (2,)", "return observation, {}"),
    "reset without seed": (dict(reset=no_seed), "reset", "TypeError", "def reset(self, *, seed=None, options=None)"),
    "reset fails": (dict(reset=fails), "reset", "OSError: no display", "look"),
    "old generator": (dict(reset=own_generator), "np_random", "RandomState", "super().reset(seed=seed)"),
    "seed ignored": (dict(reset=ignores), "seed", "two first observations", "super().reset(seed=seed)"),
    "not determined": (dict(step=later), "determinism", "two futures", "self.np_random"),
    "no algorithm": (dict(action_space=Text(3)), "spaces", "Text", "wrap the env"),
}


def guessed(self: Any, action: Any) -> Any:
    "Was the action the number that the env drew?"
    self.age += 1
    return np.zeros(2, np.float32), float(action == self.np_random.integers(3)), self.age == 10, False, {}


def start(self: Any, *, seed: int | None = None, options: Any = None) -> Any: seeded(self, seed); return np.zeros(2, np.float32), {}


def test_random_actions_have_dice_of_their_own() -> None:
    "An env that draws from as many numbers as there are actions is guessed a third of the time, not always"
    assert .2 < check_env(world(reset=start, step=guessed), 300).numbers["reward"]["mean"] < .5


@pytest.mark.faults(28, 30)
@pytest.mark.parametrize("name", PROBLEMS)
def test_problems(name: str) -> None:
    "One finding names what was given and the fix, and the report is no longer ok"
    parts, check, given, fix = PROBLEMS[name]
    report = check_env(world(**parts), 40)
    found = find(report, "problem", check)
    assert given in found.given and fix in found.fix and not report.ok and found in report.problems, str(report)
    assert json.dumps(report.to_dict(), allow_nan=False) and str(found) in str(report) and "|" in report._repr_markdown_()


@pytest.mark.faults(28)
@pytest.mark.parametrize("name", [n for n in PROBLEMS if n not in ("seed ignored", "not determined")])
def test_such_a_run_is_refused(name: str, tmp_path: Path) -> None:
    "Before a folder is made, with the env's name and the same words"
    parts, check, given, fix = PROBLEMS[name]
    path = tmp_path / "bad.yaml"
    path.write_text(f"env: {{id: {(id := world(**parts))}, num_envs: 2}}\nalgo: {{name: ppo, num_steps: 8}}\n")
    with pytest.raises(ValueError) as e: Run.from_config(path, runs_dir=tmp_path / "runs")
    assert id in str(e.value) or "bad.yaml" in str(e.value)
    assert not (tmp_path / "runs").exists() and "\x1b" not in str(e.value)
    if name.split(":")[0] in ("reward", "terminated", "truncated", "info"): assert given in str(e.value) and fix in str(e.value)


def one_array() -> Callable[[Any], Any]:
    kept = np.zeros(2, np.float32)
    def obs(self: Any) -> Any:
        kept[:] = self.np_random.uniform(-1, 1, 2)
        return kept
    return obs


def remembers(self: Any, *, seed: Any = None, options: Any = None) -> Any:
    out = World.reset(self, seed=seed)
    self.count = getattr(self, "count", 0) + 1
    return out[0] * 0 + np.float32(min(1, self.count / 100)), out[1]


def fresh_generator(self: Any, *, seed: Any = None, options: Any = None) -> Any:
    self.age = 0
    return np.zeros(2, np.float32), {}


WARNINGS: dict[str, tuple[dict[str, Any], str, str]] = {  # name → parts, check, given
    "obs: rounding": (dict(obs=lambda s: np.array([0, 1.00001], np.float32)), "observation", "1.00001"),
    "obs: double": (dict(obs=lambda s: s.np_random.uniform(-1, 1, 2)), "observation", "float64"),
    "obs: constant": (dict(obs=lambda s: np.zeros(2, np.float32)), "observation", "the same value"),
    "obs: one array": (dict(obs=one_array()), "observation", "the same array again"),
    "nan after the end": (dict(obs=lambda s: np.full(2, np.nan if s.age == 10 else s.np_random.uniform(), np.float32)), "observation", "nan"),
    "reward: bool": (dict(reward=lambda s: True), "reward", "True (bool)"),
    "terminated: int": (dict(ends=lambda s: (int(s.age == 10), False)), "terminated", "0 (int)"),
    "python's generator": (dict(reward=lambda s: random.random() * 0), "generators", "random"),
    "numpy's generator": (dict(reward=lambda s: np.random.rand() * 0), "generators", "numpy.random"),  # noqa: NPY002
    "never ends": (dict(ends=lambda s: (False, False)), "ends", "no end in 40 steps"),
    "remembers": (dict(reset=remembers), "memory", "another future"),
    "generator not seeded": (dict(reset=fresh_generator, obs=lambda s: np.full(2, s.age / 10, np.float32)), "seed", "self.np_random"),
    "boundary": (dict(reward=lambda s: np.random.rand() * 0), "snapshot", "boundary"),  # noqa: NPY002
    "render": (dict(metadata={"render_modes": ["rgb_array"]}, __init__=lambda s, render_mode=None: None, render=lambda s: 1 / 0), "render", "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings(name: str) -> None:
    "It trains, but something is worse than it could be: a warning, and no problem"
    parts, check, given = WARNINGS[name]
    report = check_env(world(**parts), 40)
    found = find(report, "warning", check)
    assert given in found.given and found.fix and report.ok and report.config, str(report)


@pytest.mark.faults(31)
def test_torchs_generator_is_watched() -> None:
    import torch
    found = find(check_env(world(reward=lambda s: float(torch.rand(()))), 5), "warning", "generators")
    assert "torch" in found.given


def test_wrapped_in_a_normaliser() -> None:
    "Its statistics would differ from copy to copy; the key that does it right is named, also when a run starts"
    id = register(lambda: gym.wrappers.NormalizeObservation(World()))
    assert "net.normalize_obs: true" in find(check_env(id, 40), "problem", "making").given
    with pytest.raises(EnvError, match="NormalizeObservation.*net.normalize_obs: true"): check_start(EnvConfig(id=id))


def test_a_good_world_is_quiet(recwarn: pytest.WarningsRecorder) -> None:
    report = check_env(world(), 200)
    assert report.ok and not report.problems and not report.warnings, str(report)
    assert report.numbers["episodes"] == 20 and report.numbers["ends"] == dict(terminated=20, truncated=0)
    assert report.numbers["reward"] == dict(min=1, mean=1, max=1) and report.numbers["episode_length"]["mean"] == 10
    check_start(EnvConfig(id=world()))
    assert not recwarn.list


def test_seeds_and_steps_are_named() -> None:
    def step(self: Any, action: Any) -> Any:
        if self.age == 2: raise ZeroDivisionError("gears collided")
        return World.step(self, action)
    found = find(check_env(world(step=step), 40), "problem", "step")
    assert found.where.startswith("step 3 with action ") and "ZeroDivisionError: gears collided" in found.given


@pytest.mark.parametrize("sort", ["info", "method", "dict"])
def test_masked_actions_stay_legal(sort: str) -> None:
    "An illegal action would be an error in this world"
    def legal(self: Any) -> Any: return np.array([self.age % 2, 1 - self.age % 2, 0], np.int8)
    def step(self: Any, action: Any) -> Any:
        assert legal(self)[action], "an illegal action"
        obs, *rest, _ = World.step(self, action)
        return obs, *rest, dict(action_mask=legal(self)) if sort == "info" else {}
    def reset(self: Any, *, seed: Any = None, options: Any = None) -> Any:
        return World.reset(self, seed=seed)[0], dict(action_mask=legal(self)) if sort == "info" else {}
    parts: dict[str, Any] = dict(step=step, reset=reset)
    if sort == "method": parts |= dict(action_masks=legal)
    if sort == "dict": parts |= dict(observation_space=Dict(x=Box(-1, 1, (2,)), action_mask=MultiBinary(3)),
                                     obs=lambda s: dict(x=World.obs(s), action_mask=legal(s)))
    report = check_env(world(**parts), 40)
    assert not [f for f in report.problems if f.check == "step"], str(report)


def test_mistakes_of_the_caller_are_errors() -> None:
    with pytest.raises(EnvError, match="unknown environment"): check_env("CartPol-v1")
    with pytest.raises(EnvError, match="kwargs speed"): check_env(EnvConfig(id="CartPole-v1", kwargs=dict(speed=1)))


def test_an_env_that_cannot_be_made() -> None:
    def make() -> Any: raise FileNotFoundError("level.txt")
    assert "level.txt" in find(check_env(register(make), 5), "problem", "making").given


# Real worlds

@pytest.mark.parametrize("id", [i for i in env_ids() if not i.startswith("ALE/")])
def test_every_installed_world(id: str) -> None:
    report = check_env(id, 10)
    assert report.ok and report.config, str(report)


@pytest.mark.parametrize("id", [i for i in env_ids() if i == "ALE/Pong-v5"])
def test_atari(id: str) -> None: assert check_env(id, 3).ok


@pytest.mark.filterwarnings("ignore:no video")
@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "CliffWalking-v1", "rlstudio/Identity-v0", "rlstudio/BitFlip-v0"])
def test_the_starting_config_runs(id: str, tmp_path: Path) -> None:
    (tmp_path / "start.yaml").write_text(check_env(id, 20).config)
    config, _ = load_config(tmp_path / "start.yaml")
    assert config.train.total_steps >= 50_000 and config.env.id == id
    done = Run.from_config(tmp_path / "start.yaml", ["train.total_steps=1200", "eval.episodes=0"], tmp_path).train()
    assert done["status"] == "completed"


def test_the_starting_config_keeps_what_was_asked() -> None:
    report = check_env(EnvConfig(id="rlstudio/Bandit-v0", kwargs=dict(means=[0, 1], std=0.), max_episode_steps=5), 20)
    assert "means:" in report.config and "max_episode_steps: 5" in report.config


# The command line

class Odd(World):
    "Misbehaves after some steps, as its argument says"
    observation_space = Box(-1, 1, (2,))
    def __init__(self, trouble: str = "", after: int = 0) -> None: self.trouble, self.after, self.total = trouble, after, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.trouble == "reset": raise OSError("no display")
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.total += 1
        bad, (obs, reward, *ends, info) = self.trouble if self.total > self.after else "", super().step(action)
        if bad == "exit": sys.exit(0)
        if bad == "escape": raise ValueError("\x1b[31mred")
        if bad == "global": np.random.rand()  # noqa: NPY002
        if bad == "four": return obs, 1., False, {}
        return obs, {"reward": "1.5", "array": np.ones(1)}.get(bad, reward), "no" if bad == "flag" else ends[0], ends[1], info


if "Odd-v0" not in gym.registry: gym.register("Odd-v0", Odd)


def shell(*args: object) -> Any:
    "The command in this process, as a shell would see it"
    done = CliRunner().invoke(app, list(map(str, args)))
    assert "Traceback" not in done.output and "\x1b" not in done.output, done.output
    return done


def odd_run(folder: Path, trouble: str, after: int = 0) -> Any:
    (folder / "odd.yaml").write_text("env: {id: Odd-v0, num_envs: 2}\nalgo: {name: ppo, num_steps: 64}\ntrain: {total_steps: 512}\neval: {episodes: 2, num_envs: 2}\n")
    return shell("run", folder / "odd.yaml", f"env.kwargs.trouble={trouble}", f"env.kwargs.after={after}", "--runs-dir", folder / "runs", "--name", "odd", "--quiet")


def test_the_command_check_env() -> None:
    good, bad = shell("check-env", "Odd-v0", "--steps", 50), shell("check-env", "Odd-v0", "env.kwargs.trouble=reward", "--steps", 50, "--json")
    assert good.exit_code == 0 and "no problems" in good.stdout and "name: ppo" in good.stdout
    told = json.loads(bad.stdout)
    assert bad.exit_code == 1 and not told["ok"] and told["problems"][0]["check"] == "reward" and "'1.5'" in told["problems"][0]["given"]
    for args in (["Od-v0"], ["Odd-v0", "env.kwargs.troubl=1"], ["Odd-v0", "env.kwarg=1"], ["my_env:Odd-v0"]):
        assert shell("check-env", *args).exit_code == 2, args


def test_the_command_in_a_process() -> None:
    done = run("rlstudio", "check-env", "CartPole-v1", "--steps", "20", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ok"], said(done)


@pytest.mark.faults(24, 28)
@pytest.mark.parametrize("trouble, words", [("reset", "OSError: no display"), ("four", "4 values"), ("reward", "'1.5' (str)"), ("array", "float64 of shape (1,)"),
                                            ("flag", "'no' (str)"), ("escape", r"\x1b[31mred")])
def test_a_broken_env_is_refused(trouble: str, words: str, tmp_path: Path) -> None:
    "One message, exit code 2, no folder"
    done = odd_run(tmp_path, trouble)
    assert done.exit_code == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert "Odd-v0" in done.stderr and "odd.yaml:1:" in done.stderr and not (tmp_path / "runs").exists(), done.stderr


@pytest.mark.faults(26)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("after", [0, 30, 150])
def test_an_env_that_exits(after: int, tmp_path: Path) -> None:
    "sys.exit(0) in an env is a failure with env, step and action, whenever it happens"
    done = odd_run(tmp_path, "exit", after)
    assert done.exit_code == 1 and re.search(r"Odd-v0.* in step \d+ with action \d.*(SystemExit|sys.exit)|Odd-v0.*sys.exit.* in step \d+ with action \d", done.stderr), done.stderr


@pytest.mark.faults(28)
def test_late_mistakes_are_found_where_an_episode_ends(tmp_path: Path) -> None:
    "After the first steps, a look at each end is all that it costs"
    done = odd_run(tmp_path, "flag", 150)
    assert done.exit_code == 1 and "terminated: given 'no' (str), expected True or False" in done.stderr, done.stderr
    assert json.loads((tmp_path / "runs" / "odd" / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.faults(31)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("after", [0, 150])
def test_global_generators_lower_the_level(after: int, tmp_path: Path) -> None:
    "The env is named at the start; a draw that comes late is noticed while training"
    done = odd_run(tmp_path, "global", after)
    assert done.exit_code == 0 and "Odd-v0" in done.stderr and "numpy.random" in done.stderr, done.stderr
    manifest = json.loads((tmp_path / "runs" / "odd" / "manifest.json").read_text())
    assert manifest["level"] == "L1" and json.loads((tmp_path / "runs" / "odd" / "result.json").read_text())["level"] == "L1"
    saved = [json.loads(p.read_text()) for p in sorted((tmp_path / "runs" / "odd" / "checkpoints").glob("step_*/manifest.json"))]
    assert saved[-1]["meta"]["level"] == "L1", saved[-1].keys()
