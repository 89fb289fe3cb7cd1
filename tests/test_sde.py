"Exploration by a function of the state (`net.sde`): the density, its gradients, its state, and where it does not go."
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlstudio.algos.common import EngineError
from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.batch import Batch
from rlstudio.core.options import Config, ConfigError, EvalConfig, NetConfig, config_from_dict, config_hash
from rlstudio.core.spec import SpecError, spec_from_space
from rlstudio.data.rollout import Stepper
from rlstudio.envs.backends import make_vector
from rlstudio.nets.flat import weights_sha256
from rlstudio.nets.layers import SDEMLP, state_log_std
from rlstudio.nets.modules import ExplorationMatrix, SDEActorCritic
from rlstudio.runs.checkpoint import latest_checkpoint, save_checkpoint
from rlstudio.train.agent import Agent
from rlstudio.train.evaluate import evaluate
from rlstudio.train.trainer import Trainer

ALGOS = "ppo", "a2c", "sac"


def config(algo: str, net: dict | None = None, env: dict | None = None, seed: int = 1, **train: Any) -> Config:
    pace = dict(ppo=dict(num_steps=16, num_epochs=2, num_minibatches=2), a2c=dict(num_steps=16)).get(algo, dict(num_steps=16, learning_starts=32, batch_size=16, update_ratio=.1, buffer_size=2000))
    return config_from_dict(dict(env=dict(id="Pendulum-v1", num_envs=4, max_episode_steps=21) | (env or {}), algo=dict(name=algo) | pace,
                                 net=dict(hidden=[16, 16], sde=True) | (net or {}), train=dict(total_steps=16 * 4 * 6, seed=seed) | train))


def end(c: Config, **how: Any) -> str:
    with arithmetic_threads(): return weights_sha256(Trainer(c, **how).train().algo.module)


# The density

@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_variance_of_a_drawn_action_is_the_formula(activation: str) -> None:
    net, rng = SDEMLP((3, 32, 2), np.random.default_rng(1), activation, log_std=-.5), np.random.default_rng(2)
    with torch.no_grad(): net.log_std.add_(torch.as_tensor(rng.normal(0, .5, (32, 2)), dtype=torch.float32))
    x = np.repeat(rng.standard_normal((1, 3), np.float32), 20_000, 0)
    params, ε = net.explore(x, rng.standard_normal((20_000, 32, 2), np.float32))
    action, z, σ = params[:, :2] + np.exp(params[:, 2:]) * ε, net.features(x[:1])[0], net.log_std.exp().detach().numpy()
    assert np.allclose(action.var(0), (z[:, None]**2 * σ**2).sum(0), rtol=.04) and np.allclose(action.mean(0), params[0, :2], atol=.03)


def test_a_state_without_features_still_has_a_density() -> None:
    assert np.isfinite(state_log_std(np.zeros((2, 4), np.float32), torch.nn.Parameter(torch.full((4, 3), -20.)))).all()


@pytest.mark.parametrize("squash", ["auto", "tanh"])
def test_the_log_probability_is_torchs(squash: str) -> None:
    t = Trainer(config("ppo", dict(squash=squash))).train()
    m, seen = t.algo.module, t.stepper.seen
    out, params = m.act(seen, m.noise(np.random.default_rng(0), (4,))), torch.tensor(m.ask(m.heads, seen.obs)[0])
    normal, u = torch.distributions.Normal(params[:, 0], params[:, 1].exp()), torch.tensor(out.action[:, 0])
    if squash == "tanh": want = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1)).log_prob(u.tanh())
    else: want = normal.log_prob(u)
    assert np.allclose(want, out.log_prob, atol=1e-3)


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("net", [{}, dict(hidden=[16], layer_norm=True, activation="silu"), dict(hidden=[])])
def test_the_tape_and_autograd_learn_the_same(algo: str, net: dict) -> None:
    with arithmetic_threads(): both = [Trainer(config(algo, net, total_steps=64), engine=engine).train().algo for engine in ("tape", "autograd")]
    assert [x.engine for x in both] == ["tape", "autograd"]  # type: ignore[attr-defined]
    a, b = (torch.cat([p.detach().flatten() for p in x.module.actor.parameters()]) for x in both)
    assert torch.allclose(a, b, atol=1e-5)


