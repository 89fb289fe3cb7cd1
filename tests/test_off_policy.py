"DQN, SAC and TD3 through the same doors as PPO: exact with their memory, honest about what they cannot do."
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from support import ROOT, child_env, run, said

from rlstudio.core.options import Config, config_from_dict
from rlstudio.core.seeding import untouched_generators
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.config import load_config
from rlstudio.train.trainer import Trainer

SMALL: dict[str, Any] = dict(batch_size=16, learning_starts=64, num_steps=16, buffer_size=300)
LANDER = dict(id="LunarLander-v3", kwargs=dict(continuous=True))
CASES: dict[str, tuple[dict, dict, dict]] = {  # name → env, algo, net
    "dqn": (dict(id="CartPole-v1"), dict(name="dqn"), {}),
    "dqn, all parts": (dict(id="CartPole-v1", num_envs=2), dict(name="dqn", double=True, dueling=True, quantiles=8, n_step=3, prioritized=True), {}),
    "dqn, normalised": (dict(id="Acrobot-v1"), dict(name="dqn", learning_rate_schedule="linear"), dict(normalize_obs=True, normalize_reward=True)),
    "dqn, one env": (dict(id="MountainCar-v0", num_envs=1), dict(name="dqn", train_every=4, update_ratio=.5), {}),
    "dqn, cut short": (dict(id="rlstudio/Chain-v0", max_episode_steps=7), dict(name="dqn", n_step=2), {}),
    "dqn, hindsight": (dict(id="rlstudio/BitFlip-v0"), dict(name="dqn", hindsight=.8), {}),
    "dqn, on disk": (dict(id="CartPole-v1"), dict(name="dqn", buffer_storage="disk"), {}),
    "sac": (dict(id="Pendulum-v1"), dict(name="sac"), dict(activation="relu")),
    "sac, box2d": (LANDER, dict(name="sac", train_every=2, prioritized=True), dict(activation="relu")),
    "sac, mujoco": (dict(id="HalfCheetah-v5", num_envs=1), dict(name="sac"), dict(activation="relu")),
    "dqn, prioritised hindsight": (dict(id="rlstudio/BitFlip-v0"), dict(name="dqn", hindsight=.8, prioritized=True), {}),
    "sac, autograd": (dict(id="Pendulum-v1"), dict(name="sac", n_step=2), {}),
    "td3": (dict(id="Pendulum-v1"), dict(name="td3"), dict(activation="relu")),
    "td3, all parts": (dict(id="Pendulum-v1"), dict(name="td3", exploration="ou", prioritized=True, n_step=3), dict(normalize_obs=True, normalize_reward=True)),
    "sac, all parts": (dict(id="Pendulum-v1"), dict(name="sac", ent_coef=.2, prioritized=True, n_step=3), dict(normalize_obs=True, normalize_reward=True)),
    "td3, box2d": (LANDER, dict(name="td3", update_ratio=.5), dict(activation="relu")),
    "td3, mujoco": (dict(id="Hopper-v5", num_envs=2), dict(name="td3"), dict(activation="relu")),
}


def config(case: str, seed: int = 1) -> Config:
    env, algo, net = CASES[case]
    return config_from_dict(dict(env=dict(num_envs=4) | env, algo=SMALL | algo,
                                 net=dict(hidden=[16, 16], normalize_obs=False, normalize_reward=False) | net,
                                 train=dict(total_steps=16 * env.get("num_envs", 4) * 12, seed=seed)))


def trainer(case: str, seed: int = 1) -> Trainer:
    "The tape differentiates where it can, except in one case"
    return Trainer(config(case, seed), engine="autograd" if "autograd" in case else "auto")


def trained(case: str, seed: int = 1) -> Trainer: return trainer(case, seed).train()


# train(N) = train(k), another process, train(N - k): with the memory in the checkpoint

