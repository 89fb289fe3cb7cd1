"The contract of vector envs: every backend keeps it, and worlds of tomorrow fit into it."
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlstudio.core.batch import Batch, allocate
from rlstudio.core.options import EnvConfig
from rlstudio.core.spec import ArraySpec, Spec, spec_from_space
from rlstudio.envs.backends import GymVector, InProcess, make_vector
from rlstudio.envs.classic import CartPole
from rlstudio.envs.make import EnvError
from rlstudio.envs.toy import register_toys
from rlstudio.envs.vector import VectorEnv, check_action, check_seeds

FIVE = ["obs", "reward", "terminated", "truncated", "final_obs"]


def cartpole(n: int = 3, **kw: Any) -> EnvConfig: return EnvConfig(id="CartPole-v1", num_envs=n, max_episode_steps=9, **kw)


def gym_vector(mode: AutoresetMode) -> GymVector:
    return GymVector(SyncVectorEnv([lambda: gym.make("CartPole-v1", max_episode_steps=9)] * 3, autoreset_mode=mode), "CartPole-v1")


BACKENDS = {"native": lambda: CartPole(3, 9), "inprocess": lambda: InProcess(cartpole()), "drawn": lambda: InProcess(cartpole(), "rgb_array"),
            **{mode.name: lambda mode=mode: gym_vector(mode) for mode in AutoresetMode}}


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_batch_of_declared_fields(backend: str) -> None:
    "The same batch with the same arrays from every call, each as declared"
    env, rng = BACKENDS[backend](), np.random.default_rng(0)
    assert list(env.fields) == FIVE + ["valid"] * (backend == "NEXT_STEP")
    held = dict(env.out.fields)
    assert env.reset([1, 2, 3]) is env.out
    for _ in range(30):
        assert env.step(rng.integers(2, size=3)) is env.out
        assert env.out.fields == held and all(x is held[k] for k, x in env.out.fields.items())
        env.out.check(env.fields, (3,))
    assert env.obs is held["obs"] and env.valid is held.get("valid")
    env.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_forgets_the_step_before(backend: str) -> None:
    env = BACKENDS[backend]()
    env.reset([1, 2, 3])
    while not env.step(np.ones(3, int)).done.any(): pass
    b = env.reset([1, 2, 3])
    assert not b.reward.any() and not b.done.any() and (env.valid is None or env.valid.all())
    env.step(np.ones(3, int))
    assert env.valid is None or env.valid.all()
    env.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_wrong_is_refused_before_anything_moves(backend: str) -> None:
    env = BACKENDS[backend]()
    obs = env.reset([1, 2, 3]).obs.copy()
    for seeds in ([1, 2], [1, 2, -3], [1, 2, 3.5]):
        with pytest.raises(EnvError, match="expected 3 integers of 0 or more"): env.reset(seeds)
    for action in (np.zeros(2, int), np.array([0, 2, 0]), np.array([0., 1., np.nan]), [0, 1, 0, 1]):
        with pytest.raises(EnvError, match="CartPole-v1: action: given"): env.step(action)
    assert (env.obs == obs).all()
    env.close()


# Worlds of tomorrow

class Walk(VectorEnv):
    "A corridor of five places; `told` fills an observation of any kind"
    backend, level = "native", "exact"

    def __init__(self, num_envs: int, observation_spec: Spec, **more: Spec) -> None:
        super().__init__("test/Walk-v0", num_envs, observation_spec, spec_from_space(Discrete(2), "action"), **more)
        self.at = np.zeros(num_envs, int)

    def told(self, obs: Any) -> None: obs[:, 0] = self.at

    def reset(self, seeds: Any) -> Batch:
        check_seeds(self, seeds)
        self.clear()
        self.at[:] = 0
        self.told(self.out.obs)
        return self.out

    def step(self, action: np.ndarray) -> Batch:
        self.at = np.maximum(self.at + 2 * check_action(self, action) - 1, 0)
        self.told(self.out.final_obs)
        self.out.terminated[:] = self.out.reward[:] = self.at == 4
        self.at[self.out.terminated] = 0
        self.told(self.out.obs)
        return self.out


class MaskedWalk(Walk):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, spec_from_space(Box(0, 4, (1,))), mask=ArraySpec("mask", (2,), np.dtype(bool)))

    def told(self, obs: Any) -> None:
        super().told(obs)
        self.out.mask[:, 0], self.out.mask[:, 1] = self.at > 0, True


SPACES = Dict(place=Box(0, 4, (1,)), rest=Tuple([Discrete(5), Box(0, 1, (2, 2))]))


