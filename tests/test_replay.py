"The replay buffer against a list of everything that happened, under any sequence of adds (chapters data.storage and data.replay)."
import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from rlstudio.core.batch import Batch
from rlstudio.core.options import EnvConfig
from rlstudio.core.spec import ArraySpec, policy_spec, spec_from_space
from rlstudio.data import storage as storage_chapter
from rlstudio.data.replay import ReplayBuffer, ReplayPart, Sampler, Uniform
from rlstudio.data.storage import ReplayError, memory_limit
from rlstudio.envs.backends import make_vector
from rlstudio.runs.checkpoint import load_checkpoint, save_checkpoint

PAIR = spec_from_space(spaces.Box(-np.inf, np.inf, (2,)), "obs")
THREE = spec_from_space(spaces.Discrete(3), "action")
many = settings(max_examples=80, deadline=None, derandomize=True, database=None)


class World:
    "N envs whose observations are (episode, moment): whatever is mixed up shows; and a diary of all that happened"

    def __init__(self, num_envs: int, seed: int, see: Callable[[np.ndarray], np.ndarray] = np.float32):
        self.N, self.rng, self.see = num_envs, np.random.default_rng(seed), see
        self.at = [(i, 0) for i in range(num_envs)]
        self.episodes = num_envs
        self.diary: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]

    def restart(self, i: int) -> None:
        self.at[i] = (self.episodes, 0)
        self.episodes += 1

    def step(self, p_end: float, p_fake: float, p_jump: float) -> list[dict[str, Any]]:
        rows = []
        for i in range(self.N):
            if self.rng.random() < p_jump: self.restart(i)
            episode, moment = self.at[i]
            row = dict(obs=(episode, moment), next_obs=(episode, moment + 1), reward=np.float32(self.rng.normal()),
                       terminated=bool(self.rng.random() < p_end), truncated=bool(self.rng.random() < p_end),
                       valid=bool(self.rng.random() >= p_fake), action=int(self.rng.integers(3)))
            self.at[i] = row["next_obs"]
            if row["terminated"] or row["truncated"] or not row["valid"]: self.restart(i)
            self.diary[i].append(row)
            rows.append(row)
        return rows

    def batch(self, T: int, p_end: float, p_fake: float = 0., p_jump: float = 0.) -> Batch:
        steps = [self.step(p_end, p_fake, p_jump) for _ in range(T)]
        fields = {k: np.array([[row[k] for row in step] for step in steps]) for k in steps[0][0]}
        seen = {k: self.see(fields[k]) for k in ("obs", "next_obs")}
        if p_fake == 0: del fields["valid"]
        return Batch(**fields | seen)

    def transition(self, i: int, t: int, n: int, gamma: float) -> dict[str, Any]:
        "Slowly, from the diary: what a sample of step t of env i has to be"
        rows, G = self.diary[i], 0.
        for k in range(n):
            row = rows[t + k]
            G += gamma**k * row["reward"]
            if row["terminated"] or row["truncated"] or t + k + 1 == len(rows): break
            after = rows[t + k + 1]
            if not after["valid"] or after["obs"] != row["next_obs"]: break
        return dict(obs=rows[t]["obs"], action=rows[t]["action"], reward=G, next_obs=row["next_obs"],
                    discount=0. if row["terminated"] else gamma**(k + 1))

    def expected(self, slots: int, blurred: int, n: int, gamma: float) -> dict[int, dict[str, Any]]:
        "By index: everything that can be sampled"
        T = len(self.diary[0])
        oldest = max(0, T - slots + blurred) if T > slots else 0
        return {(t * self.N + i) % ((slots + 1) * self.N): self.transition(i, t, n, gamma)
                for t in range(oldest, T) for i in range(self.N) if self.diary[i][t]["valid"]}


def film(pair: np.ndarray, k: int) -> np.ndarray:
    "Stacks of frames of two bytes (episode, moment), the first one repeated"
    back = np.asarray(pair)[..., None, :] - np.arange(k - 1, -1, -1)[:, None] * [0, 1]
    return (np.maximum(back, 0) % 256).astype(np.uint8)


