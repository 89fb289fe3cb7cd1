"One loop steps an agent: what it sees, remembers and leaves behind, also in worlds and with agents of tomorrow."
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_envs import DictWalk, MaskedWalk

from rlstudio.core.batch import Batch
from rlstudio.core.finite import NonFiniteError
from rlstudio.core.spec import ArraySpec
from rlstudio.data.rollout import RolloutBuffer, Stepper, collect, next_values
from rlstudio.envs.backends import GymVector
from rlstudio.envs.vector import VectorEnv

COUNT, NUMBER, ACTION = (ArraySpec("", (), np.dtype(t)) for t in (np.int64, np.float32, np.int64))


class Counter:
    "An agent that is no `RLModule`: it counts the steps of its episode, looks at the mask if there is one, and goes right in two steps of three"
    fields = dict(action=ACTION, value=NUMBER, state=dict(count=COUNT))

    def initial_state(self, num_envs: int) -> Batch: return Batch(count=np.zeros(num_envs, np.int64))

    def act(self, seen: Batch, t: int) -> Batch:
        count = seen.state.count
        action = (count % 3 > 0).astype(np.int64)
        if "mask" in seen.keys(): action = np.where(seen.mask[np.arange(len(action)), action], action, 1)
        return Batch(action=action, value=np.float32(count), state=Batch(count=count + 1))


def rollout(env: VectorEnv, T: int = 40) -> tuple[Stepper, RolloutBuffer]:
    agent = Counter()
    stepper, buffer = Stepper(env, agent, list(range(env.num_envs))), RolloutBuffer(T, env, agent.fields)
    collect(stepper, buffer, agent.act)
    return stepper, buffer


def test_a_mask_reaches_the_agent_and_the_buffer() -> None:
    "As one more field that is seen: row t is what was allowed there, row T what is allowed next"
    env = MaskedWalk(5)
    stepper, buffer = rollout(env)
    b = buffer.batch()
    assert b.shape == (40, 5) and b.mask.shape == (40, 5, 2) and b.terminated.any()
    assert (b.mask[:, :, 0] == (b.obs[:, :, 0] > 0)).all() and not b.mask.all()
    assert np.take_along_axis(b.mask, b.action[:, :, None], 2).all()    # nothing was done that was not allowed
    assert (buffer.seen.mask[-1] == env.out.mask).all() and stepper.seen.mask is env.out.mask
    for m in b.flatten().split(8): assert m.mask.shape == (25, 2)
    assert next_values(buffer, lambda seen: np.float32(seen.state.count)).shape == (40, 5)


def test_a_dict_observation_is_collected_as_it_is() -> None:
    _, buffer = rollout(DictWalk(5))
    b, after = buffer.batch(), buffer.next_obs()
    left, picture = b.obs.rest.fields.values()
    assert b.terminated.any() and picture.shape == (40, 5, 2, 2)
    assert (b.obs.place[:, :, 0] + left == 4).all() and (picture[:, :, 1, 1] == b.obs.place[:, :, 0] / 4).all()
    assert (after.place[b.terminated] == 4).all() and (b.obs.place[1:][b.terminated[:-1]] == 0).all()
    assert (after.place[:-1][~b.done[:-1]] == b.obs.place[1:][~b.done[:-1]]).all()
    def place(seen: Batch) -> np.ndarray: return seen.obs.place[:, 0]
    asked = next_values(buffer, place)
    assert (asked[-1] == buffer.seen.obs.place[-1, :, 0]).all() and (asked[:-1] == buffer.rows.value[1:]).all()   # no cut here


def test_what_is_not_finite_deep_in_an_observation_is_found() -> None:
    class Broken(DictWalk):
        def told(self, obs: Any) -> None:
            super().told(obs)
            if self.at.max() > 1: list(obs.rest.fields.values())[1][1, 0, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"observation.rest.1: given nan at \[1, 0, 1\] .*fix: look at what the environment"): rollout(Broken(3))


