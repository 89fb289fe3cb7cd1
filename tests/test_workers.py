"Worker processes: the same bits as in one process, every way to lose one is named, and nothing is left behind. Real children throughout."
import gc
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from support import ROOT, child_env, run, said

from rlstudio.core.batch import leaf_fields
from rlstudio.core.options import ConfigError, EnvConfig, config_from_dict
from rlstudio.envs.backends import InProcess, make_vector
from rlstudio.envs.make import EnvError, EnvKeyError
from rlstudio.envs.snapshot import fingerprint
from rlstudio.envs.vector import VectorEnv
from rlstudio.envs.workers import SAFE_HOMES, Arena, WorkerError, Workers, look, parent_joins, shares
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback, Trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")   # newer Pythons warn of a fork
METHODS = ["spawn", "fork", "forkserver"]
FIVE = 5   # sub-envs, which neither 2 nor 4 workers can share evenly
STACK = {"name": "FrameStackObservation", "stack_size": 3}
WORLDS: dict[str, dict[str, Any]] = {
    "cartpole": dict(id="CartPole-v1", max_episode_steps=12), "lunarlander": dict(id="LunarLander-v3"), "masks": dict(id="Taxi-v4", max_episode_steps=7),
    "choices": dict(id="FrozenLake-v1"), "tuple": dict(id="Blackjack-v1"), "goals": dict(id="rlstudio/BitFlip-v0"), "tree": dict(id="worlds/Tree-v0"),
    "wrapped": dict(id="CartPole-v1", wrappers=("TimeAwareObservation", STACK, "Twice"), reset_options=dict(low=-0.02, high=0.02)),
    "pixels": dict(id="ALE/Pong-v5", kwargs=dict(frameskip=1), wrappers=("atari",)), "wide": dict(id="worlds/Clock-v0"),
}


def spec(world: str, n: int = FIVE, **more: Any) -> EnvConfig: return EnvConfig(num_envs=n, **WORLDS[world] | more)


def workers(world: str, k: int, n: int = FIVE, method: str = "fork", **more: Any) -> Workers:
    return Workers(spec(world, n, backend="workers", workers=k, start_method=method, **more))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    "After each test no child of this process is a worker, and no memory has a name"
    before = shared_names()
    yield
    gc.collect()
    assert not children(os.getpid()), "a worker is left"
    assert shared_names() <= before


def shared_names() -> set[str]: return {p for p in os.listdir("/dev/shm") if p.startswith(("pym-", "psm_"))}   # semaphores may be those of a test beside this one


def command_of(pid: int) -> str:
    try: return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError: return ""


def state_of(pid: int) -> str:
    "'' where there is no such process, Z for one that has ended"
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError: return ""


