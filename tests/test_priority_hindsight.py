"Prioritised and hindsight replay under random histories: heavier than what their chapters run."
from bisect import bisect_left
from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.batch import Batch
from rlstudio.core.options import Config, EnvConfig, NetConfig, TrainConfig
from rlstudio.core.seeding import Streams
from rlstudio.core.spec import ArraySpec, spec_from_space
from rlstudio.data.hindsight import Hindsight
from rlstudio.data.priority import Prioritized, SumTree
from rlstudio.data.replay import ReplayBuffer, Uniform
from rlstudio.data.rollout import Stepper, copied, put
from rlstudio.data.storage import ReplayError
from rlstudio.envs.backends import make_vector
from rlstudio.envs.goals import Goal
from rlstudio.envs.toy import BitFlip, bitflip_returns
from rlstudio.envs.vector import VectorEnv

QUAD = spec_from_space(Box(-np.inf, np.inf, (4,)), "obs")
PUSH = spec_from_space(Discrete(2), "action")
def same(a: np.ndarray, d: np.ndarray) -> np.ndarray: return (a == d).all(1)
BOTH = Goal(slice(0, 2), slice(2, 4), lambda a, d: same(a, d) - np.float32(1), same)
KW: dict[str, Any] = dict(deadline=None, derandomize=True)


class Moments:
    """N envs whose observation is (episode, moment) and a goal of that kind, with -1 if there is none: no two moments are alike.
    Half of the episodes have a goal and terminate there, the others are truncated at some time"""
    def __init__(self, num_envs: int, seed: int) -> None:
        self.rng, self.N, self.episodes = np.random.default_rng(seed), num_envs, num_envs
        self.at = np.stack([np.arange(num_envs), np.zeros(num_envs)], 1).astype(np.float32)
        self.want = -np.ones((num_envs, 2), np.float32)

    def restart(self, which: np.ndarray, ends: float) -> None:
        fresh = np.stack([self.episodes + np.arange(self.N), np.zeros(self.N)], 1)
        goal = np.stack([fresh[:, 0], self.rng.geometric(ends or 1e-9, self.N)], 1)
        goal[self.rng.random(self.N) < .5] = -1
        self.at, self.want = (np.where(which[:, None], x, y).astype(np.float32) for x, y in ((fresh, self.at), (goal, self.want)))
        self.episodes += self.N

    def batch(self, T: int, ends: float, fake: float, torn: float = 0.) -> Batch:
        rows = []
        for _ in range(T):
            self.restart(self.rng.random(self.N) < torn, ends)
            obs, next_obs, want = self.at, self.at + np.float32([0, 1]), self.want
            reached, real = same(next_obs, want), self.rng.random(self.N) >= fake
            cut = (want[:, 0] < 0) & (self.rng.random(self.N) < ends)
            self.at = next_obs
            self.restart(reached | cut | ~real, ends)
            rows.append((np.c_[obs, want], np.c_[next_obs, want], reached, cut, real))
        obs, next_obs, terminated, truncated, real = map(np.array, zip(*rows))
        return Batch(obs=obs, next_obs=next_obs, action=self.rng.integers(2, size=real.shape), terminated=terminated,
                     truncated=truncated, reward=terminated - np.float32(1), valid=real)


def sampleable(replay: ReplayBuffer) -> np.ndarray:
    "The places that `gather` takes"
    good = []
    for i in range(replay.memory.ring.size):
        try: replay.gather(np.array([i]))
        except ReplayError: continue
        good.append(i)
    return np.array(good, np.int64)


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(a.fields[k].tobytes() == b.fields[k].tobytes() for k in a.keys())


def prioritized(capacity: int, N: int, spec: Any = QUAD, alpha: float = .6, beta: float = .4, eps: float = 1e-6, **how: Any) -> tuple[ReplayBuffer, Prioritized]:
    sampler = Prioritized(alpha, beta, eps)
    return ReplayBuffer(capacity, N, spec, PUSH, sampler=sampler, **how), sampler


def hindsight(capacity: int, N: int, goal: Goal | None = BOTH, ratio: float = .8, **how: Any) -> tuple[ReplayBuffer, Hindsight]:
    relabel = Hindsight(goal, ratio)
    return ReplayBuffer(capacity, N, QUAD, PUSH, relabel=relabel, **how), relabel


HISTORY = st.tuples(st.integers(1, 4), st.integers(2, 12), st.lists(st.integers(1, 20), min_size=1, max_size=8),
                    st.sampled_from([0., .02, .3, 1.]), st.sampled_from([0., .2]), st.sampled_from([0., .1]), st.integers(0, 99))


# The tree

