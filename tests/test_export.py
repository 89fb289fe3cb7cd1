"An agent leaves its run: a folder that runs no code, an ONNX file and a torch program that do what the agent does, for every algorithm, observation and action."
import copy
import functools
import json
import os
import pickle
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime as ort
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from support import ROOT, said
from support import run as shell

from rlstudio import load_agent
from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.batch import Batch, leaf_arrays
from rlstudio.core.options import config_from_dict
from rlstudio.core.seeding import untouched_generators
from rlstudio.core.spec import leaves, spec_from_space
from rlstudio.envs.snapshot import action_spec_of
from rlstudio.envs.vector import seen_obs, seen_spec
from rlstudio.nets.modules import RLModule
from rlstudio.runs.checkpoint import sha256, spell
from rlstudio.runs.export import (
    AgentGraph,
    check_graph,
    converted,
    drawn_part,
    export_agent,
    export_onnx,
    export_torch,
    save_agent,
    seen_tensor,
    torch_type,
    traced,
    unleaved,
)
from rlstudio.runs.run import Run
from rlstudio.train.agent import Agent, AgentError, Unplugged, as_seen, untrained

OBSERVATIONS: dict[str, gym.Space] = {
    "numbers": Box(-1, 1, (3,), np.float32), "wide": Box(-9, 9, (2, 2), np.float64), "open": Box(-np.inf, np.inf, (4,), np.float32),
    "half": Box(-1, 1, (2,), np.float16), "integers": Box(-5, 300, (2,), np.int16), "bytes": Box(0, 255, (5,), np.uint8), "flags": Box(0, 1, (3,), np.bool_),
    "choice": Discrete(3, start=-1), "choices": MultiDiscrete([2, 3]), "switches": MultiBinary(3),
    "small": Box(0, 255, (8, 9, 3), np.uint8), "frames": Box(0, 255, (2, 36, 36), np.uint8), "grey": Box(0, 255, (9, 8), np.uint8),
    "dict": Dict(arm=Box(-3, 3, (2,), np.float64), camera=Box(0, 255, (8, 8, 1), np.uint8), tool=Discrete(3)),
    "tuple": Tuple((Box(-1, 1, (), np.float32), Dict({"a.b": MultiBinary(2), "keys": Box(0, 9, (1,), np.int64)}))),
}
ACTIONS: dict[str, gym.Space] = {
    "choice": Discrete(3), "from": Discrete(4, start=-2), "choices": MultiDiscrete([2, 3]), "begun": MultiDiscrete([2, 3], start=[-1, 5]), "grid": MultiDiscrete([[2, 3], [4, 2]]),
    "switches": MultiBinary(3), "unit": Box(-1, 1, (2,), np.float32), "own": Box(np.array([0, -900]), np.array([5, 100]), dtype=np.float32), "double": Box(-2, 2, (1, 2), np.float64),
    "one end": Box(0, np.inf, (2,), np.float32), "open": Box(-np.inf, np.inf, (1,), np.float32), "bytes": Box(0, 255, (2,), np.uint8), "integers": Box(-3, 10**9, (2,), np.int32),
    "dict": Dict(turn=Discrete(3, start=1), push=Box(-2, 7, (2,), np.float32), lamps=MultiBinary(2)), "tuple": Tuple((Box(0, 9, (1,), np.int64), MultiDiscrete([2, 2]))),
}
BOUNDED = ("unit", "own", "double", "bytes", "integers")
KINDS = {"ppo": tuple(ACTIONS), "a2c": tuple(ACTIONS), "dqn": ("choice", "from"), "sac": BOUNDED, "td3": BOUNDED}
VARIANTS: dict[str, tuple[str, str, tuple[str, ...], dict[str, Any]]] = {   # name → algo, observation, actions, more of a config
    "gru": ("ppo", "dict", tuple(ACTIONS), dict(net=dict(core="gru", core_size=5))), "lstm": ("a2c", "numbers", tuple(ACTIONS), dict(net=dict(core="lstm", core_size=5))),
    "tanh": ("ppo", "numbers", BOUNDED, dict(net=dict(squash="tanh"))), "beta": ("ppo", "numbers", BOUNDED, dict(net=dict(squash="beta"))), "state": ("ppo", "numbers", ("unit", "own", "dict"), dict(net=dict(log_std="state", layer_norm=True))),
    "clip": ("ppo", "numbers", BOUNDED, dict(net=dict(squash="clip", activation="elu"))), "raw": ("ppo", "wide", ("unit", "choice"), dict(net=dict(squash="none", normalize_obs=False))),
    "rainbow": ("dqn", "open", ("choice", "from"), dict(algo=dict(dueling=True, quantiles=5), net=dict(activation="silu", normalize_reward=True))), "ou": ("td3", "numbers", BOUNDED, dict(algo=dict(exploration="ou"))),
    "sde": ("ppo", "dict", BOUNDED, dict(net=dict(sde=True, layer_norm=True))), "sde, squashed": ("sac", "tuple", BOUNDED, dict(net=dict(sde=True))),
    "impala": ("dqn", "small", ("from",), dict(net=dict(encoder="impala"))), "flat": ("ppo", "small", ("choice",), dict(net=dict(encoder="flat"))),
}
MASKED = ("choice", "from", "choices", "begun", "grid")


