"An agent in one's hands does what an evaluation does, in the world's own terms, and needs neither the world nor the memory."
import copy
import inspect
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from support import run, said

import rlstudio
from rlstudio.core.finite import NonFiniteError
from rlstudio.core.masks import MaskError
from rlstudio.core.options import Config, EnvConfig, EvalConfig, config_from_dict
from rlstudio.core.registry import envs
from rlstudio.core.seeding import Streams, untouched_generators
from rlstudio.core.spec import SpecError
from rlstudio.data.replay import ReplayBuffer
from rlstudio.envs.backends import InProcess
from rlstudio.nets.modules import RLModule
from rlstudio.runs.run import Run, RunError
from rlstudio.train.agent import Agent, AgentError, agent_of
from rlstudio.train.evaluate import evaluate
from rlstudio.train.trainer import Trainer

OBSERVATIONS: dict[str, gym.Space] = {
    "numbers": Box(-1, 1, (3,), np.float32), "wide": Box(-9, 9, (2, 2), np.float64), "integers": Box(-5, 300, (2,), np.int16), "choice": Discrete(3, start=-1), "choices": MultiDiscrete([2, 3]),
    "switches": MultiBinary(3), "picture": Box(0, 255, (8, 9, 3), np.uint8), "dict": Dict(arm=Box(-3, 3, (2,), np.float64), camera=Box(0, 255, (8, 8, 1), np.uint8), tool=Discrete(3)),
    "tuple": Tuple((Box(-1, 1, (), np.float32), Dict({"a.b": MultiBinary(2), "keys": Box(0, 9, (1,), np.int64)}))),
}
ACTIONS: dict[str, gym.Space] = {
    "choice": Discrete(3, start=-1), "choices": MultiDiscrete([2, 3], start=[-1, 5]), "switches": MultiBinary(3), "unit": Box(-1, 1, (2,), np.float32), "own": Box(np.array([0, -90]), np.array([5, 10]), dtype=np.float32),
    "double": Box(-2, 2, (1, 2), np.float64), "one end": Box(0, np.inf, (2,), np.float32), "bytes": Box(0, 255, (2,), np.uint8), "integers": Box(-3, 9, (2,), np.int32),
    "dict": Dict(turn=Discrete(3, start=1), push=Box(-2, 7, (2,), np.float32)), "tuple": Tuple((Box(0, 9, (1,), np.int64), MultiDiscrete([2, 2]))),
}
LOG: list[tuple[Any, Any, Any]] = []   # what was seen, what was legal, what was done


pytestmark = pytest.mark.filterwarnings("ignore:Diary-v0. it remembers")   # LOG, for the tests to look at


@envs.register("Diary-v0")
class Diary(gym.Env[Any, Any]):
    "Any spaces; it writes down what is seen and done"
    def __init__(self, obs: str = "numbers", action: str = "choice", masked: bool = False) -> None:
        self.observation_space, self.action_space, self.masked = OBSERVATIONS[obs], ACTIONS[action], masked

    def see(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.seen, self.info = self.observation_space.sample(), {}
        if self.masked:
            n = int(self.action_space.n) if isinstance(self.action_space, Discrete) else int(self.action_space.nvec.sum())   # type: ignore[attr-defined]
            mask = self.np_random.random(n) < .5
            mask[[0] if isinstance(self.action_space, Discrete) else [0, 2]] = True
            self.info = {"action_mask": mask}
        return self.seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), self.info

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        LOG.append((self.seen, self.info.get("action_mask"), action))
        self.t += 1
        return self.see(), float(self.np_random.normal()), False, self.t == 6, self.info


SMALL: dict[str, dict[str, Any]] = {
    "ppo": dict(num_steps=8, num_minibatches=1, num_epochs=1), "a2c": dict(num_steps=8),
    **{name: dict(num_steps=8, learning_starts=8, batch_size=4, buffer_size=64, train_every=4) for name in ("dqn", "sac", "td3")}}
