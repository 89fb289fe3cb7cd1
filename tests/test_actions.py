"Actions with bounds, in any units; integers; several at once: what PPO and A2C can act in."
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlstudio.core.options import Config, ConfigError, EvalConfig, config_from_dict
from rlstudio.core.spec import SpecError, spec_from_space
from rlstudio.nets.critics import PolicyActions
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.run import Run
from rlstudio.train.evaluate import evaluate
from rlstudio.train.trainer import Trainer


class Aim(gym.Env):
    "One observation, 5 steps: each pays by how near an action is to the best one; actions outside the space are an error"
    def __init__(self, space: spaces.Space | None = None, low: float | None = -2000., high: float | None = 2000., best: float = 1000., kind: str = "float32", shape: tuple = (1,)) -> None:
        low, high = -np.inf if low is None else low, np.inf if high is None else high   # a config has no infinite numbers
        self.action_space = space or spaces.Box(low, high, tuple(shape), np.dtype(kind).type)
        self.observation_space, self.best = spaces.Box(-1, 1, (1,), np.float32), best
        self.unit = (high - low) / 4 if np.isfinite(high - low) else 1

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def pay(self, action: Any) -> float: return -float(np.abs(np.asarray(action, float) - self.best).mean()) / self.unit

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.t += 1
        return np.zeros(1, np.float32), self.pay(action), self.t == 5, False, {}


class Car(Aim):
    "Steer to 30° in gear 2, lights on; a crawl through what dict actions can hold"
    def __init__(self, as_tuple: bool = False) -> None:
        parts = dict(steer=spaces.Box(-90, 90, (1,)), gear=spaces.Discrete(4, start=1), lights=spaces.MultiBinary(2))
        super().__init__(spaces.Tuple(parts.values()) if as_tuple else spaces.Dict(parts))

    def pay(self, action: Any) -> float:
        steer, gear, lights = action if isinstance(action, tuple) else (action["steer"], action["gear"], action["lights"])
        return -abs(float(steer[0]) - 30) / 45 - float(gear != 2) - float(np.abs(lights - [1, 0]).sum()) / 2


gym.register("actions/Aim-v0", Aim, disable_env_checker=True)
gym.register("actions/Car-v0", Car, disable_env_checker=True)


def config(id: str = "actions/Aim-v0", algo: str = "ppo", steps: int = 8192, net: dict | None = None, num_envs: int = 8, backend: str = "auto", **kwargs: Any) -> Config:
    pace = dict(ppo=dict(num_steps=32, num_epochs=10, num_minibatches=4, learning_rate=3e-3, gamma=.5),
                a2c=dict(num_steps=8, learning_rate=3e-3, gamma=.5)).get(algo, dict(learning_starts=32, batch_size=16))
    return config_from_dict(dict(env=dict(id=id, num_envs=num_envs, kwargs=kwargs, backend=backend), algo=dict(name=algo) | pace, net=dict(hidden=[16]) | (net or {}), train=dict(total_steps=steps)))


def score(t: Trainer) -> float: return evaluate(t.algo.module, t.config.env, EvalConfig(episodes=1)).mean   # of one greedy episode: 5 steps, best 0


# Bounded boxes

@pytest.mark.parametrize("kwargs, net", [
    (dict(), dict()), (dict(), dict(squash="tanh")), (dict(), dict(squash="beta")), (dict(), dict(squash="clip", log_std="state")),
    (dict(low=0., high=255., best=200., kind="uint8"), dict()), (dict(low=-100., high=100., best=-60., kind="int8"), dict()),
    (dict(low=-2.**62, high=2.**62, best=2.**61, kind="int64"), dict()), (dict(low=1e-3, high=3e-3, best=1.5e-3), dict()),
    (dict(low=500., high=600., best=540., shape=(2, 2)), dict()), (dict(low=-1e6, high=1e6, best=5e5, kind="float64"), dict(squash="tanh")),
    (dict(low=-100., high=100., best=-60., kind="int8", steps=12_000), dict(squash="beta"))])
def test_ppo_finds_the_best_action_in_any_units(kwargs: dict, net: dict) -> None:
    before, after = Trainer(config(net=net, **kwargs)), Trainer(config(net=net, **kwargs)).train()
    assert score(after) > -.5 > score(before), (score(before), score(after))


def test_a2c_acts_in_unit_coordinates_too() -> None: assert score(Trainer(config(algo="a2c", steps=24_000)).train()) > -2.5   # from -5


def test_own_units_do_not_find_it() -> None:
    assert score(Trainer(config(net=dict(squash="none"))).train()) < -4   # explores within ±4 of ±2000


@pytest.mark.parametrize("low, high, own", [(-1, 1, True), (-2, 2, True), (-.4, .4, True), (-3, 3, True), (0, 1, False), (-10, 10, False), (-.01, .01, False), (99, 101, False)])
def test_boxes_about_one_keep_their_own_units(low: float, high: float, own: bool) -> None:
    actions = PolicyActions(spec_from_space(spaces.Box(low, high, (1,)), "action"))
    assert bool(actions.scaled.any()) is not own
    u = np.float32([[-1e9], [0], [1e9]])
    assert actions.to_env(u)[[0, 2], 0].tolist() == [np.float32(low), np.float32(high)]