@settings(max_examples=80, **KW)
@given(st.sampled_from([1, 2, 16, 4095, 4096, 4097, 65_536, 65_537, 300_000]), st.integers(0, 999), st.integers(1, 400), st.integers(1, 6))
def test_tree_depends_on_its_leaves_alone(capacity: int, seed: int, n: int, rounds: int) -> None:
    "Every node of every level equals, bit for bit, that of a tree built at once from the same leaves, in another order"
    rng, tree, other = np.random.default_rng(seed), SumTree(capacity), SumTree(capacity)
    for _ in range(rounds):
        index = rng.integers(capacity, size=n)
        value = rng.exponential(size=n) ** rng.integers(1, 30) * (rng.random(n) < .8)
        tree.set(index, value)
        assert all(tree.leaves[i] == v for i, v in dict(zip(index.tolist(), value.tolist())).items())    # of equal ones the last
    order = rng.permutation(capacity)
    other.set(order, tree.leaves[order])
    for a, b in zip(tree.lines, other.lines, strict=True): assert a.tobytes() == b.tobytes()
    assert tree.total == other.total
    exact = sum(map(Fraction, tree.leaves[tree.leaves > 0].tolist()))
    assert abs(Fraction(tree.total) - exact) <= exact * Fraction(1e-14)


@settings(max_examples=100, **KW)
@given(st.sampled_from([1, 5, 4096, 5000, 70_000, 150_000]), st.integers(0, 999))
def test_whole_numbers_are_summed_and_found_without_any_error(capacity: int, seed: int) -> None:
    rng, tree = np.random.default_rng(seed), SumTree(capacity)
    index = rng.choice(capacity, min(capacity, 300), replace=False)
    tree.set(index, rng.integers(0, 50, len(index)).astype(float))
    tree.set(index[:1], 3.)
    line = tree.leaves.cumsum()
    assert tree.total == line[-1]
    points = rng.integers(0, int(line[-1]), 200) + rng.choice([0., .25, .5], 200)
    assert (tree.find(points) == line.searchsorted(points, "right")).all()


def test_beyond_the_end_is_the_last_leaf_above_zero() -> None:
    for capacity in (10, 5000, 200_000):
        tree = SumTree(capacity)
        tree.set(np.array([3, 7]), np.array([.1, .2]))
        assert tree.find(np.array([0., tree.total, 1e9])).tolist() == [3, 7, 7]


