"A user's own network, algorithm, wrapper or world that is odd or wrong: it works, or one error says what was given, what was expected and the fix."
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rlstudio.algos.common import LossError
from rlstudio.algos.ppo import PPO
from rlstudio.core.finite import NonFiniteError
from rlstudio.core.options import Config, ConfigError, EnvConfig, EvalConfig, config_from_dict
from rlstudio.core.registry import ModuleError, algos, import_own, nets, wrappers
from rlstudio.core.spec import SpecError
from rlstudio.envs.check import check_env
from rlstudio.envs.make import EnvError, make_env
from rlstudio.envs.vector import VectorEnv
from rlstudio.nets.flat import weights_sha256
from rlstudio.nets.modules import PolicyValue
from rlstudio.runs.config import Settings
from rlstudio.runs.run import Run, make_trainer
from rlstudio.train.agent import agent_of
from rlstudio.train.evaluate import EvalError, evaluate
from rlstudio.train.trainer import Trainer


class Count(gym.Env[Any, Any]):
    "Counts the steps of an episode of ten; each action must be an element of the space"
    observation_space = spaces.Box(-100, 100, (1,), np.float32)

    def __init__(self, action: Any = None, observation: Any = None, reward: Any = 1.) -> None:
        self.action_space, self.reward = spaces.Discrete(2) if action is None else action, reward
        if observation is not None: self.observation_space = observation

    def seen(self) -> Any: return np.full(self.observation_space.shape or (), self.t, self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.t += 1
        return self.seen(), self.reward, self.t >= 10, False, {}


def world(make: Callable[..., Any] = Count, **kwargs: Any) -> str:
    id = f"parts/World{len(gym.registry)}-v0"
    gym.register(id, lambda: make(**kwargs), disable_env_checker=True)
    return id


gym.register("parts/Count-v0", Count, disable_env_checker=True)
gym.register("parts/Push-v0", lambda: Count(spaces.Box(-1, 1, (1,))), disable_env_checker=True)


def config(env: str = "parts/Count-v0", algo: str = "ppo", net: Any = (), **more: Any) -> Config:
    small = dict(batch_size=16, learning_starts=32, num_steps=16, train_every=4, buffer_size=500) if algo in ("dqn", "sac", "td3") else dict(num_steps=16) | (
        dict(num_minibatches=2, num_epochs=2) if algo != "a2c" else {})
    return config_from_dict(dict(env=dict(id=env, num_envs=2) | more, algo=dict(name=algo) | small, net=dict(hidden=[16]) | dict(net), train=dict(total_steps=96), eval=dict(episodes=3)))


@pytest.fixture(autouse=True)
def only_here() -> Iterator[None]:
    "What a test registers is gone after it"
    before = [(registry, dict(registry._here)) for registry in (algos, nets, wrappers)]
    yield
    for registry, here in before: registry._here.clear(); registry._here.update(here)


# Networks

class Encoder(nn.Module):
    "A layer, and something behind it"
    def __init__(self, observation_spec: Any, net: Any, rng: Any, behind: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(observation_spec.flat_dim, 8), behind)

    def forward(self, x: Any) -> Any: return self.layers(x)


@pytest.mark.parametrize("algo", ["ppo", "a2c", "dqn", "sac", "td3"])
def test_dropout_learns_and_does_not_act(algo: str) -> None:
    "In gradient steps it drops, while acting it does not: a greedy agent says the same twice"
    seen: list[bool] = []

    class Watched(nn.Dropout):
        def forward(self, x: Any) -> Any: seen.append(self.training); return super().forward(x)

    nets.add("watched", lambda spec, net, rng: Encoder(spec, net, rng, Watched(.5)))
    t = Trainer(config("parts/Push-v0" if algo in ("sac", "td3") else "parts/Count-v0", algo, dict(encoder="watched")))
    seen.clear()
    evaluate(t.algo.module, t.config.env, EvalConfig(episodes=1))
    assert seen and not any(seen), "acting"
    t.train()
    assert {*seen[-40:]} == {True, False} and not t.algo.module.training, "learning, and back"
    seen.clear()
    agent, x = agent_of(t), np.float32([3])
    assert len({agent.act(x).tobytes() for _ in range(8)}) == 1 and evaluate(agent) == evaluate(agent) and not any(seen)


@pytest.mark.filterwarnings("ignore:no video")
def test_dropout_is_named_as_the_cause_of_the_lower_level(tmp_path: Path) -> None:
    "It draws from torch's global generator: the network is blamed before the world"
    nets.add("dropping", lambda spec, net, rng: Encoder(spec, net, rng, nn.Dropout(.5)))
    run = Run.from_config(config(net=dict(encoder="dropping")), runs_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"the global generator of torch was used while training \(by the Dropout of the network, parts/Count-v0, or .*level L1\); leave Dropout out of the network"):
        run.train(display="silent")
    assert run.manifest["level"] == "L1" and "the Dropout of the network" in run.manifest["why"]


@pytest.mark.parametrize("algo", ["ppo", "dqn", "sac"])
def test_batch_normalisation_trains_exactly(algo: str) -> None:
    "One row or many while acting; its statistics are learned, saved and resumed"
    nets.add("normed", lambda spec, net, rng: Encoder(spec, net, rng, nn.BatchNorm1d(8)))
    c = config("parts/Push-v0" if algo == "sac" else "parts/Count-v0", algo, dict(encoder="normed"), num_envs=1)
    whole, half = Trainer(c).train(), Trainer(c).train(48)
    means = [b for name, b in whole.algo.module.named_buffers() if name.endswith("running_mean")]
    assert means and all(b.abs().sum() > 0 for b in means)
    rest = Trainer(c)
    rest.load_state_dict(half.state_dict())
    assert weights_sha256(rest.train().algo.module) == weights_sha256(whole.algo.module)
    assert np.allclose(agent_of(whole).act(np.float32([3])), agent_of(whole).act(np.float32([[3], [5]]))[0])


def raises(spec: Any, net: Any, rng: Any) -> Any: raise ZeroDivisionError("gears")
def two(spec: Any, net: Any, rng: Any) -> Any: return Encoder(spec, net, rng, SimpleFork())
def wide(spec: Any, net: Any, rng: Any) -> Any: return Encoder(spec, net, rng, nn.Identity()).double()
def none(spec: Any, net: Any, rng: Any) -> Any: return None
def takes_one(spec: Any) -> Any: return nn.Identity()
def wrong_size(spec: Any, net: Any, rng: Any) -> Any: return nn.Linear(7, 8)
def key_error(spec: Any, net: Any, rng: Any) -> Any: return Encoder(spec, net, rng, SimpleKey())


class SimpleFork(nn.Module):
    def forward(self, x: Any) -> Any: return x, x


class SimpleKey(nn.Module):
    def forward(self, x: Any) -> Any: return {}["layer"]


@pytest.mark.parametrize("algo", ["ppo", "dqn", "sac"])
@pytest.mark.parametrize("make, why", [
    (raises, r"mine cannot be made: ZeroDivisionError: gears \(test_own_parts.py, line \d+\); expected a class or function that takes \(observation_spec, net, rng\)"),
    (takes_one, r"mine cannot be made: TypeError: takes_one\(\) takes 1 positional argument"),
    (two, "given a tuple as what Encoder makes of an observation, expected a tensor"), (wide, "given mine with weights of torch.float64, expected torch.float32; fix: encoder.float()"),
    (none, "given a NoneType by mine, expected a torch.nn.Module; fix: derive it"), (wrong_size, "given an observation of shape .*, Linear fails: mat1 and mat2"), (key_error, "given an observation of shape .*, Encoder fails: 'layer'")])
def test_a_network_that_cannot_be_used_is_a_mistake_in_its_key(make: Any, why: str, algo: str) -> None:
    nets.add("mine", make)
    with pytest.raises(ConfigError, match=f"^config: net.encoder: {why}"):
        make_trainer(config("parts/Push-v0" if algo == "sac" else "parts/Count-v0", algo, dict(encoder="mine")), Settings(), {})


# Algorithms

def heads(policy: Callable[[Any], Any], value: Callable[[Any], Any]) -> type[PPO]:
    class Net(PolicyValue):
        def __init__(self, observation_spec: Any, action_spec: Any, net: Any, num_envs: int) -> None:
            super().__init__(observation_spec, action_spec, net, num_envs)
            self.policy, self.critic = nn.Linear(1, self.dist.num_params), nn.Linear(1, 1)

        def heads(self, obs: Any) -> Any: return policy(self.policy(obs)), value(self.critic(obs))

    class Mine(PPO):
        "Mine"
        def make_module(self, net: Any, observation_spec: Any, action_spec: Any, rng: Any) -> Any: return Net(observation_spec, action_spec, net, self.num_envs)
    return Mine


@pytest.mark.parametrize("num_envs", [1, 2])
def test_heads_of_another_shape_are_named(num_envs: int) -> None:
    algos.add("mine", heads(lambda x: x, lambda x: x))
    with pytest.raises(SpecError, match=re.escape(f"value: given shape ({num_envs}, 1), expected ({num_envs},), one for each environment; fix: look at what the heads")):
        Trainer(config(algo="mine", num_envs=num_envs)).train()
    algos.add("right", heads(lambda x: x, lambda x: x.squeeze(-1)))
    assert Trainer(config(algo="right", num_envs=num_envs)).train().env_steps == 96


class Whole(PPO):
    "A loss for each row"
    surrogate = staticmethod(lambda log_ratio, advantage, clip_range: log_ratio * advantage)


class Nothing(PPO):
    "No network"
    def make_module(self, *args: Any) -> Any: return None


class Fewer(PPO):
    "Fewer arguments than its base class gives"
    def surrogate(self, ratio: Any) -> Any: return ratio


class Silent(PPO):
    "No objective"
    surrogate = staticmethod(lambda log_ratio, advantage, clip_range: None)


class Broken(PPO):
    "A mistake of its own"
    def losses(self, b: Any) -> Any: yield "agent", {}["x"], {}


class Plain(PPO):
    "A network that is no policy"
    def make_module(self, *args: Any) -> Any: return nn.Linear(1, 2)


@pytest.mark.parametrize("cls, why", [(Whole, r"Whole.losses: given a Tensor of shape \(16,\) as the loss of agent, expected one number; fix: loss.mean"),
                                      (Nothing, "Nothing.make_module: given a NoneType, expected a torch.nn.Module; fix: return the network"),
                                      (Fewer, r"^Fewer: given the exception TypeError: Fewer.surrogate\(\) takes 2 positional arguments but 4 were given, expected a loss for each part; fix: look at"),
                                      (Silent, "^Silent: given the exception TypeError: bad operand type"), (Broken, rf"^Broken: given the exception KeyError: 'x' \(test_own_parts.py, line {Broken.losses.__code__.co_firstlineno}\)"),
                                      (Plain, "Plain.make_module: given a Linear without fields, act, value, evaluate, expected a policy with a value; fix: derive it from")])
def test_an_algorithm_that_cannot_learn_says_why(cls: Any, why: str) -> None:
    algos.add("mine", cls)
    with pytest.raises(LossError, match=why): Trainer(config(algo="mine")).train()


@pytest.mark.parametrize("name", ["", "  ", None, 3, Whole])
def test_a_name_must_be_a_text(name: Any) -> None:
    "`@algos.register` without brackets would put nothing in, and say nothing"
    with pytest.raises(TypeError, match=r"algorithm: given .* as a name, expected a text; fix: register\('my-name'\)"): algos.register(name)
    with pytest.raises(TypeError, match="as a name, expected a text"): algos.add(name, Whole)


def test_a_rollout_of_one_row_is_refused_with_its_own_words() -> None:
    with pytest.raises(ConfigError, match="algo.num_steps: given 1 with env.num_envs = 1: a rollout of one row; expected two rows or more"):
        Trainer(config_from_dict(dict(env=dict(id="parts/Count-v0", num_envs=1), algo=dict(name="ppo", num_steps=1, num_minibatches=1))))


@pytest.mark.parametrize("name, fix", [("my-env", "my_env"), ("my-env.py", "my_env"), ("my env", "my_env"), ("good.py", "good"), ("", "my_env")])
def test_a_module_that_cannot_be_named_is_told_a_name_that_can(name: str, fix: str) -> None:
    with pytest.raises(ModuleError, match=f"write --import {fix} in the folder that holds it"): import_own(name)


# Evaluations

@pytest.mark.filterwarnings("ignore:no video")
def test_an_agent_is_evaluated_in_its_own_world(tmp_path: Path) -> None:
    run = Run.from_config(config(), runs_dir=tmp_path, name="mine")
    run.train()
    agent, there = run.agent(), run.config.env
    assert evaluate(agent) == evaluate(agent, there) == evaluate(agent, there, run.config.eval, 1) and evaluate(agent).returns == run.evaluate().returns
    assert evaluate(agent, config=EvalConfig(episodes=7)).lengths == (10,) * 7 and evaluate(agent, seed=9).seed == 9
    assert evaluate(agent.module, there, run.config.eval) == evaluate(agent)
    for given, why in ((agent.module, "given no world, and ActorCritic knows none, expected an EnvConfig; fix: evaluate"), (run, "Run knows none, .*run.evaluate"), ({}, "dict knows none")):
        with pytest.raises(EvalError, match=why): evaluate(given)
    with pytest.raises(EvalError, match="given a dict, expected an agent; fix: run.agent"): evaluate({}, there)
    with pytest.raises(EvalError, match=r"given CartPole-v1, which shows obs box \(4,\) float32, expected a world for an agent that sees obs box \(1,\)"): evaluate(agent, EnvConfig(id="CartPole-v1"))


# Worlds

@pytest.mark.parametrize("action", [spaces.Discrete(3, dtype=np.uint8), spaces.Discrete(3, start=2, dtype=np.uint16), spaces.Discrete(3, start=-1, dtype=np.int8), spaces.MultiDiscrete([3, 2], dtype=np.uint8),
                                    spaces.MultiDiscrete([[3, 2], [2, 2]], dtype=np.uint32), spaces.Tuple([spaces.Discrete(2, dtype=np.uint8), spaces.Box(0, 9, (1,), np.uint8)]), spaces.MultiBinary((2, 2))], ids=str)
def test_choices_of_any_type(action: Any) -> None:
    "Each action is an element of the space, in training, evaluation and in an agent's hands"
    for algo in ("ppo", "a2c", *["dqn"] * isinstance(action, spaces.Discrete)):
        t = Trainer(config(world(action=action), algo)).train()
        assert evaluate(agent_of(t)).lengths == (10,) * 3


@pytest.mark.parametrize("algo", ["sac", "td3"])
@pytest.mark.parametrize("half", [1e-40, 1e-300, 0.])
def test_a_box_thinner_than_float32_can_say(algo: str, half: float) -> None:
    t = Trainer(config(world(action=spaces.Box(-half, half, (1,), np.float64)), algo)).train()
    assert all(torch.isfinite(p).all() for p in t.algo.module.parameters())


@pytest.mark.parametrize("empty", [spaces.Box(-1, 1, (0,)), spaces.Box(-1, 1, (3, 0)), spaces.Dict(a=spaces.Box(-1, 1, (0,)))], ids=str)
def test_spaces_of_nothing_are_refused(empty: Any) -> None:
    for kwargs, name in ((dict(observation=empty), "obs"), (dict(action=empty), "action")):
        with pytest.raises(EnvError, match=f"{name}: given a space without a single number, expected one or more; fix: "): Trainer(config(world(**kwargs)))


class Spaceless(Count):
    "Whoever forgets a space"
    def __init__(self, lacks: str, instead: Any) -> None:
        super().__init__()
        self.observation_space, self.action_space = Count.observation_space, spaces.Discrete(2)
        setattr(self, lacks, instead)


@pytest.mark.parametrize("instead, given", [(None, "none"), (2, "a int"), ((4,), "a tuple"), (spaces.Discrete, "a ABCMeta|a type")])
@pytest.mark.parametrize("lacks", ["observation_space", "action_space"])
def test_an_env_without_a_space(lacks: str, instead: Any, given: str) -> None:
    id = world(Spaceless, lacks=lacks, instead=instead)
    why = rf"{id}: {lacks}: given ({given}), expected a space of Gymnasium; fix: self.{lacks} = gym.spaces"
    with pytest.raises(ConfigError, match=f"env.id: {why}"): make_trainer(config(id), Settings(), {})
    assert re.search(why, str(check_env(id)))


def test_an_action_space_that_is_no_array_is_not_told_to_filter_observations() -> None:
    with pytest.raises(SpecError, match="given a Text space.*fix: wrap the env so that it takes arrays of one shape$"): Trainer(config(world(action=spaces.Text(3))))


def test_an_id_with_a_vector_env_alone() -> None:
    gym.register("parts/Many-v0", vector_entry_point=lambda **_: None)
    try:
        for backend in ("auto", "gymnasium"):
            with pytest.raises(EnvError, match="given an id with a vector_entry_point alone, expected an entry_point as well.*fix: gym.register"): Trainer(config("parts/Many-v0", backend=backend))
    finally: del gym.registry["parts/Many-v0"]


@pytest.mark.parametrize("reward, given", [(1e39, "1e\\+39"), (-1e300, "-1e\\+300"), (10**400, "1000.* \\(int\\)"), (np.float64(1e200), "1e\\+200"), (3e38, "3e\\+38"), (-1e20, "-1e\\+20")])
def test_a_reward_that_float32_cannot_hold(reward: Any, given: str) -> None:
    why = f"reward: given {given} in step 1 with action ., expected a number within ±1.8e19"
    id = world(reward=reward)
    with pytest.raises(ConfigError, match=why): make_trainer(config(id), Settings(), {})
    assert re.search(why, str(check_env(id)))


class Late(Count):
    "Later than a first look at it, a reward or an observation is far out"
    def __init__(self, late_reward: float = 1., late_obs: float = 0., **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.late_reward, self.late_obs, self.steps = late_reward, late_obs, 0

    def seen(self) -> Any: return super().seen() + (self.late_obs if self.steps > 22 else 0)

    def step(self, action: Any) -> Any:
        self.steps += 1
        obs, reward, *rest = super().step(action)
        return obs, self.late_reward if self.steps > 22 else reward, *rest


@pytest.mark.parametrize("algo, normalize", [("ppo", False), ("ppo", True), ("a2c", False), ("dqn", False)])
def test_a_far_reward_is_refused_where_it_comes(algo: str, normalize: bool) -> None:
    "Not as a loss that is infinite, some updates later: finite in float32, and its square is not"
    trainer = Trainer(config(world(Late, late_reward=-3e38), algo, dict(normalize_reward=normalize)))
    with pytest.raises(NonFiniteError, match=r"^reward: given -3e\+38 at \[0\] \(env step 46\), expected finite numbers, and their squares too .*scale it down in a wrapper"): trainer.train()
    trainer.env.close()
    fine = Trainer(config(world(Late, late_reward=1e15), algo, dict(normalize_reward=normalize)))
    fine.train(64)
    fine.env.close()


def test_a_far_observation_of_64_bits_is_refused_where_it_comes() -> None:
    "At the first reset, or at its step: the moments of the normaliser would be infinite an update later, and name no observation"
    wide = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    class Far(Count):
        def seen(self) -> Any: return np.array([0, 1e300])
    with pytest.raises(NonFiniteError, match=r"^observation: given 1e\+300 at \[0, 1\] \(env step 0\), expected finite numbers, and their squares too"): Trainer(config(world(Far, observation=wide), net=dict(normalize_obs=True)))
    trainer = Trainer(config(world(Late, late_obs=-1e300, observation=wide), net=dict(normalize_obs=True)))
    with pytest.raises(NonFiniteError, match=r"^observation: given -1e\+300 at \[0, 0\] \(env step 46\)"): trainer.train()
    trainer.env.close()


@pytest.mark.parametrize("reward", [True, np.bool_(True), np.uint8(1), np.array(True), np.float16(1), 10**0])
def test_a_reward_of_any_type_of_number(reward: Any) -> None:
    assert set(evaluate(agent_of(Trainer(config(world(reward=reward))).train())).returns) == {10.}


# Wrappers

class Keeper(gym.Wrapper[Any, Any, Any, Any]):
    "Forgot super().__init__(env)"
    def __init__(self, env: Any) -> None: pass


class Words(gym.RewardWrapper[Any, Any]):
    "A reward in words"
    def reward(self, reward: Any) -> Any: return str(reward)


class Four(gym.Wrapper[Any, Any, Any, Any]):
    "A step of four values"
    def step(self, action: Any) -> Any: return self.env.step(action)[:4]


class Alone(gym.Wrapper[Any, Any, Any, Any]):
    "A reset without info"
    def reset(self, **kwargs: Any) -> Any: return self.env.reset(**kwargs)[0]


@pytest.mark.parametrize("wrapper, why", [
    (Keeper, r"env.wrappers.0: Mine: given a wrapper that does not hold its environment, expected one that does; fix: super\(\).__init__\(env\)"),
    (Words, r"reward: given '1.0' \(str\) in step 1 .*fix: float\(reward\)"), (Four, "step: given 4 values .* in step 1 .*, expected five values"), (Alone, "reset: given float32 of shape .*, expected the pair")])
def test_a_wrapper_keeps_the_rules_as_well(wrapper: Any, why: str, tmp_path: Path) -> None:
    "Before a folder is made"
    wrappers.add("Mine", wrapper)
    with pytest.raises(ConfigError, match=why): Run.from_config(config(wrappers=["Mine"]), runs_dir=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_wrapper_that_counts_needs_a_time_limit() -> None:
    with pytest.raises(EnvError, match="TimeAwareObservation cannot be put around.*fix: env.max_episode_steps=1000"): make_env(EnvConfig(id="parts/Count-v0", wrappers=("TimeAwareObservation",)))
    env = make_env(EnvConfig(id="parts/Count-v0", wrappers=("TimeAwareObservation",), max_episode_steps=1000))
    assert isinstance(env, gym.Env) and not isinstance(env, VectorEnv)
