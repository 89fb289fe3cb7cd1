"Action masks: whatever way a world tells them, no illegal action is taken, learned from as the best next one, or drawn, and all else stays as it was."
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from support import child_env, run, said
from worlds import RESETS, note_reset

from rlstudio.algos.a2c import A2C
from rlstudio.algos.dqn import best_next
from rlstudio.core.batch import Batch, leaf_arrays
from rlstudio.core.masks import MaskedEnv, MaskError, checked_mask, legal_actions, mask_source, nearest_legal
from rlstudio.core.options import Config, ConfigError, EnvConfig, EvalConfig, NetConfig, config_from_dict
from rlstudio.core.registry import algos
from rlstudio.core.spec import ArraySpec, spec_from_space
from rlstudio.data.replay import NextMasks, ReplayBuffer
from rlstudio.data.rollout import Stepper
from rlstudio.data.storage import ReplayError
from rlstudio.envs.backends import GymVector, InProcess, make_vector
from rlstudio.envs.make import EnvError
from rlstudio.envs.toy import Doors, doors_rewards
from rlstudio.envs.vector import VectorEnv
from rlstudio.nets.dists import ActionDist, Categorical, MultiCategorical, masked
from rlstudio.nets.flat import weights_sha256
from rlstudio.nets.modules import ActorCritic, QModule
from rlstudio.nets.tape import Tape
from rlstudio.runs.pictures import rollout_frames
from rlstudio.train.evaluate import evaluate
from rlstudio.train.trainer import Callback, Trainer

# Worlds: one corridor that tells its mask in each of the ways, and misbehaves if asked to

class Corridor(gym.Env):
    "Places 0 … 4, left and right; nobody goes left from 0, and who tries is an error. It is cut after six steps, or ends at 4"
    observation_space: gym.Space[Any] = Box(0, 4, (1,))
    action_space: gym.Space[Any] = Discrete(2, start=5)

    def __init__(self, tells: str = "info", fault: str = "") -> None:
        self.tells, self.fault, self.at, self.t = tells, fault, 0, 0
        place, mask = Box(0, 4, (1,)), MultiBinary(2)
        if tells == "dict": self.observation_space = Dict(observation=place, action_mask=mask)
        if tells == "dict, two": self.observation_space = Dict(place=place, clock=Box(0, 6, (1,)), action_mask=mask)
        if tells == "method": self.action_masks = self.mask

    def mask(self) -> Any:
        late = self.t >= 2
        if late and self.fault == "silent": return None
        if late and self.fault == "nothing": return [0, 0]
        if late and self.fault == "wide": return [1, 1, 1]
        if late and self.fault == "numbers": return [.5, 1.]
        if late and self.fault == "text": return "ab"
        return np.array([self.at > 0, True], np.int8)

    def both(self) -> tuple[Any, dict[str, Any]]:
        x, mask = np.array([self.at], np.float32), self.mask()
        told = {} if mask is None else dict(action_mask=mask)
        if self.tells == "dict": return dict(observation=x) | told, {}
        if self.tells == "dict, two": return dict(place=x, clock=np.array([self.t], np.float32)) | told, {}
        return x, told if self.tells == "info" else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        note_reset(seed)
        self.at, self.t = int(self.np_random.integers(3)), 0
        return self.both()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == 5 and self.at == 0: raise ValueError("there is a wall")
        self.at += 2 * (int(action) - 5) - 1
        self.t += 1
        obs, info = self.both()
        return obs, float(self.at == 4), self.at == 4, self.t >= 6 and self.at < 4, info

    def render(self) -> np.ndarray: return np.full((8, 8, 3), 50 * self.at, np.uint8)


class Drawn(Corridor):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, tells: str = "info", render_mode: str | None = None) -> None:
        super().__init__(tells)
        self.render_mode = render_mode


for id, world in {"masks/Corridor-v0": Corridor, "masks/Drawn-v0": Drawn}.items():
    if id not in gym.registry: gym.register(id, world)

WAYS = "info", "method", "dict", "dict, two"


def corridor(tells: str = "info", num_envs: int = 4, **more: Any) -> EnvConfig:
    return EnvConfig(id="masks/Corridor-v0", num_envs=num_envs, kwargs=dict(tells=tells) | more)


