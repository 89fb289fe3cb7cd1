"Dict and Tuple observations stay trees: from the env to the networks, through every memory, and back from a checkpoint."
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlstudio.core.batch import Batch, leaf_arrays
from rlstudio.core.options import Config, ConfigError, EnvConfig, config_from_dict
from rlstudio.core.spec import TreeSpec, flatten, leaves, spec_from_space
from rlstudio.data.hindsight import Hindsight
from rlstudio.data.priority import Prioritized
from rlstudio.data.replay import ReplayBuffer
from rlstudio.data.rollout import copied, put
from rlstudio.data.storage import ReplayError
from rlstudio.envs.backends import GymVector, InProcess
from rlstudio.envs.goals import Goal, find_goal
from rlstudio.envs.make import EnvError
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.checkpoint import latest_checkpoint, save_checkpoint
from rlstudio.runs.run import Run
from rlstudio.train.evaluate import evaluate
from rlstudio.train.trainer import Trainer

CAMERA = Box(0, 255, (36, 36, 1), np.uint8)
NOISE = Box(-1, 1, (3,), np.float32)
SPACES: dict[str, gym.Space] = {
    "dict": Dict(noise=NOISE, truth=Box(-1, 1, (1,), np.float32)),
    "tuple": Tuple((NOISE, Discrete(2))),
    "picture": Dict(camera=CAMERA, arm=Box(-1, 1, (2,), np.float32)),
    "senses": Dict(arm=Box(-9, 9, (3,), np.float64), camera=CAMERA, grip=Tuple((Box(0, 9, (), np.float32), Discrete(2)))),
    "strange": Dict({"a.b": Box(-1, 1, (1,), np.float32), "map": Dict({"keys": Discrete(2), "": NOISE}), "grün 1": Box(-5, 5, (2, 2), np.int16)}),
}


class World(gym.Env[Any, Any]):
    "Pays for the action that a part of the observation names; all other parts are noise"
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, parts: str = "dict", action: str = "discrete", wrong: str = "", render_mode: str | None = None) -> None:
        self.parts, self.wrong, self.render_mode, self.t = parts, wrong, render_mode, 0
        self.observation_space = SPACES[parts]
        self.n = 4 if parts == "picture" else 2
        self.action_space = Discrete(self.n) if action == "discrete" else Box(-1, 1, (1,), np.float32)

    def see(self) -> Any:
        draw, self.answer = self.np_random, int(self.np_random.integers(self.n))
        low, high = divmod(self.answer, 2)
        noise = draw.uniform(-1, 1, 3).astype(np.float32)
        camera = draw.integers(0, 50, (36, 36, 1), np.uint8)
        camera[:, :18] += np.uint8(200 * high)
        sign = np.float32(2 * self.answer - 1)
        given: dict[str, Any] = {
            "dict": dict(noise=noise, truth=np.array([sign])),
            "tuple": (noise, self.answer),
            "picture": dict(camera=camera, arm=np.array([2 * low - 1, noise[0]], np.float32)),
            "senses": dict(arm=9 * noise.astype(np.float64), camera=camera, grip=(np.array(4.5 + 4 * sign, np.float32), self.answer)),
            "strange": {"a.b": noise[:1], "map": {"keys": self.answer, "": noise}, "grün 1": np.full((2, 2), sign, np.int16)},
        }
        obs = given[self.parts]
        if self.wrong and self.t == 2: obs["camera"] = {"shape": np.zeros((36, 36), np.uint8), "type": camera.astype(float), "text": "dark"}[self.wrong]
        return obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        hit = action == self.answer if isinstance(self.action_space, Discrete) else 1 - abs(float(action[0]) - (2 * self.answer - 1)) / 2
        return self.see(), float(hit), bool(self.np_random.random() < .05), self.t == 8, {}

    def render(self) -> Any: return np.full((32, 32, 3), 25 * self.t, np.uint8)


class Broken(World):
    "Reports an infinity, three levels down"
    def see(self) -> Any:
        obs = super().see()
        if self.t == 3: obs["grip"][0][...] = np.inf
        return obs


gym.register("Trees-v0", World)
gym.register("BrokenTrees-v0", Broken)
gym.register("FlatTrees-v0", lambda **kwargs: gym.wrappers.FlattenObservation(World(**kwargs)))


def world(parts: str, n: int = 3, **kwargs: Any) -> EnvConfig: return EnvConfig(id="Trees-v0", num_envs=n, kwargs=dict(parts=parts, **kwargs))