def gym_vector(mode: AutoresetMode, n: int = 3) -> GymVector:
    return GymVector(SyncVectorEnv([lambda: gym.make("CartPole-v1", max_episode_steps=15)] * n, autoreset_mode=mode), "CartPole-v1")


@pytest.mark.parametrize("mode", AutoresetMode)
def test_state_begins_where_an_episode_begins(mode: AutoresetMode) -> None:
    "In every dialect the first real row of an episode has count 0, and the last one its length less one"
    stepper, buffer = rollout(gym_vector(mode), 80)
    b = buffer.batch()
    valid = b.fields.get("valid", np.ones((80, 3), bool))
    assert valid.all() == (mode is not AutoresetMode.NEXT_STEP) and b.truncated.any() and b.terminated.any()
    for i in range(3):
        real = valid[:, i]
        counts, done = b.state.count[real, i], b.done[real, i]
        assert counts[0] == 0 and (counts[1:] == np.where(done[:-1], 0, counts[:-1] + 1)).all()
        assert (counts[done] + 1).tolist() == [n for j, _, n in stepper.tally.ended if j == i]
    assert stepper.env_steps == valid.sum()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_finals_are_what_the_old_episode_saw_last(mode: AutoresetMode) -> None:
    "Its observation and its memory; a cut is asked about, an end is not"
    _, buffer = rollout(gym_vector(mode), 80)
    b, after = buffer.batch(), buffer.next_obs()
    ends = sorted(zip(*(x.tolist() for x in b.done.nonzero())))
    assert sorted((t, i) for t, i, _ in buffer.finals) == ends
    for t, i, last in buffer.finals:
        assert (after[t, i] == last.obs).all() and last.state.count == b.state.count[t, i] + 1
    moved = after[:, :, 0] - b.obs[:, :, 0]    # CartPole moves its cart by 0.02 times its speed
    real = b.fields.get("valid", np.ones((80, 3), bool))
    assert np.allclose(moved[real], .02 * b.obs[:, :, 1][real], atol=1e-6)
    asked = list[int]()
    def count(seen: Batch) -> np.ndarray:
        asked.append(len(seen))
        return np.float32(seen.state.count)
    beyond = next_values(buffer, count)
    assert asked == [3 + b.truncated.sum()] and (beyond[b.truncated] == b.state.count[b.truncated] + 1).all()


def test_a_stepper_goes_on_in_another_object() -> None:
    agent, env, again = Counter(), MaskedWalk(3), MaskedWalk(3)
    a, b = Stepper(env, agent, [1, 2, 3]), Stepper(again, agent, [7, 8, 9])
    for t in range(11): a.step(agent.act(a.seen, t))
    env.state_dict = lambda: dict(at=env.at.copy(), obs=env.out.map(np.copy))    # type: ignore[method-assign]
    def load(state: Any) -> None:
        again.at = state["at"]
        for k, x in state["obs"].fields.items(): again.out.fields[k][:] = x
    again.load_state_dict = load                                                 # type: ignore[method-assign]
    b.load_state_dict(a.state_dict())
    for t in range(20):
        x, y = (s.step(agent.act(s.seen, t)) for s in (a, b))
        assert all((p == y.fields[k]).all() for k, p in x.fields.items()) and (a.state.count == b.state.count).all()
    assert a.tally.ended == b.tally.ended and a.env_steps == b.env_steps == 93


def test_what_an_agent_emitted_stays_as_it_was() -> None:
    "A new state is written into a copy: greedy agents may emit the state that they saw"
    agent, env = Counter(), MaskedWalk(4)
    stepper = Stepper(env, agent, [0, 1, 2, 3])
    for t in range(30):
        out = agent.act(stepper.seen, t)
        before = out.state.count.copy()
        done = stepper.step(out).done.copy()
        assert (out.state.count == before).all() and (stepper.state.count == np.where(done, 0, before)).all()
        assert not stepper.first.count.any()