def holds(buffer: ReplayBuffer, world: World) -> None:
    "The buffer gives every transition that is within reach, as it happened, and nothing else"
    want = world.expected(buffer.memory.ring.slots, buffer.memory.ring.blurred, buffer.n_step, buffer.gamma)
    assert len(buffer) == len(want)
    for index in range(buffer.memory.ring.size):
        if index in want: continue
        with pytest.raises(ReplayError, match=f"index: given {index}, expected the place of a transition"): buffer.gather(np.array([index]))
    if not want:
        with pytest.raises(ReplayError, match="add first"): buffer.sample(1, np.random.default_rng(0))
        return
    drawn = buffer.sample(64, np.random.default_rng(0))
    for b in (drawn, buffer.gather(np.array([*want]))):
        rows = [want[i] for i in b.index.tolist()]
        for name in ("obs", "next_obs"):
            assert np.array_equal(b.fields[name], world.see(np.array([row[name] for row in rows])))
        assert b.action.tolist() == [row["action"] for row in rows]
        np.testing.assert_allclose(b.reward, [row["reward"] for row in rows], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(b.discount, [row["discount"] for row in rows], rtol=1e-6)
        assert b.reward.dtype == b.discount.dtype == np.float32 and b.action.dtype == np.int64


adds = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0., .1, .5, 1.]), st.sampled_from([0., 0., .3, .9]),
                          st.sampled_from([0., 0., .2])), max_size=8)


@many
@given(num_envs=st.integers(1, 4), extra=st.integers(0, 3), slots=st.integers(1, 8), n=st.integers(1, 4),
       gamma=st.sampled_from([0., .5, .99, 1.]), storage=st.sampled_from(["memory", "disk"]), seed=st.integers(0, 99), adds=adds)
def test_what_is_drawn_happened(num_envs: int, extra: int, slots: int, n: int, gamma: float, storage: Any, seed: int, adds: list) -> None:
    world = World(num_envs, seed)
    buffer = ReplayBuffer(slots * num_envs + min(extra, num_envs - 1), num_envs, PAIR, THREE, n_step=n, gamma=gamma, storage=storage)
    holds(buffer, world)
    for add in adds:
        buffer.add(batch := world.batch(*add))
        for x in batch.fields.values(): x[...] = 0  # a caller may use its arrays again
        holds(buffer, world)


@many
@given(num_envs=st.integers(1, 3), k=st.integers(2, 4), slots=st.integers(4, 9), n=st.integers(1, 3), seed=st.integers(0, 99), adds=adds)
def test_stacks_are_rebuilt(num_envs: int, k: int, slots: int, n: int, seed: int, adds: list) -> None:
    world = World(num_envs, seed, lambda x: film(x, k))
    buffer = ReplayBuffer(slots * num_envs, num_envs, ArraySpec("obs", (k, 2), np.dtype(np.uint8)), THREE, n_step=n, frame_stack=k)
    for add in adds:
        buffer.add(world.batch(*add))
        holds(buffer, world)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_last_observations_are_forgotten_no_sooner_and_no_later(steps: int) -> None:
    world, buffer = World(2, 0), ReplayBuffer(20, 2, PAIR, THREE)
    for _ in range(60):
        buffer.add(world.batch(steps, 1.))
        holds(buffer, world)
    assert len(buffer.memory.finals.keys) < 100  # of at least 120 that there were


# ---- state -------------------------------------------------------------------------------------------------------------

def frozen(state: dict[str, Any]) -> dict[str, Any]: return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in state.items()}


def equal(a: Batch, b: Batch) -> bool: return all(a.fields[k].tobytes() == b.fields[k].tobytes() and a.fields[k].dtype == b.fields[k].dtype for k in a.keys())


@many
@given(num_envs=st.integers(1, 3), k=st.sampled_from([1, 3]), slots=st.integers(4, 9), n=st.integers(1, 3), seed=st.integers(0, 99),
       storage=st.sampled_from(["memory", "disk"]), adds=adds, more=adds)
def test_a_state_goes_on_bit_for_bit(num_envs: int, k: int, slots: int, n: int, seed: int, storage: Any, adds: list, more: list) -> None:
    world = World(num_envs, seed, (lambda x: film(x, k)) if k > 1 else np.float32)
    spec = ArraySpec("obs", (k, 2), np.dtype(np.uint8)) if k > 1 else PAIR
    def make(**how: Any) -> ReplayBuffer: return ReplayBuffer(slots * num_envs, num_envs, spec, THREE, n_step=n, frame_stack=k, **how)
    a, b = make(), make(storage=storage)
    b.add(World(num_envs, 7, world.see).batch(20, 0.))  # whatever was there before is gone
    for add in adds: a.add(world.batch(*add))
    b.load_state_dict(frozen(a.state_dict()))
    rngs = np.random.default_rng(3), np.random.default_rng(3)
    for add in [None, *more]:
        if add:
            batch = world.batch(*add)
            for x in (a, b): x.add(batch)
        assert len(a) == len(b)
        if len(a): assert equal(a.sample(40, rngs[0]), b.sample(40, rngs[1]))
    holds(b, world)