HALF = """
import json, sys
from pathlib import Path
sys.path.insert(0, 'tests')
from test_off_policy import *
from rlstudio.runs.checkpoint import latest_checkpoint, save_checkpoint
half, folder, ends = sys.argv[1], Path(sys.argv[2]), {}
for case in CASES:
    t, k = trainer(case), random.Random(case).randint(6, 11)
    if half == 'first': save_checkpoint(folder / case, k, t.train(k * t.config.train.total_steps // 12).state_dict(), {})
    else:
        t.load_state_dict(latest_checkpoint(folder / case)[0].state)
        ends[case] = t.iteration, t.env.level, t.algo.updates, weights_sha256(t.train().algo.module)
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def second_halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    "Where the trainings end that one process began and another one finished"
    folder = tmp_path_factory.mktemp("halves")
    for half, odd in ("first", {}), ("second", dict(PYTHONHASHSEED="3", TZ="Asia/Tokyo")):
        done = run(sys.executable, "-c", HALF, half, folder, coverage=False, **odd)
        assert done.returncode == 0, said(done)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_two_halves_are_a_whole(case: str, second_halves: dict[str, list]) -> None:
    iteration, level, updates, end = second_halves[case]
    whole = trained(case)
    assert 6 <= iteration < whole.iteration == 12 and 0 < updates < whole.algo.updates  # type: ignore[attr-defined]
    assert (level, end) == ("exact", weights_sha256(whole.algo.module))


@pytest.mark.parametrize("case", ["dqn, all parts", "sac", "td3"])
def test_same_seed_same_hash_and_no_global_generator(case: str) -> None:
    with untouched_generators(): first = weights_sha256(trained(case).algo.module)
    random.seed(5)
    assert weights_sha256(trained(case).algo.module) == first != weights_sha256(trained(case, seed=2).algo.module)


def test_the_tape_differentiates_where_it_can() -> None:
    assert [trainer(case).algo.engine for case in ("dqn, all parts", "sac", "td3, all parts", "sac, autograd")] == ["tape"] * 3 + ["autograd"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name, env", [("dqn", "CartPole-v1"), ("sac", "Pendulum-v1"), ("td3", "Pendulum-v1")])
def test_defaults_belong_to_the_algorithm(name: str, env: str) -> None:
    "A bare config has the widths, the activation and the normalisers of the packaged one, which says only what is special"
    bare = config_from_dict(dict(env=dict(id=env), algo=dict(name=name)))
    packaged = load_config(ROOT / "configs" / name / f"{'cartpole' if name == 'dqn' else 'pendulum'}.yaml")[0]
    assert bare.net == packaged.net and bare.env == packaged.env and bare.net.activation == "relu" and bare.env.num_envs == 1


# The command line

@pytest.mark.faults(1)
@pytest.mark.parametrize("path", ["dqn/cartpole", "sac/pendulum", "td3/pendulum", "a2c/cartpole"])
def test_killed_and_resumed(tmp_path: Path, path: str) -> None:
    warm_up = () if path.startswith("a2c") else ("algo.learning_starts=300",)
    short = ("train.total_steps=1600", *warm_up, "algo.num_steps=40", "checkpoint.every=250", "eval.episodes=2", "net.hidden=[32,32]", "--runs-dir", tmp_path)
    done = run("rlstudio", "run", path, *short, "--json", "--name", "whole", cwd=tmp_path)
    assert done.returncode == 0, said(done)
    want, killed = json.loads(done.stdout), tmp_path / "killed"
    p = subprocess.Popen(["rlstudio", "run", path, *map(str, short), "--name", "killed"], cwd=tmp_path, env=child_env(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any((killed / "checkpoints").glob("step_*[1-9]*")) and p.poll() is None and time.monotonic() < deadline: time.sleep(.01)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    done = run("rlstudio", "resume", killed, "--json", cwd=tmp_path)
    assert done.returncode == 0, said(done)
    got = json.loads(done.stdout)
    assert got["weights_sha256"] == want["weights_sha256"] and got["total_steps"] == want["total_steps"] == 1600


@pytest.mark.parametrize("args, hints", [
    (("dqn/cartpole", "env.id=Pendulum-v1"), ["algo.name", "'dqn'", "Discrete", "sac"]),
    (("sac/pendulum", "env.id=CartPole-v1"), ["algo.name", "'sac'", "Box", "dqn"]),
    (("td3/pendulum", "env.id=CartPole-v1"), ["algo.name", "'td3'", "Box", "dqn"]),
    (("dqn/cartpole", "algo.buffer_size=1e11"), ["algo.buffer_size", "GiB", "expected at most", "buffer_storage: disk"]),
    (("sac/pendulum", "algo.buffer_size=1e12", "algo.buffer_storage=disk"), ["algo.buffer_size", "expected at most"]),
    (("sac/pendulum", "algo.num_steps=10", "algo.train_every=4"), ["algo.num_steps", "multiple of train_every"]),
    (("sac/pendulum", "algo.buffer_size=10"), ["algo.batch_size", "expected at most buffer_size"]),
    (("dqn/cartpole", "algo.tau=0"), ["algo.tau", "> 0"]),
    (("sac/pendulum", "algo.hindsight=0.5"), ["algo.hindsight", "goal"]),
    (("sac/pendulum", "algo.hindsight=0.5", "algo.n_step=3", "algo.prioritized=true"), ["algo.hindsight", "no goals"]),
    (("dqn/cartpole", "algo.n_step=10000000"), ["algo.n_step", "expected at most 50,000"]),
    (("dqn/cartpole", "train.total_steps=900"), ["algo.learning_starts", "no update would be due"]),
    (("dqn/cartpole", "algo.frame_stack=4"), ["algo.frame_stack", "frame_stack: 1"]),
    (("sac/pendulum", "algo.engine=numpy", "net.activation=silu"), ["algo.engine", "settings.ini"]),
    (("dqn/cartpole", "algo.epsilon_end=2"), ["algo.epsilon_end", "expected a number ≥ 0 and ≤ 1"]),
])
def test_mistakes_are_explained(args: tuple[str, ...], hints: list[str], tmp_path: Path) -> None:
    done = run("rlstudio", "run", *args, "--runs-dir", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "runs").exists(), said(done)
    for hint in hints: assert hint in done.stderr, said(done)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[dst]*/*.yaml"), key=str), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_config_is_a_dead_file(path: Path) -> None:
    "Every configuration learns for a few updates, on its own world, with its own networks"
    c = load_config(path)[0]
    assert c.train.total_steps % (c.algo.num_steps * c.env.num_envs) == 0, "the budget is no whole number of iterations"  # type: ignore[attr-defined]
    Trainer(c).env.close()
    steps = c.algo.num_steps * c.env.num_envs  # type: ignore[attr-defined]
    t = Trainer(load_config(path, [f"algo.learning_starts={steps - steps // 8}", f"train.total_steps={steps}"])[0]).train()
    assert t.env_steps == steps and t.algo.updates > 0  # type: ignore[attr-defined]
    t.env.close()


class Film(gymnasium.Env):
    "Four frames a stack, as a wrapper for Atari gives them: the first one repeated at an episode's start"
    observation_space, action_space = spaces.Box(0, 255, (4, 36, 36), np.uint8), spaces.Discrete(2)

    def frame(self) -> np.ndarray: return self.np_random.integers(0, 256, (36, 36), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t, self.seen = 0, [self.frame()] * 4
        return np.stack(self.seen), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t, self.seen = self.t + 1, [*self.seen[1:], self.frame()]
        return np.stack(self.seen), float(action), self.t % 7 == 0, False, {}


def test_frames_are_stored_once_and_learned_from() -> None:
    if "Film-v0" not in gymnasium.registry: gymnasium.register("Film-v0", Film)
    def algo(stack: int) -> Any:
        c = config_from_dict(dict(env=dict(id="Film-v0", num_envs=2), algo=SMALL | dict(name="dqn", frame_stack=stack, buffer_size=128, num_steps=32),
                                  net=dict(hidden=[16], normalize_obs=False, normalize_reward=False), train=dict(total_steps=128)))
        return Trainer(c).train().algo
    once, whole = algo(4), algo(1)
    assert once.updates > 0 and weights_sha256(once.module) == weights_sha256(whole.module)
    assert once.replay.nbytes < .5 * whole.replay.nbytes