def diary(env: Any, steps: int, seed: int = 0) -> Batch:
    "What random actions bring, (T, N, …), with the true next observations"
    rng, obs, log = np.random.default_rng(seed), copied(env.reset(range(env.num_envs)).obs), []
    for _ in range(steps):
        action = env.action_spec.sample(rng, (env.num_envs,))
        b = env.step(action)
        after = copied(b.obs)
        put(after, b.done, b.final_obs[b.done])
        log.append(copied(Batch(obs=obs, action=action, reward=b.reward, terminated=b.terminated, truncated=b.truncated, next_obs=after))[None])
        obs = copied(b.obs)
    return Batch.concat(log)


def same(a: Batch, b: Batch) -> bool:
    return len(leaf_arrays(a)) == len(leaf_arrays(b)) and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(leaf_arrays(a), leaf_arrays(b)))


# From the env

def test_a_tree_is_what_a_learner_sees() -> None:
    env = InProcess(world("senses"))
    spec, obs = env.observation_spec, env.reset([1, 2, 3]).obs
    assert isinstance(spec, TreeSpec) and list(obs.keys()) == ["arm", "camera", "grip"] and list(obs.grip.keys()) == ["0", "1"]
    assert [(s.name, s.shape, s.dtype.name, s.kind) for s in leaves(spec)] == [
        ("obs.arm", (3,), "float32", "box"), ("obs.camera", (36, 36, 1), "uint8", "box"), ("obs.grip.0", (), "float32", "box"), ("obs.grip.1", (2,), "float32", "box")]
    obs.check(spec.children, (3,)) if isinstance(obs, Batch) else pytest.fail()
    alone = World("senses")
    given, _ = alone.reset(seed=2)
    assert np.allclose(obs.arm[1], given["arm"]) and (obs.camera[1] == given["camera"]).all()
    assert obs.grip.fields["0"][1] == given["grip"][0] and obs.grip.fields["1"][1].argmax() == given["grip"][1]


@pytest.mark.parametrize("parts", SPACES)
def test_all_backends_see_the_same(parts: str) -> None:
    "At ends as well: the last observation of an episode is whole, and belongs to its own env"
    one = InProcess(world(parts))
    two = GymVector(SyncVectorEnv([lambda: gym.make("Trees-v0", parts=parts)] * 3, autoreset_mode=AutoresetMode.SAME_STEP), "Trees-v0")
    a, b = diary(one, 60), diary(two, 60)
    assert a.done.any() and same(a, b)
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        third = GymVector(SyncVectorEnv([lambda: gym.make("Trees-v0", parts=parts)] * 3, autoreset_mode=mode), "Trees-v0")
        third.reset([0, 1, 2])
        last, rng = copied(third.obs), np.random.default_rng(0)
        for _ in range(20):
            done = third.step(third.action_spec.sample(rng, (3,))).done
            assert done.any() or not same(last, third.obs)
            last = copied(third.obs)


def test_names_that_a_batch_cannot_have() -> None:
    env = InProcess(world("strange"))
    assert list(env.observation_spec.children) == ["a.b", "grün 1", "map_"] and list(env.obs.fields["map_"].keys()) == ["", "keys_"]
    assert [s.name for s in leaves(env.observation_spec)] == ["obs.a.b", "obs.grün 1", "obs.map.", "obs.map.keys"]


@pytest.mark.parametrize("wrong, message", [
    ("shape", r"observation.camera: given uint8 of shape \(36, 36\), expected uint8 of shape \(36, 36, 1\)"),
    ("type", "observation.camera: given float64 of shape .*, expected uint8"), ("text", "observation.camera: given 'dark', expected uint8")])
def test_what_does_not_fit_names_the_part(wrong: str, message: str) -> None:
    env = InProcess(world("senses", wrong=wrong))
    env.reset([0, 1, 2])
    with pytest.raises(EnvError, match=message):
        for _ in range(4): env.step(np.zeros(3, np.int64))


def test_a_number_that_is_not_finite_names_the_part() -> None:
    config = setup("ppo", dict(id="BrokenTrees-v0", num_envs=2, kwargs=dict(parts="senses")))
    with pytest.raises(EnvError, match=r"observation.grip.0: given inf .* in step 3 .*look at what the env computes there"): Trainer(config)


# Learning

ALGOS: dict[str, dict[str, Any]] = {
    "ppo": dict(num_steps=40, num_epochs=2, num_minibatches=2), "a2c": dict(num_steps=8),
    "dqn": dict(batch_size=16, learning_starts=40, num_steps=16, buffer_size=150, update_ratio=.25, prioritized=True),
    "sac": dict(batch_size=16, learning_starts=40, num_steps=16, buffer_size=150, update_ratio=.25),
    "td3": dict(batch_size=16, learning_starts=40, num_steps=16, buffer_size=150, update_ratio=.25),
}