@pytest.mark.parametrize("steps", [0, 5, 12, 40])
@pytest.mark.parametrize("k", [1, 4])
def test_a_checkpoint_holds_it(tmp_path: Path, steps: int, k: int) -> None:
    world = World(2, 0, (lambda x: film(x, k)) if k > 1 else np.float32)
    spec = ArraySpec("obs", (k, 2), np.dtype(np.uint8)) if k > 1 else PAIR
    a, b = (ReplayBuffer(24, 2, spec, THREE, frame_stack=k) for _ in range(2))
    if steps: a.add(world.batch(steps, .2, .1))
    save_checkpoint(tmp_path, 1, {"replay": a.state_dict()})
    b.load_state_dict(load_checkpoint(next(tmp_path.iterdir())).state["replay"])
    batch = world.batch(3, .2)
    for x in (a, b): x.add(batch)
    assert equal(a.sample(50, np.random.default_rng(0)), b.sample(50, np.random.default_rng(0)))
    holds(b, world)


@pytest.mark.parametrize("other", [dict(capacity=20), dict(num_envs=1), dict(action_spec=spec_from_space(spaces.Discrete(300), "action")),
                                   dict(observation_spec=spec_from_space(spaces.Box(-1, 1, (3,)), "obs"))])
def test_the_state_of_another_buffer_is_refused(other: dict[str, Any]) -> None:
    config: dict[str, Any] = dict(capacity=10, num_envs=2, observation_spec=PAIR, action_spec=THREE)
    with pytest.raises(ReplayError, match="replay: given the state of .* expected .*; fix: build it from the config of that run"):
        ReplayBuffer(**config).load_state_dict(ReplayBuffer(**config | other).state_dict())


BYTES = np.dtype(np.uint8)


@pytest.mark.parametrize(("one", "other"), [
    (dict(observation_spec=ArraySpec("obs", (4, 8, 8), BYTES), frame_stack=4), dict(observation_spec=ArraySpec("obs", (8, 8), BYTES))),
    (dict(observation_spec=ArraySpec("obs", (4, 8, 8), BYTES), frame_stack=4), dict(observation_spec=ArraySpec("obs", (3, 8, 8), BYTES), frame_stack=3)),
    (dict(action_spec=spec_from_space(spaces.Discrete(2), "action")), dict(action_spec=spec_from_space(spaces.Discrete(3), "action")))])
def test_layouts_that_look_alike_in_memory_are_told_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    config: dict[str, Any] = dict(capacity=10, num_envs=2, observation_spec=PAIR, action_spec=THREE)
    a, b = ReplayBuffer(**config | one), ReplayBuffer(**config | other)
    with pytest.raises(ReplayError, match="given the state of"): a.load_state_dict(b.state_dict())
    a.load_state_dict(ReplayBuffer(**config | one).state_dict())


def test_what_is_no_state_of_such_a_buffer_is_refused() -> None:
    plain, watched = ReplayBuffer(10, 2, PAIR, THREE), ReplayBuffer(10, 2, PAIR, THREE, sampler=Watched())
    for state in ({}, dict(rows=np.zeros(3)), watched.state_dict()):
        with pytest.raises(ReplayError, match="replay: given the state of a buffer with .*; fix: build it from the config"): plain.load_state_dict(state)
    with pytest.raises(ReplayError, match="a buffer with there, expected one without it"): plain.load_state_dict(watched.state_dict())
    with pytest.raises(ReplayError, match="a buffer without there, expected one with it"): watched.load_state_dict(plain.state_dict())


@many
@given(num_envs=st.integers(1, 3), k=st.sampled_from([1, 3]), slots=st.integers(3, 7), p_end=st.sampled_from([.2, .6, 1.]), used=st.booleans(),
       before=st.integers(0, 30), steps=st.lists(st.integers(1, 12), min_size=1, max_size=9))
