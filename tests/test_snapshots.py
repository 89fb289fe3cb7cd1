"Snapshots of real worlds: MuJoCo, Box2D and Atari go on bit for bit, old states load, and the running fingerprint costs next to nothing"
import datetime
import os
import time
from contextlib import nullcontext
from typing import Any
from zlib import crc32

import cheats
import gymnasium as gym
import numpy as np
import pytest

import rlstudio.envs.snapshot as module
from rlstudio.core.batch import leaf_arrays
from rlstudio.core.options import EnvConfig
from rlstudio.envs.backends import InProcess, fold_held, trial_of, unfold_held
from rlstudio.envs.snapshot import Recorder, another_day, checksums, extend_trace, held_by, own_modules, watched_entropy

for id in [i for i in gym.registry if i.startswith("Cheat/")]: del gym.registry[id]  # other tests of this process look at every world that is registered


def actions(env: InProcess, rng: np.random.Generator) -> np.ndarray: return env.action_spec.sample(rng, (env.num_envs,))


def future(env: InProcess, steps: int, seed: int) -> list[bytes]:
    "All that the next steps show"
    rng, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        b = env.step(actions(env, rng))
        seen.append(b"".join(x.tobytes() for x in leaf_arrays(b.obs)) + b.reward.tobytes() + b.terminated.tobytes() + b.truncated.tobytes())
    return seen


@pytest.mark.parametrize(("id", "steps"), [("HalfCheetah-v5", 130), ("Ant-v5", 60), ("Humanoid-v5", 60), ("Pusher-v5", 130), ("BipedalWalker-v3", 300), ("BipedalWalkerHardcore-v3", 120),
                                           ("LunarLander-v3", 250), ("Taxi-v4", 100), ("Blackjack-v1", 30)])