def walk(env: VectorEnv, steps: int, seed: int = 0) -> list[np.ndarray]:
    "Random legal steps: mask, where it was, reward and ends of each"
    rng, log = np.random.default_rng(seed), []
    for _ in range(steps):
        action = legal_actions(env.action_spec, env.out.mask, rng.random((env.num_envs, len(env.action_spec.nvec))))
        b = env.step((action + env.action_spec.low).astype(env.action_spec.dtype))
        seen = np.concatenate(leaf_arrays(b.obs), -1)   # a tree: its arrays side by side
        log.append((b.mask.copy(), seen, b.reward.copy(), b.done.copy(), b.final_mask & b.truncated[:, None]))
    return [np.array(x) for x in zip(*log, strict=True)]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool: return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# Where a mask comes from

@pytest.mark.parametrize("tells", WAYS)
def test_every_way_to_tell_a_mask_gives_the_same_field(tells: str) -> None:
    env, info = InProcess(corridor(tells)), InProcess(corridor("info"))
    assert (env.fields["mask"].shape, env.fields["final_mask"].shape) == ((2,), (2,))  # type: ignore[union-attr]
    if tells == "dict, two": assert sorted(env.observation_spec.children) == ["clock", "place"]   # the mask is taken out
    else: assert env.observation_spec.shape == (1,)
    first = env.reset([0, 1, 2, 3])
    assert np.array_equal(first.mask, info.reset([0, 1, 2, 3]).mask)
    place = first.obs.place if tells == "dict, two" else first.obs
    assert (first.mask[:, 0] == (place[:, 0] > 0)).all() and first.mask[:, 1].all()  # what is legal follows from the place
    theirs, ours = walk(info, 60), walk(env, 60)
    if tells == "dict, two": theirs[1] = ours[1]
    assert same(ours, theirs) and ours[3].any() and ours[4].any()


@pytest.mark.parametrize("tells", WAYS)
def test_gymnasiums_vector_env_tells_the_same(tells: str) -> None:
    one, two = InProcess(corridor(tells)), make_vector(EnvConfig(id="masks/Corridor-v0", num_envs=4, kwargs=dict(tells=tells), backend="gymnasium"))
    assert isinstance(two, GymVector) and np.array_equal(one.reset(range(4)).mask, two.reset(range(4)).mask)
    assert same(walk(one, 60), walk(two, 60))


@pytest.mark.parametrize("tells", WAYS)
def test_a_restored_env_has_its_mask(tells: str) -> None:
    "Also where an illegal action is an error: the trial of the level takes legal ones"
    one, two = InProcess(corridor(tells)), InProcess(corridor(tells))
    one.reset(range(4))
    walk(one, 11)
    two.load_state_dict(one.state_dict())
    assert one.level == "exact" and np.array_equal(one.out.mask, two.out.mask) and not one.out.mask.all()
    assert same(walk(one, 50, 1), walk(two, 50, 1))


@pytest.mark.parametrize("id", ["CartPole-v1", "FrozenLake-v1", "Blackjack-v1", "rlstudio/Identity-v0", "LunarLander-v3"])
def test_a_world_without_masks_is_left_alone(id: str) -> None:
    env = InProcess(EnvConfig(id=id, num_envs=2))
    assert not {"mask", "final_mask"} & env.fields.keys() and not any(isinstance(e.env, MaskedEnv) for e in env.envs)


def test_the_envs_that_are_used_are_reset_as_often_as_before() -> None:
    "The trial has an env of its own, which is seeded and closed"
    RESETS.clear()
    env = InProcess(corridor(num_envs=2))
    assert RESETS == [0]
    env.reset([7, 8])
    assert RESETS == [0, 7, 8]
    RESETS.clear()
    InProcess(corridor("method", num_envs=2))
    InProcess(corridor("dict", num_envs=2))
    assert RESETS == []  # nothing to find out


def test_real_numbers_have_no_mask() -> None:
    "An action_mask of a world of real or binary actions is somebody's own affair, as before"
    class Real(Corridor): action_space = Box(-1, 1, (1,))
    class Bits(Corridor): action_space = MultiBinary(2)
    for world in Real, Bits: assert mask_source(world(), world) == ""