def test_a_state_does_not_depend_on_what_was_forgotten(num_envs: int, k: int, slots: int, p_end: float, used: bool, before: int, steps: list[int]) -> None:
    world = World(num_envs, 0, (lambda x: film(x, k)) if k > 1 else np.float32)
    spec = ArraySpec("obs", (k, 2), BYTES) if k > 1 else PAIR
    a, b = (ReplayBuffer(slots * num_envs, num_envs, spec, THREE, frame_stack=k) for _ in range(2))
    if before: a.add(world.batch(before, p_end, .1, .1))
    if used: b.add(World(num_envs, 7, world.see).batch(17, .5))  # whatever was there before is gone
    b.load_state_dict(frozen(a.state_dict()))
    for T in [0, *steps]:
        if T:
            batch = world.batch(T, p_end, .1, .1)
            for x in (a, b): x.add(batch)
        one, other = a.state_dict(), b.state_dict()
        assert one.keys() == other.keys()
        for name in one: assert np.array_equal(one[name], other[name]), name
        if len(one["final_keys"]): assert one["final_keys"][0] >= a.memory.ring.oldest(a.memory.ring.time) * num_envs


@pytest.mark.parametrize("jump", [0., 1.])
def test_one_long_add_keeps_only_what_can_be_drawn(jump: float) -> None:
    world, buffer = World(2, 0), ReplayBuffer(60, 2, PAIR, THREE)
    buffer.add(world.batch(5, 1.))
    buffer.add(world.batch(300, 1., 0., jump))  # an end at every step, in one piece
    assert len(buffer.memory.finals) <= 60 + 2 and len(buffer.memory.finals.keys) < 120
    holds(buffer, world)
    buffer.add(world.batch(300, 0., 0., jump))
    buffer.add(world.batch(4, 1.))
    assert len(buffer.memory.finals.keys) < 120
    holds(buffer, world)


# ---- what is refused, and leaves no trace ------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[Batch], Batch], str]] = {
    "no next_obs": (lambda b: Batch(**{k: x for k, x in b.fields.items() if k != "next_obs"}), "expected a field 'next_obs'"),
    "one env": (lambda b: b.map(lambda x: x[:, :1]), r"obs: given shape \(3, 1, 2\), expected \(3, 2, 2\)"),
    "no time": (lambda b: b.map(lambda x: x[0]), r"obs: given shape \(2, 2\), expected \(2, 2, 2\).* fix: stack the steps"),
    "short": (lambda b: b.replace(truncated=b.truncated[:2]), r"truncated: given shape \(2, 2\), expected \(3, 2\)"),
    "wide": (lambda b: b.replace(reward=b.reward[..., None]), r"reward: given shape \(3, 2, 1\), expected \(3, 2\)"),
    "float64": (lambda b: b.replace(next_obs=b.next_obs.astype(float)), r"next_obs: given dtype float64, expected float32; fix: x.astype\('float32'\)"),
    "int flags": (lambda b: b.replace(terminated=b.terminated.astype(int)), "terminated: given dtype int64, expected bool"),
    "float choice": (lambda b: b.replace(action=b.action.astype(float)), "action: given dtype float64, expected int64"),
    "no such choice": (lambda b: b.replace(action=b.action * 0 + [0, 3]), "action: given 0 … 3, expected 0 … 2; fix: store what the policy"),
    "negative choice": (lambda b: b.replace(action=b.action * 0 - 1), "action: given -1 … -1, expected 0 … 2"),
    "int valid": (lambda b: b.replace(valid=np.ones((3, 2), int)), "valid: given dtype int64, expected bool"),
    "torch": (lambda b: b.torch(), r"obs: given a Tensor, expected a NumPy array; fix: batch.numpy\(\)"),
    "torch action": (lambda b: b.replace(action=b.torch().action), r"action: given a Tensor, expected a NumPy array; fix: batch.numpy\(\)"),
    "torch reward": (lambda b: b.replace(reward=b.torch().reward), r"reward: given a Tensor, expected a NumPy array; fix: batch.numpy\(\)"),
    "torch flags": (lambda b: b.replace(truncated=b.torch().truncated), "truncated: given a Tensor, expected a NumPy array"),
    "nested": (lambda b: b.replace(obs=Batch(x=b.obs), next_obs=Batch(x=b.next_obs)), "obs: given a Batch, expected a NumPy array; .* else one array a field"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_batch_that_does_not_fit_leaves_no_trace(wrong: str) -> None:
    world = World(2, 0)
    buffer = ReplayBuffer(10, 2, PAIR, THREE)
    buffer.add(world.batch(8, .3, .1))
    before, (spoil, message) = frozen(buffer.state_dict()), WRONG[wrong]
    with pytest.raises(ReplayError, match=message): buffer.add(spoil(World(2, 1).batch(3, .3)))
    after = buffer.state_dict()
    assert all(np.array_equal(after[k], before[k]) for k in before)
    buffer.add(world.batch(2, .3))
    holds(buffer, world)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda b: b.replace(obs=b.obs + np.arange(3, dtype=np.uint8)[:, None], next_obs=b.next_obs + np.arange(3, dtype=np.uint8)[:, None]),
     "obs: given an episode that begins with different frames, .*; fix: padding_type='reset', or frame_stack=1"),
    (lambda b: b[:1].replace(next_obs=b.next_obs[:1, :, ::-1]), "next_obs: given frames other than those of obs moved by one, .*; fix: frame_stack=1")])
