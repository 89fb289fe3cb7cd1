"A user's own environment, wrapper, network and algorithm, from a file in a folder: everything from the command line, and nothing imported that was not named."
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from support import child_env, run, said

from rlstudio.core import registry
from rlstudio.core.options import EnvConfig, config_from_dict, config_hash, diff
from rlstudio.core.registry import ModuleError, import_own
from rlstudio.envs.backends import make_vector
from rlstudio.envs.make import EnvError
from rlstudio.envs.snapshot import snapshot_level
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.run import Run, RunError
from rlstudio.train.trainer import Trainer

MY_ENV = '''
import gymnasium as gym
import numpy as np

from rlstudio.algos.ppo import PPO
from rlstudio.core.registry import algos, envs, nets, wrappers
from rlstudio.nets.encoders import Flat


class Walk(gym.Env):
    "Each step that ends right of the start pays one; the start and the wind are drawn"
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, size=5, wind=0.1, ill="", render_mode=None):
        self.size, self.wind, self.ill, self.render_mode = size, wind, ill, render_mode

    def fail(self, where):
        if self.render_mode and where in self.ill: raise OSError(f"no screen in {where}")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.fail("reset")
        self.at = (options or {}).get("start", int(self.np_random.integers(-1, 2)))
        return self.see(), {}

    def see(self): return np.array([self.at / self.size, 1], np.float32).clip(-1, 1)

    def step(self, action):
        self.fail("step")
        self.at += 1 if (action == 1) == (self.np_random.random() >= self.wind) else -1
        return self.see(), float(self.at > 0), abs(self.at) >= self.size, False, {}

    def render(self):
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[:, 8 + max(-7, min(7, self.at))] = 255
        return picture

    def close(self): self.fail("close")


gym.register("Walk-v0", Walk, max_episode_steps=50)

@envs.register("Plain-v0")
class Plain(Walk): pass

@envs.register("Made-v0")
def made(size=3, render_mode=None): return gym.wrappers.TimeLimit(Walk(size, render_mode=render_mode), 20)

@wrappers.register("Double")
class Double(gym.RewardWrapper):
    "Pays twice"
    def reward(self, reward): return 2 * reward

@algos.register("mine")
class Mine(PPO): "PPO under my name"

@nets.register("seen")
class Seen(Flat): "As it is"
'''
CONFIG = """\
env:
  id: Walk-v0
  num_envs: 4
  wrappers: [TimeAwareObservation, {name: FrameStackObservation, stack_size: 3}, Double]
algo: {name: mine, num_steps: 64}
net: {encoder: seen}
train: {total_steps: 6144}
eval: {episodes: 10}
checkpoint: {every: 512}
"""


@pytest.fixture(scope="module", autouse=True)
def forget_imports() -> Iterator[None]:
    "What is imported here shall not be noted by the runs of later tests"
    before = registry.imported()
    yield
    registry._imported[:] = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Where a new user works"
    path = tmp_path_factory.mktemp("work")
    (path / "my_env.py").write_text(MY_ENV)
    (path / "config.yaml").write_text(CONFIG)
    return path


def sh(folder: Path, *args: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
    "One command of the user"
    done = run("rlstudio", *args, cwd=folder)
    assert done.returncode == code and "Traceback" not in done.stdout + done.stderr, said(done)
    return done


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, Any]:
    "The uninterrupted run"
    facts: dict[str, Any] = json.loads(sh(folder, "run", "config.yaml", "--import", "my_env", "--name", "whole", "--json").stdout)
    return facts


# A shell session

def test_without_the_import(folder: Path) -> None:
    "Env, algorithm, network and wrapper are unknown, and each message says how to make them known"
    done = sh(folder, "run", "config.yaml", code=2)
    assert "unknown algorithm 'mine'" in done.stderr and "--import MODULE" in done.stderr and "settings.ini" in done.stderr
    for change, what in (("algo.name=ppo", "unknown environment 'Walk-v0'"), ("env.id=CartPole-v1", "unknown wrapper 'Double'"),
                         ("env.wrappers=[]", "unknown network 'seen'")):
        done = sh(folder, "run", "config.yaml", *(["algo.name=ppo"] + ["env.id=CartPole-v1"] * (change[:3] == "env") + [change]), code=2)
        assert what in done.stderr and "--import MODULE" in done.stderr, said(done)
    assert not (folder / "runs").exists()


