"Agents that remember: what they learn from, against loops by hand; worlds with known answers; kill and resume."
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from support import ROOT, run, said

from rlstudio.algos.a2c import A2C
from rlstudio.algos.ppo import PPO
from rlstudio.core.batch import Batch
from rlstudio.core.options import Config, ConfigError, EnvConfig, config_from_dict
from rlstudio.core.seeding import Streams
from rlstudio.data.rollout import Stepper
from rlstudio.envs.backends import GymVector, make_vector
from rlstudio.envs.memory import TMaze, tmaze_returns
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.checkpoint import latest_checkpoint
from rlstudio.runs.config import load_config
from rlstudio.runs.run import Run
from rlstudio.train.evaluate import evaluate
from rlstudio.train.trainer import Trainer

CORES, ALGOS = ("gru", "lstm"), {"ppo": dict(num_steps=32, num_epochs=2, num_minibatches=2, sequence_length=8), "a2c": dict(num_steps=16)}
BOTH = pytest.mark.parametrize("core", CORES)
EACH = pytest.mark.parametrize("algo", ALGOS)


def config(algo: str = "ppo", core: str = "gru", env: str = "CartPole-v1", net: dict[str, Any] | None = None, total_steps: int = 1024,
           seed: int = 1, **more: Any) -> Config:
    return config_from_dict(dict(env=dict(id=env, num_envs=4), algo=dict(name=algo) | ALGOS.get(algo, {}) | more,
                                 net=dict(core=core, core_size=12, hidden=[16]) | (net or {}), train=dict(total_steps=total_steps, seed=seed)))


# The loss on sequences is the loss of a loop over steps

def by_hand(learner: Any, b: Batch, length: int) -> Any:
    "log π, entropy and V of each step, (T, N), one environment and one step after the other"
    T, N = b.reward.shape
    valid = b.fields.get("valid", np.ones((T, N), bool))
    module, out = learner.module, dict[tuple[int, int], Any]()
    for i in range(N):
        for t in range(T):
            row = b[t:t + 1][:, i].torch()
            ended = t > 0 and (b.done[t - 1, i] or not valid[t - 1, i])
            if t % length == 0: state = module.core.ordered(row.state)
            elif ended: state = module.core.ordered(module.initial_state(1).torch())
            params, value, *state = module.step(row.obs, *state)
            out[t, i] = *module.dist.log_prob_and_entropy(params, row.action), value
    return [torch.cat(x) for x in zip(*(out[t, i] for t in range(T) for i in range(N) if valid[t, i]))]


@BOTH
@pytest.mark.parametrize("length", [4, 16])
@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_of_a2c_equals_a_loop_by_hand(core: str, length: int, normalize: bool) -> None:
    t = Trainer(config("a2c", core, sequence_length=length, vf_coef=.3, ent_coef=.07, max_grad_norm=1e9, normalize_advantage=normalize))
    t.train(192)   # episodes have ended, at any step, and the next rollout begins within others
    fresh, b = Trainer(t.config).algo, t.algo.collect(t.stepper)
    fresh.load_state_dict(t.algo.state_dict())
    assert b.done[:-1].any() and any(x[0].any() for x in b.state.fields.values())
    pieces, told = fresh.lessons(b)
    t.algo.update(b, 0.)

    advantage = np.empty((16, 4), np.float32)
    for k, part in enumerate(pieces.advantage.reshape(-1, 4, length)): advantage[k * length:(k + 1) * length] = part.T
    A = torch.from_numpy(advantage.ravel())
    returns = A + torch.from_numpy(b.value.ravel())
    if normalize: A = (A - A.mean()) / (A.std(correction=0) + 1e-8)
    log_prob, H, V = by_hand(fresh, b, length)
    (-(log_prob * A).mean() + .3 * .5 * (V - returns).square().mean() - .07 * H.mean()).backward()
    assert torch.allclose(t.algo.parts["agent"].flat.grad, fresh.parts["agent"].flat.grad, rtol=1e-3, atol=1e-5)
    assert len(told) == 64 and t.algo.engine == "autograd" and "only autograd" in t.algo.engine_why