def config(algo: str = "ppo", obs: str = "numbers", action: str = "choice", masked: bool = False, net: dict[str, Any] | None = None, **more: Any) -> Config:
    return config_from_dict(dict(env=dict(id="Diary-v0", num_envs=2, kwargs=dict(obs=obs, action=action, masked=masked)), algo=dict(name=algo) | SMALL[algo] | more,
                                 net=dict(hidden=[8], normalize_obs=True) | (net or {}), train=dict(total_steps=32)))


CASES = [("ppo", obs, action, {}) for obs, action in zip([*OBSERVATIONS, *OBSERVATIONS], ACTIONS)] + [("a2c", obs, "choice", {}) for obs in OBSERVATIONS]
CASES += [("ppo", "dict", "dict", dict(core="gru", core_size=5)), ("a2c", "numbers", "choices", dict(core="lstm", core_size=5)), ("ppo", "numbers", "own", dict(squash="tanh"))]
CASES += [("dqn", "dict", "choice", {}), ("dqn", "picture", "choice", {}), ("sac", "wide", "own", {}), ("sac", "tuple", "bytes", {}), ("td3", "numbers", "double", {}), ("td3", "choice", "integers", {})]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict): return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple): return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return np.asarray(a).dtype == np.asarray(b).dtype and np.array_equal(a, b)