def test_trained(folder: Path, reference: dict[str, Any]) -> None:
    assert reference["status"] == "completed" and reference["eval_return_mean"] > 60 and reference["level"] == "L3"
    manifest = json.loads((folder / "runs/whole/manifest.json").read_text())
    assert manifest["imports"] == reference["imports"] == ["my_env"]
    assert (folder / "runs/whole/videos/rollout.webp").is_file()
    assert "Double" in (folder / "runs/whole/config.yaml").read_text()
    assert "rlstudio evaluate runs/whole --import my_env" in sh(folder, "show", "runs/whole").stdout


@pytest.mark.faults(1)
def test_killed_and_resumed(folder: Path, reference: dict[str, Any]) -> None:
    "SIGKILL in the middle of episodes, then on with the same stacks, clocks and weights"
    child = subprocess.Popen(["rlstudio", "run", "config.yaml", "--import", "my_env", "--name", "killed"], cwd=folder,
                             env=child_env(coverage=False), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(list((folder / "runs/killed").glob("checkpoints/step_*"))) < 2: time.sleep(0.002)
    child.kill()
    child.wait()
    refused = sh(folder, "resume", "runs/killed", code=2)
    (again,) = re.findall(r"to the command: rlstudio (.*)", refused.stderr)
    assert again == "resume runs/killed --import my_env"
    done = json.loads(sh(folder, *again.split(), "--json").stdout)
    assert done["weights_sha256"] == reference["weights_sha256"] and done["eval_return_mean"] == reference["eval_return_mean"]


def test_evaluated(folder: Path, reference: dict[str, Any]) -> None:
    refused = sh(folder, "evaluate", "runs/whole", code=2)
    assert "rlstudio evaluate runs/whole --import my_env" in refused.stderr
    again = json.loads(sh(folder, "evaluate", "runs/whole", "--import", "my_env", "--json").stdout)
    assert again["eval_return_mean"] == reference["eval_return_mean"]


def test_settings_import_as_well(folder: Path, reference: dict[str, Any]) -> None:
    "From a folder below the workspace"
    (folder / "settings.ini").write_text("[DEFAULT]\nimports = my_env\n")
    (below := folder / "below").mkdir()
    try:
        done = json.loads(sh(below, "run", "../config.yaml", "--name", "settings", "--json").stdout)
        again = json.loads(sh(below, "evaluate", done["run"], "--json").stdout)
    finally: (folder / "settings.ini").unlink()
    assert done["weights_sha256"] == again["weights_sha256"] == reference["weights_sha256"]


@pytest.mark.parametrize("what, rows", [
    ("envs", ["Walk-v0 +my_env", "Plain-v0 +my_env", "CartPole-v1 +yes +gymnasium", "ALE/Pong-v5 +ale-py", "rlstudio/Chain-v0 +rlstudio"]),
    ("algos", ["mine +my_env", "ppo +rlstudio"]), ("nets", ["seen +my_env", "nature +rlstudio"]),
    ("wrappers", ["Double +my_env +Pays twice", "FrameStackObservation +gymnasium"])])
def test_listed_with_their_origin(folder: Path, what: str, rows: list[str]) -> None:
    listed = sh(folder, "list", what, "--import", "my_env").stdout
    for row in rows: assert re.search(f"^(?:{row})", listed, re.M), (row, listed)


def test_plain_classes_and_factories(folder: Path) -> None:
    "What is registered in `rlstudio.envs` needs no Gymnasium id, and runs in this process"
    for name in ("Plain-v0", "Made-v0"):
        done = json.loads(sh(folder, "run", "config.yaml", f"env.id={name}", "env.max_episode_steps=30", "train.total_steps=512",
                             "env.wrappers=[]", "--import", "my_env", "--json").stdout)
        manifest = json.loads(Path(folder, done["run"], "manifest.json").read_text())
        assert done["status"] == "completed" and manifest["env"]["backend"] == "inprocess" and manifest["level"] == "L3"
        assert Path(folder, done["run"], "videos/rollout.webp").is_file()


@pytest.mark.faults(19, 20)
def test_changed_code_lowers_the_level(folder: Path, tmp_path: Path) -> None:
    "The module is part of what a result depends on"
    for name in ("my_env.py", "config.yaml"): (tmp_path / name).write_text((folder / name).read_text())
    stop = "import os\nfrom rlstudio.runs.run import Run\nfrom rlstudio.core.registry import import_own\nimport_own('my_env')\n" + (
        "run = Run.from_config('config.yaml', name='a')\nclass Stop:\n    name = ''\n    def __getattr__(self, event):\n"
        "        return lambda trainer: trainer.stop('enough', interrupt=True) if event == 'on_iteration_end' else None\nprint(run.train([Stop()])['level'])")
    assert run(sys.executable, "-c", stop, cwd=tmp_path).stdout == "L3\n"
    with open(tmp_path / "my_env.py", "a") as f: f.write("\n# better now\n")
    done = sh(tmp_path, "resume", "runs/a", "--import", "my_env", "--json")
    assert json.loads(done.stdout)["level"] == "L1" and re.search("warning: resumed under other versions .module my_env: [0-9a-f]{12}, now", done.stderr), said(done)


# What can be wrong with a module

@pytest.mark.parametrize("name, code, why", [
    ("raises", "\n\n1 / 0", r"--import raises: the module failed: ZeroDivisionError: division by zero \(raises.py, line 3\)"),
    ("leaves", "import sys\nsys.exit(0)", r"--import leaves: the module failed: SystemExit: 0 \(leaves.py, line 2\)"),
    ("typo", "def f(:\n  pass", r"--import typo: the module failed: SyntaxError: .*typo.py, line 1"),
    ("needs", "import no_such_package", "No module named 'no_such_package'"),
    ("absent", None, "--import absent: no module 'absent' in .*, and none is installed"),
    ("a/b.py", None, "write --import b in the folder"), ("x; rm", None, "expected the name of a module")])
def test_bad_modules(tmp_path: Path, name: str, code: str | None, why: str) -> None:
    if code is not None: (tmp_path / f"{name}.py").write_text(code)
    done = sh(tmp_path, "run", "ppo/cartpole", "--import", name, "--quiet", code=2)
    assert re.search(why, done.stderr) and len(done.stderr.splitlines()) == 1 and not done.stdout, said(done)
    assert not (tmp_path / "runs").exists()


def test_what_a_module_prints_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("print('look at me')")
    done = sh(tmp_path, "list", "nets", "--import", "loud", "--json")
    assert json.loads(done.stdout)["nets"] and "look at me" in done.stderr


@pytest.mark.faults(35)
def test_foreign_folders_import_nothing(folder: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    "Neither a config nor a manifest can name code"
    (tmp_path / "trap.py").write_text("open('sprung', 'w')")
    (tmp_path / "config.yaml").write_text("env: {id: 'trap:Walk-v0'}\nalgo: {name: ppo}\n")
    done = sh(tmp_path, "run", "config.yaml", code=2)
    assert "write Walk-v0, and --import trap" in done.stderr
    (tmp_path / "config.yaml").write_text("imports: [trap]\nenv: {id: CartPole-v1}\nalgo: {name: ppo}\n")
    assert "unknown section" in sh(tmp_path, "run", "config.yaml", code=2).stderr
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "manifest.json"):
        text = (folder / "runs/whole" / name).read_text()
        (tmp_path / "run" / name).write_text(text.replace('"my_env"', '"trap", "$(touch sprung)", 7'))
    done = sh(tmp_path, "resume", "run", code=2)
    assert "rlstudio resume run --import trap\n" in done.stderr
    sh(tmp_path, "show", "run")
    assert not (tmp_path / "sprung").exists()


# Wrappers, options, evaluation

def ppo(**env: Any) -> dict[str, Any]:
    "A short training"
    return {"env": {"id": "CartPole-v1", "num_envs": 4} | env, "algo": {"name": "ppo", "num_steps": 40}, "train": {"total_steps": 1600}}


@pytest.mark.parametrize("wrappers", [["TimeAwareObservation"], [{"name": "FrameStackObservation", "stack_size": 4}], ["TimeAwareObservation",
                                      {"name": "FrameStackObservation", "stack_size": 2}], [{"name": "StickyAction", "repeat_action_probability": 0.25}],
                                      [{"name": "DelayObservation", "delay": 2}]])
def test_halves_make_a_whole(wrappers: list[Any]) -> None:
    "Stacks and clocks are part of the snapshot, in the middle of episodes"
    config = config_from_dict(ppo(wrappers=wrappers))
    whole, first, second = (Trainer(config) for _ in range(3))
    assert whole.env.level == "exact" and whole.env.backend == "inprocess"
    first.train(800)
    second.load_state_dict(first.state_dict())
    assert (second.stepper.seen.obs == first.stepper.seen.obs).all()
    hashes = [weights_sha256(t.train().algo.module) for t in (whole, second)]
    assert hashes[0] == hashes[1]


class Optional(gym.Env[np.ndarray, int]):
    "Starts where the options say"
    observation_space: Any = gym.spaces.Box(-100, 100, (1,), np.float32)
    action_space: Any = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = float((options or {}).pop("start", 0))
        return np.array([self.at], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at += 1
        return np.array([self.at], np.float32), 1.0, self.at % 5 == 0, False, {}


gym.register("test/Optional-v0", Optional)


@pytest.mark.parametrize("backend", ["auto", "gymnasium"])
def test_options_at_every_reset(backend: Any) -> None:
    "Also where an episode restarts within a step, and in the replay of a snapshot"
    env, twin = (make_vector(EnvConfig(id="test/Optional-v0", num_envs=2, backend=backend, reset_options={"start": 51})) for _ in range(2))
    env.reset([1, 2])
    seen = [env.step(np.zeros(2, np.int64)).obs[0, 0].item() for _ in range(6)]
    assert seen == [52, 53, 54, 51, 52, 53]
    if backend == "gymnasium": return
    twin.load_state_dict(env.state_dict())
    assert env.level == "exact" and (twin.obs == env.obs).all()
    assert make_vector(EnvConfig(id="CartPole-v1", reset_options={"low": -0.01, "high": 0.01})).reset([1] * 8).obs.max() <= 0.01


def test_judged_in_another_world(tmp_path: Path) -> None:
    config = ppo(kwargs={"sutton_barto_reward": False}, eval_kwargs={"sutton_barto_reward": True}) | {"eval": {"episodes": 5}}
    done = Run.from_config(config_from_dict(config), runs_dir=tmp_path)
    assert -1 <= done.train()["eval_return_mean"] <= 0 and done.history[-1]["episode/return_mean"] > 5
    with pytest.raises(ValueError, match=r"env.eval_kwargs: .*sutton"):
        Run.from_config(config_from_dict(ppo(eval_kwargs={"sutton": True})), runs_dir=tmp_path)


def test_endless_world(tmp_path: Path) -> None:
    "A greedy agent that stands still is cut at the limit, which is said; training goes on"
    config = {"env": {"id": "CliffWalking-v1", "num_envs": 2}, "algo": {"name": "ppo", "num_steps": 32, "learning_rate": 1e-6}, "train": {"total_steps": 256},
              "eval": {"episodes": 3, "num_envs": 3, "max_steps": 50, "every": 128}}
    done = Run.from_config(config_from_dict(config), runs_dir=tmp_path)
    with pytest.warns(UserWarning, match="no episode of the evaluation ended within 50 env steps"): summary = done.train()
    assert summary["status"] == "completed" and summary["eval_cut"] == 3 and summary["eval_return_mean"] <= -50
    kept = done.files.evaluations
    assert [e["cut"] for e in kept] == [[0, 1, 2]] * len(kept) and {n for e in kept for n in e["lengths"]} == {50} and kept[0]["env_steps"] == 128
    with pytest.warns(UserWarning, match="no episode of the evaluation ended"): assert "3 of them cut at 50 steps (eval.max_steps)" in str(done.evaluate())
    assert "3 of them cut" in sh(tmp_path, "evaluate", done.folder).stdout


@pytest.mark.parametrize("where", ["reset", "step", "close"])
def test_no_screen_no_video(folder: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    import_own("my_env")
    done = Run.from_config(folder / "config.yaml", {"env.kwargs": {"ill": where}, "total_steps": 256}, runs_dir=tmp_path)
    with pytest.warns(UserWarning, match="no video: .*no screen"): summary = done.train()
    assert summary["status"] == "completed" and summary["eval_episodes"] == 10 and Run.open(done.folder).train() == summary


@pytest.mark.parametrize("wrapper, key, why", [
    ("NormalizeObservation", "0", "write net.normalize_obs: true"), ("NormalizeReward", "0", "write net.normalize_reward: true"),
    ("{name: FrameStackObservation, stack_siz: 4}", "0.stack_siz", "did you mean 'stack_size'?"), ("{name: FrameStackObservation, stack_size: no}", "0.stack_size", "stack_size"),
    ("{name: RescaleAction, min_action: -1.0, max_action: 1.0}", "0", "cannot be put around"), ("RecordVideo", "0", "videos/rollout.webp"),
    ("3", "0", "given 3, expected text or a mapping"), ("{stack_size: 4}", "0", "expected a name")])
def test_bad_wrappers(tmp_path: Path, wrapper: str, key: str, why: str) -> None:
    with pytest.raises(ValueError) as e: Run.from_config("ppo/cartpole", f"env.wrappers=[{wrapper}]", runs_dir=tmp_path)
    assert f"env.wrappers.{key}: " in str(e.value) and why in str(e.value), str(e.value)
    assert not list(tmp_path.iterdir())


def test_statistics_inside_are_refused() -> None:
    gym.register("test/Normalized-v0", lambda: gym.wrappers.NormalizeObservation(gym.make("CartPole-v1").unwrapped))
    with pytest.raises(EnvError, match="net.normalize_obs"): make_vector(EnvConfig(id="test/Normalized-v0"))


# In Python

def test_an_import_is_enough_in_python(folder: Path, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "my_env", raising=False)
    with pytest.raises(RunError, match="--import my_env"): Run.open("runs/whole")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    import_module("my_env")
    assert Run.open("runs/whole").evaluate().mean == reference["eval_return_mean"]
    with pytest.raises(ModuleError): import_own("no_such_module")


@pytest.mark.parametrize("changes", ["train.seed=7", ["train.seed=7"], {"train.seed": 7}, {"train": {"seed": 7}}, {"seed": 7}])
def test_overrides_in_every_form(tmp_path: Path, changes: Any) -> None:
    assert Run.from_config("ppo/cartpole", changes, runs_dir=tmp_path).config.train.seed == 7
    if isinstance(changes, dict) and "." not in "".join(changes):
        assert Run.from_config("ppo/cartpole", runs_dir=tmp_path, **changes).config.train.seed == 7


def test_old_atari_names() -> None:
    for _ in range(2):  # the second time, the package that has them was imported
        with pytest.raises(EnvError, match="did you mean 'ALE/Pong-v5'"): make_vector(EnvConfig(id="PongNoFrameskip-v4"))


# Plugins

def install(site: Path, dist: str, module: str, code: str, entry_points: str) -> None:
    "What pip leaves of a distribution"
    (info := site / f"{dist}-1.0.dist-info").mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (site / f"{module}.py").write_text(code)


@pytest.mark.faults(34)
def test_plugins_bring_plain_worlds(folder: Path, tmp_path: Path) -> None:
    "A class, a factory and a wrapper as entry points: listed, refused, and used once they are allowed"
    points = "[rlstudio.envs]\nShop-v0 = shop:Walk\nFactory-v0 = shop:made\nLunarLander-v3 = shop:Walk\n[rlstudio.wrappers]\nTwice = shop:Double\n"
    install(tmp_path, "shop_rl", "shop", re.sub(r"(?m)^(gym.register|@).*\n", "", MY_ENV), points)
    def shop(*args: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(["rlstudio", *map(str, args)], cwd=tmp_path, env=child_env(PYTHONPATH=str(tmp_path)), text=True, capture_output=True)
        assert done.returncode == code and "Traceback" not in done.stdout + done.stderr, said(done)
        return done
    short = "ppo/cartpole", "train.total_steps=1024", "env.wrappers=[Twice]", "env.max_episode_steps=30", "eval.episodes=2", "--json"
    refused = shop("run", *short, "env.id=Shop-v0", code=2)
    assert "env.id: environment 'Shop-v0' comes with the plugin shop-rl, which is not allowed" in refused.stderr and "cannot be built" not in refused.stderr
    refused = shop("run", *short, "env.id=LunarLander-v3", code=2)
    assert "wrapper 'Twice' comes with the plugin shop-rl, which is not allowed" in refused.stderr
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nplugins = shop-rl\n")
    assert re.search(r"^Shop-v0 +shop-rl$", shop("list", "envs").stdout, re.M)
    for name in ("Shop-v0", "Factory-v0"): assert json.loads(shop("run", *short, f"env.id={name}").stdout)["status"] == "completed"


def test_the_order_of_arguments_means_nothing() -> None:
    "A checkpoint sorts the keys of a wrapper; that is no change of the config"
    a, b = (config_from_dict(dict(env=dict(id="CartPole-v1", wrappers=[w]), algo=dict(name="ppo")))
            for w in (dict(name="StickyAction", repeat_action_probability=.1), dict(repeat_action_probability=.1, name="StickyAction")))
    assert diff(a, b) == [] and config_hash(a) == config_hash(b)


@pytest.mark.faults(30)
def test_a_simulator_that_remembers_is_not_exact() -> None:
    "BipedalWalker keeps its Box2D world over resets, so that a later episode depends on the earlier ones; a run gives it a new one for each episode"
    assert snapshot_level(lambda: gym.make("BipedalWalker-v3")) == "boundary"
    assert make_vector(EnvConfig(id="BipedalWalker-v3", num_envs=1)).level == "exact"
