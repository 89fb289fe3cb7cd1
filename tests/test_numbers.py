"Numbers at the border: huge and tiny ranges, rewards out of nowhere, times in seconds since 1970, budgets that are no multiple, NaN after the end."
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlstudio.algos.off_policy import random_actions
from rlstudio.core.batch import Batch
from rlstudio.core.options import Config, config_from_dict, goal_steps
from rlstudio.core.spec import spec_from_space, to_env
from rlstudio.envs.goals import get_goal
from rlstudio.nets.critics import UnitActions
from rlstudio.nets.flat import weights_sha256
from rlstudio.nets.normalize import RewardScale
from rlstudio.train.trainer import Trainer


class Count(gym.Env):
    "An observation of one number that counts the steps; everything else is an argument"
    def __init__(self, action: spaces.Space | None = None, paid_from: int = 0, length: int = 20, nan_end: bool = False,
                 offset: float = 0., moving: bool = False, dtype: str = "float32") -> None:
        self.action_space, self.observation_space = action or spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (1,), np.dtype(dtype).type)
        self.paid_from, self.length, self.nan_end, self.offset, self.moving, self.total = paid_from, length, nan_end, offset, moving, 0

    def seen(self) -> np.ndarray: return np.array([self.offset + self.k], self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t, self.k = 0, int(self.np_random.integers(60)) if self.moving else 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        right = self.k >= 30 if self.moving else None   # which half: the action must say it
        self.t, self.total = self.t + 1, self.total + 1
        reward = float(action == right) if self.moving else float(self.total > self.paid_from)
        self.k = int(self.np_random.integers(60)) if self.moving else self.t
        over = self.t >= self.length
        return np.full(1, np.nan, self.observation_space.dtype) if over and self.nan_end else self.seen(), reward, over, False, {}


gym.register("numbers/Count-v0", Count, disable_env_checker=True)
gym.register("numbers/Push-v0", lambda **kwargs: Count(spaces.Box(-1, 1, (1,)), **kwargs), disable_env_checker=True)


class Reach(gym.Env):
    "Walk on a line of bits to a goal; episodes end there, but no `compute_terminated` says so"
    def __init__(self, ends: str = "goal", dense: bool = False) -> None:
        one = spaces.Box(-10, 10, (1,), np.float32)
        self.observation_space = spaces.Dict(observation=one, achieved_goal=one, desired_goal=one)
        self.action_space, self.ends, self.dense = spaces.Discrete(2), ends, dense

    def compute_reward(self, achieved: Any, desired: Any, info: dict) -> Any:
        far = np.abs(np.asarray(achieved) - desired)[..., 0]
        return -far if self.dense else -(far > .5).astype(np.float32)

    def seen(self) -> dict: return dict(observation=self.x.copy(), achieved_goal=self.x.copy(), desired_goal=self.goal.copy())

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.x, self.goal, self.t = np.zeros(1, np.float32), np.float32([self.np_random.choice([-2, -1, 1, 2])]), 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        self.x += 2 * int(action) - 1
        self.t += 1
        over = dict(goal=bool(self.x[0] == self.goal[0]), never=False, odd=self.t == 3)[self.ends]
        return self.seen(), float(self.compute_reward(self.x, self.goal, {})), over, self.t >= 8, {}


gym.register("numbers/Reach-v0", Reach, disable_env_checker=True)


def config(env: str, algo: str, steps: int, num_envs: int = 1, kwargs: dict | None = None, net: dict | None = None, **more: Any) -> Config:
    small = dict(num_steps=16, num_minibatches=2) if algo == "ppo" else dict(num_steps=8) if algo == "a2c" else dict(
        batch_size=16, learning_starts=32, num_steps=16, train_every=4, buffer_size=2000)
    return config_from_dict(dict(env=dict(id=env, num_envs=num_envs, kwargs=kwargs or {}), algo=dict(name=algo) | small | more,
                                 net=dict(hidden=[16]) | (net or {}), train=dict(total_steps=steps)))


# a. Every integer type, every range

RANGES = [(-100, 100, np.int8), (-128, 127, np.int8), (0, 255, np.uint8), (3, 250, np.uint8), (-30000, 30000, np.int16), (0, 2**32 - 1, np.uint32),
          (-2**31, 2**31 - 1, np.int32), (-2**62, 2**62, np.int64), (-2**63, 2**63 - 1, np.int64), (0, 2**64 - 1, np.uint64), (5, 5, np.int8),
          (-3e38, 3e38, np.float32), (-3.4028234e38, 3.4028234e38, np.float32), (0, 3e38, np.float32), (-6e4, 6e4, np.float16), (-1e30, 1e30, np.float64), (-2, 2, np.float32)]


@pytest.mark.parametrize("low, high, kind", RANGES)
def test_a_warm_up_is_uniform_over_the_whole_range(low: float, high: float, kind: type) -> None:
    spec, rng = spec_from_space(spaces.Box(low, high, (1,), kind), "action"), np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acted, sampled = to_env(spec, random_actions(spec, rng, 4000)), spec.sample(rng, (4000,))
    for x in (acted, sampled):
        assert x.dtype == kind
        spec.check(x, (4000,))
        share = (x.astype(np.float64) - float(low)) / max(1, float(high) - float(low))   # of the range
        if low < high: assert abs(share.mean() - .5) < .03 and share.min() < .02 and share.max() > .98
    if kind in (np.int8, np.uint8) and low < high: assert len(np.unique(acted)) > .95 * (high - low)


@pytest.mark.parametrize("low, high, kind", RANGES)
def test_unit_coordinates_reach_both_ends_of_any_range(low: float, high: float, kind: type) -> None:
    spec = spec_from_space(spaces.Box(low, high, (1,), kind), "action")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        units = UnitActions(spec)
        unit = np.float32([[-1], [0], [1], [.5]])
        there = to_env(spec, units.to_env(unit))
        assert np.allclose(units.to_unit(units.to_env(unit)), unit * (low < high), atol=1e-5)
    spec.check(there, (4,))
    assert there[0, 0] == spec.low[0] and there[2, 0] == spec.high[0]   # rounded and clipped: the very ends
    assert abs(float(there[1, 0]) - (float(low) + float(high)) / 2) <= max(1, 1e-6 * float(high))


def test_what_a_policy_says_never_leaves_an_integer_box() -> None:
    for low, high, kind in RANGES:
        spec = spec_from_space(spaces.Box(low, high, (1,), kind), "action")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spec.check(to_env(spec, np.float32([[-3.4e38], [-1e19], [-.5], [0], [.5], [1e19], [3.4e38]])), (7,))


@pytest.mark.parametrize("algo", ["sac", "td3"])
@pytest.mark.parametrize("low, high, kind", [(-100, 100, "int8"), (0, 255, "uint8"), (-2**62, 2**62, "int64"), (-3e38, 3e38, "float32")])
def test_off_policy_trains_on_wide_boxes(algo: str, low: float, high: float, kind: str) -> None:
    gym.register("numbers/Wide-v0", lambda: Count(spaces.Box(low, high, (1,), np.dtype(kind).type)), disable_env_checker=True)
    try: t = Trainer(config("numbers/Wide-v0", algo, 64)).train()
    finally: del gym.registry["numbers/Wide-v0"]
    assert t.env_steps == 64 and all(torch.isfinite(p).all() for p in t.algo.module.parameters())


# b. A reward out of nowhere

@pytest.mark.parametrize("algo, env", [("dqn", "numbers/Count-v0"), ("sac", "numbers/Push-v0"), ("td3", "numbers/Push-v0")])
def test_a_first_reward_is_clipped_as_ppo_clips_it(algo: str, env: str) -> None:
    t = Trainer(config(env, algo, 400, kwargs=dict(paid_from=300), net=dict(normalize_reward=True)))
    learned, descend = [], t.algo.descend
    t.algo.descend = lambda batch: learned.append(float(np.abs(batch.reward).max())) or descend(batch)
    t.train()
    assert 0 < max(learned) <= 10 and RewardScale(1).clip == 10


# d. Budgets that are no multiple

@pytest.mark.parametrize("algo, num_envs, steps", [("dqn", 1, 1000), ("dqn", 3, 1000), ("sac", 2, 333), ("td3", 1, 65)])
def test_off_policy_stops_within_a_round_of_the_budget(algo: str, num_envs: int, steps: int) -> None:
    c = config("numbers/Count-v0" if algo == "dqn" else "numbers/Push-v0", algo, steps, num_envs, num_steps=256)
    t = Trainer(c).train()
    assert steps <= t.env_steps < steps + 4 * num_envs and t.finished and t.env_steps == goal_steps(c)


def test_a_short_last_iteration_resumes_to_the_same_bits() -> None:
    c = config("numbers/Count-v0", "dqn", 100)
    whole, half = Trainer(c).train(), Trainer(c).train(48)
    state = half.state_dict()
    rest = Trainer(c)
    rest.load_state_dict(state)
    assert weights_sha256(rest.train().algo.module) == weights_sha256(whole.algo.module) and rest.env_steps == whole.env_steps == 100


@pytest.mark.parametrize("algo, each", [("ppo", 16 * 3), ("a2c", 8 * 3)])
def test_whole_rollouts_are_announced(algo: str, each: int) -> None:
    from rlstudio.studio.console import Watcher, whole_rounds
    c = config("numbers/Count-v0", algo, each * 2 + 1, 3)
    t = Trainer(c)
    assert goal_steps(c) == each * 3 and whole_rounds(c).startswith(f"{each * 2 + 1} steps is 2.") and f" rollouts of {each} " in whole_rounds(c) and f": {each * 3} will be taken" in whole_rounds(c)
    assert Watcher(t, lambda: 0.).snapshot().total_steps == t.train().env_steps == each * 3
    assert whole_rounds(config("numbers/Count-v0", algo, each * 2, 3)) == ""


# e. Hindsight where nothing but the real steps says when an episode ends

def relabelled(steps: int = 400, **kwargs: Any) -> tuple[Trainer, Batch]:
    t = Trainer(config("numbers/Reach-v0", "dqn", steps, 2, kwargs, n_step=1, hindsight=1.)).train()
    return t, t.algo.replay.sample(500, np.random.default_rng(0))


@pytest.mark.parametrize("dense", [False, True])
def test_hindsight_learns_the_ends_from_real_steps(dense: bool) -> None:
    t, b = relabelled(dense=dense)
    goal = t.env.goal
    there = (get_goal(b.next_obs, goal.achieved) == get_goal(b.next_obs, goal.desired))[:, 0]
    assert there.any() and not there.all() and ((b.discount == 0) == there).all()


def test_hindsight_keeps_going_where_episodes_never_end() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (relabelled(ends="never")[1].discount > 0).all()


def test_hindsight_warns_where_rewards_do_not_say_it() -> None:
    with pytest.warns(UserWarning, match="fix: give the env compute_terminated"): relabelled(ends="odd")


def test_the_learned_ends_are_part_of_a_checkpoint() -> None:
    t, _ = relabelled()
    again = Trainer(t.config)
    again.load_state_dict(t.state_dict())
    rule, same = t.algo.replay.relabel.rule, again.algo.replay.relabel.rule
    assert rule.holds and (rule.ended, rule.went_on) == (same.ended, same.went_on)


# f. Nothing after a termination is used

@pytest.mark.parametrize("algo, env, more", [("dqn", "numbers/Count-v0", {}), ("dqn", "numbers/Count-v0", dict(n_step=3, prioritized=True)),
                                             ("sac", "numbers/Push-v0", {}), ("td3", "numbers/Push-v0", {}), ("ppo", "numbers/Count-v0", {}), ("a2c", "numbers/Push-v0", {})])
def test_nan_after_a_termination_is_never_used(algo: str, env: str, more: dict) -> None:
    ends = [weights_sha256(Trainer(config(env, algo, 192, kwargs=dict(length=5, nan_end=nan), **more)).train().algo.module) for nan in (True, False)]
    assert ends[0] == ends[1]


# c. A small difference on a large offset

@pytest.mark.parametrize("algo, steps, more", [("ppo", 6144, dict(num_steps=32, num_epochs=10, learning_rate=3e-3)),
                                               ("dqn", 3000, dict(n_step=1, gamma=.5, learning_rate=3e-3))])
def test_an_offset_costs_nothing(algo: str, steps: int, more: dict) -> None:
    scores = {}
    for offset in (0., 1.7e9):
        kwargs = dict(offset=offset, moving=True, dtype="float64")
        t = Trainer(config("numbers/Count-v0", algo, steps, 8 if algo == "ppo" else 1, kwargs, dict(normalize_obs=True), **more)).train()
        assert t.env.obs.dtype == np.float64 and t.algo.module.wide
        k = np.arange(60.)[:, None] + offset
        scores[offset] = float((t.algo.module.act(Batch(obs=k), greedy=True).action == (k[:, 0] - offset >= 30)).mean())
    assert min(scores.values()) > .9, scores


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_digits_survive_evaluation_and_resume(algo: str) -> None:
    from rlstudio.core.options import EvalConfig
    from rlstudio.train.evaluate import evaluate
    c = config("numbers/Count-v0", algo, 128, 2, dict(offset=1.7e9, moving=True, dtype="float64"), dict(normalize_obs=True))
    whole, half, rest = Trainer(c).train(), Trainer(c).train(64), Trainer(c)
    rest.load_state_dict(half.state_dict())
    assert weights_sha256(rest.train().algo.module) == weights_sha256(whole.algo.module)
    assert evaluate(whole.algo.module, c.env, EvalConfig(episodes=2)).lengths == (20, 20)
    first, second = (whole.algo.module.normed(np.array([[1.7e9 + k]])) for k in (1, 2))
    assert first.dtype == np.float32 and first != second


def test_without_a_normaliser_observations_stay_float32() -> None:
    t = Trainer(config("numbers/Count-v0", "dqn", 64, kwargs=dict(dtype="float64"), net=dict(normalize_obs=False)))
    assert t.env.obs.dtype == t.algo.replay.memory.observation_spec.dtype == np.float32


# g. Somebody else's default type

@pytest.mark.parametrize("engine", ["auto", "autograd"])
@pytest.mark.parametrize("algo, env", [("ppo", "numbers/Count-v0"), ("a2c", "numbers/Push-v0"), ("dqn", "numbers/Count-v0"), ("sac", "numbers/Push-v0"), ("td3", "numbers/Push-v0")])
def test_the_default_type_of_torch_changes_nothing(algo: str, env: str, engine: str) -> None:
    def trained() -> str: return weights_sha256(Trainer(config(env, algo, 96, net=dict(layer_norm=True, normalize_obs=True)), engine=engine).train().algo.module)
    want = trained()
    torch.set_default_dtype(torch.float64)
    try:
        assert trained() == want
        assert torch.get_default_dtype() == torch.float64   # and it stays what it was
    finally: torch.set_default_dtype(torch.float32)


# Gradients

@pytest.mark.faults(29)
@pytest.mark.parametrize("algo, env", [("ppo", "CartPole-v1"), ("a2c", "CartPole-v1"), ("dqn", "CartPole-v1")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_not_applied(algo: str, env: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    "The run stops with the step in its message, and no weight has moved"
    from rlstudio.algos import common
    from rlstudio.core.finite import NonFiniteError
    off = dict(batch_size=16, learning_starts=64, num_steps=16, buffer_size=300)
    t = Trainer(config_from_dict(dict(env=dict(id=env, num_envs=4), algo=dict(name=algo) | (off if algo == "dqn" else dict(num_steps=32)), net=dict(hidden=[16]),
                                      train=dict(total_steps=10_000))))
    t.train(500)
    before, plain = [p.detach().clone() for p in t.algo.module.parameters()], common.clip_gradient_

    def poisoned(grad: Any, max_norm: float) -> float:
        grad[0] = value
        return plain(grad, max_norm)
    monkeypatch.setattr(common, "clip_gradient_", poisoned)
    with pytest.raises(NonFiniteError, match=r"gradient: given (nan|inf).* \(env step \d+\)"): t.train()
    assert all((a == b).all() for a, b in zip(before, t.algo.module.parameters()))