@pytest.mark.parametrize("low, high", [(0., None), (None, 5.), (None, None)])
def test_an_open_end_leaves_own_units_and_clips_the_other(low: float | None, high: float | None) -> None:
    t = Trainer(config(steps=256, low=low, high=high, best=2.)).train()   # the env checks every action
    assert not t.algo.module.actions.scaled.any()
    for squash in ("tanh", "beta"):
        with pytest.raises(SpecError, match=f"given net.squash: {squash} for a box of .*expected finite bounds; fix: net.squash: auto"):
            Trainer(config(net=dict(squash=squash), low=low, high=high))


def test_components_are_scaled_one_by_one() -> None:
    box = spaces.Box(np.float32([-1, -500, 0]), np.float32([1, 500, np.inf]))
    actions = PolicyActions(spec_from_space(box, "action"))
    assert actions.scaled.tolist() == [False, True, False] and actions.to_env(np.float32([[.5, .5, 7]])).tolist() == [[.5, 250, 7]]


def test_tanh_is_a_density_with_its_correction() -> None:
    t = Trainer(config(net=dict(squash="tanh"), steps=512)).train()
    m = t.algo.module
    out = m.act(t.stepper.seen, np.full((8, 1), .7, np.float32))
    params, _ = m.ask(m.heads, t.stepper.seen.obs)
    normal = torch.distributions.Normal(torch.tensor(params[:, 0]), torch.tensor(params[:, 1]).exp())
    want = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    assert np.allclose(want.log_prob(torch.tensor(out.action[:, 0]).tanh()), out.log_prob, atol=1e-3)
    assert np.abs(m.to_env(out.action)).max() <= 2000


def test_a_beta_policy_never_touches_its_bounds() -> None:
    "Both engines learn the same first step; its probabilities are those of torch's own Beta"
    first = [Trainer(config(net=dict(squash="beta"), steps=512), engine=engine).train() for engine in ("tape", "autograd")]
    a, b = (torch.cat([p.detach().flatten() for p in t.algo.module.actor.parameters()]) for t in first)
    assert torch.allclose(a, b, atol=1e-3) and first[0].algo.engine == "tape"
    m, seen = first[0].algo.module, first[0].stepper.seen
    out = m.act(seen, m.noise(np.random.default_rng(0), (8,)))
    params, _ = m.ask(m.heads, seen.obs)
    alpha, beta = (1 + torch.nn.functional.softplus(torch.tensor(params[:, i])) for i in (0, 1))
    want = torch.distributions.Beta(alpha, beta).log_prob(torch.tensor((out.action[:, 0] + 1) / 2)) - np.log(2)
    assert np.allclose(want, out.log_prob, atol=1e-4) and np.abs(out.action).max() < 1


@pytest.mark.parametrize("net", [dict(squash="tanh"), dict(squash="beta"), dict(squash="clip", log_std="state")])
def test_scaled_actions_resume_to_the_same_bits(net: dict) -> None:
    c = config(net=net, steps=1024)
    whole, half, rest = Trainer(c).train(), Trainer(c).train(512), Trainer(c)
    rest.load_state_dict(half.state_dict())
    assert weights_sha256(rest.train().algo.module) == weights_sha256(whole.algo.module)


@pytest.mark.parametrize("algo", ["sac", "td3"])
@pytest.mark.parametrize("net", [dict(squash="clip"), dict(log_std="state")])
def test_off_policy_refuses_keys_of_a_policy_gradient(algo: str, net: dict) -> None:
    with pytest.raises(ConfigError, match=f"net.{next(iter(net))}: given .*expected"): Trainer(config(algo=algo, net=net))


# Dict and Tuple

@pytest.mark.parametrize("as_tuple, net", [(False, dict()), (True, dict(log_std="state")), (True, dict(squash="tanh")), (False, dict(squash="beta"))])
def test_ppo_drives(as_tuple: bool, net: dict) -> None:
    c = config("actions/Car-v0", steps=8192, net=net, as_tuple=as_tuple)
    t = Trainer(c)
    before = score(t)
    assert score(t.train()) > -1 > before and t.env.level == "exact"


def test_a2c_drives() -> None:
    t = Trainer(config("actions/Car-v0", "a2c", 16_000))
    before = score(t)
    assert score(t.train()) > before / 2


@pytest.mark.parametrize("backend", ["inprocess", "gymnasium"])
def test_tree_actions_in_both_backends_and_both_engines(backend: str) -> None:
    assert Trainer(config("actions/Car-v0", steps=512, backend=backend), engine="tape").train().env.backend == backend
    t = Trainer(config("actions/Car-v0", steps=512, backend=backend), engine="autograd").train()
    assert t.algo.engine == "autograd" and all(torch.isfinite(p).all() for p in t.algo.module.parameters())


def test_tree_actions_resume_in_the_middle_of_an_episode() -> None:
    c = config("actions/Car-v0", steps=1024)
    whole, half, rest = Trainer(c).train(), Trainer(c).train(512), Trainer(c)
    assert half.stepper.tally.running_length.any()
    rest.load_state_dict(half.state_dict())
    assert weights_sha256(rest.train().algo.module) == weights_sha256(whole.algo.module)


@pytest.mark.filterwarnings("ignore:no video")
def test_a_run_with_tree_actions(tmp_path: Any) -> None:
    run = Run.from_config(config("actions/Car-v0", steps=512), runs_dir=tmp_path)
    run.train()
    assert run.manifest["status"] == "completed" and len(run.evaluate(episodes=2).returns) == 2


@pytest.mark.parametrize("algo", ["dqn", "sac", "td3"])
def test_off_policy_refuses_tree_actions(algo: str) -> None:
    with pytest.raises(ConfigError, match="of kind 'tuple or dict'.*; use ppo"): Trainer(config("actions/Car-v0", algo))