def test_stacks_that_are_not_frames_moved_by_one_are_refused(spoil: Callable[[Batch], Batch], message: str) -> None:
    world = World(2, 0, lambda x: film(x, 3))
    buffer = ReplayBuffer(20, 2, ArraySpec("obs", (3, 2), np.dtype(np.uint8)), THREE, frame_stack=3)
    buffer.add(world.batch(6, .2))
    before = frozen(buffer.state_dict())
    with pytest.raises(ReplayError, match=message): buffer.add(spoil(World(2, 5, world.see).batch(4, 0.)))
    assert all(np.array_equal(x, before[k]) for k, x in buffer.state_dict().items())
    holds(buffer, world)


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(capacity=1e6), "capacity: given 1000000.0, expected an integer, 2 or more; fix: capacity=1000000$"),
    (dict(capacity="10"), "capacity: given '10', expected an integer"), (dict(capacity=float("inf")), "capacity: given inf, .* fix: capacity=2$"),
    (dict(capacity=1), "capacity: given 1, .* fix: capacity=2$"), (dict(num_envs=2.), "num_envs: given 2.0, expected an integer, 1 or more; fix: num_envs=2$"),
    (dict(num_envs=None), "num_envs: given None"), (dict(n_step=1.5), "n_step: given 1.5, .* fix: n_step=1$"), (dict(frame_stack=1.), "frame_stack: given 1.0")])
def test_settings_are_integers(wrong: dict[str, Any], message: str) -> None:
    config: dict[str, Any] = dict(capacity=10, num_envs=2, observation_spec=PAIR, action_spec=THREE)
    with pytest.raises(ReplayError, match=message): ReplayBuffer(**config | wrong)
    ReplayBuffer(**config | dict(capacity=np.int64(10)))


@pytest.mark.parametrize("n", [0, -1])
def test_nothing_cannot_be_drawn(n: int) -> None:
    buffer = ReplayBuffer(10, 2, PAIR, THREE)
    buffer.add(World(2, 0).batch(3, 0.))
    with pytest.raises(ReplayError, match=f"sample: given n={n}, expected 1 or more"): buffer.sample(n, np.random.default_rng(0))


def test_every_place_has_its_key() -> None:
    for N, slots in ((1, 1), (2, 5), (3, 4)):
        ring = storage_chapter.Ring(slots, N)
        for ring.time in range(20):
            keys = ring.key(ring.places(max(0, ring.time - slots), ring.time + 1))
            assert keys.tolist() == [*range(max(0, ring.time - slots) * N, (ring.time + 1) * N)]
            assert sorted(ring.key(np.arange(ring.size))) == [*range((ring.time - slots) * N, (ring.time + 1) * N)]


def test_nothing_to_add_is_nothing() -> None:
    buffer = ReplayBuffer(10, 2, PAIR, THREE)
    buffer.add(World(2, 0).batch(1, 0.)[:0])
    assert len(buffer) == 0 and buffer.memory.ring.time == 0


def test_too_many_ends_are_refused_before_anything_is_written() -> None:
    world = World(1, 0)
    buffer = ReplayBuffer(1000, 1, PAIR, THREE)
    buffer.memory.finals.storage.free = 100
    buffer.add(world.batch(5, 0.))
    with pytest.raises(ReplayError, match="memory: given .* bytes, expected at most .*; fix: a smaller capacity, or more max_bytes"):
        buffer.add(World(1, 1).batch(50, 1.))
    holds(buffer, world)
    buffer.add(world.batch(20, 0.))
    holds(buffer, world)


# ---- hooks, chance, kinds of actions -----------------------------------------------------------------------------------