def setup(algo: str, env: dict[str, Any], steps: int = 480, seed: int = 1, net: dict[str, Any] | None = None, **more: Any) -> Config:
    actions = {"kwargs": dict(action="box") | env["kwargs"]} if algo in ("sac", "td3") else {}
    return config_from_dict(dict(env=dict(num_envs=3) | env | actions, algo=dict(name=algo) | ALGOS[algo] | more,
                                 net=dict(hidden=[16], normalize_obs=True) | (net or {}), train=dict(total_steps=steps, seed=seed), eval=dict(episodes=4)))


def tree(algo: str, parts: str, **how: Any) -> Config: return setup(algo, dict(id="Trees-v0", kwargs=dict(parts=parts)), **how)


@pytest.mark.parametrize("algo", ALGOS)
def test_a_tree_of_vectors_learns_as_its_flat_row(algo: str) -> None:
    "The same numbers in the same order: the same first weights, and after normalising and learning the same to the last bits or nearly so"
    one, two = (Trainer(setup(algo, dict(id=id, kwargs=dict(parts="dict")))) for id in ("Trees-v0", "FlatTrees-v0"))
    assert [t.algo.engine for t in (one, two)] == ["tape", "tape"]  # type: ignore[attr-defined]
    for steps in (0, 480):
        if steps: one.train(), two.train()
        a, b = ([p.detach().numpy() for p in t.algo.module.parameters()] for t in (one, two))
        assert all(x.shape == y.shape and np.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in zip(a, b)) and len(a) == len(b)
    assert one.algo.module.obs_norm.norms[0].count > 0


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("parts", ["senses", "strange"])
def test_every_algorithm_learns_from_any_tree(algo: str, parts: str) -> None:
    trainer = Trainer(tree(algo, parts, steps=240)).train()
    assert trainer.algo.engine == ("tape" if parts == "strange" else "autograd")  # type: ignore[attr-defined]
    seen = trainer.stepper.seen
    if hasattr(trainer.algo.module, "value"): assert trainer.algo.module.value(seen).shape == (3,)
    assert evaluate(trainer.algo.module, trainer.config.env, trainer.config.eval).lengths


@pytest.mark.parametrize("algo", ["ppo", "dqn", "sac"])
def test_tape_and_autograd_agree(algo: str) -> None:
    ends = [Trainer(tree(algo, "tuple", steps=240), engine=engine).train().algo.module for engine in ("tape", "autograd")]
    for a, b in zip(*(m.parameters() for m in ends)): assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


SOLVE: dict[str, dict[str, Any]] = {
    "ppo": dict(learning_rate=2e-3, num_steps=64, num_epochs=6, gamma=.1), "dqn": dict(learning_rate=2e-3, update_ratio=.25, gamma=.1, n_step=1, buffer_size=2000, batch_size=32, prioritized=False)}


@pytest.mark.parametrize("parts", ["dict", "tuple", "picture"])
@pytest.mark.parametrize("algo", SOLVE)
def test_the_answer_is_in_one_part_alone(algo: str, parts: str) -> None:
    "1 for each right answer; who reads only the first part gets half of that, or of four answers a quarter or a half"
    trainer = Trainer(tree(algo, parts, steps=4000 if parts == "picture" and algo == "ppo" else 3000, seed=2, **SOLVE[algo])).train()
    result = evaluate(trainer.algo.module, trainer.config.env, trainer.config.eval)
    assert sum(result.returns) / sum(result.lengths) > .95


# Remembering

@pytest.mark.parametrize("how", [dict(), dict(n_step=3), dict(storage="disk"), dict(n_step=2, prioritized=True)])
def test_a_memory_of_trees_is_one_of_their_rows(how: dict[str, Any]) -> None:
    "Whatever is drawn, each part is what a memory of flat rows gives; after a wrap and from a loaded state as well"
    env = InProcess(world("strange"))
    raw, spec = diary(env, 90), env.observation_spec
    def flat(obs: Any) -> np.ndarray: return np.concatenate([x.reshape(*x.shape[:lead], -1).astype(np.float32) for x in leaf_arrays(obs)], -1)
    lead = 2
    width = flat(raw.obs).shape[-1]
    rows = raw.replace(obs=flat(raw.obs), next_obs=flat(raw.next_obs))

    def memory(spec: Any) -> ReplayBuffer:
        rest = {k: x for k, x in how.items() if k != "prioritized"}
        return ReplayBuffer(60, 3, spec, env.action_spec, **rest, sampler=Prioritized() if "prioritized" in how else None)

    one, two = memory(spec), memory(spec_from_space(Box(-9, 9, (width,), np.float32), "obs"))
    lead = 1
    for start, stop in ((0, 1), (1, 8), (8, 40), (40, 90)):
        one.add(raw[start:stop])
        two.add(rows[start:stop])
        if "prioritized" in how: [m.report(np.arange(3), np.array([.1, 2, 3])) for m in (one, two)]
        loaded = memory(spec)
        loaded.load_state_dict(one.state_dict())
        a, b, c = (m.sample(200, np.random.default_rng(stop)) for m in (one, two, loaded))
        assert same(a, c) and (flat(a.obs) == b.obs).all() and (flat(a.next_obs) == b.next_obs).all()
        assert all((a.fields[k] == b.fields[k]).all() for k in ("action", "reward", "discount", "index", "weight"))
        assert [x.dtype for x in leaf_arrays(a.obs)] == [s.dtype for s in leaves(spec)]