@EACH
@BOTH
def test_the_policy_that_learns_is_the_one_that_acted(algo: str, core: str) -> None:
    "The first probability ratio is one, also for rollouts that begin within an episode, with normalisers that move"
    class Watch(dict(ppo=PPO, a2c=A2C)[algo]):   # type: ignore[misc]
        def losses(self, b: Any) -> Any:
            log_prob, _, value = self.module.evaluate(b, b.action)
            self.gaps.append(max(float((x - y).detach().abs().max()) for x, y in ((log_prob, b.log_prob), (value, b.value))))
            yield from super().losses(b)
    t = Trainer(config(algo, core))
    t.algo.__class__ = Watch
    for _ in range(5):
        t.algo.gaps = []
        t.train(t.env_steps + 1)
        assert t.algo.gaps[0] < 1e-5


@BOTH
def test_rows_that_never_happened_are_left_out(core: str) -> None:
    "Gymnasium's dialect with a fake step after each episode: the same log-probabilities and values as by hand"
    env = GymVector(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=AutoresetMode.NEXT_STEP), "CartPole-v1")
    c = config("ppo", core, num_steps=64, num_minibatches=3, sequence_length=16)
    learner = PPO(replace(c, env=replace(c.env, num_envs=3)), env, Streams(1))
    b = learner.collect(Stepper(env, learner.module, [1, 2, 3]))
    pieces, rows = learner.lessons(b)
    assert len(rows) == b.valid.sum() < 192 and len(pieces) == 12
    assert np.isclose(rows.value.sum(), b.value[b.valid].sum(), rtol=1e-5)
    m = rows.torch()
    with torch.no_grad(): now, slow = learner.module.evaluate(m, m.action), by_hand(learner, b, 16)
    assert torch.allclose(now[0], m.log_prob, atol=1e-5)
    assert all(np.isclose(x.sum().item(), y.sum().item(), rtol=1e-4) for x, y in zip(now, slow))
    first = learner.minibatch(pieces[:4])
    assert abs(first.advantage.mean()) < 1e-5 and abs(first.advantage.std() - 1) < 1e-4
    learner.update(b, 0.)


def test_an_episodes_end_hides_the_past() -> None:
    "What was seen in an episode changes nothing in the next one, neither in acting nor in learning"
    t = Trainer(config())
    t.train(384)
    module, b = t.algo.module, t.algo.collect(t.stepper)
    pieces, _ = t.algo.lessons(b)
    k, step = np.argwhere(pieces.begins)[0]
    assert step > 0 and not any(x[k, step].any() for x in pieces.state.fields.values())
    other = pieces.obs.copy()
    other[k, :step] += 1
    with torch.no_grad(): was, now = (module.evaluate(m, m.action)[2] for m in (t.algo.minibatch(p[k:k + 1]).torch() for p in (pieces, pieces.replace(obs=other))))
    assert (was[:step] != now[:step]).all() and (was[step:] == now[step:]).all()


def test_the_value_beyond_a_cut_uses_the_memory_after_the_step() -> None:
    c = config("a2c", env="rlstudio/TMaze-v0", num_steps=12, sequence_length=None)
    t = Trainer(replace(c, env=replace(c.env, max_episode_steps=5)))
    b = t.algo.collect(t.stepper)
    module, ends = t.algo.module, np.argwhere(b.truncated)
    assert len(ends) == 8
    for step, i in ends:
        state = [x[step, i][None] for x in b.state.fields.values()]
        *_, h = module.step(b.obs[step, i][None], *state)
        assert np.isclose(module.value(Batch(obs=np.zeros((1, 2), np.float32), state=Batch(h=h)))[0], b.next_value[step, i], atol=1e-6)


# Acting

@BOTH
def test_arrays_and_tensors_act_alike(core: str) -> None:
    t = Trainer(config(core=core))
    t.train(512)
    module, seen = t.algo.module, t.stepper.seen
    out = module.act(seen, greedy=True)
    with torch.no_grad(): tensors = module.step(torch.from_numpy(seen.obs), *(torch.from_numpy(x) for x in seen.state.fields.values()))
    assert module.takes_arrays and np.allclose(out.value, tensors[1], atol=1e-5)
    for a, b in zip(out.state.fields.values(), tensors[2:], strict=True): assert np.allclose(a, b, atol=1e-6)
    with pytest.raises(ValueError, match="initial_state"): module.act(Batch(obs=seen.obs), greedy=True)