FAULTS = {
    "silent": "given none, expected 2 bools", "nothing": "no legal option for choice 0", "wide": "given 3 values of int64, expected 2 bools",
    "numbers": "given the numbers 0.5 … 1.0, expected 0 (illegal) or 1 (legal)", "text": "values of <U2",
}


@pytest.mark.parametrize("tells", ["info", "method", "dict"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_mask_that_cannot_be_names_the_sub_env(fault: str, tells: str) -> None:
    env = InProcess(corridor(tells, fault=fault))
    env.reset(range(4))
    says = "given ['observation'], expected a dict with action_mask" if (tells, fault) == ("dict", "silent") else FAULTS[fault]
    with pytest.raises(EnvError) as e:
        for _ in range(3): env.step(np.full(4, 6))
    for part in ("masks/Corridor-v0: sub-env ", " failed in step ", " with action 6: MaskError: ", says, "; fix: "): assert part in str(e.value)


def test_a_fault_stops_a_training_with_its_message() -> None:
    config = config_from_dict(dict(env=dict(id="masks/Corridor-v0", num_envs=2, kwargs=dict(fault="nothing")), algo=dict(name="ppo", num_steps=16)))
    with pytest.raises(EnvError, match="no legal option for choice 0.*, expected one or more; fix: terminate the episode"): Trainer(config).train(64)


def test_nobody_acts_after_a_termination() -> None:
    "There a mask may be empty, or missing"
    class Final(Corridor):
        def mask(self) -> Any: return [0, 0] if self.at == 4 else super().mask()
    class Mute(Corridor):
        def mask(self) -> Any: return None if self.at == 4 else super().mask()
    for world in Final, Mute:
        gym.register("masks/Final-v0", world)
        env = InProcess(EnvConfig(id="masks/Final-v0", num_envs=3))
        env.reset(range(3))
        assert walk(env, 60)[2].any()  # it has been at 4
        del gym.registry["masks/Final-v0"]


def test_shapes_of_masks() -> None:
    spec = spec_from_space(MultiDiscrete([[2, 3], [1, 2]]), "action")
    assert isinstance(spec, ArraySpec)
    parts = [[1, 0], [True, True, False], [1], np.array([0, 1])]
    mask = checked_mask(spec, parts)
    assert mask.tolist() == [True, False, True, True, False, True, False, True]
    drawn = legal_actions(spec, mask[None].repeat(500, 0), np.random.default_rng(0).random((500, 4)))
    assert drawn.shape == (500, 2, 2) and {tuple(a.ravel()) for a in drawn} == {(0, 0, 0, 1), (0, 1, 0, 1)}
    assert nearest_legal(spec, mask, np.array([[1, 2], [0, 0]])).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(MaskError, match="choice 2"): checked_mask(spec, [1, 1, 1, 1, 1, 0, 1, 1])


# Distributions

DISTS: list[tuple[ActionDist, tuple[int, ...]]] = [(Categorical(4), (4,)), (MultiCategorical((2, 3, 4)), (2, 3, 4))]


def random_masks(nvec: tuple[int, ...], rows: int, rng: np.random.Generator) -> np.ndarray:
    "At least one legal option of each choice; in the first row only one"
    parts = []
    for n in nvec:
        m = rng.random((rows, n)) < .5
        m[0] = False
        m[np.arange(rows), rng.integers(n, size=rows)] = True
        parts.append(m)
    return np.concatenate(parts, 1)


def brute_force(x: np.ndarray, mask: np.ndarray, nvec: tuple[int, ...]) -> list[list[np.ndarray]]:
    "For each row and choice the probabilities of all options, worked out one by one"
    rows, cut = [], np.cumsum(nvec)[:-1]
    for logits, legal in zip(x.astype(float), mask, strict=True):
        weights = [np.array([np.exp(v) if ok else 0. for v, ok in zip(a, m, strict=True)]) for a, m in zip(np.split(logits, cut), np.split(legal, cut), strict=True)]
        rows.append([w / w.sum() for w in weights])
    return rows


@pytest.mark.parametrize("dist, nvec", DISTS)
def test_masked_distributions_against_brute_force(dist: ActionDist, nvec: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(40, sum(nvec))).astype(np.float32), random_masks(nvec, 40, rng)
    params, p = masked(x, mask), brute_force(x, mask, nvec)
    action, log_prob = dist.sample_and_log_prob(params, dist.noise(rng, (40,)))
    want = [sum(np.log(q[a]) for q, a in zip(row, np.ravel(chosen), strict=True)) for row, chosen in zip(p, action, strict=True)]
    H = [sum(-(q[q > 0] * np.log(q[q > 0])).sum() for q in row) for row in p]
    assert params.dtype == np.float32 and np.allclose(log_prob, want, atol=1e-5) and np.allclose(dist.entropy(params), H, atol=1e-5)
    best = [[int(q.argmax()) for q in row] for row in p]
    assert np.array_equal(np.reshape(dist.mode(params), (40, -1)), best)
    assert log_prob[0] == dist.entropy(params)[0] == 0 and np.isfinite(log_prob).all()  # one legal action: it is certain
    many = dist.sample(params[1].repeat(4000).reshape(-1, 4000).T, dist.noise(rng, (4000,))).reshape(4000, -1)
    for i, q in enumerate(p[1]): assert np.allclose(np.bincount(many[:, i], minlength=len(q)) / 4000, q, atol=.04) and (np.bincount(many[:, i], minlength=len(q))[q == 0] == 0).all()


@pytest.mark.parametrize("dist, nvec", DISTS)
@pytest.mark.parametrize("scale", [1., 1e4])
def test_arrays_tensors_and_variables_agree_on_masks(dist: ActionDist, nvec: tuple[int, ...], scale: float) -> None:
    rng, tape = np.random.default_rng(1), Tape()
    x, mask = (scale * rng.normal(size=(16, sum(nvec)))).astype(np.float32), random_masks(nvec, 16, rng)
    action = dist.sample(masked(x, mask), dist.noise(rng, (16,)))
    t, v = torch.tensor(x, requires_grad=True), tape.variable(x, needs=True)
    arrays = dist.log_prob_and_entropy(masked(x, mask), action)
    tensors = dist.log_prob_and_entropy(masked(t, torch.tensor(mask)), torch.tensor(action))
    variables = dist.log_prob_and_entropy(masked(v, tape.variable(mask)), tape.variable(action))
    for a, b, c in zip(arrays, tensors, variables, strict=True):
        assert np.isfinite(a).all() and np.allclose(a, b.detach(), rtol=1e-5, atol=1e-4) and np.allclose(a, c.value, rtol=1e-5, atol=1e-4)
    (tensors[0] + .3 * tensors[1]).sum().backward()
    tape.backward((variables[0] + .3 * variables[1]).sum(), {})
    exact = t.grad.numpy()  # type: ignore[union-attr]
    assert np.allclose(v.grad, exact, rtol=1e-4, atol=1e-5) and np.isfinite(exact).all()
    assert (exact[~mask] == 0).all() and (v.grad[~mask] == 0).all() and (exact[0] == 0).all()


def test_the_gradient_is_that_of_finite_differences() -> None:
    x, mask = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True), torch.tensor(random_masks((4,), 5, np.random.default_rng(2)))
    action = masked(x.detach(), mask).argmax(-1)
    assert torch.autograd.gradcheck(lambda x: Categorical(4).log_prob_and_entropy(masked(x, mask), action), x)


# Modules

def test_modules_choose_among_legal_actions() -> None:
    rng, obs_spec = np.random.default_rng(0), spec_from_space(Box(-1, 1, (3,)))
    obs = rng.normal(size=(200, 3)).astype(np.float32)
    for space in (Discrete(5), MultiDiscrete([2, 4]), Discrete(5)):
        spec = spec_from_space(space, "action")
        assert isinstance(spec, ArraySpec) and isinstance(obs_spec, ArraySpec)
        mask, cut = random_masks(spec.nvec, 200, rng), np.cumsum(spec.nvec)[:-1]
        q = QModule(obs_spec, spec, NetConfig(), rng) if space == Discrete(5) else None
        for m in filter(None, (ActorCritic(obs_spec, spec, NetConfig(), rng), q)):
            seen = Batch(obs=obs, mask=mask)
            for greedy in (True, False):
                out = m.act(seen, m.noise(rng, (200,)), greedy=greedy)
                for a, part in zip(out.action.reshape(200, -1).T, np.split(mask, cut, 1), strict=True): assert part[np.arange(200), a].all()
                if q is not m:
                    log_prob, entropy, value = m.evaluate(seen.torch(), torch.tensor(out.action))
                    assert np.allclose(log_prob.detach(), out.log_prob, atol=1e-5) and np.allclose(value.detach(), out.value, atol=1e-5)
                    assert (out.log_prob[0], entropy[0].item()) == (0, 0)
        if q is not None: assert np.array_equal(q.value(Batch(obs=obs, mask=mask)), np.where(mask, q.values(obs), -np.inf).max(1))


def test_a_mask_of_all_changes_nothing() -> None:
    "Bit for bit: acting with every action legal is acting without a mask"
    rng, spec, obs_spec = np.random.default_rng(0), spec_from_space(Discrete(4), "action"), spec_from_space(Box(-1, 1, (3,)))
    assert isinstance(spec, ArraySpec) and isinstance(obs_spec, ArraySpec)
    m, obs = ActorCritic(obs_spec, spec, NetConfig(), rng), rng.normal(size=(50, 3)).astype(np.float32)
    noise = m.noise(rng, (50,))
    with_mask, without = (m.act(seen, noise) for seen in (Batch(obs=obs, mask=np.ones((50, 4), bool)), Batch(obs=obs)))
    assert all(np.array_equal(with_mask.fields[k], without.fields[k]) for k in without.keys())


# Replay and targets

def test_the_best_next_action_is_a_legal_one() -> None:
    rng = np.random.default_rng(0)
    slow, fast, mask = rng.normal(size=(30, 4, 2)), rng.normal(size=(30, 4, 2)), random_masks((4,), 30, rng)
    for choosing in slow, fast:
        want = [q[max((a for a in range(4) if m[a]), key=lambda a: c[a].mean())] for q, c, m in zip(slow, choosing, mask, strict=True)]  # noqa: B023
        tape, kinds = Tape(), [(slow, choosing, mask), tuple(map(torch.tensor, (slow, choosing, mask)))]
        kinds.append(tuple(map(tape.variable, (slow, choosing, mask))))
        for given in kinds:
            got = best_next(*given)
            assert np.allclose(getattr(got, "value", got), want)


@pytest.mark.parametrize("algo", [dict(n_step=1), dict(n_step=3, prioritized=True), dict(n_step=2, double=False, dueling=True, quantiles=5)])
def test_the_memory_knows_what_is_legal_next(algo: dict[str, Any]) -> None:
    "In the corridor it follows from where one is: left is legal but from place 0; across ends, wraps and windows"
    t = Trainer(small("dqn", env=dict(id="masks/Corridor-v0", num_envs=3), buffer_size=120, epsilon_end=1., **algo)).train()
    batch = t.algo.replay.sample(500, np.random.default_rng(0))  # type: ignore[attr-defined]
    assert (batch.next_mask[:, 0] == (batch.next_obs[:, 0] > 0)).all() and not batch.next_mask.all()
    assert batch.next_mask[:, 1].all()


def test_an_illegal_action_is_never_the_target() -> None:
    "However good the network thinks it to be"
    t = Trainer(small("dqn", env=dict(id="masks/Corridor-v0", num_envs=3), epsilon_end=1.)).train()
    agent: Any = t.algo
    batch = agent.replay.sample(200, np.random.default_rng(0))
    before = agent.targets(batch)["target"]
    for net in agent.module.q, agent.parts["q"].slow: net.mlp.linears[-1].bias.data[0] += 1e6  # left, at last
    after, walls = agent.targets(batch)["target"][:, 0], ~batch.next_mask[:, 0]
    alive = batch.discount > 0
    assert walls[alive].any() and (after[walls] < 1e5).all() and (after[alive & ~walls] > 1e5).all() and (np.asarray(before) < 1e5).all()


def test_masks_and_goals() -> None:
    spec, four = spec_from_space(Box(-1, 1, (2,))), spec_from_space(Discrete(4), "action")
    assert isinstance(spec, ArraySpec) and isinstance(four, ArraySpec)
    buffer = ReplayBuffer(20, 2, spec, four, masks=NextMasks(4))
    plain = ReplayBuffer(20, 2, spec, four)
    with pytest.raises(ReplayError, match="without next_mask"): buffer.load_state_dict(plain.state_dict())
    class Goals(gym.Env):
        observation_space = Dict({k: Box(0, 1, (1,)) for k in ("observation", "achieved_goal", "desired_goal")} | dict(action_mask=MultiBinary(2)))
        action_space = Discrete(2)
        def look(self) -> Any: return {k: np.zeros(1, np.float32) for k in self.observation_space if k != "action_mask"} | dict(action_mask=np.ones(2, np.int8))  # type: ignore[attr-defined]
        def reset(self, *, seed: Any = None, options: Any = None) -> Any: super().reset(seed=seed); return self.look(), {}
        def step(self, action: Any) -> Any: return self.look(), 0., False, False, {}
        def compute_reward(self, a: Any, b: Any, info: Any) -> Any: return 0. * a[..., 0]
    gym.register("masks/Goals-v0", Goals, max_episode_steps=5)
    with pytest.raises(ConfigError, match="n_step: given 3 with hindsight and action masks, expected 1"): Trainer(small("dqn", env=dict(id="masks/Goals-v0"), hindsight=.5, n_step=3))
    t = Trainer(small("dqn", env=dict(id="masks/Goals-v0", num_envs=2), hindsight=.5, n_step=1, total_steps=400)).train()
    assert t.algo.updates > 0 and len(t.env.observation_spec.children) == 3   # type: ignore[attr-defined]


# Who cannot use masks says so

def test_an_algorithm_that_does_not_know_masks_is_refused() -> None:
    class Blind(A2C): masks = False
    if "blind" not in algos: algos.add("blind", Blind)
    with pytest.raises(EnvError, match="and Blind, which takes any; expected an algorithm that respects action masks; fix: ppo, a2c or dqn"):
        Trainer(config_from_dict(dict(env=dict(id="masks/Corridor-v0"), algo=dict(name="blind"))))
    with pytest.raises(ConfigError, match="use dqn or ppo"): Trainer(config_from_dict(dict(env=dict(id="masks/Corridor-v0"), algo=dict(name="sac"))))


# A run with masks is as exact as any other

SMALL: dict[str, dict[str, Any]] = {
    "ppo": dict(num_steps=32, num_epochs=2), "a2c": dict(num_steps=8),
    "dqn": dict(batch_size=16, learning_starts=64, num_steps=16, buffer_size=300, train_every=1, update_ratio=.5),
}
WORLDS: dict[str, dict[str, Any]] = {
    "doors": dict(id="rlstudio/Doors-v0"), "two walls": dict(id="rlstudio/Doors-v0", kwargs=dict(walls=2, n=3)), "taxi": dict(id="Taxi-v4", max_episode_steps=20),
    "corridor": dict(id="masks/Corridor-v0", kwargs=dict(tells="dict")),
}
EXACT = [(a, w) for a in SMALL for w in WORLDS if (a, w) != ("dqn", "two walls")]


def small(algo: str, world: str = "doors", env: dict[str, Any] | None = None, seed: int = 1, total_steps: int = 1024, **more: Any) -> Config:
    return config_from_dict(dict(env=dict(num_envs=4) | (env or WORLDS[world]), algo=dict(name=algo) | SMALL[algo] | more, net=dict(hidden=[16]),
                                 train=dict(total_steps=total_steps, seed=seed)))


HALF = """
import json, sys
from pathlib import Path
sys.path.insert(0, 'tests')
from test_masks import *
from rlstudio.runs.checkpoint import latest_checkpoint, save_checkpoint
half, folder, ends = sys.argv[1], Path(sys.argv[2]), {}
for algo, world in EXACT:
    t, name = Trainer(small(algo, world)), f'{algo} {world}'
    if half == 'first': save_checkpoint(folder / name, 1, t.train(500).state_dict(), {})
    else:
        t.load_state_dict(latest_checkpoint(folder / name)[0].state)
        ends[name] = t.env_steps, t.env.level, weights_sha256(t.train().algo.module)
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def second_halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    "Where the trainings end that one process began and another one finished"
    folder = tmp_path_factory.mktemp("halves")
    for half in "first", "second":
        done = run(sys.executable, "-c", HALF, half, folder, coverage=False)
        assert done.returncode == 0, said(done)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("algo, world", EXACT)
def test_two_halves_are_a_whole(algo: str, world: str, second_halves: dict[str, list]) -> None:
    steps, level, end = second_halves[f"{algo} {world}"]
    assert 500 <= steps < 1024 and (level, end) == ("exact", weights_sha256(Trainer(small(algo, world)).train().algo.module))


@pytest.mark.faults(1)
@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_killed_and_resumed(tmp_path: Path, algo: str) -> None:
    "From the command line, in the world where an illegal action ends the episode; evaluated as well"
    lengths = dict(ppo=("algo.num_steps=20", "algo.num_minibatches=2"), dqn=("algo.learning_starts=200", "algo.num_steps=40"))[algo]
    short = ("env.id=rlstudio/Doors-v0", "train.total_steps=1600", *lengths, "checkpoint.every=250", "eval.episodes=2", "net.hidden=[16]", "--runs-dir", tmp_path)
    done = run("rlstudio", "run", f"{algo}/cartpole", *short, "--json", "--name", "whole", cwd=tmp_path)
    assert done.returncode == 0, said(done)
    want, killed = json.loads(done.stdout), tmp_path / "killed"
    p = subprocess.Popen(["rlstudio", "run", f"{algo}/cartpole", *map(str, short), "--name", "killed"], cwd=tmp_path, env=child_env(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any((killed / "checkpoints").glob("step_*[1-9]*")) and p.poll() is None and time.monotonic() < deadline: time.sleep(.01)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    done = run("rlstudio", "resume", killed, "--json", cwd=tmp_path)
    assert done.returncode == 0, said(done)
    assert json.loads(done.stdout)["weights_sha256"] == want["weights_sha256"]


@pytest.mark.parametrize("algo, engine", [("ppo", "tape"), ("dqn", "tape"), ("ppo", "autograd"), ("dqn", "autograd")])
def test_both_engines_learn_with_masks(algo: str, engine: str) -> None:
    t = Trainer(small(algo), engine=engine)
    assert t.algo.engine == engine and np.isfinite(t.train().metrics["loss/value" if algo == "ppo" else "loss/td"])  # type: ignore[attr-defined]


def test_the_engines_agree_on_the_first_update() -> None:
    ends = [Trainer(small("a2c", total_steps=32), engine=engine).train().algo.module for engine in ("tape", "autograd")]
    for a, b in zip(*(m.parameters() for m in ends), strict=True): assert torch.allclose(a, b, atol=1e-5)


# Known answers: no illegal action at all, and the best return

class Watch(Callback):
    "Counts actions, those that no mask allowed, and terminations, which in `Doors` are illegal actions"
    actions = illegal = terminated = 0

    def on_collect_end(self, trainer: Trainer) -> None:
        b, cut = trainer.batch, np.cumsum(trainer.env.action_spec.nvec)[:-1]
        self.actions += b.reward.size
        self.terminated += int(b.terminated.sum())
        for i, part in enumerate(np.split(b.mask, cut, -1)):
            chosen = b.action.reshape(*b.reward.shape, -1)[..., i:i + 1]
            self.illegal += int((~np.take_along_axis(part, chosen, -1)).sum())


ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {  # name → env kwargs, algo, env steps
    "ppo": ({}, dict(name="ppo", num_steps=64, num_epochs=4, learning_rate=1e-2), 4096),
    "a2c": ({}, dict(name="a2c", num_steps=8, learning_rate=1e-2), 8192),
    "dqn": ({}, dict(name="dqn", num_steps=64, learning_starts=256, update_ratio=.25, learning_rate=3e-3, gamma=.5, n_step=1, batch_size=128), 6144),
    "ppo, two walls": (dict(n=4, walls=2), dict(name="ppo", num_steps=64, num_epochs=4, learning_rate=1e-2), 8192),
    "a2c, two walls": (dict(n=4, walls=2), dict(name="a2c", num_steps=8, learning_rate=1e-2), 12288),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", ANSWERS)
def test_no_illegal_action_and_the_best_return(case: str, seed: int) -> None:
    kwargs, algo, steps = ANSWERS[case]
    watch = Watch()
    t = Trainer(config_from_dict(dict(env=dict(id="rlstudio/Doors-v0", num_envs=8, kwargs=kwargs), algo=algo, net=dict(hidden=[32]), train=dict(total_steps=steps, seed=seed))), [watch]).train()
    assert watch.actions >= steps and watch.illegal == watch.terminated == 0
    greedy = evaluate(t.algo.module, t.config.env, EvalConfig(episodes=40, num_envs=8))
    assert set(greedy.lengths) == {16} and greedy.mean == 16 * doors_rewards()[1]
    sampled = evaluate(t.algo.module, t.config.env, EvalConfig(episodes=40, num_envs=8, greedy=False))
    assert set(sampled.lengths) == {16} and sampled.mean > 16 * doors_rewards(4)[0]


def test_without_its_mask_the_same_world_ends_early() -> None:
    "So the world can tell: the observation does not say which doors are open"
    class Secret(Doors):
        def told(self) -> dict[str, Any]: return {}
    gym.register("masks/Secret-v0", Secret, max_episode_steps=16)
    t = Trainer(config_from_dict(dict(env=dict(id="masks/Secret-v0", num_envs=8), algo=dict(name="ppo", num_steps=64), net=dict(hidden=[16]), train=dict(total_steps=2048))))
    t.train()
    assert t.metrics["episode/length_mean"] < 8


def test_a_taxi_takes_legal_actions_and_learns() -> None:
    watch, algo = Watch(), dict(name="ppo", num_steps=128, num_epochs=4, learning_rate=2.5e-3, learning_rate_schedule="constant", gamma=.97, ent_coef=.01)
    t = Trainer(config_from_dict(dict(env=dict(id="Taxi-v4", num_envs=8), algo=algo, net=dict(hidden=[64], normalize_obs=False), train=dict(total_steps=49152))), [watch]).train()
    assert watch.actions == 49152 and watch.illegal == 0
    assert t.metrics["episode/return_mean"] > 0  # random legal actions: about -190 of 8


# Looking at it

@pytest.mark.parametrize("tells", ["info", "dict"])
def test_films_and_evaluations_respect_masks(tells: str) -> None:
    "In this world an illegal action is an exception"
    env = dict(id="masks/Drawn-v0", num_envs=2, kwargs=dict(tells=tells))
    t = Trainer(small("ppo", env=env, total_steps=128)).train()
    frames = rollout_frames(t.algo.module, t.config.env)
    assert len(frames) > 1 and frames[0].shape == (8, 8, 3)
    for greedy in (True, False): assert len(evaluate(t.algo.module, t.config.env, EvalConfig(episodes=7, num_envs=3, greedy=greedy)).returns) == 7


def test_a_cut_is_worth_what_its_own_mask_allows() -> None:
    "The critic is asked about the end of the old episode with the mask of the old episode"
    t = Trainer(small("ppo", "corridor"))
    t.algo.collect(t.stepper)
    buffer = t.algo.buffer  # type: ignore[attr-defined]
    cuts = [last for step, i, last in buffer.finals if buffer.rows.truncated[step, i]]
    assert cuts and all(last.mask[0] == (last.obs[0] > 0) for last in cuts)
    assert (buffer.following("mask")[..., 0] == (buffer.next_obs()[..., 0] > 0))[~buffer.rows.terminated].all()


def test_a_vector_env_may_declare_a_mask_without_its_end() -> None:
    "PPO needs none there; DQN does, and says so"
    class Half(InProcess):
        def __init__(self, config: EnvConfig) -> None:
            super().__init__(config)
            self.hidden = self.out.final_mask
            del self.fields["final_mask"]
    config = small("ppo", "corridor")
    env, one = Half(config.env), Trainer(config)
    from rlstudio.algos.dqn import DQN
    from rlstudio.algos.ppo import PPO
    from rlstudio.core.seeding import Streams
    agent = PPO(config, env, Streams(1))
    b = agent.collect(Stepper(env, agent.module, [0, 1, 2, 3]))
    assert b.mask.shape == (32, 4, 2) and one.env.fields.keys() - env.fields.keys() == {"final_mask"}
    with pytest.raises(EnvError, match="given a field mask without final_mask"): DQN(small("dqn", "corridor"), env, Streams(1))