def test_a_restored_world_has_the_future_of_the_one_that_was_never_interrupted(id: str, steps: int) -> None:
    "In several episodes, some of them later ones; and the same after a second restore of the restored one"
    config = EnvConfig(id=id, num_envs=2, max_episode_steps=50 if steps < 200 else None)
    one = InProcess(config)
    one.reset([3, 4])
    for k in range(2):
        future(one, steps // 2, k)
        state = one.state_dict()
        two, three = InProcess(config), InProcess(config)
        two.load_state_dict(state)
        assert two.level == "exact" and not two.inexact and not two.anew.any()
        three.load_state_dict(two.state_dict())
        here = future(one, 60, 9)
        assert future(two, 60, 9) == here == future(three, 60, 9)
        for env in (two, three): env.close()
    one.close()


def test_an_old_state_without_a_fingerprint_loads() -> None:
    "Checkpoints of earlier versions know neither trace, nor held, nor carried"
    one, two = (InProcess(EnvConfig(id="CartPole-v1", num_envs=2, backend="inprocess")) for _ in range(2))
    one.reset([1, 2])
    future(one, 30, 0)
    state = one.state_dict()
    for s in state["envs"].values():
        for name in ("trace", "held", "carried"): del s[name]
    two.load_state_dict(state)
    assert not two.inexact and future(two, 60, 1) == future(one, 60, 1)


def test_a_difference_in_one_bit_of_one_reward_is_found() -> None:
    "And only the sub-env that differs begins anew"
    one, two = (InProcess(EnvConfig(id="Pendulum-v1", num_envs=3, backend="inprocess")) for _ in range(2))
    one.reset([1, 2, 3])
    future(one, 40, 0)
    state = one.state_dict()
    state["envs"]["1"]["trace"] ^= 1
    with pytest.warns(UserWarning, match="1 of 3 episodes in flight could not be replayed.*sub-env 1.*the way there should equal"): two.load_state_dict(state)
    assert two.anew.tolist() == [False, True, False]
    assert (two.obs[[0, 2]] == one.obs[[0, 2]]).all() and two.envs[1].length == 0
    first = one.envs[1].reset()[0]   # the episode that would have come next
    assert (two.obs[1] == first).all()


def test_what_an_env_holds_is_found_and_folded() -> None:
    "Counters of wrappers and generators are found; spaces, screens and simulators are not"
    env = gym.make("HalfCheetah-v5")
    rec = Recorder(env)
    rec.reset(1)
    names = list(held_by(env))
    assert "TimeLimit._elapsed_steps" in names and "HalfCheetahEnv._np_random" in names and not any(part in n for n in names for part in (".model", ".data", "renderer", "observation_space"))
    state = rec.state()
    assert unfold_held(fold_held(state))["held"] == {crc32(p.encode()): x for p, x in state["held"].items()} and state["held"] == checksums(env)


def test_the_running_fingerprint_costs_little() -> None:
    "CPU time of a step with it and without it, in turns; the cheapest world of Gymnasium pays most"
    rec = Recorder(gym.make("CartPole-v1", disable_env_checker=True))
    spent = {True: 0.0, False: 0.0}
    real = module.extend_trace
    try:
        for turn in range(40):
            module.extend_trace = real if turn % 2 else (lambda trace, *seen: trace)  # type: ignore[assignment]
            rec.reset(turn // 2)
            start = time.process_time()
            for t in range(400):
                if any(rec.step(t % 2)[2:4]): rec.reset()
            if turn > 3: spent[bool(turn % 2)] += time.process_time() - start
    finally: module.extend_trace = real
    assert spent[True] < 1.25 * spent[False], spent


def test_the_fingerprint_reads_any_observation() -> None:
    "Trees, text, arrays in any order; two that differ in one bit differ"
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y = x.copy()
    y.view(np.int32)[1, 2] ^= 1
    for wrap in (lambda o: o, lambda o: (o, 1), lambda o: {"a": {"b": o}, "c": "text"}, lambda o: o.T, lambda o: o[:, ::2], lambda o: [o, None]):
        assert extend_trace(5, wrap(x)) == extend_trace(5, wrap(x.copy())) != extend_trace(5, wrap(y))
    assert extend_trace(0, np.array(["a", 1], object)) == extend_trace(0, np.array(["a", 1], object)) != extend_trace(0, np.array(["a", 2], object))
    odd: Any
    for odd in (None, "1.5", np.array([1.0]), 1 + 2j): assert isinstance(extend_trace(0, x, odd, None, "no"), int)


@pytest.mark.parametrize("id", ["HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Pusher-v5", "InvertedPendulum-v5"])
def test_the_state_of_a_simulator_goes_on_without_a_replay(id: str) -> None:
    "MuJoCo that cannot be replayed goes on from its own state: the same future, over the time limit, and it can be saved again"
    config = EnvConfig(id=id, num_envs=2, max_episode_steps=60)
    one, two, three = (InProcess(config) for _ in range(3))
    one.reset([3, 4])
    future(one, 77, 0)
    state = one.state_dict()
    for s in state["envs"].values(): s["trace"] ^= 1   # as if the replay had differed
    for env, saved in ((two, state), (three, None)):
        with pytest.warns(UserWarning, match="could not be replayed, and no new ones begun.*the state of its simulator was used instead"): env.load_state_dict(saved or two.state_dict())
    assert two.inexact and not two.anew.any() and [r.length for r in two.envs] == [r.length for r in one.envs]
    here = future(one, 100, 9)
    assert future(two, 100, 9) == here == future(three, 100, 9)


def test_the_state_of_another_simulator_is_refused() -> None:
    "Then a new episode begins"
    one, two = InProcess(EnvConfig(id="HalfCheetah-v5", num_envs=1)), InProcess(EnvConfig(id="HalfCheetah-v5", num_envs=1))
    one.reset([3])
    future(one, 20, 0)
    state = one.state_dict()
    state["envs"]["0"]["trace"] ^= 1
    state["envs"]["0"]["simulator"]["integration"] = np.zeros(3)
    with pytest.warns(UserWarning, match="1 of 1 episodes in flight could not be replayed, and new ones begun"): two.load_state_dict(state)
    assert two.anew.all() and two.envs[0].length == 0


# A second play on another day

@pytest.mark.faults(30)
@pytest.mark.parametrize("world", ["Seconds", "Today", "Hour", "Ticks", "Process"])
def test_the_trial_plays_on_another_day_and_in_another_process(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "A world of a coarse clock is not exact; on one day, all that is played within a second is alike"
    trial = trial_of(world, cheats.WORLDS[world])
    assert trial.level == "boundary" and "should equal the snapshot's, but differ" in trial.why, trial
    monkeypatch.setattr(module, "another_day", lambda env: nullcontext())
    assert any(trial_of(world, cheats.WORLDS[world]).level == "exact" for _ in range(3))


@pytest.mark.parametrize("world", ["Honest", "Timed", "Noted", "Waits"])
def test_a_clock_that_is_only_read_lowers_nothing(world: str) -> None:
    trial = trial_of(world, cheats.WORLDS[world])
    assert (trial.level, trial.why, trial.remembers) == ("exact", "", "")


def test_another_day_is_over_whatever_happens() -> None:
    "The env's own modules are as before, also after an error; nobody else has noticed; and a new process has a number of its own"
    env, before, clock = gym.wrappers.TimeLimit(cheats.Noted(), 60), dict(vars(cheats)), (time.time, time.monotonic, datetime.datetime, os.getpid)
    assert {"cheats", "gymnasium.wrappers.common"} <= {m.__name__ for m in own_modules(env)}
    with pytest.raises(KeyError), another_day(env):
        assert cheats.time.time() < time.time() - 1e7 and cheats.monotonic() < time.monotonic() - 1e7 and cheats.os.getpid() != os.getpid()
        assert cheats.time.strftime("%Y") != time.strftime("%Y") and cheats.time.localtime(0) == time.localtime(0) and cheats.os.environ is os.environ
        assert cheats.date.today() < datetime.date.today() and cheats.datetime.now(datetime.UTC).tzinfo is datetime.UTC
        day = cheats.datetime(2020, 1, 2)
        assert type(day) is datetime.datetime and isinstance(day, cheats.datetime) and isinstance(day, cheats.date) and issubclass(datetime.datetime, cheats.datetime)
        assert (time.time, time.monotonic, datetime.datetime, os.getpid) == clock
        raise KeyError
    assert vars(cheats) == before


def test_whoever_waits_for_the_late_clock_does_not_wait_long() -> None:
    start = time.perf_counter()
    with another_day(cheats.Noted()):
        began = cheats.time.time()
        while cheats.time.time() < began + 86_400: pass
        cheats.time.sleep(1e9)
    assert time.perf_counter() - start < 5


@pytest.mark.faults(30)
def test_entropy_that_is_read_as_a_file_is_seen() -> None:
    "By an env that is stepped, and only while somebody watches"
    rec = Recorder(cheats.Device())
    rec.reset(1)
    rec.env.unwrapped.life = cheats.LATER // 97 * 97 + 97 - 1
    with watched_entropy() as seen:
        open("/dev/urandom", "rb").close()
        assert not seen
        rec.step(np.int64(1))
    assert seen == {"/dev/urandom"}