@pytest.mark.parametrize("capacity", [5000, 70_000, 300_000])
def test_a_point_a_hair_below_a_sum_stays_in_it(capacity: int) -> None:
    "Where rounding would push a point beyond the last child, onto a leaf of 0"
    rng, tree = np.random.default_rng(0), SumTree(capacity)
    tree.set(np.arange(capacity), rng.exponential(size=capacity) * (rng.random(capacity) < .5))
    edges = tree.root.cumsum()
    found, inside = tree.find(np.nextafter(edges, 0)), tree.root > 0
    assert (tree.leaves[found] > 0).all()
    assert (found // 16 ** len(tree.levels) == np.arange(len(edges)))[inside].all()


@pytest.mark.parametrize("capacity", [2, 5000, 70_000])
def test_the_smallest_float_is_found(capacity: int) -> None:
    "Times the largest float below 1 it would stay what it is, and the point beyond the last child"
    for leaf in (0, 1, capacity - 1):
        tree = SumTree(capacity)
        tree.set(np.array([leaf]), 5e-324)
        assert tree.find(np.array([0., 5e-324, 1.])).tolist() == [leaf] * 3


# The prioritised buffer

@settings(max_examples=60, **KW)
@given(HISTORY)
def test_priority_is_above_zero_exactly_where_a_transition_lies(history: tuple) -> None:
    N, slots, sizes, ends, fake, torn, seed = history
    world, rng = Moments(N, seed), np.random.default_rng(seed)
    (replay, sampler), (twin, same_again) = (prioritized(slots * N, N) for _ in range(2))
    for T in sizes:
        replay.add(world.batch(T, ends, fake, torn))
        assert (sampler.tree.leaves.nonzero()[0] == sampleable(replay)).all()
        assert len(replay) == np.count_nonzero(sampler.tree.leaves)
        if not len(replay): continue
        batch = replay.sample(7, rng)
        assert equal(replay.gather(batch.index), Batch(**{k: v for k, v in batch.fields.items() if k != "weight"}))
        assert 0 < batch.weight.min() <= batch.weight.max() == 1
        replay.report(batch.index, rng.normal(size=7) * 10)
        replay.report(rng.integers(replay.memory.ring.size, size=5), rng.normal(size=5))    # of any place
    twin.add(Moments(N, seed + 1).batch(9, .3, 0.))    # a life that is forgotten
    twin.load_state_dict(replay.state_dict())
    for a, b in zip(sampler.tree.lines, same_again.tree.lines, strict=True): assert a.tobytes() == b.tobytes()
    more = world.batch(3, ends, fake)
    for o in (replay, twin): o.add(more)
    if len(replay): assert equal(*(o.sample(9, np.random.default_rng(1)) for o in (replay, twin)))


@pytest.mark.parametrize("seed", range(5))
def test_draws_follow_the_priorities(seed: int) -> None:
    "Pearson's chi-square over 20 000 draws: 99.99 % of independent draws stay below the bound"
    rng, (replay, sampler) = np.random.default_rng(seed), prioritized(6000, 2, alpha=.7)
    world = Moments(2, seed)
    replay.add(world.batch(4000, .1, 0.))
    at = sampler.tree.leaves.nonzero()[0]
    replay.report(at, error := rng.normal(size=len(at)))
    assert np.allclose(sampler.tree.leaves[at], (np.abs(error) + 1e-6) ** .7) and sampler.largest == max(1, sampler.tree.leaves.max())
    groups = rng.integers(60, size=replay.memory.ring.size)    # of about a hundred places each
    chance = np.bincount(groups, sampler.tree.leaves, 60) / sampler.tree.total
    counts = sum(np.bincount(groups[replay.sample(64, rng).index], minlength=60) for _ in range(313))
    expected = 64 * 313 * chance
    assert ((counts - expected) ** 2 / expected).sum() < 109    # 59 degrees of freedom
    replay.add(world.batch(1, 0., 0.))
    assert np.count_nonzero(sampler.tree.leaves == sampler.largest) == 3    # the two new ones come first


@pytest.mark.parametrize("beta", [0., .4, 1.])
def test_weights_take_out_the_bias(beta: float) -> None:
    "Weights are the chances to the power of -beta; with beta = 1 the weighted mean, summed up over all rows, is the plain one"
    rng, (replay, sampler) = np.random.default_rng(0), prioritized(50, 1, beta=beta)
    replay.add(Moments(1, 0).batch(50, .1, 0.))
    replay.report(np.arange(50), rng.normal(size=50))
    p, x, w = sampler.tree.leaves[:50] / sampler.tree.total, rng.normal(size=50), np.zeros(50)
    batch = replay.sample(20_000, rng)
    w[batch.index] = batch.weight
    assert (w > 0).all() and np.allclose(w, (p / p.min()) ** -beta, rtol=1e-5)
    weighted, plain, biased = (p * w * x).sum() / (p * w).sum(), x.mean(), (p * x).sum()
    assert np.isclose(weighted, {0.: biased, 1.: plain}.get(beta, weighted)) and not np.isclose(biased, plain, rtol=.1)


@pytest.mark.parametrize("kwargs", [dict(n_step=3), dict(storage="disk"), dict(gamma=.5, n_step=2)])
def test_priorities_go_with_every_option(kwargs: dict) -> None:
    world = Moments(2, 0)
    (a, _), b = prioritized(40, 2, **kwargs), ReplayBuffer(40, 2, QUAD, PUSH, **kwargs)
    for _ in range(6):
        more = world.batch(7, .1, .1)
        for o in (a, b): o.add(more)
    batch = a.sample(64, np.random.default_rng(0))
    assert equal(Batch(**{k: v for k, v in batch.fields.items() if k != "weight"}), b.gather(batch.index))


def test_a_stack_of_frames_that_was_overwritten_is_not_drawn() -> None:
    spec = spec_from_space(Box(0, 255, (3, 2), np.uint8), "obs")
    (replay, sampler), rng = prioritized(10, 1, spec, frame_stack=3), np.random.default_rng(0)
    t = np.arange(37)
    frames = np.stack([np.maximum(t + k, 0) for k in (-2, -1, 0, 1)], -1).astype(np.uint8)[:, None, :, None].repeat(2, -1)
    steps = Batch(obs=frames[:, :, :3], next_obs=frames[:, :, 1:], action=np.zeros((37, 1), np.int64), reward=np.zeros((37, 1), np.float32),
                  terminated=np.zeros((37, 1), bool), truncated=np.zeros((37, 1), bool))
    for k in range(37):
        replay.add(steps[k:k + 1])
        batch = replay.sample(40, rng)
        newest = batch.obs[:, 2, 0].astype(int)
        assert (batch.obs[:, 0, 0] == np.maximum(newest - 2, 0)).all() and (sampler.tree.leaves > 0).sum() == len(replay)


def test_wrong_input_changes_nothing() -> None:
    replay, sampler = prioritized(20, 1)
    replay.add(Moments(1, 0).batch(9, .1, 0.))
    before = sampler.tree.leaves.tobytes(), sampler.largest
    for error in (np.array([1., np.nan]), np.array([np.inf, 1.]), np.ones(3), np.ones((2, 1))):
        with pytest.raises(ReplayError): replay.report(np.array([1, 2]), error)
    assert (sampler.tree.leaves.tobytes(), sampler.largest) == before
    with pytest.raises(ReplayError): prioritized(30, 1)[0].load_state_dict(replay.state_dict())


@pytest.mark.parametrize("index, wrong", [
    ([3], "an array of integers"), (np.array([1.]), "an array of integers"), (np.array([[1]]), "an array of integers"),
    (np.array([], np.int64), "no index, expected one or more"), (np.array([], float), "an array of integers"),
    (np.array([21]), r"places 21 … 21, expected 0 … 20"), (np.array([2, -1]), r"places -1 … 2, expected 0 … 20")])
def test_a_report_about_no_place_is_refused(index: Any, wrong: str) -> None:
    replay, sampler = prioritized(20, 1)
    replay.add(Moments(1, 0).batch(9, .1, 0.))
    before = sampler.tree.leaves.tobytes()
    with pytest.raises(ReplayError, match=wrong): replay.report(index, np.ones(np.shape(index)))
    assert sampler.tree.leaves.tobytes() == before


def test_a_late_report_goes_to_the_successor() -> None:
    "As the chapter says: an index names a place. In time, the report goes to what was drawn"
    replay, sampler = prioritized(3, 1, alpha=1., eps=1e-9)
    world = Moments(1, 0)
    replay.add(world.batch(3, 0., 0.))
    place = replay.sample(1, np.random.default_rng(0)).index
    first = replay.gather(place).obs.copy()
    replay.add(world.batch(4, 0., 0.))    # once round the ring, and the step in flight
    replay.report(place, np.array([7.]))
    assert sampler.tree.leaves[place] == 7 + 1e-9 and (replay.gather(place).obs != first).any()


@pytest.mark.parametrize("n", [0, -1])
def test_a_batch_has_rows(n: int) -> None:
    replay, sampler = prioritized(20, 1)
    replay.add(Moments(1, 0).batch(9, .1, 0.))
    with pytest.raises(ReplayError, match=f"given n={n}, expected 1 or more"): replay.sample(n, np.random.default_rng(0))


def test_a_plain_state_is_refused_and_changes_nothing() -> None:
    world, plain, (replay, _) = Moments(1, 0), ReplayBuffer(20, 1, QUAD, PUSH), prioritized(20, 1)
    for o in (plain, replay): o.add(world.batch(9, .1, 0.))
    before = replay.sample(9, np.random.default_rng(0))
    with pytest.raises(ReplayError, match="a buffer without priority, expected one with it"): replay.load_state_dict(plain.state_dict())
    assert equal(before, replay.sample(9, np.random.default_rng(0)))


@pytest.mark.parametrize("beta", [-.1, 1.1, np.nan])
def test_beta_is_a_share_at_any_time(beta: float) -> None:
    sampler = Prioritized(beta=.3)
    with pytest.raises(ReplayError, match="given beta="): sampler.beta = beta
    assert sampler.beta == .3
    with pytest.raises(ReplayError, match="given beta="): Prioritized(beta=beta)


# Hindsight

@settings(max_examples=80, **KW)
@given(HISTORY)
def test_futures_stay_in_their_episode(history: tuple) -> None:
    "Every possible substitute, not a sample of them: exactly the steps of the episode from here to its end, as far as it is known"
    N, slots, sizes, ends, fake, torn, seed = history
    world, rng = Moments(N, seed), np.random.default_rng(seed)
    (replay, relabel), (twin, again) = (hindsight(slots * N, N, ratio=.6) for _ in range(2))
    for T in sizes:
        replay.add(world.batch(T, ends, fake, torn))
        places = sampleable(replay)
        if not len(places): continue
        happened = replay.gather(places).obs[:, :2]
        there = {(e, m) for e, m in happened.tolist()}
        ahead = relabel.episodes.ahead(places)
        for place, (episode, moment), k in zip(places, happened.tolist(), ahead.tolist()):
            assert k == sum((episode, moment + j) in there for j in range(1, 999))
            run = (place + N * np.arange(k + 1)) % replay.memory.ring.size
            assert replay.gather(run).obs[:, :2].tolist() == [[episode, moment + j] for j in range(k + 1)]
        batch = replay.sample(10, rng)
        plain = replay.gather(batch.index)
        goals, reached = batch.next_obs[:, 2:], batch.next_obs[:, :2]
        assert (batch.obs[6:] == plain.obs[6:]).all() and (batch.obs[:, 2:] == goals).all() and (batch.obs[:, :2] == plain.obs[:, :2]).all()
        assert (goals[:6, 0] == reached[:6, 0]).all() and (goals[:6, 1] >= reached[:6, 1]).all()
        assert batch.reward.tolist() == BOTH.reward(reached, goals).tolist()
        assert np.allclose(batch.discount[:6], .99 * ~BOTH.terminated(reached, goals)[:6])
        assert (batch.discount[6:] == plain.discount[6:]).all()
    twin.add(Moments(N, seed + 1).batch(9, .3, 0.))    # a life that is forgotten
    twin.load_state_dict(replay.state_dict())
    if len(replay): assert (again.episodes.ahead(places) == relabel.episodes.ahead(places)).all()
    more = world.batch(3, ends, fake, torn)
    for o in (replay, twin): o.add(more)
    if len(replay): assert equal(*(o.sample(9, np.random.default_rng(1)) for o in (replay, twin)))


def test_every_later_step_is_equally_likely() -> None:
    replay, relabel = hindsight(100, 1)
    replay.add(Moments(1, 0).batch(100, 0., 0.))
    episodes, places = relabel.episodes, np.full(40_000, 60)
    counts = np.bincount(episodes.future(places, episodes.ahead(places), np.random.default_rng(0)), minlength=101)
    assert counts[:60].sum() == 0 == counts[100]
    assert ((counts[60:100] - 1000) ** 2 / 1000).sum() < 86    # 39 degrees of freedom, 99.999 %


def test_hindsight_on_disk() -> None:
    world = Moments(2, 0)
    a, b = (hindsight(60, 2, storage=s)[0] for s in ("memory", "disk"))
    for _ in range(5):
        more = world.batch(20, .1, .1)
        for o in (a, b): o.add(more)
    assert equal(*(o.sample(64, np.random.default_rng(0)) for o in (a, b)))


def test_the_first_thousand_rewards_are_compared() -> None:
    "With steps one by one, the wrong one may be the last of them; and what is refused is not written, nor is what came before it in the batch"
    world, (replay, _) = Moments(1, 0), hindsight(50, 1)
    good = world.batch(1000, .1, 0.)
    for t in range(999): replay.add(good[t:t + 1])
    last, before = good[999:], replay.state_dict()["rows"].copy()
    with pytest.raises(ReplayError, match="expected .* as the env's compute_reward says"): replay.add(last.replace(reward=last.reward - 1))
    assert replay.memory.ring.time == 999 and (replay.state_dict()["rows"] == before).all()
    long, _ = hindsight(50, 1)
    with pytest.raises(ReplayError, match="compute_reward"): long.add(good.replace(reward=good.reward - (np.arange(1000) == 999)[:, None].astype(np.float32)))
    assert long.memory.ring.time == 0
    fake = good.replace(reward=good.reward - 1, valid=np.zeros((1000, 1), bool))
    long.add(fake)    # what never happened has no reward


@pytest.mark.parametrize("when", [0, 500, 3000])
def test_an_end_for_another_reason_is_refused(when: int) -> None:
    "A fall, whenever it comes first: relabelled, it would be no end any more"
    world, (replay, _) = Moments(1, 0), hindsight(50, 1)
    for _ in range(when): replay.add(world.batch(1, 0., 0.))
    step = world.batch(1, 0., 0.)
    with pytest.raises(ReplayError, match="given terminated=True, expected False as the env's compute_terminated says; fix"):
        replay.add(step.replace(terminated=np.ones((1, 1), bool)))
    replay.add(step)
    unsaid, _ = hindsight(50, 1, Goal(BOTH.achieved, BOTH.desired, BOTH.reward))
    unsaid.add(step.replace(terminated=np.ones((1, 1), bool)))    # nothing was promised
    assert unsaid.sample(9, np.random.default_rng(0)).discount.max() == 0


def test_a_goal_that_does_not_end_the_episode_is_refused() -> None:
    (replay, _), good = hindsight(50, 1), Moments(1, 0).batch(50, .3, 0.)
    assert good.terminated.any()
    with pytest.raises(ReplayError, match="given terminated=False, expected True"): replay.add(good.replace(terminated=good.terminated & False))


@pytest.mark.parametrize("name", ["sampler", "relabel", "both"])
def test_what_is_held_besides_is_counted_and_has_to_fit(name: str) -> None:
    def parts() -> dict[str, Any]:
        every = dict(sampler=Prioritized(), relabel=Hindsight(BOTH))
        return every if name == "both" else {name: every[name]}

    def fits(max_bytes: int, some: bool) -> bool:
        try: ReplayBuffer(30_000, 2, QUAD, PUSH, max_bytes=max_bytes, **parts() if some else {})
        except ReplayError: return False
        return True

    plain, own = ReplayBuffer(30_000, 2, QUAD, PUSH), ReplayBuffer(30_000, 2, QUAD, PUSH, **parts())
    held = sum(part.episodes.until.nbytes if isinstance(part, Hindsight) else sum(line.nbytes for line in part.tree.lines)
               for part in own.parts if isinstance(part, (Hindsight, Prioritized)))
    assert held <= own.nbytes - plain.nbytes <= 1.06 * held
    less, more = (bisect_left(range(2**24), True, key=lambda b, some=some: fits(b, some)) for some in (False, True))
    assert held <= more - less <= 1.06 * held and more < 2**24


# All of them together

def seen_afterwards(world: Moments, replay: ReplayBuffer, diary: list[dict[str, Any]], index: int, wanted: list[float]) -> dict[str, Any]:
    "Slowly, from a diary: what a window that begins there has to be, had this been the goal"
    t, i = divmod(int(replay.memory.ring.key(np.array(index))), world.N)
    G, here = 0., diary[t]["obs"][i][:2].tolist()
    for k in range(replay.n_step):
        row = {name: x[i] for name, x in diary[t + k].items()}
        reached = row["next_obs"][:2].tolist()
        assert reached == [here[0], here[1] + k + 1]  # one episode, step by step
        G += replay.gamma**k * (0. if reached == wanted else -1.)
        if reached == wanted: return dict(reward=G, discount=0., next_obs=reached + wanted)
        if row["terminated"] or row["truncated"] or t + k + 1 == len(diary): break
        after = diary[t + k + 1]
        if not after["valid"][i] or after["obs"][i][:2].tolist() != reached: break
    return dict(reward=G, discount=replay.gamma**(k + 1), next_obs=reached + wanted)


@settings(max_examples=80, **KW)
@given(HISTORY, st.integers(1, 5), st.sampled_from([.5, 1.]), st.booleans())
def test_windows_seen_afterwards_are_those_of_the_diary(history: tuple, n: int, gamma: float, surprise: bool) -> None:
    "n steps, hindsight and priorities, at once: each relabelled row is what the env would have said, step by step"
    N, slots, sizes, ends, fake, torn, seed = history
    world, rng, diary = Moments(N, seed), np.random.default_rng(seed), []
    replay, twin = (ReplayBuffer(slots * N, N, QUAD, PUSH, n_step=n, gamma=gamma, sampler=Prioritized() if surprise else None,
                                 relabel=Hindsight(BOTH, ratio=.75)) for _ in range(2))
    for T in sizes:
        replay.add(batch := world.batch(T, ends, fake, torn))
        diary += [{name: x[t] for name, x in batch.fields.items()} for t in range(T)]
        if not len(replay): continue
        b = replay.sample(12, rng)
        plain = replay.gather(b.index)
        other = (b.obs != plain.obs).any(1)
        assert other.sum() <= 9
        for j in range(12):
            wanted, own = b.obs[j, 2:].tolist(), plain.obs[j, 2:].tolist()
            if wanted == own:    # with its own goal, as it happened: or with the same one again, which says the same
                for name in plain.keys(): assert np.allclose(b.fields[name][j], plain.fields[name][j]), name
                continue
            want = seen_afterwards(world, replay, diary, b.index[j], wanted)
            assert wanted[0] == plain.obs[j, 0] and wanted[1] > plain.obs[j, 1]    # this episode, this step or later
            assert np.isclose(b.reward[j], want["reward"]) and np.isclose(b.discount[j], want["discount"])
            assert b.next_obs[j].tolist() == want["next_obs"]
            assert (b.obs[j, :2] == plain.obs[j, :2]).all() and b.action[j] == plain.action[j]
        if surprise: replay.report(b.index, rng.normal(size=12))
    twin.load_state_dict(replay.state_dict())
    more = world.batch(3, ends, fake, torn)
    for o in (replay, twin): o.add(more)
    if len(replay): assert equal(*(o.sample(9, np.random.default_rng(1)) for o in (replay, twin)))


def test_relabelling_changes_neither_the_draw_nor_the_weights() -> None:
    world = Moments(2, 0)
    buffers = [ReplayBuffer(400, 2, QUAD, PUSH, n_step=2, sampler=Prioritized(alpha=1., beta=.7), relabel=relabel) for relabel in (None, Hindsight(BOTH, .5))]
    batch, errors = world.batch(200, .1, 0.), np.random.default_rng(0).exponential(size=400)
    for o in buffers:
        o.add(batch)
        o.report(np.arange(400), errors)
    a, b = (o.sample(200, np.random.default_rng(2)) for o in buffers)
    assert (a.index == b.index).all() and (a.weight == b.weight).all() and a.weight.min() < .5
    changed = (a.obs != b.obs).any(1)
    assert 70 < changed.sum() <= 100


def test_a_fair_subset_of_a_prioritised_batch() -> None:
    "Its rows lie in the order of the ring: the relabelled ones must not be the oldest"
    replay, sampler = prioritized(100, 1, alpha=0.)
    replay.add(Moments(1, 0).batch(100, .1, 0.))
    rng = np.random.default_rng(0)
    counts = sum(np.bincount(sampler.draw(50, rng)[sampler.subset(10, 50, rng)], minlength=101) for _ in range(4000))
    assert ((counts[:100] - 400) ** 2 / 400).sum() < 161    # 99 degrees of freedom, 99.99 %
    assert Uniform().subset(10, 50, rng) == slice(10)


def test_beta_is_set_through_the_sampler() -> None:
    replay, _ = prioritized(20, 1, beta=0.)
    replay.add(Moments(1, 0).batch(20, .1, 0.))
    replay.report(np.arange(20), np.arange(1., 21.))
    assert (replay.sample(9, np.random.default_rng(0)).weight == 1).all()
    replay.sampler.beta = 1.  # type: ignore[attr-defined]
    assert replay.sample(9, np.random.default_rng(0)).weight.min() < .5


def test_an_older_state_that_names_its_class_goes_on() -> None:
    "Until checkpoint version 1 a buffer was one of three classes, and its state said which"
    (a, _), (b, _) = prioritized(20, 1), prioritized(20, 1)
    a.add(Moments(1, 0).batch(30, .2, .1))
    state = a.state_dict()
    b.load_state_dict(state | dict(layout=dict(kind="PrioritizedReplay", **state["layout"])))
    assert equal(*(o.sample(9, np.random.default_rng(0)) for o in (a, b))) and "kind" not in state["layout"]


def test_hindsight_needs_flat_observations() -> None:
    with pytest.raises(ReplayError, match=r"hindsight: given observations of shape \(2, 4\), expected flat ones"):
        ReplayBuffer(20, 1, ArraySpec("obs", (2, 4), np.dtype(np.float32)), PUSH, relabel=Hindsight(BOTH))


# BitFlip and what a vector env says about its goals

def walk(env: VectorEnv, steps: int, seed: int = 0) -> Batch:
    rng, obs, log = np.random.default_rng(seed), copied(env.reset(range(env.num_envs)).obs), []
    for _ in range(steps):
        action = env.action_spec.sample(rng, (env.num_envs,))
        b = env.step(action)
        next_obs = copied(b.obs)
        put(next_obs, b.done, b.final_obs[b.done])
        step = Batch(obs=obs, action=action, reward=b.reward, terminated=b.terminated, truncated=b.truncated, next_obs=next_obs)
        log.append(copied(step)[None])
        obs = copied(b.obs)
    return Batch.concat(log)


@pytest.mark.parametrize("backend", ["inprocess", "gymnasium"])
def test_hindsight_rewards_are_those_of_the_env(backend: str) -> None:
    env = make_vector(EnvConfig(id="rlstudio/BitFlip-v0", num_envs=3, backend=backend, kwargs=dict(n=4)))
    goal, lived = env.goal, walk(env, 400)
    assert goal is not None and goal.terminated is not None and lived.terminated.any() and lived.truncated.any()
    x = lived.flatten().next_obs
    assert (goal.reward(x.achieved_goal, x.desired_goal) == lived.reward.ravel()).all()
    assert (goal.terminated(x.achieved_goal, x.desired_goal) == lived.terminated.ravel()).all()
    replay = ReplayBuffer(900, 3, env.observation_spec, env.action_spec, relabel=Hindsight(goal))
    replay.add(lived)
    b, single = replay.sample(500, np.random.default_rng(0)), BitFlip(4)
    for i in range(500):    # lived through again, with the goal of the batch
        single.reset(seed=0)
        single.bits, single.goal = (x[i].astype(np.int8) for x in (b.obs.achieved_goal, b.obs.desired_goal))
        obs, reward, terminated, _, _ = single.step(b.action[i])
        assert (obs["achieved_goal"] == b.next_obs.achieved_goal[i]).all() and (obs["desired_goal"] == b.next_obs.desired_goal[i]).all()
        assert (reward, np.float32(.99) * (not terminated)) == (b.reward[i], b.discount[i])


def test_envs_without_goals_say_so() -> None:
    for backend in ("inprocess", "gymnasium"):
        assert make_vector(EnvConfig(id="CartPole-v1", backend=backend)).goal is None
    assert make_vector(EnvConfig(id="CartPole-v1")).goal is None


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_bitflip_returns_are_exact(n: int) -> None:
    "The best return over all starts and goals, and the random one over all of them and all actions"
    env, best, every = BitFlip(n), [], list(product((0, 1), repeat=n))
    for bits, goal in product(every, every):
        env.reset(seed=0)
        env.bits, env.goal, ended, total = np.array(bits, np.int8), np.array(goal, np.int8), False, 0.
        while not ended:
            _, reward, terminated, truncated, _ = env.step(int((env.bits != env.goal).argmax()))
            total, ended = total + reward, terminated or truncated
            assert not (terminated and truncated)
        best.append(total)
    assert np.isclose(np.mean(best), bitflip_returns(n)[1])
    if n > 3: return
    random = []
    for goal, actions in product(every, product(range(n), repeat=n)):
        env.reset(seed=0)
        env.bits, env.goal, total = np.zeros(n, np.int8), np.array(goal, np.int8), 0.
        for a in actions:
            _, reward, terminated, _, _ = env.step(a)
            total += reward
            if terminated: break
        random.append(total)
    assert np.isclose(np.mean(random), bitflip_returns(n)[0])


def test_a_wrapper_that_changes_the_goal_reward_is_asked() -> None:
    class Double(gym.Wrapper):
        def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
            return 2 * self.unwrapped.compute_reward(achieved, desired, info)

    from rlstudio.envs.goals import find_goal
    env = gym.wrappers.TimeLimit(Double(BitFlip(3)), 3)
    goal = find_goal(spec_from_space(env.observation_space), env)
    assert goal is not None and goal.reward(np.eye(3, dtype=np.float32)[:1], np.zeros((1, 3), np.float32)).tolist() == [-2]


def test_an_env_whose_reward_needs_info_says_so() -> None:
    class Effort(gym.Wrapper):
        def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
            return self.unwrapped.compute_reward(achieved, desired, info) - info["effort"]

    from rlstudio.envs.goals import find_goal, goal_function
    from rlstudio.envs.make import EnvError
    env = Effort(BitFlip(3))
    goal = find_goal(spec_from_space(env.observation_space), env)
    rows = np.eye(3, dtype=np.float32)[:2]
    assert goal is not None
    with pytest.raises(EnvError, match=r"compute_reward needs info\['effort'\], which is not remembered; fix: hindsight: 0"): goal.reward(rows, rows)
    spec = spec_from_space(Box(0, 1, (3,)), "goal")
    with pytest.raises(EnvError, match="partial: given 2 goals"): goal_function(partial(lambda a, d, info: a.sum()), spec, spec, float)(rows, rows)


@pytest.mark.parametrize("n", [2.5, 0, "3", None])
def test_bitflip_has_a_whole_number_of_bits(n: Any) -> None:
    with pytest.raises(ValueError, match="expected a whole number"): BitFlip(n)


def test_bitflip_begins_with_a_reset() -> None:
    env = BitFlip(3)
    with pytest.raises(gym.error.ResetNeeded, match="expected a reset"): env.step(0)
    env.reset(seed=0)
    env.step(0)


# What it buys

@pytest.mark.parametrize(("how", "below"), [
    ({}, None), (dict(prioritized=True), None), (dict(hindsight=.8), .7), (dict(hindsight=.8, prioritized=True), .7), (dict(hindsight=.8, n_step=2), 1.5)])
def test_dqn_learns_bitflip_with_hindsight_and_not_without(how: dict[str, Any], below: float | None) -> None:
    "8 bits in 4000 steps: nearly the best return there is, or (None) that of random flips (arXiv:1707.01495 fig. 1)"
    from rlstudio.algos.dqn import DQN, DQNConfig
    config = Config(env=EnvConfig(id="rlstudio/BitFlip-v0", num_envs=4, kwargs=dict(n=8)), net=NetConfig(activation="relu"),
                    train=TrainConfig(total_steps=4000), algo=DQNConfig(name="dqn", learning_starts=500, epsilon_fraction=.3, **how))
    with arithmetic_threads(1):
        env, episodes = make_vector(config.env), []
        agent = DQN(config, env, Streams(0))
        stepper = Stepper(env, agent.module, [0, 1, 2, 3])
        while stepper.env_steps < 4000: agent.update(agent.collect(stepper), stepper.env_steps / 4000)
        judge = Stepper(make_vector(config.env), agent.module, [4, 5, 6, 7])
        while len(episodes) < 200:
            judge.step(agent.module.act(judge.seen, greedy=True))
            episodes += [r for _, r, _ in judge.tally.pop()]
    random, best = bitflip_returns(8)
    assert np.mean(episodes) < random + .7 if below is None else np.mean(episodes) > best - below