def children(pid: int) -> list[int]:
    "Processes begun by this one that are neither of multiprocessing's two helpers, nor ended"
    try: found = [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
    except OSError: return []
    return [p for p in found if not re.search("resource_tracker|forkserver", command_of(p)) and state_of(p) not in ("", "Z")]


def gone(pids: list[int], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while any(state_of(p) not in ("", "Z") for p in pids):
        if time.monotonic() > end: return False
        time.sleep(0.02)
    return True


def pids(env: Workers) -> list[int]: return [w.process.pid for w in env.pool.workers.values()]


# The same bits

def watched(env: VectorEnv, steps: int, seed: int = 0) -> str:
    "A hash of all that random legal steps show"
    rng, seen = np.random.default_rng(seed), hashlib.sha256()
    for _ in range(steps):
        rows = np.stack([_row(env, rng, i) for i in range(env.num_envs)])
        out = env.step(rows)
        for name, x in leaf_fields(out).items():
            kept = x[out.done] if name.startswith("final_") else x
            seen.update(f"{name} {kept.dtype} {kept.shape}".encode() + kept.tobytes())
    return seen.hexdigest()


def _row(env: VectorEnv, rng: np.random.Generator, i: int) -> np.ndarray:
    if "mask" in env.fields: return np.asarray(rng.choice(np.flatnonzero(env.out.mask[i])))
    row = env.action_row
    return np.asarray(env.action_spec.sample(rng, ())) if row is env.action_spec else np.array([0, 1, rng.uniform(-1, 1)])


def shown(env: VectorEnv) -> str:
    "A hash of what an agent sees now"
    return fingerprint([x for name, x in leaf_fields(env.out).items() if name.split(".")[0] in ("obs", "mask")])


@pytest.mark.parametrize("world", WORLDS)
def test_any_number_of_workers_shows_the_same(world: str) -> None:
    "Observations, rewards, ends, last observations and masks, over the ends of many episodes; and the snapshots behind them"
    wide, steps = world == "wide", 12 if world == "pixels" else 120
    here = InProcess(spec(world))
    here.widen(wide)
    here.reset(range(10, 10 + FIVE))
    first, ended = shown(here), watched(here, steps)
    state = fingerprint(here.state_dict())
    for k in (1, 2, 4):
        there = workers(world, k)
        there.widen(wide)
        assert there.fields == here.fields and there.action_spec == here.action_spec and (there.goal is None) == (here.goal is None)
        out = there.reset(range(10, 10 + FIVE))
        assert out is there.out and shown(there) == first
        assert watched(there, steps) == ended and fingerprint(there.state_dict()) == state, k
        there.close()
    here.close()


@pytest.mark.parametrize("world", ["masks", "tree", "lunarlander"])
def test_a_snapshot_goes_on_anywhere(world: str) -> None:
    "From one process into three workers and back, in the middle of episodes"
    here, there = InProcess(spec(world)), workers(world, 3)
    here.reset(range(FIVE))
    watched(here, 23)
    there.load_state_dict(here.state_dict())
    assert there.level == here.level == "exact" and shown(there) == shown(here)
    assert watched(there, 60, 1) == watched(here, 60, 1)
    back = InProcess(spec(world))
    back.load_state_dict(there.state_dict())
    assert watched(back, 60, 2) == watched(there, 60, 2)
    for env in (here, there, back): env.close()


def loaded(env: VectorEnv, state: dict[str, Any]) -> list[str]:
    "What loading warns of"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        env.load_state_dict(state)
    return [str(w.message) for w in told]


def test_what_does_not_come_back_begins_the_same_episodes_and_says_the_same() -> None:
    "A world of the level boundary; and single episodes whose replay differs, in one worker or in two"
    here, there, first = InProcess(spec("masks")), workers("masks", 2), InProcess(spec("masks"))
    first.reset(range(FIVE))
    watched(first, 5)
    for bad in ([], [2], [1, 4]):
        state = first.state_dict()
        for i in bad: state["envs"][str(i)]["obs"] = "another"
        texts = loaded(here, state), loaded(there, state)
        assert texts[0] == texts[1] and len(texts[0]) == bool(bad) and here.anew.tolist() == there.anew.tolist() == [i in bad for i in range(FIVE)]
        assert here.inexact == there.inexact and shown(here) == shown(there) and watched(here, 30) == watched(there, 30)
    there.close()
    draws = dict(id="worlds/Draws-v0", kwargs=dict(seldom=1))
    one, two = InProcess(spec("cartpole", **draws)), workers("cartpole", 2, **draws)
    one.reset(range(FIVE))
    texts = loaded(one, one.state_dict()), loaded(two, one.state_dict())
    assert texts[0] == texts[1] and "the 5 episodes in flight were given up" in texts[0][0] and len(texts[0]) == 1
    assert two.level == one.level == "boundary" and two.why == one.why and "numpy.random" in two.why
    two.close()


def trainer(algo: str, backend: str, k: int | None = None, steps: int = 1200) -> Trainer:
    env = dict(id="rlstudio/BitFlip-v0" if algo == "dqn" else "worlds/Tree-v0", num_envs=4, backend=backend, workers=k, start_method="fork")
    how = dict(name=algo, hindsight=0.5, buffer_size=5000, learning_starts=200) if algo == "dqn" else dict(name=algo, num_steps=50, num_epochs=2, num_minibatches=2)
    return Trainer(config_from_dict(dict(env=env, algo=how, net=dict(hidden=[16]), train=dict(total_steps=steps))))


def told(t: Trainer) -> dict[str, float]:
    "What it says, without what clocks say"
    return {k: v for k, v in t.metrics.items() if not k.startswith(("speed/", "time/"))}


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_training_ends_with_the_same_weights_and_the_same_record(algo: str) -> None:
    "Episode statistics and hindsight's goals included"
    whole = trainer(algo, "inprocess").train()
    assert any("episode" in k for k in told(whole))
    for k in (1, 3):
        t = trainer(algo, "workers", k).train()
        assert weights_sha256(t.algo.module) == weights_sha256(whole.algo.module) and told(t) == told(whole)
        t.env.close()
    one, two = trainer(algo, "workers", 2), trainer(algo, "workers", 4)
    two.load_state_dict(one.train(600).state_dict())
    one.env.close()
    assert weights_sha256(two.train().algo.module) == weights_sha256(whole.algo.module)
    two.env.close()


# Ways to lose one

FAULTS = [
    (worlds.RAISE, EnvError, r"worlds/Ill-v0: sub-env 3 failed in step 2 with action 1: ZeroDivisionError: gears collided"),
    (worlds.EXIT, EnvError, r"sub-env 3 failed in step 2 with action 2: SystemExit: bye"),
    (worlds.QUIT, WorkerError, r"worlds/Ill-v0: lost sub-env 3 \(seed 18\) in step 2 with action 3: its worker ended by itself with exit code 3"),
    (worlds.KILL, WorkerError, r"lost sub-env 3 \(seed 18\) in step 2 with action 4: its worker was killed by SIGKILL"),
    (worlds.HANG, WorkerError, r"lost sub-env 3 \(seed 18\) in step 2 with action 5: its worker has not moved for 1 s"),
    (worlds.HANG_IN_C, WorkerError, r"lost sub-env 3 \(seed 18\) in step 2 with action 6: its worker has not moved for 1 s"),
]


def ill(k: int = 2, n: int = 4, method: str = "fork", patience: float = 0.8, **kwargs: Any) -> Workers:
    return Workers(EnvConfig(id="worlds/Ill-v0", num_envs=n, backend="workers", workers=k, start_method=method, patience=patience, kwargs=kwargs))


@pytest.mark.faults(23, 24, 25, 26)
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_fails_is_an_error_that_names_it(method: str) -> None:
    "Raising, exiting, killed, hanging in Python and in C; each time `reset` brings whole workers again, and the old ones are gone"
    env = ill(method=method)
    for how, error, message in FAULTS:
        out = env.reset([15, 16, 17, 18])
        assert method == "fork" or not out.obs[:, 1].any(), "a worker has imported torch"
        env.step(np.zeros(4, int))
        before, start = pids(env), time.monotonic()
        with pytest.raises(error, match=message) as e: env.step(np.array([0, 0, 0, how]))
        assert time.monotonic() - start < 15 and type(e.value) is error
        assert (type(e.value.__cause__) is SystemExit) == (how == worlds.EXIT)
        assert gone(before, 0) == (error is WorkerError), "who raises lives on, who is lost takes all with it"
    with pytest.raises(WorkerError, match="fix: reset"): env.step(np.zeros(4, int))
    env.close()
    env.close()


def test_the_gate_of_torch_in_a_worker_can_fail() -> None:
    env = ill()
    import torch  # noqa: F401, a fork has what its parent has
    assert env.reset([1] * 4).obs[:, 1].all()
    env.close()


@pytest.mark.faults(23, 26)
def test_a_worker_that_is_lost_between_steps_or_in_a_reset() -> None:
    env = ill(where="reset")
    env.reset([0, 0, 0, 0])
    os.kill(pids(env)[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"lost sub-envs 2 \(seed 0, last action 0\), 3 \(seed 0, last action 0\), between two steps: its worker was killed by SIGKILL"):
        for _ in range(9): env.step(np.zeros(4, int))
    with pytest.raises(WorkerError, match=r"lost sub-env 1 \(seed 3\) in reset"): env.reset([0, worlds.QUIT, 0, 0])
    with pytest.raises(EnvError, match="sub-env 2 failed in reset with seed 1: ZeroDivisionError"): env.reset([0, 0, worlds.RAISE, 0])
    assert env.reset([0] * 4) is env.out
    env.close()


@pytest.mark.faults(24, 27)
def test_the_first_sub_env_that_fails_is_named_whoever_is_faster() -> None:
    env = ill(4)
    env.reset([1, 2, 3, 4])
    with pytest.raises(EnvError, match="sub-env 1 failed"): env.step(np.array([worlds.SLOW, worlds.RAISE, worlds.EXIT, worlds.RAISE]))
    assert not env.step(np.zeros(4, int)).reward.any(), "nobody owes an answer"
    env.close()


@pytest.mark.faults(24, 26, 28)
def test_messages_are_those_of_one_process() -> None:
    here, there = InProcess(EnvConfig(id="worlds/Ill-v0", num_envs=4)), ill()
    def message(env: VectorEnv, how: int) -> str:
        env.reset([1, 2, 3, 4])
        with pytest.raises(EnvError) as e: env.step(np.array([0, 0, how, 0]))
        return str(e.value)
    for how in (worlds.RAISE, worlds.EXIT, worlds.SHAPE, worlds.REWARD, 11, -1): assert message(here, how) == message(there, how)
    for seeds in ([1, 2], [1, 2, 3, -4]):
        with pytest.raises(EnvError, match="expected 4 integers of 0 or more"): there.reset(seeds)
    there.close()


@pytest.mark.faults(27)
def test_slow_is_not_hung() -> None:
    "Each sub-env may take as long as `patience`; a worker that moves is waited for"
    env = ill(1)
    env.reset([1, 2, 3, 4])
    env.step(np.full(4, worlds.SLOW))   # 1.6 s together
    env.close()


def test_warnings_of_an_env_reach_the_parent() -> None:
    env = ill(method="spawn")
    env.reset([1, 2, 3, 4])
    with pytest.warns(UserWarning, match="the gears are warm"): env.step(np.array([0, 0, worlds.WARN, 0]))
    env.close()


@pytest.mark.faults(31)
def test_a_global_generator_that_is_used_in_a_worker_is_found() -> None:
    env = workers("cartpole", 2, id="worlds/Draws-v0", kwargs=dict(seldom=100))
    env.reset(range(FIVE))
    watched(env, 1)
    assert env.moved() == dict(generators=[], entropy=[])
    watched(env, 300)
    assert env.moved() == dict(generators=["numpy.random"], entropy=[])
    env.close()


@pytest.mark.filterwarnings("ignore:no video")
def test_a_run_whose_workers_draw_from_a_global_generator_is_lowered(tmp_path: Path) -> None:
    r = Run.from_config(dict(env=dict(id="worlds/Draws-v0", kwargs=dict(seldom=1500), num_envs=4, backend="workers", workers=2, start_method="fork"), algo=dict(name="ppo", num_steps=32),
                             net=dict(hidden=[16]), train=dict(total_steps=4096), eval=dict(episodes=0)), runs_dir=tmp_path)
    with pytest.warns(UserWarning, match="the global generator of numpy.random was used while training"): r.train(display="silent")
    assert r.manifest["level"] == "L1" and "numpy.random" in r.manifest["why"]


# The parent's own share

@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    "As if the worlds of these tests came from Gymnasium"
    monkeypatch.setattr("rlstudio.envs.workers.SAFE_HOMES", (*SAFE_HOMES, "worlds"))


def test_the_parent_steps_a_share_of_known_code_alone() -> None:
    "Not beside a world, a wrapper or a plugin of the user's, and not where one worker is asked for"
    for world in WORLDS: InProcess(spec(world, 1)).close()    # registers it
    joins = {world: parent_joins(spec(world), 2) for world in WORLDS if world != "wrapped"}
    assert joins == {world: not WORLDS[world]["id"].startswith("worlds/") for world in joins} and {*joins.values()} == {True, False}
    assert not parent_joins(spec("cartpole"), 1) and not parent_joins(spec("wrapped"), 2)
    env, other = workers("cartpole", 3), workers("tree", 3)
    for e in (env, other): e.reset(range(FIVE))
    assert len(pids(env)) == 2 and env.pool.own and len(pids(other)) == 3 and other.pool.own is None
    env.close()
    other.close()


@pytest.mark.usefixtures("known")
def test_what_fails_in_the_parents_share_is_the_same_error() -> None:
    "Raised or exited there, in a worker, or in both: the first sub-env is named, and all go on; a worker that is lost takes the share along"
    here, env = InProcess(EnvConfig(id="worlds/Ill-v0", num_envs=4)), ill()
    def message(e: VectorEnv, *how: int) -> str:
        e.reset([15, 16, 17, 18])
        e.step(np.zeros(4, int))
        with pytest.raises(EnvError) as caught: e.step(np.array(how))
        return str(caught.value)
    for how in ((0, worlds.RAISE, 0, 0), (worlds.EXIT, 0, 0, 0), (0, worlds.SHAPE, 0, worlds.RAISE), (0, 0, worlds.RAISE, 0)):
        assert message(env, *how) == message(here, *how)
        assert len(pids(env)) == 1 and env.pool.own, "whoever raises lives on"
    for method in METHODS:
        there = ill(method=method)
        assert re.match(r"worlds/Ill-v0: lost sub-env 3 \(seed 18\) in step 2 with action 4: its worker was killed by SIGKILL", message(there, worlds.RAISE, 0, 0, worlds.KILL))
        with pytest.raises(WorkerError, match="fix: reset"): there.step(np.zeros(4, int))
        assert "has not moved for 1 s" in message(there, 0, 0, 0, worlds.HANG_IN_C)
        there.close()
    env.close()


@pytest.mark.usefixtures("known")
def test_a_parent_that_is_interrupted_in_its_own_share_begins_anew() -> None:
    "Half a step is no state to go on from"
    env = ill()
    env.reset([1, 2, 3, 4])
    before, usual = pids(env), signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt): env.step(np.array([worlds.SLOW, 0, 0, 0]))
    finally: signal.signal(signal.SIGALRM, usual)
    assert gone(before)
    with pytest.raises(WorkerError, match="fix: reset"): env.step(np.zeros(4, int))
    assert env.reset([1, 2, 3, 4]) is env.out and len(pids(env)) == 1
    env.close()


# Nothing is left

def test_close_closes_the_sub_envs_and_ends_the_processes(tmp_path: Path) -> None:
    env = ill(closed=str(tmp_path))
    env.reset([1, 2, 3, 4])
    before = pids(env)
    env.close()
    assert {int(p.name) for p in tmp_path.iterdir()} >= {*before} and gone(before, 0)


@pytest.mark.faults(25)
def test_close_returns_though_an_env_hangs_in_it() -> None:
    env = ill(where="close", patience=0.5)
    env.reset([1, 2, 3, 4])
    env.step(np.zeros(4, int))
    before, start = pids(env), time.monotonic()
    env.close()
    assert gone(before, 0) and time.monotonic() - start < 30


def test_a_forgotten_env_ends_its_workers() -> None:
    env = ill()
    env.reset([1, 2, 3, 4])
    before = pids(env)
    del env
    gc.collect()
    assert gone(before)


def test_idle_workers_sleep() -> None:
    "While the parent learns, they use no processor time"
    env = ill()
    env.reset([1, 2, 3, 4])
    for _ in range(50): env.step(np.zeros(4, int))
    def ticks() -> int: return sum(sum(map(int, Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[11:13])) for p in pids(env))
    time.sleep(0.5)     # the system books late
    before = ticks()
    time.sleep(1.2)
    assert ticks() - before <= 12   # of 120 that one core has in this time; one that does not sleep takes all that it is given
    env.close()


SCRIPT = """
import os, signal, sys, time
import numpy as np
sys.path.insert(0, {tests!r})
import worlds
from rlstudio.core.options import EnvConfig
from rlstudio.envs.workers import Workers
open({log!r}, 'a').write('main ')
env = Workers(EnvConfig(id='worlds/Ill-v0', num_envs=3, backend='workers', workers=3, start_method={method!r}))
env.reset([1, 2, 3])
print(*[w.process.pid for w in env.pool.workers.values()], flush=True)
{rest}
"""


def script(tmp_path: Path, method: str, rest: str) -> "subprocess.Popen[str]":
    code = SCRIPT.format(tests=str(ROOT / "tests"), log=str(tmp_path / "log"), method=method, rest=rest)
    (tmp_path / "script.py").write_text(code)
    return subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_env(False), start_new_session=True)


@pytest.mark.faults(1, 23, 25)
@pytest.mark.parametrize("method", METHODS)
def test_no_worker_outlives_a_parent_that_is_killed(method: str, tmp_path: Path) -> None:
    "Not even one that hangs in C code, in a script without a guard for its main part"
    before = shared_names()
    done = script(tmp_path, method, "env.step(np.array([worlds.HANG_IN_C, worlds.HANG, 0]))")
    assert done.stdout and done.stderr
    alive = [int(p) for p in done.stdout.readline().split()]
    assert len(alive) == 3, done.communicate()
    time.sleep(0.3)
    helpers = [int(p) for p in Path(f"/proc/{done.pid}/task/{done.pid}/children").read_text().split()]
    os.kill(done.pid, signal.SIGKILL)
    assert gone(alive) and gone(helpers), "a process outlives its parent"
    _, err = done.communicate(timeout=60)
    assert done.returncode == -signal.SIGKILL and shared_names() <= before and "Traceback" not in err
    assert (tmp_path / "log").read_text() == "main ", "the script was run again"


def test_a_script_that_ends_without_close_ends(tmp_path: Path) -> None:
    done = script(tmp_path, "spawn", "if sys.argv[1:] == []: raise OSError('over')")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 1 and "OSError: over" in err and err.count("Traceback") == 1 and gone([int(p) for p in out.split()])


@pytest.mark.faults(3)
def test_ctrl_c_is_for_the_parent_alone(tmp_path: Path) -> None:
    "It reaches the whole group, in the middle of a step; afterwards the same workers go on"
    rest = """
try: env.step(np.array([0, worlds.SLOW, worlds.SLOW]))
except KeyboardInterrupt: print('interrupted', flush=True)
before = [w.process.pid for w in env.pool.workers.values()]
assert not env.step(np.zeros(3, int)).reward.any() and env.reset([1, 2, 3]) is env.out
assert before == [w.process.pid for w in env.pool.workers.values()]
env.close()
print('fine', flush=True)
"""
    done = script(tmp_path, "fork", rest)
    assert done.stdout
    done.stdout.readline()
    time.sleep(0.15)
    os.killpg(done.pid, signal.SIGINT)
    out, err = done.communicate(timeout=60)
    assert out.split() in (["interrupted", "fine"], ["fine"]) and done.returncode == 0 and "Traceback" not in err, out + err


def test_a_world_of_the_script_itself_needs_its_guard(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("""
import gymnasium as gym, numpy as np
from rlstudio.core.options import EnvConfig
from rlstudio.envs.workers import Workers
class Mine(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action): return np.ones(2, np.float32), 1., False, False, {}
gym.register('Mine-v0', Mine)
if __name__ == '__main__':
    env = Workers(EnvConfig(id='Mine-v0', num_envs=2, backend='workers', workers=2))
    env.reset([1, 2])
    print(env.step(np.zeros(2, int)).obs.sum())
    env.close()
""")
    done = run(sys.executable, tmp_path / "script.py", coverage=False)
    assert done.stdout.split() == ["4.0"], said(done)


# Runs

MY_WORLD = """
import gymnasium as gym
import numpy as np
from rlstudio.core.registry import envs, wrappers

@envs.register("Walk-v0")
class Walk(gym.Env):
    observation_space, action_space = gym.spaces.Box(-9, 9, (2,), np.float32), gym.spaces.Discrete(2)
    def see(self): return np.array([self.at, self.np_random.normal()], np.float32).clip(-9, 9)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(-1, 2))
        return self.see(), {}
    def step(self, action):
        print("noise on the standard output")
        self.at += 1 if action == 1 else -1
        return self.see(), float(self.at > 0), abs(self.at) >= 5, False, {}

@wrappers.register("Double")
class Double(gym.RewardWrapper):
    def reward(self, reward): return 2 * reward
"""
MY_CONFIG = "env: {id: Walk-v0, num_envs: 4, max_episode_steps: 30, wrappers: [Double], backend: inprocess}\nalgo: {name: ppo, num_steps: 64}\nnet: {hidden: [16]}\ntrain: {total_steps: 4096}\neval: {episodes: 4}\ncheckpoint: {every: 512}\n"


@pytest.mark.faults(1)
def test_a_run_with_own_modules_that_is_killed_goes_on_with_another_number(tmp_path: Path) -> None:
    "From the command line: the same hash as in one process, level L3, one JSON object on standard output, no orphan"
    (tmp_path / "my_world.py").write_text(MY_WORLD)
    (tmp_path / "walk.yaml").write_text(MY_CONFIG)
    def sh(*args: str) -> dict[str, Any]:
        done = run("rlstudio", *args, "--json", cwd=tmp_path, coverage=False)
        assert done.returncode == 0, said(done)
        return json.loads(done.stdout)   # type: ignore[no-any-return]
    whole = sh("run", "walk.yaml", "--import", "my_world", "--name", "whole", "--quiet")
    command = ["rlstudio", "run", "walk.yaml", "--import", "my_world", "--name", "part", "--json", "env.backend=workers", "env.workers=2"]
    part = subprocess.Popen(command, cwd=tmp_path, env=child_env(False), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    saved, end = tmp_path / "runs" / "part" / "checkpoints", time.monotonic() + 120
    while not list(saved.glob("step_*")) and part.poll() is None and time.monotonic() < end: time.sleep(0.01)
    begun = children(part.pid)
    part.kill()
    assert part.communicate()[0] == b"" and len(begun) == 2 and gone(begun)
    done = sh("resume", "part", "--import", "my_world", "env.workers=3")
    assert done["weights_sha256"] == whole["weights_sha256"] and done["eval_return_mean"] == whole["eval_return_mean"]
    manifest = json.loads((tmp_path / "runs" / "part" / "manifest.json").read_text())
    assert manifest["level"] == "L3" and manifest["env"]["backend"] == "workers"


class Stop(Callback):
    "Interrupts after a few iterations"
    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.iteration == 4: trainer.stop("enough", interrupt=True)


@pytest.mark.filterwarnings("ignore:no video")
def test_a_run_changes_its_backend_on_the_way(tmp_path: Path) -> None:
    "In one process, in workers, and back; a natively batched world refuses"
    def values(**env: Any) -> dict[str, Any]:
        return dict(env=dict(id="worlds/Tree-v0", num_envs=4, start_method="fork") | env, algo=dict(name="ppo", num_steps=32), net=dict(hidden=[16]),
                    train=dict(total_steps=1536), eval=dict(episodes=2), checkpoint=dict(every=128))
    whole = Run.from_config(values(), runs_dir=tmp_path / "a").train(display="silent")
    part = Run.from_config(values(), runs_dir=tmp_path / "b")
    part.train([Stop()], display="silent")
    second = Run.open(part.folder, ["env.backend=workers", "env.workers=2"])
    end = second.train(display="silent")
    assert end["weights_sha256"] == whole["weights_sha256"] and second.manifest["level"] == "L3"
    pole = Run.from_config(values(id="CartPole-v1"), runs_dir=tmp_path / "c")
    pole.train([Stop()], display="silent")
    with pytest.raises(Exception, match="env.backend: given 'workers', but this run goes on with 'auto'"): Run.open(pole.folder, ["env.backend=workers"])


# Small parts

def test_keys_say_what_is_wrong_with_them() -> None:
    with pytest.raises(EnvKeyError, match="expected backend: workers; fix: env.backend=workers") as e: make_vector(EnvConfig(id="CartPole-v1", workers=2))
    assert e.value.key == "env.workers"
    for bad in (dict(workers=0), dict(workers=2000), dict(patience=0), dict(start_method="thread"), dict(backend="worker")):
        with pytest.raises(ConfigError): config_from_dict(dict(env=dict(id="CartPole-v1") | bad, algo=dict(name="ppo")))
    env = make_vector(EnvConfig(id="CartPole-v1", num_envs=2, backend="workers", workers=8))
    assert isinstance(env, Workers) and len(env.shares) == 2 and env.backend == "workers" and "workers=2" in repr(env)
    env.close()


def test_shares_are_whole_and_even() -> None:
    for n in range(1, 40):
        for k in range(1, 12):
            parts = shares(n, k)
            assert [i for rows in parts for i in rows] == list(range(n)) and {*map(len, parts)} <= {n // len(parts), -(-n // len(parts))} and len(parts) == min(n, k)


def test_arrays_in_an_arena_do_not_overlap() -> None:
    rng, memory = np.random.default_rng(0), np.zeros(1 << 16, np.uint8)
    arena, arrays = Arena(memory), []
    for i in range(40):
        arrays.append(arena.array(tuple(rng.integers(0, 5, size=2).tolist()), rng.choice(["bool", "f4", "f8", "i8", "u1"])))
        arrays[-1][...] = i % 2
    assert arena.size <= len(memory) and all((x == i % 2).all() for i, x in enumerate(arrays))
    assert not look(np.array([1]), 0, 2, 1e-4)