def test_pictures_of_a_tree_take_their_bytes_and_no_more() -> None:
    env = InProcess(world("senses"))
    replay = ReplayBuffer(300, 3, env.observation_spec, env.action_spec)
    assert replay.nbytes < 303 * (36 * 36 + 4 * (3 + 1 + 2) + 8) * 1.05
    replay.add(diary(env, 20))
    assert replay.sample(4, np.random.default_rng(0)).obs.camera.dtype == np.uint8


def test_what_a_memory_of_trees_refuses() -> None:
    env = InProcess(world("senses"))
    raw = diary(env, 5)
    replay = ReplayBuffer(60, 3, env.observation_spec, env.action_spec)
    with pytest.raises(ReplayError, match=r"obs.camera: given shape \(5, 3, 36, 36\), expected \(5, 3, 36, 36, 1\)"):
        replay.add(raw.replace(obs=raw.obs.replace(camera=raw.obs.camera[..., 0])))
    with pytest.raises(ReplayError, match=r"next_obs.grip: given \['0'\], expected a Batch of \['0', '1'\]"):
        replay.add(raw.replace(next_obs=raw.next_obs.replace(grip=Batch(**{"0": raw.next_obs.grip.fields["0"]}))))
    with pytest.raises(ReplayError, match="obs: given ndarray, expected a Batch of"): replay.add(raw.replace(obs=raw.obs.arm))
    with pytest.raises(ReplayError, match="frame_stack: given 4"): ReplayBuffer(60, 3, env.observation_spec, env.action_spec, frame_stack=4)
    with pytest.raises(ConfigError, match="algo.frame_stack: given 4, but an observation has the parts"): Trainer(tree("dqn", "senses", frame_stack=4))