class DictWalk(Walk):
    def __init__(self, num_envs: int) -> None: super().__init__(num_envs, spec_from_space(SPACES, "obs"))

    def told(self, obs: Any) -> None:
        left, picture = obs.rest.fields.values()
        obs.place[:, 0], left[:], picture[:] = self.at, 4 - self.at, (self.at / 4)[:, None, None]


def rollout(env: VectorEnv, T: int) -> Batch:
    "What a buffer does: allocated from the declaration, each step written into its row"
    log, rng = allocate(env.fields, (T, env.num_envs)), np.random.default_rng(0)
    env.reset(range(env.num_envs))

    def write(to: Batch, step: Batch, t: int) -> None:
        for name, x in step.fields.items():
            if isinstance(x, Batch): write(to.fields[name], x, t)
            else: to.fields[name][t] = x

    for t in range(T): write(log, env.step(rng.integers(2, size=env.num_envs)), t)
    log.check(env.fields, (T, env.num_envs))
    return log


def test_a_mask_is_one_more_field() -> None:
    "An invalid action is known from the batch alone, through a rollout, flattened and cut"
    log = rollout(MaskedWalk(6), 50)
    assert log.terminated.any() and log.shape == (50, 6)
    flat = log.flatten()
    assert (flat.mask[:, 0] == (flat.obs[:, 0] > 0)).all() and flat.mask[:, 1].all()
    assert not flat[flat.terminated].mask[:, 0].any()    # a new episode begins at the start
    for part in flat.split(10, np.random.default_rng(1).permutation(300)): assert part.mask.shape == (30, 2)


def test_a_dict_observation_is_a_nested_batch() -> None:
    log = rollout(DictWalk(6), 50)
    assert log.terminated.any() and log.shape == (50, 6)
    obs = log.flatten().obs
    left, picture = obs.rest.fields.values()
    assert (obs.place[:, 0] + left == 4).all() and (picture[:, 1, 1] == np.float32(obs.place[:, 0] / 4)).all()
    assert (log.final_obs.place[log.terminated] == 4).all() and (log.obs.place[log.terminated] == 0).all()
    assert list(DictWalk(2).observation_spec.children) == ["place", "rest"]


# Pictures

def test_a_film_through_the_vector_env_is_the_film_of_the_single_env() -> None:
    "Frame by frame, the last state of the episode included"
    env, single = InProcess(cartpole(2), "rgb_array"), gym.make("CartPole-v1", render_mode="rgb_array", max_episode_steps=9)
    env.reset([1, 2])
    single.reset(seed=2)
    for t in range(12):
        assert (env.render(1) == single.render()).all()
        _, _, terminated, truncated, _ = single.step(t % 2)
        assert env.step(np.array([1, t % 2])).done[1] == (terminated or truncated)
        if terminated or truncated: break
    assert truncated and (env.render(1) == single.render()).all() and (env.render(1) != env.render(0)).any()
    env.reset([1, 2])
    single.reset(seed=2)
    assert (env.render(1) == single.render()).all()
    env.close()


def test_a_picture_that_fails_names_the_sub_env() -> None:
    env = InProcess(cartpole(2), "rgb_array")
    env.reset([1, 2])
    def broken() -> None: raise OSError("no display")
    env.envs[1].env.unwrapped.render = broken
    with pytest.raises(EnvError, match="CartPole-v1: sub-env 1 failed in render: OSError: no display"): env.render(1)
    assert env.render(0).shape == (400, 600, 3)
    with pytest.raises(EnvError, match=re.escape("fix: InProcess(config, 'rgb_array')")): InProcess(cartpole()).render()
    with pytest.raises(EnvError, match="cannot be drawn"): InProcess(EnvConfig(id="rlstudio/Bandit-v0"), "rgb_array")
    env.close()


def test_pictures_change_nothing() -> None:
    "The same episodes with and without a render mode, and snapshots that fit both"
    drawn, plain = InProcess(cartpole(), "rgb_array"), InProcess(cartpole())
    for env in (drawn, plain): env.reset([1, 2, 3])
    rng = np.random.default_rng(0)
    for _ in range(40):
        action = rng.integers(2, size=3)
        for env in (drawn, plain): env.step(action)
        assert all((x == plain.out.fields[k]).all() for k, x in drawn.out.fields.items())
    again = InProcess(cartpole())
    again.load_state_dict(drawn.state_dict())
    assert (again.obs == plain.obs).all() and again.step(action) is again.out
    for env in (drawn, plain, again): env.close()


def test_backends_are_shallow() -> None:
    "VectorEnv → Classic → CartPole, and nothing deeper"
    register_toys()
    for config in (cartpole(), cartpole(backend="inprocess"), cartpole(backend="gymnasium")):
        chain = [c for c in type(make_vector(config)).__mro__ if c.__module__.startswith("rlstudio")]
        assert len(chain) <= 3, chain