@pytest.fixture(scope="module", autouse=True)
def one_table_of_operators() -> Iterator[None]:
    "Torch reads its table of 500 operators anew for each export; here once. And one thread, since the networks are tiny"
    from torch.onnx._internal.exporter._registration import ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        with arithmetic_threads(1): yield


def an_agent(algo: str, obs: str, action: str, masked: bool = False, more: dict[str, Any] | None = None) -> Agent:
    "An agent whose weights and normalisers are as if it had learned something"
    values: dict[str, Any] = dict(env=dict(id="Elsewhere-v0", num_envs=2), algo=dict(name=algo), net=dict(hidden=[8], normalize_obs=True))
    for section, keys in (more or {}).items(): values[section] = values.get(section, {}) | keys
    observation, spec, rng = spec_from_space(OBSERVATIONS[obs]), action_spec_of(ACTIONS[action]), np.random.default_rng(0)
    config = config_from_dict(values)
    module = untrained(config, Unplugged("Elsewhere-v0", 2, observation, spec, masked))
    with torch.no_grad():
        for p in module.parameters(): p.add_(torch.as_tensor(rng.normal(0, .5 / max(1, p[0].numel() if p.ndim else 1) ** .5, p.shape), dtype=p.dtype))
    if module.reward_scale is not None: module.reward_scale.add(rng.normal(3, 2, (50, 2)).ravel())
    agent = Agent(module, observation, spec, masked=masked, facts=dict(algo=algo, config=values))
    graph = AgentGraph(agent)
    module.update_statistics(as_seen(module, observation, unleaved(observation, iter(graph.example(40, rng)[:len(graph.parts)])))[0])
    return agent


def compare_eagerly(agent: Agent) -> None:
    graph = AgentGraph(agent)
    check_graph(agent, graph, lambda given: [x.detach().numpy() for x in graph(*map(torch.as_tensor, given.values()))], "torch", 40)


def compare_by_onnx(agent: Agent) -> None:
    graph = AgentGraph(agent)
    session = ort.InferenceSession(converted(traced(graph), graph.inputs, graph.outputs).SerializeToString(), providers=["CPUExecutionProvider"])
    check_graph(agent, graph, lambda given: session.run(None, given), "ONNX", 40)


@pytest.mark.parametrize("algo", [k for k in KINDS if k != "a2c"])   # which makes the network of ppo
@pytest.mark.parametrize("obs", OBSERVATIONS)
def test_the_function_of_every_algorithm_observation_and_action(algo: str, obs: str) -> None:
    "Every combination, as the function of tensors that the exporter translates"
    for action in KINDS[algo]: compare_eagerly(an_agent(algo, obs, action))