def replay(agent: Agent, module: RLModule, c: Config, greedy: bool) -> None:
    "Each observation of an evaluation, given to the agent, brings the action that the evaluation took"
    LOG.clear()
    evaluate(module, c.env, EvalConfig(episodes=3, num_envs=1, greedy=greedy), seed=7)
    streams = Streams(7)
    assert len(LOG) == 18
    for t, (obs, mask, action) in enumerate(LOG[:]):
        if t % 6 == 0: agent.reset()
        mine = agent.act(obs, mask, greedy=greedy, rng=None if greedy else [streams["eval/action", t // 6]])
        assert mine in agent_space(c) and same(mine, action), (t, mine, action)


def agent_space(c: Config) -> gym.Space: return ACTIONS[str(c.env.kwargs["action"])]


@pytest.mark.parametrize("algo, obs, action, net", CASES)
def test_does_what_an_evaluation_does(algo: str, obs: str, action: str, net: dict[str, Any]) -> None:
    c = config(algo, obs, action, net=net)
    trainer = Trainer(c).train()
    with untouched_generators():
        agent = agent_of(trainer)
        for greedy in (True, False): replay(agent, trainer.algo.module, c, greedy)
        # one and N
        rows = [obs for obs, _, _ in LOG[:4]]
        agent.reset()
        many = agent(stacked(rows))
        for i, row in enumerate(rows):
            agent.reset()
            assert close(agent(row), picked(many, i))


def close(a: Any, b: Any) -> bool:
    if isinstance(a, dict): return all(close(a[k], b[k]) for k in a)
    if isinstance(a, tuple): return all(map(close, a, b))
    return np.asarray(a).dtype == np.asarray(b).dtype and np.allclose(a, b, rtol=1e-5, atol=1e-5)   # a BLAS may round N rows otherwise than one


def stacked(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict): return {k: stacked([r[k] for r in rows]) for k in rows[0]}
    return tuple(map(stacked, map(list, zip(*rows)))) if isinstance(rows[0], tuple) else np.stack(rows)


def picked(x: Any, i: int) -> Any:
    if isinstance(x, dict): return {k: picked(part, i) for k, part in x.items()}
    return tuple(picked(part, i) for part in x) if isinstance(x, tuple) else x[i]


@pytest.mark.parametrize("algo, action, net", [("ppo", "choice", {}), ("ppo", "choices", {}), ("dqn", "choice", {}), ("a2c", "choices", dict(core="gru", core_size=4))])
def test_masks(algo: str, action: str, net: dict[str, Any]) -> None:
    c = config(algo, "numbers", action, masked=True, net=net)
    trainer = Trainer(c).train()
    agent = agent_of(trainer)
    for greedy in (True, False): replay(agent, trainer.algo.module, c, greedy)
    obs, mask, _ = LOG[0]
    agent.reset()
    with pytest.raises(MaskError, match="given none, expected one"): agent(obs)
    for wrong in ([1], [0] * len(mask), [2] * len(mask), ["a"] * len(mask)):
        with pytest.raises(MaskError): agent(obs, wrong)
    with pytest.raises(MaskError, match="expected 2; fix: one for each"): agent(np.stack([obs, obs]), mask[None])
    assert same(agent(np.stack([obs, obs]), np.stack([mask, mask]))[0], (agent.reset(), agent(obs, mask))[1])
    with pytest.raises(MaskError, match="the actions are no choices"): agent_of(Trainer(config(action="unit")))(obs, mask)


def test_a_mask_inside_the_observation() -> None:
    @envs.register("Inside-v0")
    class Inside(gym.Env[Any, Any]):
        observation_space, action_space = Dict(hand=Box(-1, 1, (2,), np.float32), action_mask=Box(0, 1, (3,), np.int8)), Discrete(3)
        def see(self) -> Any: return dict(hand=self.np_random.uniform(-1, 1, 2).astype(np.float32), action_mask=np.array([0, 1, 0], np.int8))
        def step(self, action: Any) -> Any: return self.see(), 0., False, True, {}
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return self.see(), {}
    agent = agent_of(Trainer(config_from_dict(dict(env=dict(id="Inside-v0"), algo=dict(name="ppo") | SMALL["ppo"], net=dict(hidden=[8])))))
    obs = Inside().reset(seed=1)[0]
    assert agent(obs) == 1 and agent.act(obs, greedy=False) == 1
    with pytest.raises(MaskError): agent(obs["hand"])


def test_memory_belongs_to_rows() -> None:
    trainer = Trainer(config("ppo", "numbers", "own", net=dict(core="gru", core_size=5))).train()
    agent, rng = agent_of(trainer), np.random.default_rng(0)
    x = rng.normal(size=(5, 3, 3)).astype(np.float32)
    first = [agent(obs) for obs in x]
    agent.reset()
    assert same(first[0], agent(x[0])) and not same(first[0], agent(x[0]))   # it remembers
    before = agent.memory.h.copy()
    agent.value(x[1])
    assert same(agent.memory.h, before)   # to be asked for a value is no step
    with pytest.raises(SpecError, match=r"given 1 observations, expected 3.*agent.reset\(\)"): agent(x[0, 0])
    agent.reset([True, False, False])
    assert not agent.memory.h[0].any() and same(agent.memory.h[1:], before[1:])
    agent.reset()
    assert agent(x[0, 0]).shape == (2,)


def test_value() -> None:
    trainer = Trainer(config("ppo", net=dict(normalize_reward=True))).train()
    agent, m = agent_of(trainer), trainer.algo.module
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    from rlstudio.core.batch import Batch
    assert np.allclose(agent.value(x), m.value(Batch(obs=x)) * m.reward_scale.scale()) and isinstance(agent.value(x[0]), float)   # type: ignore[attr-defined, union-attr]
    with pytest.raises(AgentError, match="SquashedModule, which has no value"): agent_of(Trainer(config("sac", action="own"))).value(x)


WRONG: dict[str, tuple[str, Any, str]] = {
    "shape": ("numbers", np.zeros(4), r"given shape \(4,\), expected \(3,\) for one observation, or \(N, 3\)"), "rank": ("numbers", np.zeros((2, 2, 3)), "given shape"), "scalar": ("numbers", 1., "given shape"),
    "text": ("numbers", "abc", "obs: given a str, expected .*; fix: what reset or step"), "dict for numbers": ("numbers", dict(a=1), "obs: given a dict, expected"), "texts": ("numbers", ["a", "b", "c"], "dtype"), "none": ("numbers", None, "obs: given None, expected"), "object": ("numbers", object(), "given"), "ragged": ("numbers", [[1, 2, 3], [1]], "no array"),
    "float for bytes": ("picture", np.zeros((8, 9, 3)), "given dtype float64, expected uint8"), "outside": ("choice", 2, "given 2"), "half a choice": ("choice", .5, "given"), "complex": ("numbers", np.zeros(3, complex), "dtype complex"),
    "array for dict": ("dict", np.zeros(3), "expected a dict of"), "missing part": ("dict", dict(arm=np.zeros(2)), "expected a dict of"), "wrong part": ("dict", dict(arm=np.zeros(3), camera=np.zeros((8, 8, 1), np.uint8), tool=0), "obs.arm: given shape"),
    "uneven": ("dict", dict(arm=np.zeros((2, 2)), camera=np.zeros((8, 8, 1), np.uint8), tool=0), "parts of one and 2 observations"), "dict for tuple": ("tuple", {}, "expected a tuple of"), "empty": ("numbers", [], "given shape"),
}
@pytest.mark.parametrize("name", WRONG)
def test_wrong_observations(name: str) -> None:
    obs, given, why = WRONG[name]
    agent = agent_of(Trainer(config(obs=obs)))
    with pytest.raises(SpecError, match=why) as e: agent(given)
    assert "fix" in str(e.value) and len(str(e.value)) < 400


def test_what_is_no_number() -> None:
    agent = agent_of(Trainer(config()))
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(NonFiniteError, match="observation"): agent(np.array([0, bad, 0]))
    assert agent(np.zeros((0, 3))).shape == (0,) and agent([0, 0, 0]) == agent(torch.zeros(3)) == agent(np.zeros(3, np.float16))
    with pytest.raises(AgentError, match=r"expected a numpy.random.Generator, or a list of 1"): agent.act(np.zeros(3), greedy=False, rng=3)
    with pytest.raises(AgentError, match="a list of 2"): agent.act(np.zeros((2, 3)), greedy=False, rng=[np.random.default_rng(1)])


def test_its_own_stream() -> None:
    trainer = Trainer(config()).train()
    a, b = agent_of(trainer), agent_of(trainer)
    x = np.zeros((50, 3))
    with untouched_generators():
        drawn = a.act(x, greedy=False)
        assert same(drawn, b.act(x, greedy=False)) and len(set(drawn.tolist())) > 1 and not same(drawn, a.act(x, greedy=False))
        assert same(*(a.act(x, greedy=False, rng=np.random.default_rng(1)) for _ in range(2)))
        b.greedy = False
        assert len(set(b(x).tolist())) > 1 and "sampled" in repr(b)


def test_what_a_vector_env_holds() -> None:
    for obs in OBSERVATIONS:
        c = config(obs=obs)
        agent, env = agent_of(Trainer(c)), InProcess(c.env)
        env.reset([1, 2])
        raw = [Diary(obs) for _ in range(2)]
        assert same(agent(env.obs), agent(stacked([e.reset(seed=s)[0] for e, s in zip(raw, (1, 2))]))), obs
        if obs == "dict": assert same(agent(env.obs), agent([e.reset(seed=s)[0] for e, s in zip(raw, (1, 2))]))


# from a run


@pytest.mark.filterwarnings("ignore:no video")
def test_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A checkpoint, without the world and without the memory"
    r = Run.from_config(config("dqn", "dict"), dict(total_steps=96, checkpoint=dict(every=32, keep=9), eval=dict(episodes=2)), tmp_path, "diary")
    r.train()
    module = r.restored().algo.module
    monkeypatch.setattr(ReplayBuffer, "__init__", lambda *a, **k: pytest.fail("a memory was made"))
    monkeypatch.setattr(InProcess, "__init__", lambda *a, **k: pytest.fail("a world was made"))
    monkeypatch.setattr(gym, "make", lambda *a, **k: pytest.fail("a world was made"))
    agent, first = Run.open(r.folder).agent(), Run.open(r.folder).agent(32)
    assert all((a == b).all() for a, b in zip(agent.module.state_dict().values(), module.state_dict().values()))
    assert (agent.facts["step"], first.facts["step"], agent.facts["evaluation"]["greedy"]) == (96, 32, True)
    assert any((a != b).any() for a, b in zip(agent.module.parameters(), first.module.parameters()))
    obs = Diary("dict").reset(seed=1)[0]
    assert agent(obs) in ACTIONS["choice"] and repr(agent).startswith("Agent(dqn on Diary-v0 at 96 steps: obs.arm box (2,) float64")
    for step in (33, "worst"):
        with pytest.raises(Exception, match="33|worst") as e: r.agent(step)
        assert type(e.value).__module__.startswith("rlstudio.")


def test_a_run_that_has_learned_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing was learned yet"): Run.from_config(config(), runs_dir=tmp_path).agent()


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('Box2D', 'mujoco', 'ale_py', 'pygame', 'matplotlib', 'tensorboard', 'PIL', 'huggingface_hub', 'wandb', 'onnx', 'onnxruntime', 'onnxscript'): raise ImportError(f'{name} is not here')
sys.meta_path.insert(0, Block())
import gymnasium as gym
import numpy as np
import rlstudio
gym.registry.clear()
agent = rlstudio.load_agent(sys.argv[1])
print(agent(np.zeros(8)), agent(np.zeros((3, 8))).shape, agent.facts['env'], 'LunarLander-v3' in gym.registry)
"""
def test_in_a_place_without_the_world(tmp_path: Path) -> None:
    "An agent of LunarLander, where there is no Box2D, and no environment is registered"
    from rlstudio.runs.export import save_agent
    r = Run.from_config("ppo/lunarlander", ["net.hidden=[8]", "train.total_steps=512", "env.num_envs=2", "algo.num_steps=16", "algo.num_minibatches=1", "eval.episodes=0"], tmp_path, "lander")
    r.train()
    save_agent(r, tmp_path / "agent")
    done = run(sys.executable, "-c", BLOCK, tmp_path / "agent")
    assert done.returncode == 0 and "(3,) LunarLander-v3 False" in done.stdout, said(done)


OWN = """
import torch
from rlstudio.core.registry import nets
@nets.register('mine')
class Mine(torch.nn.Module):
    def __init__(self, spec, net, rng):
        super().__init__()
        self.out = 3
        self.layer = torch.nn.Linear(4, 3)
    def forward(self, x): return self.layer(x).relu()
"""
def test_of_an_own_network(tmp_path: Path) -> None:
    "Its module is named, and never imported by itself"
    (tmp_path / "my_net.py").write_text(OWN + "print('my_net was imported')\n")
    done = run("rlstudio", "run", "ppo/cartpole", "net.encoder=mine", "train.total_steps=512", "eval.episodes=0", "net.hidden=[8]", "--import", "my_net", "--name", "own", "--runs-dir", tmp_path / "runs", "--quiet",
               cwd=tmp_path)
    assert done.returncode == 0, said(done)
    make = "import my_net, rlstudio; from rlstudio.runs.export import save_agent; save_agent(rlstudio.Run.open('runs/own'), 'agent')"
    assert (done := run(sys.executable, "-c", make, cwd=tmp_path)).returncode == 0, said(done)
    use = "import numpy as np, rlstudio; print('action', rlstudio.load_agent('agent')(np.zeros(4)))"
    without = run(sys.executable, "-c", use, cwd=tmp_path)
    assert without.returncode == 1 and "AgentError" in without.stderr and "import my_net" in without.stderr and "was imported" not in without.stdout, said(without)
    there = run(sys.executable, "-c", f"import my_net; {use}", cwd=tmp_path)
    assert there.returncode == 0 and "action" in there.stdout, said(there)


def test_an_algorithm_that_cannot(tmp_path: Path) -> None:
    from rlstudio.core.registry import algos
    from rlstudio.train.agent import rebuilt, world_facts
    trainer = Trainer(config())
    @algos.register("bare")
    class Bare:
        from rlstudio.core.options import AlgoConfig as Config
    c = config_from_dict(dict(env=dict(id="Diary-v0"), algo=dict(name="bare")))
    with pytest.raises(AgentError, match="derive it from algos.common.Learner"): rebuilt(c, {}, world_facts(trainer.env))
    with pytest.raises(AgentError, match="expected those of ActorCritic"): rebuilt(trainer.config, {}, world_facts(trainer.env))


def test_a_trainer_goes_on_without_its_agent() -> None:
    trainer = Trainer(config()).train(16)
    agent = agent_of(trainer)
    before = agent.value(np.zeros(3))
    trainer.train()
    assert agent.value(np.zeros(3)) == before != agent_of(trainer).value(np.zeros(3))


def test_evaluation_config_says_how_it_acts() -> None:
    c = config_from_dict(dict(env=dict(id="Diary-v0"), algo=dict(name="ppo") | SMALL["ppo"], eval=dict(greedy=False)))
    assert not agent_of(Trainer(c)).greedy and EnvConfig(id="x").num_envs


# Names that other libraries have

@pytest.mark.filterwarnings("ignore:no video")
def test_a_name_of_another_library_is_answered_with_ours(tmp_path: Path) -> None:
    "agent.predict, run.learn, trainer.learn; and what asks whether there is such a name hears no"
    config = config_from_dict(dict(env=dict(id="rlstudio/Bandit-v0", num_envs=2), algo=dict(name="ppo", num_steps=8), net=dict(hidden=[8]), train=dict(total_steps=16), eval=dict(episodes=1)))
    r = Run.from_config(config, runs_dir=tmp_path)
    r.train()
    agent, trainer = r.agent(), r.restored()
    for thing, name, ours in ((agent, "predict", "agent(obs), or agent.act(obs, greedy=False)"), (agent, "save", "rlstudio.export_agent(agent, PATH)"), (agent, "policy", "agent.module"), (agent, "learn", "run.train()"), (r, "learn", "run.train()"), (r, "predict", "run.agent()"),
                              (r, "save", "run.folder: a run writes itself"), (r, "load", "Run.open(FOLDER)"), (r, "evaluate_policy", "run.evaluate()"), (trainer, "learn", "trainer.train()"), (trainer, "num_timesteps", "trainer.env_steps"), (trainer, "policy", "trainer.algo.module"), (trainer, "logger", "trainer.log(")):
        with pytest.raises(AttributeError, match=rf"^'{type(thing).__name__}' object has no attribute '{name}'; here it is {re.escape(ours)}"): getattr(thing, name)
        assert not hasattr(thing, name) and getattr(thing, name, 7) == 7
        with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"): _ = thing.nothing
    obs = np.zeros(agent.spec.observation.shape, np.float32)
    for same in (copy.copy(agent), copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))): assert same(obs) == agent(obs)
    assert copy.copy(r).folder == r.folder and copy.copy(trainer).env_steps == trainer.env_steps


def test_every_hint_is_a_name_that_is_not_there() -> None:
    "A hint would hide a name of ours; and what it says to write is there"
    for cls in (Agent, Run, Trainer):
        hints = inspect.getclosurevars(cls.__getattr__).nonlocals["names"]   # type: ignore[attr-defined]
        assert len(hints) > 15 and not [name for name in hints if hasattr(cls, name)]
        for said_ in hints.values():
            for owner, name in re.findall(r"(?<![\w.])(agent|run|trainer|rlstudio)\.(\w+)", said_):
                here = dict(agent=Agent, run=Run, trainer=Trainer, rlstudio=rlstudio)[owner]
                own = inspect.getsource(here.__init__) if owner != "rlstudio" else ""
                assert hasattr(here, name) or re.search(rf"self\.{name}\b", own) or (owner, name) == ("rlstudio", "train"), said_