# The state

def test_a_matrix_lasts_and_is_drawn_anew() -> None:
    "Every 8 steps, and where an episode ends: after 21"
    t = Trainer(config("ppo"))
    s, m, rng, seen = t.stepper, t.algo.module, np.random.default_rng(3), []
    for _ in range(21 + 3):
        seen.append(m.exploration.step(s.state, noise := m.noise(rng, (4,))).matrix)
        s.step(m.act(s.seen, noise))
    fresh = [k for k in range(1, 24) if (seen[k] != seen[k - 1]).any()]
    assert fresh == [8, 16, 21] and s.state.age.tolist() == [3] * 4
    assert len({x[i].tobytes() for x in seen for i in range(4)}) == 4 * 4   # each environment has its own
    assert np.std(seen[0]) == pytest.approx(1, abs=.3)


def test_null_lasts_for_an_episode() -> None:
    once = ExplorationMatrix((3, 2), None)
    state = first = once.step(once.first(2), once.seeds(np.random.default_rng(0), (2,)))
    for seeds in once.seeds(np.random.default_rng(1), (50, 2)): state = once.step(state, seeds)
    assert (state.matrix == first.matrix).all() and state.age.tolist() == [51, 51]


@pytest.mark.parametrize("algo", ALGOS)
def test_two_halves_are_a_whole(algo: str, tmp_path: Path) -> None:
    "Cut in the middle of episodes, with the state of the exploration in the checkpoint"
    c = config(algo)
    with arithmetic_threads():
        save_checkpoint(tmp_path / "c", 3, Trainer(c).train(3 * 64).state_dict(), {})
        rest = Trainer(c)
        rest.load_state_dict(latest_checkpoint(tmp_path / "c")[0].state)  # type: ignore[index]
        assert rest.stepper.state.age.dtype == np.int64 and 0 < rest.stepper.state.age.min() < 21
        assert weights_sha256(rest.train().algo.module) == end(c) != end(config(algo, seed=2))


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_any_number_of_workers_gives_the_same_bits(algo: str) -> None:
    assert len({end(config(algo, env=dict(backend=backend, workers=k, start_method="fork"))) for backend, k in (("inprocess", None), ("workers", 1), ("workers", 2))}) == 1


# Acting

@pytest.mark.parametrize("algo", ALGOS)
def test_greedy_needs_no_state_and_no_luck(algo: str, tmp_path: Path) -> None:
    t = Trainer(config(algo)).train()
    m, obs = t.algo.module, np.random.default_rng(0).standard_normal((5, 3), np.float32)
    assert "state" not in m.act(Batch(obs=obs), greedy=True).keys()
    with pytest.raises(AttributeError, match="expected a field 'state'"): m.act(Batch(obs=obs), m.noise(np.random.default_rng(0), (5,)))
    env = make_vector(t.config.env)
    stepper = Stepper(env, m, [1, 2, 3, 4])
    for _ in range(25): stepper.step(m.act(stepper.seen, greedy=True))
    assert not stepper.state.age.any()   # the process rests
    agent = Agent(m, env.observation_spec, env.action_spec, facts=dict(config={}))
    assert agent(obs[0]).shape == (1,) and np.allclose(agent(obs)[0], agent(obs[0])) and np.allclose(agent(obs)[:2], agent(obs[:2]))   # any number, at any time
    sampled = [agent.act(obs, greedy=False, rng=np.random.default_rng(4)) for _ in range(2)]
    assert (sampled[0] == sampled[1]).all() and (sampled[0] != agent(obs)).any()   # the matrix goes on


# Where it does not go