class Watched(Uniform):
    "Believes its hooks, and remembers them in its state"
    def attach(self, memory: Any, n_step: int, gamma: float) -> None:
        super().attach(memory, n_step, gamma)
        self.there: list[int] = []

    def wrote(self, index: np.ndarray) -> None: self.there += index.tolist()
    def forgot(self, index: np.ndarray) -> None: self.there = [i for i in self.there if i not in set(index.tolist())]
    def state_dict(self) -> dict[str, Any]: return dict(there=np.array(self.there, np.int64))
    def load_state_dict(self, state: dict[str, Any]) -> None: self.there = state["there"].tolist()


@many
@given(num_envs=st.integers(1, 3), k=st.sampled_from([1, 3]), slots=st.integers(4, 9), seed=st.integers(0, 99), adds=adds)
def test_hooks_tell_what_can_be_sampled(num_envs: int, k: int, slots: int, seed: int, adds: list) -> None:
    world = World(num_envs, seed, (lambda x: film(x, k)) if k > 1 else np.float32)
    watch, spec = Watched(), ArraySpec("obs", (k, 2), np.dtype(np.uint8)) if k > 1 else PAIR
    buffer = ReplayBuffer(slots * num_envs, num_envs, spec, THREE, frame_stack=k, sampler=watch)
    for add in adds:
        buffer.add(world.batch(*add))
        want = world.expected(slots, k - 1, 1, .99)
        assert sorted(watch.there) == sorted(want)  # each of them once …
        keys = buffer.memory.ring.key(np.array(watch.there, int))
        assert (np.diff(keys) > 0).all()  # … and in order of time


@pytest.mark.parametrize("fake", [0., .3, .9])
def test_every_transition_has_the_same_chance(fake: float) -> None:
    world, buffer = World(3, 0), ReplayBuffer(90, 3, PAIR, THREE)
    buffer.add(world.batch(47, .1, fake))
    index, n = buffer.sample(200_000, np.random.default_rng(0)).index, len(buffer)
    counts = np.bincount(index, minlength=buffer.memory.ring.size)
    there = counts[[*world.expected(30, 0, 1, .99)]]
    chi2 = ((there - len(index) / n)**2).sum() / (len(index) / n)
    assert there.sum() == len(index) and chi2 < n + 5 * (2 * n)**.5


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.Discrete(300, start=5), spaces.MultiDiscrete([3, 70_000]), spaces.MultiBinary(4),
                                   spaces.Box(-2, 2, (3,)), spaces.Box(0, 9, (2, 2), np.float64)])
@pytest.mark.parametrize("obs", [ArraySpec("obs", (), np.dtype(np.float32)), ArraySpec("obs", (3,), np.dtype(np.float64)),
                                 ArraySpec("obs", (128,), np.dtype(np.uint8)), ArraySpec("obs", (2, 5, 5), np.dtype(np.uint8))])
def test_every_kind_comes_back_exactly(space: spaces.Space, obs: ArraySpec) -> None:
    rng, spec = np.random.default_rng(0), spec_from_space(space, "action")
    a = policy_spec(spec)
    action = a.sample(rng, (20, 2))
    x = obs.sample(rng, (21, 2))
    no = np.zeros((20, 2), bool)
    buffer = ReplayBuffer(40, 2, obs, spec)
    buffer.add(Batch(obs=x[:-1], next_obs=x[1:], action=action, reward=rng.normal(size=(20, 2)), terminated=no, truncated=no))
    b = buffer.gather(np.arange(40))
    for name, want in dict(obs=x[:-1], next_obs=x[1:], action=action).items():
        got = b.fields[name]
        assert got.dtype == want.dtype and (got == want.reshape(40, *want.shape[2:])).all(), name
        assert got.flags.writeable


def test_what_a_real_env_did() -> None:
    env = make_vector(EnvConfig(id="CartPole-v1", num_envs=3, max_episode_steps=20))
    world, rng, rows = env.reset([0, 1, 2]), np.random.default_rng(0), []
    for _ in range(300):
        obs, action = world.obs.copy(), rng.integers(2, size=3)
        after = env.step(action).map(np.copy)
        rows.append(dict(obs=obs, action=action, reward=after.reward, terminated=after.terminated, truncated=after.truncated,
                         next_obs=np.where(after.done[:, None], after.final_obs, after.obs)))
    all_rows = Batch(**{k: np.stack([row[k] for row in rows]) for k in rows[0]})
    buffer = ReplayBuffer(600, 3, env.observation_spec, env.action_spec)
    for t in range(0, 300, 4): buffer.add(all_rows[t:t + 4])
    b = buffer.sample(2000, np.random.default_rng(0))
    t, i = np.divmod(buffer.memory.ring.key(b.index), 3)
    for name in ("obs", "action", "reward", "next_obs"): assert (b.fields[name] == all_rows.fields[name][t, i]).all(), name
    assert (b.discount == np.where(all_rows.terminated[t, i], 0, np.float32(.99))).all()
    assert all_rows.truncated.any() and all_rows.terminated.any() and t.min() >= 100