@pytest.mark.parametrize("kwargs", [dict(action="box"), dict(action="multi_discrete"), dict(action="multi_binary"), dict(action="discrete")])
def test_every_kind_of_action(kwargs: dict[str, str]) -> None:
    c = config("a2c", "lstm", env="rlstudio/Identity-v0")
    t = Trainer(replace(c, env=replace(c.env, kwargs=kwargs))).train()
    assert np.isfinite(t.metrics["loss/value"]) and evaluate(t.algo.module, t.config.env, t.config.eval).returns


# Worlds with known answers

def tmaze(core: str, seed: int, algo: str = "ppo") -> Config:
    "The packaged config, or A2C with the same budget"
    c = load_config(ROOT / "configs/ppo/tmaze.yaml")[0]
    values: dict[str, Any] = dict(env=dict(id=c.env.id, num_envs=16), algo=c.algo.__dict__ | dict(name="ppo"), net=c.net.__dict__ | dict(core=core),
                                  train=dict(total_steps=20_736, seed=seed), eval=dict(episodes=40))
    if algo == "a2c": values["algo"] = dict(name="a2c", num_steps=9, learning_rate=3e-3, ent_coef=.01)
    return config_from_dict(values)


def both_cues(module: Any, n: int = 8) -> list[float]:
    "What a greedy agent gets for each of the two cues: exactly, no sample"
    paid = []
    for cue in (0, 1):
        world, state = TMaze(n), module.initial_state(1)
        world.reset(seed=0)
        world.cue, obs, ended = cue, np.float32([2 * cue - 1, 0]), False
        while not ended:
            out = module.act(Batch(obs=obs[None], **({} if state is None else dict(state=state))), greedy=True)
            state = out.state if state is not None else None
            obs, reward, ended, *_ = world.step(out.action[0])
        paid.append(reward)
    return paid


@pytest.mark.parametrize("algo, core, seed", [("ppo", "gru", 1), ("ppo", "gru", 2), ("ppo", "lstm", 1), ("ppo", "lstm", 2), ("a2c", "gru", 1), ("a2c", "lstm", 1)])
def test_tmaze_is_solved_with_a_memory(algo: str, core: str, seed: int) -> None:
    c = tmaze(core, seed, algo)
    t = Trainer(c).train()
    assert both_cues(t.algo.module) == [1, 1] and evaluate(t.algo.module, c.env, c.eval).mean == tmaze_returns()[1]
    assert t.metrics["episode/return_mean"] >= .8     # it still explores


@pytest.mark.parametrize("algo", ALGOS)
def test_tmaze_without_a_memory_stays_at_its_bound(algo: str) -> None:
    t = Trainer(tmaze("none", 1, algo)).train(8192)
    assert sum(both_cues(t.algo.module)) == 0 == tmaze_returns()[0] and abs(t.metrics["episode/return_mean"]) < .5


# Bit for bit