def test_the_compiled_engine_leaves_it_to_the_tape() -> None:
    pytest.importorskip("numba")
    from rlstudio.fast.kernels import WholeStep, known_networks
    from rlstudio.fast.rollout import fits_kernel
    for algo in ALGOS:
        t = Trainer(config(algo), engine="compiled")
        assert not isinstance(vars(t.algo).get("descend"), WholeStep) and "descend" not in vars(t.algo)
        if algo != "sac": assert not known_networks(t.algo) and not fits_kernel(t.algo, t.stepper)
    with arithmetic_threads(): own, tape = (Trainer(config("ppo", total_steps=64), engine=engine).train().algo.module for engine in ("compiled", "tape"))
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(own.parameters(), tape.parameters()))


def test_the_portable_engine_refuses_it() -> None:
    pytest.importorskip("numba")
    with pytest.raises(EngineError, match="given net.sde = true, whose features are not portable yet"): Trainer(config("ppo"), engine="portable")


@pytest.mark.parametrize("algo, net, env, why", [
    ("ppo", dict(core="gru"), {}, "net.sde: given true and net.core: gru, expected none"), ("a2c", {}, dict(id="CartPole-v1"), "net.sde: given true and actions of kind 'discrete', expected real numbers"),
    ("ppo", dict(log_std="state"), {}, "net.sde: given true and net.log_std: state, expected free"), ("ppo", dict(squash="beta"), {}, "net.sde: given true and net.squash: beta, expected a Gaussian"),
    ("td3", {}, {}, "net.sde: given true, which is for ppo, a2c and sac, expected false for td3"), ("dqn", {}, dict(id="CartPole-v1"), "net.sde: given true, which is for ppo, a2c and sac, expected false for dqn")])
def test_what_does_not_go_together_is_refused(algo: str, net: dict, env: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why): Trainer(config(algo, net, env))


def test_a_module_made_by_hand_is_refused_as_well() -> None:
    four, two = spec_from_space(spaces.Box(-1, 1, (4,))), spec_from_space(spaces.Discrete(2), "action")
    with pytest.raises(SpecError, match="net.sde: given actions by Categorical, expected by a Gaussian; fix: net.sde: false"):
        SDEActorCritic(four, two, NetConfig(sde=True), np.random.default_rng(0))


def test_other_configs_keep_their_hash() -> None:
    "Of before there were these keys"
    assert config_hash(NetConfig()) == "89e2c5605deaf592e07c9d1cd48bdb423fa5990dd81d5866753909337d942e1a" != config_hash(NetConfig(sde=True)) != config_hash(NetConfig(sde=True, sde_every=None))


# Learning

class Follow(gym.Env):
    "A new point at each of 5 steps; the best action is its first number. (Where all features are zero, nothing explores: a world that shows zeros would not do)"
    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)

    def point(self) -> np.ndarray:
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self.point(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t, pay = self.t + 1, -float(abs(action[0] - self.seen[0]))
        return self.point(), pay, self.t == 5, False, {}


gym.register("sde/Follow-v0", Follow, disable_env_checker=True)


@pytest.mark.parametrize("algo, net, steps", [
    (dict(name="ppo", num_steps=32, num_epochs=10, learning_rate=3e-3, gamma=.5), {}, 6000), (dict(name="ppo", num_steps=32, num_epochs=10, learning_rate=3e-3, gamma=.5), dict(squash="tanh", sde_every=None), 6000),
    (dict(name="sac", learning_starts=64, batch_size=64, learning_rate=3e-3, gamma=.5, buffer_size=2000), dict(activation="relu"), 800)])
def test_it_learns_what_to_do(algo: dict, net: dict, steps: int) -> None:
    "From about -2.5 an episode; 0 is the best"
    c = config_from_dict(dict(env=dict(id="sde/Follow-v0", num_envs=8 if algo["name"] == "ppo" else 2), algo=algo, net=dict(hidden=[32], sde=True) | net, train=dict(total_steps=steps)))
    before, after = (evaluate(t.algo.module, c.env, EvalConfig(episodes=20)).mean for t in (Trainer(c), Trainer(c).train()))
    assert after > -.75 and before < -1.75, (before, after)