class Maze(gym.Env[Any, Any]):
    "Walk on a line to a goal that is itself a tree: a place and a colour"
    def __init__(self) -> None:
        goal = Dict(place=Box(0, 5, (), np.float32), colour=Discrete(3))
        self.observation_space = Dict(observation=Box(0, 5, (1,), np.float32), achieved_goal=goal, desired_goal=goal, camera=Box(0, 255, (4, 4), np.uint8))
        self.action_space = Discrete(5)

    def see(self) -> Any:
        return dict(observation=np.array([self.x], np.float32), achieved_goal=dict(place=np.array(self.x, np.float32), colour=self.colour),
                    desired_goal=self.want, camera=np.full((4, 4), self.x, np.uint8))

    def compute_terminated(self, achieved: Any, desired: Any, info: Any) -> Any:
        return (achieved["place"] == desired["place"]) & (np.asarray(achieved["colour"]) == desired["colour"])

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any: return self.compute_terminated(achieved, desired, info) - np.float32(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.colour = 0, 0
        self.want = dict(place=np.array(self.np_random.integers(1, 6), np.float32), colour=int(self.np_random.integers(3)))
        return self.see(), {}

    def step(self, action: Any) -> Any:
        if action < 2: self.x = min(5, max(0, self.x + 2 * int(action) - 1))
        else: self.colour = int(action) - 2
        obs = self.see()
        both = obs["achieved_goal"], obs["desired_goal"]
        return obs, float(self.compute_reward(*both, {})), bool(self.compute_terminated(*both, {})), False, {}


gym.register("TreeGoals-v0", Maze, max_episode_steps=12)


@pytest.mark.parametrize("n_step, prioritized", [(1, False), (3, True)])
def test_goals_that_are_trees_are_swapped(n_step: int, prioritized: bool) -> None:
    env = InProcess(EnvConfig(id="TreeGoals-v0", num_envs=3))
    goal, raw = env.goal, diary(env, 200)
    assert goal is not None and goal.terminated is not None and find_goal(spec_from_space(Maze().observation_space), gym.make("TreeGoals-v0")) is not None
    replay = ReplayBuffer(450, 3, env.observation_spec, env.action_spec, n_step=n_step, gamma=.9,
                          sampler=Prioritized() if prioritized else None, relabel=Hindsight(goal, 1.))
    replay.add(raw)
    b = replay.sample(300, np.random.default_rng(0))
    plain = replay.gather(b.index)
    assert not same(b.obs.desired_goal, plain.obs.desired_goal) and same(b.obs.desired_goal, b.next_obs.desired_goal)
    for name in ("observation", "camera"): assert (b.obs.fields[name] == plain.obs.fields[name]).all()
    assert (b.obs.desired_goal.place <= 5).all() and (b.obs.desired_goal.colour.sum(1) == 1).all()
    arrived = (b.next_obs.achieved_goal.place == b.next_obs.desired_goal.place) & (b.next_obs.achieved_goal.colour == b.next_obs.desired_goal.colour).all(1)
    assert .05 < arrived.mean() < .9 and (b.discount[arrived] == 0).all() and (b.discount[~arrived] > 0).all()
    if n_step == 1: assert (b.reward == arrived - np.float32(1)).all()


def test_goals_that_are_not_there_are_refused() -> None:
    env = InProcess(EnvConfig(id="TreeGoals-v0"))
    def memory(*where: Any) -> ReplayBuffer:
        goal = Goal(*where, lambda a, d: (a == d).all(1) - np.float32(1))
        return ReplayBuffer(60, 1, env.observation_spec, env.action_spec, relabel=Hindsight(goal))
    memory("achieved_goal", "desired_goal")
    for where in (("achieved_goal", "wish"), ("observation", "desired_goal"), (slice(0, 2), slice(2, 4))):
        with pytest.raises(ReplayError, match=r"hindsight: given .* of the parts \[.*, expected two goals of the same size"): memory(*where)


def test_goals_that_are_trees_are_learned() -> None:
    how = dict(hindsight=.8, learning_rate=2e-3, gamma=.9, n_step=1, buffer_size=5000, batch_size=64, prioritized=False, update_ratio=.5)
    config = config_from_dict(dict(env=dict(id="TreeGoals-v0", num_envs=4), algo=dict(name="dqn") | ALGOS["dqn"] | how, net=dict(hidden=[64]),
                                   train=dict(total_steps=6000), eval=dict(episodes=20)))
    trainer = Trainer(config).train()
    assert max(evaluate(trainer.algo.module, config.env, config.eval).lengths) < 12


# Going on

@pytest.mark.parametrize("algo, how", [("ppo", {}), ("a2c", {}), ("dqn", {}), ("dqn", dict(n_step=3, buffer_storage="disk", prioritized=False)), ("dqn", dict(hindsight=.8, n_step=2)), ("sac", {}), ("td3", dict(exploration="ou"))])
def test_two_halves_are_a_whole(tmp_path: Path, algo: str, how: dict[str, Any]) -> None:
    "Two vectors, a choice and a picture, through a checkpoint on the disk"
    config = tree(algo, "senses", steps=240, **how) if "hindsight" not in how else setup(algo, dict(id="TreeGoals-v0", kwargs={}), steps=240, **how)
    whole, first, second = Trainer(config), Trainer(config), Trainer(config)
    save_checkpoint(tmp_path, 1, first.train(120).state_dict(), {})
    second.load_state_dict(latest_checkpoint(tmp_path)[0].state)
    assert second.env.level == "exact" and same(Batch(x=second.env.obs), Batch(x=first.env.obs)) and 0 < second.env_steps < 240
    assert weights_sha256(second.train().algo.module) == weights_sha256(whole.train().algo.module)


def test_a_run_from_config_to_film(tmp_path: Path) -> None:
    run = Run.from_config(tree("ppo", "senses", steps=240), runs_dir=tmp_path, name="trees")
    run.train()
    assert run.status == "completed" and (run.folder / "videos" / "rollout.webp").exists()
    assert list(run.manifest["env"]["observation"]["children"]) == ["arm", "camera", "grip"]
    again = Run.open(run.folder)
    assert again.evaluate().returns == run.evaluate().returns


def test_flat_and_tree_agree_about_the_numbers() -> None:
    "A tree holds what `core.spec.flatten` would lay side by side"
    env, alone = InProcess(world("tuple", 1)), World("tuple")
    obs, (given, _) = env.reset([5]).obs, alone.reset(seed=5)
    assert (np.concatenate([x[0] for x in leaf_arrays(obs)]) == flatten(spec_from_space(SPACES["tuple"]), given)).all()