PAIRS = [(algo, obs, KINDS[algo][(i + 4 * (algo == "a2c")) % len(KINDS[algo])]) for algo in KINDS for i, obs in enumerate(OBSERVATIONS)]
@pytest.mark.parametrize("algo, obs, action", PAIRS)
def test_onnx(algo: str, obs: str, action: str) -> None:
    "Each observation with each algorithm, each action with each algorithm: what comes before a network does not depend on what comes after it"
    compare_by_onnx(an_agent(algo, obs, action))


def test_a2c_has_the_network_of_ppo() -> None:
    a, b = (an_agent(algo, "dict", "dict").module for algo in ("ppo", "a2c"))
    assert type(a) is type(b) and a.state_dict().keys() == b.state_dict().keys()


def test_the_table_is_whole() -> None:
    assert all({a for g, _, a in PAIRS if g == algo} == set(actions) for algo, actions in KINDS.items())
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["rlstudio.algos"]
    assert set(ours) == set(KINDS)   # a new algorithm needs a row


@pytest.mark.parametrize("name", VARIANTS)
def test_onnx_of_every_network(name: str) -> None:
    algo, obs, actions, more = VARIANTS[name]
    for action in actions: compare_eagerly(an_agent(algo, obs, action, more=more))
    compare_by_onnx(an_agent(algo, obs, actions[-1], more=more))


@pytest.mark.parametrize("obs", ["numbers", "dict"])
def test_onnx_with_masks(obs: str) -> None:
    gru = dict(net=dict(core="gru", core_size=4))
    for algo, kinds, more in (("ppo", MASKED, None), ("dqn", MASKED[:2], None), ("a2c", MASKED, gru)):
        for action in kinds: compare_eagerly(an_agent(algo, obs, action, True, more))
        compare_by_onnx(an_agent(algo, obs, kinds[-1], True, more))


def test_a_wrong_graph_is_found() -> None:
    agent = an_agent("ppo", "numbers", "own")
    graph = AgentGraph(agent)
    def call(given: dict[str, np.ndarray]) -> list[np.ndarray]: return [x.detach().numpy() for x in graph(*map(torch.as_tensor, given.values()))]
    check_graph(agent, graph, call, "torch")
    for spoil, why in ((lambda x: [x[0] * 1.0001, x[1]], "action is .* apart"), (lambda x: [x[0], x[1] + 1], "value is"), (lambda x: [x[0].astype(float), x[1]], "float64"), (lambda x: [x[0][:1], x[1]], "of shape")):
        with pytest.raises(AgentError, match=why): check_graph(agent, graph, lambda given, spoil=spoil: spoil(call(given)), "torch")
    other = an_agent("ppo", "numbers", "choice")
    with pytest.raises(AgentError, match="another choice in"): check_graph(other, AgentGraph(an_agent("ppo", "numbers", "choice", more=dict(train=dict(seed=2)))), lambda given: [np.zeros(len(given["obs"]), int), other.value(given["obs"])], "torch")


def test_onnx_file(tmp_path: Path) -> None:
    agent = an_agent("ppo", "dict", "dict", more=dict(net=dict(core="lstm", core_size=4)))
    with untouched_generators(): path = export_onnx(agent, tmp_path / "deep" / "agent.onnx")
    assert [p.name for p in path.parent.iterdir()] == ["agent.onnx"]
    session = ort.InferenceSession(path)
    assert {i.name: (i.shape, i.type) for i in session.get_inputs()} == {
        "obs.arm": (["N", 2], "tensor(double)"), "obs.camera": (["N", 8, 8, 1], "tensor(uint8)"), "obs.tool": (["N"], "tensor(int64)"), "state.h": (["N", 4], "tensor(float)"), "state.c": (["N", 4], "tensor(float)")}
    assert [o.name for o in session.get_outputs()] == ["action.turn", "action.push", "action.lamps", "value", "next_state.h", "next_state.c"]
    notes = session.get_modelmeta().custom_metadata_map
    assert notes["algo"] == "ppo" and json.loads(notes["action"]) == agent.spec.action.to_dict()
    with pytest.raises(AgentError, match="it is there already"): export_onnx(agent, path)
    with pytest.raises(AgentError, match="it is there already"): save_agent(agent, path)