# ---- memory and disk ---------------------------------------------------------------------------------------------------

def test_the_smallest_control_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "max\n", "/sys/fs/cgroup/a/memory.max": "123456789\n"}
    def read(path: Path) -> str:
        if str(path) in files: return files[str(path)]
        raise FileNotFoundError(path)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in files)
    monkeypatch.setattr(Path, "read_text", read)
    assert memory_limit() == 123456789
    with pytest.raises(ReplayError, match=r"capacity: given 100,000,000 transitions .* GiB .* at most 94.19 MiB of memory; fix: capacity=.* \(algo.buffer_size\), or storage='disk' \(algo.buffer_storage: disk\)"):
        ReplayBuffer(100_000_000, 1, PAIR, THREE)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
def test_memory_that_the_system_refuses_is_a_replay_error() -> None:
    code = ("import resource\nimport numpy as np\nfrom rlstudio.data.storage import Storage\n"
            f"resource.setrlimit(resource.RLIMIT_AS, ({2**33}, {2**33}))\nStorage(max_bytes=2**40).zeros((2**33,), np.float32)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ReplayError: memory: given 34,359,738,368 bytes, expected the system to grant them" in done.stderr


def test_a_full_disk_is_found_before_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ReplayError, match="disk: given .* bytes, expected the system to grant them: .*No space left on device; fix: a smaller"):
        ReplayBuffer(1000, 1, PAIR, THREE, storage="disk")


def test_a_disk_buffer_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spec = ArraySpec("obs", (84, 84), np.dtype(np.uint8))
    free = os.statvfs(tmp_path).f_bavail
    buffer = ReplayBuffer(2000, 1, spec, THREE, storage="disk")
    assert list(tmp_path.iterdir()) == [] and buffer.nbytes > 2000 * 84 * 84
    assert not isinstance(buffer.memory.arrays.rows, np.memmap) and free > 0
    with pytest.raises(ReplayError, match="GiB of disk; fix: capacity=.*, or TMPDIR on a larger disk"):
        ReplayBuffer(10**12, 1, spec, THREE, storage="disk")