HALF = """
import json, sys
from pathlib import Path
sys.path.insert(0, 'tests')
from test_memory import *
from rlstudio.runs.checkpoint import save_checkpoint
half, folder, ends = sys.argv[1], Path(sys.argv[2]), {}
for algo in ALGOS:
    for core in CORES:
        t = Trainer(config(algo, core))
        if half == 'first': save_checkpoint(folder / f'{algo} {core}', 1, t.train(512).state_dict(), {})
        else:
            t.load_state_dict(latest_checkpoint(folder / f'{algo} {core}')[0].state)
            ends[f'{algo} {core}'] = t.env_steps, weights_sha256(t.train().algo.module)
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def second_halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("halves")
    for half in ("first", "second"):
        done = run(sys.executable, "-c", HALF, half, folder, coverage=False)
        assert done.returncode == 0, said(done)
    ends: dict[str, list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return ends


@EACH
@BOTH
def test_two_halves_are_a_whole(algo: str, core: str, second_halves: dict[str, list[Any]]) -> None:
    "Half a training in one process, the rest in another: the very same weights; the memory is in the checkpoint"
    whole, other = Trainer(config(algo, core)).train(), Trainer(config(algo, core, seed=2)).train()
    end = weights_sha256(whole.algo.module)
    assert second_halves[f"{algo} {core}"] == [512, end] and end != weights_sha256(other.algo.module)


@BOTH
def test_the_checkpoint_holds_the_memory(core: str, tmp_path: Path) -> None:
    "Without it the second half would be another one"
    c = config(core=core)
    Run.from_config(c, runs_dir=tmp_path / "runs").train()
    saved, _ = latest_checkpoint(next((tmp_path / "runs").glob("*")) / "checkpoints")
    assert saved is not None and sorted(saved.state["stepper"]["state"]) == ["c", "h"][core == "gru":]
    half = Trainer(c).train(512).state_dict()
    ends = []
    for forget in (False, True):
        t = Trainer(c)
        t.load_state_dict(half)
        if forget: t.stepper.look(t.algo.module.initial_state(4))
        ends.append(weights_sha256(t.train().algo.module))
    assert ends[0] == weights_sha256(Trainer(c).train().algo.module) != ends[1]


def test_the_command_line_trains_resumes_and_evaluates(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("env: {id: rlstudio/MaskedCartPole-v0, num_envs: 2}\nalgo: {name: ppo, num_steps: 32, num_epochs: 1, num_minibatches: 2}\n"
                                     "net: {core: gru, core_size: 8}\ntrain: {total_steps: 256}\neval: {episodes: 2}\n")
    done = run("rlstudio", "run", "c.yaml", "--json", cwd=tmp_path, coverage=False)
    assert done.returncode == 0, said(done)
    folder = json.loads(done.stdout)["run"]
    done = run("rlstudio", "evaluate", folder, "--episodes=2", cwd=tmp_path, coverage=False)
    assert done.returncode == 0, said(done)
    manifest = json.loads((tmp_path / folder / "manifest.json").read_text())
    assert manifest["engine"] == "autograd" and "net.core" in manifest["engine_why"] and (tmp_path / folder / "videos/rollout.webp").is_file()


# What does not fit together

@pytest.mark.parametrize("algo, net, more, key, fix", [
    ("ppo", dict(core="none"), dict(sequence_length=8), "algo.sequence_length", "net.core: gru"),
    ("a2c", dict(core="none"), dict(sequence_length=8), "algo.sequence_length", "net.core: gru"),
    ("ppo", dict(core="gru"), dict(sequence_length=5), "algo.sequence_length", "such as 2 or 4 or 8"),
    ("ppo", dict(core="gru"), dict(sequence_length=64), "algo.sequence_length", "such as 8 or 16 or 32"),
    ("ppo", dict(core="lstm"), dict(sequence_length=32, num_minibatches=8), "algo.num_minibatches", "such as 1 or 2 or 4"),
    ("dqn", dict(core="gru"), {}, "net.core", "ppo, a2c"), ("sac", dict(core="gru"), {}, "net.core", "ppo, a2c"), ("td3", dict(core="lstm"), {}, "net.core", "ppo, a2c"),
])
def test_what_does_not_fit_is_refused(algo: str, net: dict[str, Any], more: dict[str, Any], key: str, fix: str) -> None:
    with pytest.raises(ConfigError) as e: Trainer(config(algo, env="CartPole-v1" if algo != "sac" and algo != "td3" else "Pendulum-v1", net=net, **more))
    assert key in str(e.value) and fix in str(e.value)


def test_an_unknown_core_is_refused() -> None:
    with pytest.raises(ConfigError, match="net.core.*one of .none., .gru., .lstm."): config(core="rnn")


def test_the_tape_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match="only autograd goes back through time"): Trainer(config(), engine="tape")


@pytest.mark.parametrize("name", ["rlstudio/TMaze-v0", "rlstudio/MaskedCartPole-v0"])
def test_an_episode_in_flight_can_be_saved(name: str) -> None:
    assert make_vector(EnvConfig(id=name, num_envs=2)).level == "exact"