@pytest.mark.parametrize("algo, obs, action, more", [
    ("ppo", "tuple", "tuple", None), ("ppo", "numbers", "begun", dict(net=dict(core="gru", core_size=4))), ("dqn", "frames", "from", None), ("sac", "wide", "own", None), ("td3", "choice", "bytes", None)])
def test_torch_program(algo: str, obs: str, action: str, more: Any, tmp_path: Path) -> None:
    agent = an_agent(algo, obs, action, action == "begun", more)
    program = torch.export.load(export_torch(agent, tmp_path / "agent.pt2")).module()
    graph = AgentGraph(agent)
    check_graph(agent, graph, lambda given: [x.detach().numpy() for x in program(*map(torch.as_tensor, given.values()))], "torch")


def test_what_cannot_be_a_graph(tmp_path: Path) -> None:
    class Own(RLModule):
        def act(self, seen: Batch, noise: Any = None, greedy: bool = False) -> Batch: return Batch(action=np.zeros(len(seen), np.int64))
    spec = spec_from_space(OBSERVATIONS["numbers"])
    agent = Agent(Own(spec, action_spec_of(Discrete(2))), spec, action_spec_of(Discrete(2)))
    assert agent(np.zeros(3)) == 0
    for form in ("onnx", "torch"):
        with pytest.raises(AgentError, match="given Own, expected a PolicyValue"): export_agent(agent, tmp_path / "x", form)
    for name in ("x.onxx", "x.pt", "x.ptt2"):
        with pytest.raises(AgentError, match="expected a name that ends with .onnx or .pt2, or that of a new folder"): export_agent(agent, tmp_path / name)
    with pytest.raises(AgentError, match="agent of a bare module"): export_agent(agent, tmp_path / "x")
    assert not any(tmp_path.iterdir())


MODULES = {"ppo": ("ppo", "wide", "own", None), "gru": ("ppo", "dict", "dict", dict(net=dict(core="gru", core_size=4))), "lstm": ("a2c", "open", "grid", dict(net=dict(core="lstm"))),
           "dqn": ("dqn", "frames", "from", None), "sac": ("sac", "tuple", "own", None), "td3": ("td3", "small", "double", dict(algo=dict(exploration="ou"))), "sde": ("sac", "wide", "own", dict(net=dict(sde=True)))}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("way", ["pickle", "torch", "copy"])
def test_modules_and_agents_can_be_copied(name: str, way: str, tmp_path: Path) -> None:
    algo, obs, action, more = MODULES[name]
    agent = an_agent(algo, obs, action, more=more)
    if way == "pickle": twin = pickle.loads(pickle.dumps(agent))
    elif way == "copy": twin = copy.deepcopy(agent)
    else:
        torch.save(agent.module, tmp_path / "module.pt")
        twin = Agent(torch.load(tmp_path / "module.pt", weights_only=False), agent.spec.observation, agent.spec.action)
    graph = AgentGraph(agent)
    check_graph(twin, graph, lambda given: [x.detach().numpy() for x in graph(*map(torch.as_tensor, given.values()))], way)
    before = [p.clone() for p in agent.module.parameters()]
    with torch.no_grad():
        for p in twin.module.parameters(): p.zero_()
    assert all((a == b).all() for a, b in zip(before, agent.module.parameters()))   # nothing is shared
    norm = twin.module.obs_norm
    if norm is not None and name == "ppo":   # what a load does to a normaliser survives the copy
        norm.load_state_dict(norm.state_dict() | dict(mean=torch.full((2, 2), 7., dtype=torch.float64)))
        assert (norm.shift == 7).all()