@pytest.mark.parametrize(("num_envs", "each"), [(1, 24), (4, 24), (64, 30)])
@pytest.mark.parametrize("max_bytes", [10_000, 100_000, 3_000_000])
@pytest.mark.parametrize("obs", [ArraySpec("obs", (), np.dtype(np.float32)), PAIR, ArraySpec("obs", (9, 9), BYTES)])
def test_the_capacity_that_is_recommended_can_be_used(num_envs: int, each: int, max_bytes: int, obs: ArraySpec) -> None:
    "To the end, and with episodes that are `each` steps long"
    with pytest.raises(ReplayError) as e: ReplayBuffer(10**9, num_envs, obs, THREE, max_bytes=max_bytes)
    found = re.search(r"fix: capacity=([\d_]+)", str(e.value))
    if found is None:
        assert max_bytes == 10_000  # no capacity at all would do
        return
    capacity = int(found[1])
    with pytest.raises(ReplayError, match=rf"fix: capacity={found[1]}\b"):
        ReplayBuffer(capacity + num_envs, num_envs, obs, THREE, max_bytes=max_bytes)
    buffer, rng = ReplayBuffer(capacity, num_envs, obs, THREE, max_bytes=max_bytes), np.random.default_rng(0)
    t = np.arange(3 * (capacity // num_envs) + 1)[:, None] + rng.integers(each, size=num_envs)
    x = rng.integers(99, size=(len(t) + 1, num_envs, *obs.shape)).astype(obs.dtype)
    batch = Batch(obs=x[:-1], next_obs=x[1:], action=0 * t, reward=t.astype(np.float32), terminated=t % each == 0, truncated=t < 0)
    for i in range(0, len(t), 97): buffer.add(batch[i:i + 97])
    assert buffer.nbytes <= max_bytes and len(buffer) == capacity


class Counted(Uniform):
    extra_bytes = 9


def test_what_a_part_holds_is_counted() -> None:
    def make(**how: Any) -> ReplayBuffer: return ReplayBuffer(99, 3, PAIR, THREE, **how)
    plain, counted = make(), make(sampler=Counted())
    assert counted.nbytes - plain.nbytes == 9 * 34 * 3
    assert plain.memory.finals.storage.free - counted.memory.finals.storage.free == 9 * 34 * 3
    enough = 102 * (plain.memory.arrays.row.itemsize + 16 / 8) + 32 * 16
    make(max_bytes=int(enough))
    with pytest.raises(ReplayError, match="transitions of 23 bytes"): make(sampler=Counted(), max_bytes=int(enough))
    make(sampler=Counted(), max_bytes=int(enough) + 9 * 102)


def test_a_part_belongs_to_one_buffer() -> None:
    shared = Watched()
    ReplayBuffer(10, 2, PAIR, THREE, sampler=shared)
    with pytest.raises(ReplayError, match="Watched: given one that belongs to another buffer, expected a new one; fix: make one for each"):
        ReplayBuffer(10, 2, PAIR, THREE, sampler=shared)


class Oldest(Sampler):
    "The least that a sampler has to say"
    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        ring = self.memory.ring
        return ring.places(ring.oldest(ring.time), ring.time)[rng.integers(ring.num_envs, size=n)]


def test_a_sampler_is_one_method() -> None:
    world, buffer = World(2, 0), ReplayBuffer(20, 2, PAIR, THREE, n_step=2, sampler=Oldest())
    for _ in range(4): buffer.add(world.batch(7, .2))
    batch = buffer.sample(30, np.random.default_rng(0))
    assert set(buffer.memory.ring.key(batch.index).tolist()) == {18 * 2, 18 * 2 + 1} and (batch.weight == 1).all()
    assert equal(buffer.gather(batch.index), Batch(**{k: x for k, x in batch.fields.items() if k != "weight"}))
    buffer.report(batch.index, np.ones(30))  # nobody minds
    with pytest.raises(NotImplementedError, match="Sampler: define draw"):
        nothing = ReplayBuffer(20, 2, PAIR, THREE, sampler=Sampler())
        nothing.add(world.batch(3, 0.))
        nothing.sample(1, np.random.default_rng(0))


def test_a_part_may_refuse_a_batch_before_anything_is_written() -> None:
    class Strict(Uniform):
        def check(self, batch: Batch) -> None:
            if batch.reward.max() > 99: raise ReplayError("too much")

    world, buffer = World(2, 0), ReplayBuffer(20, 2, PAIR, THREE, sampler=Strict())
    buffer.add(world.batch(5, .2))
    before, batch = frozen(buffer.state_dict()), World(2, 1).batch(3, .2)
    with pytest.raises(ReplayError, match="too much"): buffer.add(batch.replace(reward=batch.reward + 100))
    assert all(np.array_equal(x, before[k]) for k, x in buffer.state_dict().items())


def test_hooks_of_a_part_do_nothing() -> None:
    part = ReplayPart()
    assert part.state_dict() == {} and part.extra_bytes == 0
    for hook in (part.wrote, part.forgot, part.load_state_dict, part.check): assert hook(np.zeros(3)) is None  # type: ignore[operator]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_memory_is_not_touched_before_it_is_used(storage: str) -> None:
    code = ("import numpy as np\nfrom pathlib import Path\nfrom rlstudio.core.spec import ArraySpec\nfrom rlstudio.data.replay import ReplayBuffer\n"
            "def pages(): return int(Path('/proc/self/statm').read_text().split()[1])\n"
            "box = lambda n: ArraySpec('x', (n,), np.dtype(np.float32))\n"
            f"how = dict(n_step=3, storage='{storage}')\nReplayBuffer(10, 1, box(17), box(6), **how)\nbefore = pages()\n"
            "b = ReplayBuffer(500_000, 1, box(17), box(6), **how)\nstate = b.state_dict()\nb.load_state_dict(state)\n"
            "assert b.nbytes > 48e6\nprint((pages() - before) * 4096)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(done.stdout) < 4_000_000, done.stderr


@pytest.mark.skipif(not storage_chapter.is_tmpfs("/dev/shm") if os.path.isdir("/dev/shm") else True, reason="needs a tmpfs")
def test_a_disk_that_is_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    for how in ({}, dict(max_bytes=10**6)):
        with pytest.raises(ReplayError, match="storage: given 'disk' and TMPDIR=/dev/shm, .*tmpfs.*; fix: TMPDIR=/var/tmp"):
            ReplayBuffer(10, 1, PAIR, THREE, storage="disk", **how)
    ReplayBuffer(10, 1, PAIR, THREE)