# the folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Run:
    made = Run.from_config("dqn/cartpole", ["net.hidden=[16]", "train.total_steps=600", "algo.learning_starts=100", "eval.episodes=3", "checkpoint.every=200"], runs_dir=tmp_path_factory.mktemp("runs"), name="small")
    made.train()
    return made


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path: return save_agent(run, tmp_path / "agent")


def signed(path: Path, **changes: Any) -> None:
    "Change agent.json as somebody would who knows how it is made"
    doc = json.loads((path / "agent.json").read_text())
    del doc["sha256"]
    for key, value in changes.items(): doc[key] = doc[key] | value if isinstance(value, dict) else value
    (path / "agent.json").write_bytes(spell(doc | dict(sha256=sha256(spell(doc)))))


def test_the_folder_is_the_agent(run: Run, folder: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["agent.json", "weights.safetensors"]
    agent, there = run.agent(), load_agent(folder)
    obs = np.random.default_rng(0).normal(0, .2, (50, 4))
    assert there(obs).tolist() == agent(obs).tolist() and there.value(obs).tolist() == agent.value(obs).tolist()
    assert (there.facts["run"], there.facts["step"], there.facts["algo"], there.facts["env"]) == ("small", 600, "dqn", "CartPole-v1")
    assert there.facts["evaluation"]["mean"] == run.read("result.json")["eval_return_mean"] and there.spec == agent.spec
    assert load_agent(save_agent(there, tmp_path / "second"))(obs).tolist() == agent(obs).tolist()   # and on from there
    assert load_agent(run.folder)(obs).tolist() == load_agent(run)(obs).tolist() == load_agent(str(folder))(obs).tolist()
    from safetensors.numpy import load_file
    assert load_file(folder / "weights.safetensors").keys() == dict(agent.module.state_dict()).keys()   # anybody can read it
    (folder / "README.md").write_text("what others lay beside it is not looked at")
    assert load_agent(folder)(obs).tolist() == agent(obs).tolist()


def test_every_changed_byte_is_noticed(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("agent.json", "weights.safetensors"):
        whole = (folder / name).read_bytes()
        places = rng.integers(0, len(whole), 60)
        for at in (*places.tolist(), 0, len(whole) - 1):
            (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1:])
            with pytest.raises(AgentError): load_agent(folder)
        for bad in (whole[:-1], whole + b" ", b"", pickle.dumps(Bomb()), b"[" * 100_000, b"{}\n", b"null\n", b'"\xff"'):
            (folder / name).write_bytes(bad)
            with pytest.raises(AgentError, match=re.escape(name)): load_agent(folder)
        (folder / name).write_bytes(whole)
    assert load_agent(folder) and not Bomb.gone_off


class Bomb:
    gone_off = False
    def __reduce__(self) -> Any: return setattr, (Bomb, "gone_off", True)


@pytest.mark.parametrize("name", ["agent.json", "weights.safetensors"])
def test_no_link_and_no_pipe(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "aside")
    with pytest.raises(AgentError): load_agent(folder)
    (folder / name).symlink_to(tmp_path / "aside")
    with pytest.raises(AgentError, match="no links"): load_agent(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(AgentError): load_agent(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(AgentError): load_agent(folder)


HUGE = dict(name="obs", shape=[4], dtype="float32", kind="box", low="-inf", high="inf", nvec=[], start=[])
@pytest.mark.parametrize("changes", [
    dict(format="zip"), dict(version=2), dict(version="1"), dict(config=[]), dict(imports=[3]), dict(greedy=1), dict(weights=dict(bytes=2**60)), dict(weights=dict(bytes=-1)), dict(weights=dict(sha256="0" * 64)),
    dict(weights=dict(more=1)), dict(config=dict(algo=dict(name="nothing"))), dict(config=dict(algo=dict(name="sac"))), dict(config=dict(net=dict(hidden=[65_536, 65_536]))), dict(config=dict(net=dict(hidden=[1] * 200_000))), dict(config=dict(net=dict(encoder="nobody"))),
    dict(config=dict(net=dict(hidden=[17]))), dict(config=dict(env=3)), dict(config=dict(env=dict(id="CartPole-v1", num_envs=10**9))),
    dict(world=dict(observation=3)), dict(world=dict(observation=HUGE | dict(shape=[10**6, 10**6]))), dict(world=dict(observation=HUGE | dict(shape=[4000, 4000]))), dict(world=dict(observation=HUGE | dict(shape=[5]))),
    dict(world=dict(observation=HUGE | dict(dtype="object"))), dict(world=dict(observation=HUGE | dict(kind=[]))), dict(world=dict(observation=HUGE | dict(low=["x"]))), dict(world=dict(observation=HUGE | dict(shape=[4000, 4000], dtype="uint8", low=0, high=255))),
    dict(world=dict(action=HUGE)), dict(world=dict(action=dict(HUGE, name="action", shape=[], dtype="int64", kind="discrete", nvec=[10**7], start=[0], low=0, high=10**7 - 1))), dict(world=dict(observation=dict(name="obs", children={}, is_tuple=False))),
], ids=lambda c: json.dumps(c)[:60])
def test_a_liar_is_refused(changes: dict[str, Any], folder: Path) -> None:
    signed(folder, **changes)
    with pytest.raises(AgentError, match=re.escape(str(folder))): load_agent(folder)


def test_deep_trees_are_refused(folder: Path) -> None:
    tree: Any = HUGE
    for _ in range(80): tree = dict(name="obs", children=dict(a=tree), is_tuple=False)
    signed(folder, world=dict(observation=tree))
    with pytest.raises(AgentError, match="nested too deeply"): load_agent(folder)


def test_what_is_not_there(run: Run, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="neither an agent nor a run"): load_agent(tmp_path)
    with pytest.raises(AgentError, match="neither an agent nor a run"): load_agent(tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(AgentError, match="there already"): save_agent(run, tmp_path / "full")
    (tmp_path / "full" / "mine.txt").unlink()
    assert save_agent(run, tmp_path / "full") == tmp_path / "full"
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o500)
    if os.geteuid():   # root may write anywhere
        with pytest.raises(AgentError, match="was not written"): save_agent(run, tmp_path / "locked" / "deep")
    shutil.rmtree(tmp_path / "full")


def test_the_command(run: Run, tmp_path: Path) -> None:
    def export(*args: object) -> Any: return shell("rlstudio", "export", run.folder, *args, cwd=tmp_path)
    done = export("agent", "--checkpoint", "200", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == dict(path="agent", run=str(run.folder), step=200, algo="dqn", env="CartPole-v1"), said(done)
    assert load_agent(tmp_path / "agent").facts["step"] == 200
    done = export("deep/agent.onnx")
    assert done.returncode == 0 and "at 600 steps" in done.stdout, said(done)
    assert ort.InferenceSession(tmp_path / "deep" / "agent.onnx").run(None, {"obs": np.zeros((3, 4), np.float32)})[0].shape == (3,)
    for args, why in ((("agent",), "there already"), (("x", "--format", "keras"), "expected one of folder, onnx, torch"), (("x", "--checkpoint", "7"), "7"), (("x", "--checkpoint", "worst"), "worst")):
        done = export(*args)
        assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "x").exists(), said(done)


def test_tensors_and_arrays_say_the_same() -> None:
    "What a learner sees, for tensors as for arrays"
    rng = np.random.default_rng(0)
    for space in OBSERVATIONS.values():
        for leaf, own in zip(leaves(spec_from_space(space)), leaves(seen_spec(spec_from_space(space)))):
            x = drawn_part(leaf, 7, rng, False)
            leaf.check(x, (7,))
            there = seen_tensor(leaf, torch_type(own.dtype), torch.as_tensor(x)).numpy()
            here = leaf_arrays(seen_obs(leaf, x, (7,)))[0].astype(own.dtype)
            assert (here == there).all() and here.dtype == there.dtype
