"The engine `compiled`: equal to autograd, deterministic, resumable, cached; and absent for whoever does not ask for it."
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from support import child_env, run, said

from rlstudio.algos.common import EngineError
from rlstudio.core.arithmetic import arithmetic_threads, engine_fact, identity
from rlstudio.core.finite import NonFiniteError
from rlstudio.core.options import Config, config_from_dict
from rlstudio.core.spec import ArraySpec
from rlstudio.data.priority import SumTree
from rlstudio.envs.classic import Acrobot, CartPole, MountainCar, MountainCarContinuous, Pendulum
from rlstudio.fast import kernels
from rlstudio.nets.flat import weights_sha256
from rlstudio.nets.layers import MLP
from rlstudio.nets.tape import Tape, TapeError
from rlstudio.train.trainer import Trainer

CASES: dict[str, dict[str, Any]] = {
    "ppo": dict(env=dict(id="CartPole-v1"), algo=dict(name="ppo", num_steps=32, num_epochs=2, num_minibatches=2)),
    "ppo, real actions": dict(env=dict(id="Pendulum-v1"), algo=dict(name="ppo", num_steps=32, num_epochs=2, num_minibatches=2, ent_coef=.01), net=dict(activation="elu", layer_norm=True)),
    "ppo, numbers": dict(env=dict(id="Pendulum-v1"), algo=dict(name="ppo", num_steps=32, num_epochs=2, num_minibatches=2, ent_coef=.01, clip_range_vf=.1)),
    "ppo, masks": dict(env=dict(id="rlstudio/Doors-v0"), algo=dict(name="ppo", num_steps=32, num_epochs=2, num_minibatches=2, ent_coef=.01)),
    "a2c": dict(env=dict(id="Acrobot-v1"), algo=dict(name="a2c", num_steps=8), net=dict(activation="silu")),
    "dqn": dict(env=dict(id="CartPole-v1"), algo=dict(name="dqn", batch_size=16, learning_starts=64, num_steps=16, buffer_size=300, dueling=True, quantiles=5, n_step=3, prioritized=True)),
    "sac": dict(env=dict(id="Pendulum-v1"), algo=dict(name="sac", batch_size=16, learning_starts=64, num_steps=16, buffer_size=300)),
    "td3": dict(env=dict(id="Pendulum-v1"), algo=dict(name="td3", batch_size=16, learning_starts=64, num_steps=16, buffer_size=300)),
}


def config(case: str, seed: int = 1) -> Config:
    c, off = CASES[case], "batch_size" in CASES[case]["algo"]
    net = dict(hidden=[16, 16] if off else [16]) | (dict(normalize_obs=False, normalize_reward=False) if off else {}) | c.get("net", {})
    return config_from_dict(dict(env=c["env"] | dict(num_envs=4), algo=c["algo"], net=net, train=dict(total_steps=640, seed=seed)))


def trainer(case: str, engine: str = "compiled", seed: int = 1) -> Trainer: return Trainer(config(case, seed), engine=engine)


def weights(t: Trainer) -> np.ndarray: return np.concatenate([p.detach().numpy().ravel() for p in t.algo.module.parameters()])


@pytest.mark.parametrize("case", CASES)
def test_first_updates_equal_those_of_autograd(case: str) -> None:
    "Level L2: the same first weights, and updates that agree to rounding; and it is machine code that made them"
    with arithmetic_threads():
        ends = []
        for engine in ("compiled", "tape", "autograd"):
            t = trainer(case, engine)
            if engine == "compiled":
                assert t.algo.engine == "compiled" and "numba" in t.algo.engine_why  # type: ignore[attr-defined]
                assert all(m.kernel for m in t.algo.module.modules() if isinstance(m, MLP)) and all(p.mover for p in t.algo.parts.values())  # type: ignore[attr-defined]
            first = weights(t)
            t.train(160)
            ends.append(weights(t))
            assert np.abs(ends[-1] - first).max() > 1e-5, "nothing was learned, so nothing is shown"
    assert np.abs(ends[0] - ends[1]).max() < 3e-6 and np.abs(ends[0] - ends[2]).max() < 3e-6


@pytest.mark.parametrize("case", CASES)
def test_two_halves_are_a_whole(case: str) -> None:
    with arithmetic_threads():
        whole, half, rest = trainer(case), trainer(case), trainer(case)
        rest.load_state_dict(half.train(320).state_dict())
        assert weights_sha256(rest.train().algo.module) == weights_sha256(whole.train().algo.module) != weights_sha256(trainer(case, seed=2).train().algo.module)


WHOLE: list[dict[str, Any]] = [
    dict(algo=dict(name="ppo"), net=dict(activation="silu")), dict(algo=dict(name="ppo", clip_range_vf=.05, ent_coef=.02), net=dict(activation="relu", normalize_obs=True)),
    dict(algo=dict(name="ppo", ent_coef=.02), env=dict(id="Pendulum-v1")), dict(algo=dict(name="a2c", ent_coef=.02), env=dict(id="Pendulum-v1"), net=dict(log_std="state", activation="elu")), dict(algo=dict(name="a2c"), net=dict(hidden=[]))]


@pytest.mark.parametrize("block", [2048, 16])
@pytest.mark.parametrize("case", range(len(WHOLE)))
def test_a_whole_step_is_the_step_of_autograd(case: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    "Away from the first minibatch, where ratios are 1: the same gradient, metrics, loss for the ledger and statistics of the step; 40 rows at once, and in blocks of 13 or 14"
    monkeypatch.setattr(kernels, "BLOCK", block)
    change, both = WHOLE[case], []
    c = config_from_dict(dict(env=dict(id="CartPole-v1") | change.get("env", {}) | dict(num_envs=4), algo=change["algo"] | dict(num_steps=16), net=dict(hidden=[12, 12]) | change.get("net", {}), train=dict(total_steps=640)))
    for engine in ("autograd", "compiled"):
        t = Trainer(c, engine=engine)
        algo, rng, told = t.algo, np.random.default_rng(case), list[float]()
        assert isinstance(vars(algo).get("descend"), kernels.WholeStep) == (engine == "compiled")
        b = Trainer(c, engine="autograd").algo.example()  # type: ignore[attr-defined]
        b = type(b)(**{k: rng.integers(0, 2, (40, *x.shape[1:])) if x.dtype == np.int64 else .5 * rng.standard_normal((40, *x.shape[1:]), np.float32) for k, x in b.fields.items()})
        algo.witness = lambda part, loss, told=told: told.append(loss)  # type: ignore[attr-defined]
        metrics = algo.descend(b)  # type: ignore[attr-defined]
        both.append((algo.parts["agent"].flat.grad.numpy().copy(), metrics, told))  # type: ignore[attr-defined]
    (g, m, told), (g2, m2, told2) = both
    assert np.abs(g).max() > .01 and np.allclose(g, g2, atol=2e-6) and m.keys() == m2.keys() and np.allclose([m[k] for k in m], [m2[k] for k in m], rtol=1e-5, atol=1e-6) and np.allclose(told, told2, rtol=1e-5)


def test_a_loss_or_a_network_of_ones_own_is_made_of_nodes() -> None:
    from rlstudio.algos.ppo import PPO, clipped_surrogate
    from rlstudio.core.seeding import Streams
    from rlstudio.envs.backends import make_vector
    class Loss(PPO):
        def losses(self, b: Any) -> Any: yield from super().losses(b)
    class Aim(PPO): surrogate = staticmethod(lambda *a: clipped_surrogate(*a))  # type: ignore[assignment]
    class Range(PPO): clip_range = property(lambda self: .1)  # type: ignore[assignment]
    def whole(cls: Any, case: str = "ppo") -> bool:
        c = config(case)
        return "descend" in vars(cls(c, make_vector(c.env), Streams(1), engine="compiled"))
    assert [whole(PPO), whole(Loss), whole(Aim), whole(Range), whole(PPO, "ppo, real actions"), whole(PPO, "ppo, masks")] == [True] + [False] * 5
    late = trainer("ppo").algo   # an aim that is set later counts, too
    late.surrogate = lambda *a: 0 * clipped_surrogate(*a)  # type: ignore[attr-defined]
    batch = late.example()  # type: ignore[attr-defined]
    assert late.descend(batch)["loss/policy"] == 0  # type: ignore[attr-defined]


def test_two_engines_in_one_process() -> None:
    "Kernels belong to instances: what one learner computes with is no other's business"
    with arithmetic_threads():
        alone = weights_sha256(trainer("ppo", "tape").train().algo.module)
        mine, other = trainer("ppo", "tape"), trainer("ppo")
        mine.train(320), other.train(320)
        assert weights_sha256(mine.train().algo.module) == alone != weights_sha256(other.train().algo.module)


# The kernels themselves: as the compiler reads them, and as Python does

def test_python_and_machine_code_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    "Each loop gives in plain Python what it gives compiled, to rounding; so what is read is what runs"
    rng = np.random.default_rng(0)
    def f(*shape: int) -> np.ndarray: return rng.standard_normal(shape, np.float32)
    z, b, G = f(5, 6), f(6), f(5, 6)
    row, B = np.zeros(6, np.float32), lambda *s: np.zeros(s, np.float32)   # some are not written, and have to be equal all the same
    choice = rng.integers(0, 6, 5)
    norm = z, b, f(6), 1e-5, B(5, 6), B(5), B(5, 6)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        *(("bend_rows", (z, b, kind)) for kind in range(3)), ("silu_rows", (z, b, B(5, 6))), *(("unbend_rows", (G, z, row, kind)) for kind in range(4)),
        ("column_sums", (G, row)), ("norm_rows", norm), ("unnorm_rows", (G, z, abs(f(5)), b, B(6), B(6))),
        ("categorical_rows", (z, choice, B(5, 6), B(5, 6), B(5), B(5))), ("categorical_back", (f(5), f(5), choice, z, abs(z), f(5), B(5, 6))),
        ("categorical_draw", (z, rng.random((5, 1), np.float32), B(5, 6), np.empty(5, np.int64), B(5))),
        ("gaussian_rows", (z, f(5, 3), B(5, 3), B(5), B(5))), ("gaussian_back", (f(5), f(5), z, f(5, 3), B(5, 6))),
        ("squashed_rows", (z, f(5, 3), B(5, 3), B(5))), ("squashed_back", (f(5, 3), f(5), z, f(5, 3), f(5, 3), B(5, 6))),
        ("squared_length", (b,)), ("adam_rows", (f(6), f(6), f(6), abs(f(6)), .5, 1e-3, .1, 1e-8)),
        *((name, (-abs(f(5)), f(5), f(5), tuple(f(4, 5)), *clips, (np.float32(.5), np.float32(.01)), B(3, 5), np.empty(told))) for name, clips, told in (
            ("ppo_rows", (np.float32(.2), np.float32(.3)), 5), ("ppo_rows", (np.float32(.2), np.float32(np.inf)), 5), ("a2c_rows", (), 3))),
        ("standard_rows", (b, 1e-8, B(6))), ("surrogate_rows", (abs(b), f(6), np.float32(.8), np.float32(1.2), np.float32(-.5), B(6), B(6))),
        ("gae_columns", (z, rng.random((5, 6)) < .3, .9, B(5, 6))), ("add_groups", (rng.random((3, 16)), np.zeros(3), np.array([2, 0]))),
        ("step_down", (rng.random((3, 16)), np.array([2, 0, 1]), np.array([.1, 5., 99.]))), ("turn", (z, B(6, 5))),
        *(("multiply", (f(m, 7), f(7, p), B(m, p))) for m, p in ((5, 6), (19, 70), (5, 70), (3, 70), (9, 24))), ("in_tiles", (f(19, 7), f(7, 70), B(19, 70))),
        *(("forward_rows", (f(5, 2), (f(6, 2), f(3, 6)), (b, f(3)), kind, (B(5, 6), B(5, 3)), (B(5, 6), B(5, 3)))) for kind in range(4)),
        *(("backward_rows", (f(5, 2), (f(6, 2), f(3, 6)), kind, (z, f(5, 3)), (z, f(5, 3)), (B(5, 6), f(5, 3)), (B(6, 2), B(3, 6)), (B(6), B(3)))) for kind in range(4)),
    ]
    def tile(rows: int) -> Any:
        def write(A: Any, B: Any, C: Any, i: int, j: int) -> None: C[i:i + rows, j:j + 2 * kernels.LANES] = A[i:i + rows] @ B[:, j:j + 2 * kernels.LANES]
        return write
    def copied(x: Any) -> Any: return tuple(map(copied, x)) if isinstance(x, tuple) else x.copy() if isinstance(x, np.ndarray) else x
    def arrays(x: Any) -> list[Any]: return [a for y in x for a in arrays(y)] if isinstance(x, tuple | list) else [x]
    assert {name for name, _ in calls} | {"tanh32"} == {k.py_func.__name__ for k in kernels._kernels if k.py_func.__module__ == kernels.__name__}
    for name, args in calls:
        done = getattr(kernels, name)
        copies = [[copied(a) for a in args] for _ in range(2)]
        results = [done(*copies[0])]
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "tanh32", kernels.tanh32.py_func)
            for tile_name, rows in (("_eight", 8), ("_four", 4), ("_one", 1)): patch.setattr(kernels, tile_name, tile(rows))
            results.append(done.py_func(*copies[1]))
        for x, y in [results, *zip(*map(arrays, copies))]:
            if isinstance(x, np.ndarray | float): assert np.allclose(x, y, rtol=1e-5, atol=2e-6), name


def test_products_of_strided_rows() -> None:
    "Every second column, columns side by side, columns backwards: the product, and nothing between the columns is written"
    rng = np.random.default_rng(2)
    def ways(x: np.ndarray) -> list[np.ndarray]:
        apart = np.full((len(x), 2 * x.shape[1]), 7, np.float32)
        apart[:, ::2] = x
        return [x, apart[:, ::2], np.asfortranarray(x), x[:, ::-1].copy()[:, ::-1]]
    for m, n, p in (1, 5, 70), (5, 9, 33), (9, 40, 64), (3, 4, 2), (4, 3, 1):
        A, B = rng.standard_normal((m, n), np.float32), rng.standard_normal((n, p), np.float32)
        for a in ways(A)[:3]:
            for b, c in itertools.product(ways(B), ways(np.zeros((m, p), np.float32))):
                kernels.multiply(a, b, c)
                assert np.allclose(c, A @ B, atol=1e-4), (m, n, p, b.strides, c.strides)
                if c.base is not None and c.base.shape[1] == 2 * p: assert (c.base[:, 1::2] == 7).all()
    with pytest.raises(numba.TypingError, match=r"given float64, expected float32; fix: x.astype\(np.float32\)"): kernels.multiply(A.astype(float), B, np.zeros((m, p), np.float32))


FIVE = [CartPole, Acrobot, MountainCar, MountainCarContinuous, Pendulum]


def in_python(env: Any) -> Any:
    "What `step_around` says"
    def step(state: Any, i: int, action: Any, option: Any, obs: Any) -> Any:
        after, reward, over = env.rule(*state[:, i], *action, *option)
        state[:, i] = after
        obs[:] = env.sight(*after) if env.sight else after
        return reward, over
    return step


@pytest.mark.parametrize("world", FIVE)
def test_the_loop_in_python_and_in_machine_code(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    "The compiled rollout, read as plain Python, makes the same steps; in each world, and with each activation"
    from rlstudio.fast import rollout
    rng, T, N = np.random.default_rng(0), 6, 3
    for kind in range(4) if world in (CartPole, Pendulum) else [0]:
        env = world(N)
        env.reset([1, 2, 3])
        n, d, real = (env.action_spec.shape or (1,))[0], env.obs.shape[1], env.action_spec.kind == "box"
        free = real and kind % 2
        mlp = MLP((d, 8, n * (1 if free else 2) if real else env.action_spec.nvec[0]), np.random.default_rng(1))
        noise = rng.standard_normal((T, N, n), np.float32) if real else rng.random((T, N, 1), np.float32)
        more = [np.full(n if free else 0, -.5, np.float32), np.array([[kind == 3], [.5], [2], [-1], [1]], np.float32)] if real else []
        both: list[list[Any]] = []
        for _ in range(2):
            obs = np.zeros((T + 1, N, d), np.float32)
            obs[0] = env.obs
            written = [np.zeros((T, N, n), np.float32) if real else np.zeros((T, N), np.int64), *(np.zeros((T, N), t) for t in (np.float32, np.float32, bool, bool))]
            both.append([rollout.machine_step(env).address, np.array(env.option, float), 4, 0, env._state.copy(), np.array([0, 1, 0]), np.zeros(N), obs, *written, noise, rollout.norm_rows_of(None, d),
                         *rollout.layers_of(mlp), kind, np.zeros((2, N, 8), np.float32), *more])
        fast, slow = both
        slow[0], loop = in_python(env), rollout.rollout_reals if real else rollout.rollout_choices
        came = loop(*fast)
        with monkeypatch.context() as patch:
            patch.setattr(rollout, "step_at", lambda step: step)
            for name in ("tanh32", "see_rows", "count_step", "few_rows", "act_choices", "act_reals"): patch.setattr(rollout, name, getattr(rollout, name).py_func)
            assert loop.py_func(*slow) == came == 3    # copy 1 is cut after its 4th step
        assert all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(fast[4:13], slow[4:13]))
        assert np.abs(fast[4] - env._state).max() > 0


def test_where_the_loop_does_not_fit() -> None:
    "Another world, network or distribution is collected step by step, and learns"
    from rlstudio.fast.rollout import fits_kernel, has_rule
    small = dict(env=dict(id="CartPole-v1", num_envs=2), algo=dict(name="ppo", num_steps=16), net=dict(hidden=[8]), train=dict(total_steps=64))
    other: list[tuple[list[bool], dict[str, Any]]] = [([True, True], {}), ([True, True], dict(net=dict(hidden=[8], normalize_obs=True))), ([False, True], dict(net=dict(hidden=[8], layer_norm=True))),
        ([True, True], dict(env=dict(id="Pendulum-v1", num_envs=2))), ([False, True], dict(env=dict(id="Pendulum-v1", num_envs=2), net=dict(hidden=[8], squash="tanh"))),
        ([True, True], dict(env=dict(id="Pendulum-v1", num_envs=2), net=dict(hidden=[8], log_std="state"))), ([True, False], dict(env=dict(id="CartPole-v1", num_envs=2, backend="inprocess"))), ([False, False], dict(env=dict(id="rlstudio/Doors-v0", num_envs=2)))]
    for fits, change in other:
        t = Trainer(config_from_dict(small | change), engine="compiled")
        assert [fits_kernel(t.algo, t.stepper), has_rule(t.stepper.env)] == fits and t.train().env_steps == 64
    assert not fits_kernel((t := trainer("ppo", "tape")).algo, t.stepper)


@pytest.mark.parametrize("activation", kernels.KINDS)
def test_not_a_number_passes_through(activation: str) -> None:
    "A broken number must arrive where numbers are checked, as it does without kernels"
    x = np.ones((3, 4), np.float32)
    x[1, 2] = np.nan
    for layer_norm in (False, True):
        mlp = MLP((4, 8, 2), np.random.default_rng(0), activation, layer_norm=layer_norm)
        mlp.kernel = kernels.compiled_mlp
        assert np.isnan(mlp(x)).all(1).tolist() == [False, True, False]


def test_a_gradient_that_is_not_finite_is_never_applied() -> None:
    t = trainer("ppo")
    part = t.algo.parts["agent"]  # type: ignore[attr-defined]
    part.flat.grad.fill_(float("inf"))
    before = weights(t)
    with pytest.raises(NonFiniteError, match="gradient"): part.step()
    assert (weights(t) == before).all() and part.adam.count.item() == 0


def test_the_tree_is_numpys_bit_for_bit_at_every_size() -> None:
    rng = np.random.default_rng(3)
    for size in (1, 20, 4096, 4097, 70_001):
        plain, mine = SumTree(size), kernels.CompiledTree(size)
        for _ in range(20):
            index, value = rng.integers(0, size, 50), rng.random(50) * rng.integers(0, 2, 50) * 10.**rng.integers(-9, 9, 50)
            for tree in (plain, mine): tree.set(index, value + 1e-12)
            points = np.append(rng.random(200), [0, np.nextafter(1, 0), 1]) * plain.total
            assert all((a == b).all() for a, b in zip(plain.lines, mine.lines)) and (plain.find(points) == mine.find(points)).all()


# Who asks, and who does not

def test_who_does_not_ask_needs_no_numba() -> None:
    code = ("import sys; sys.modules['numba'] = None; sys.path.insert(0, 'tests')\n"
            "from rlstudio.core.options import config_from_dict; from rlstudio.train.trainer import Trainer\n"
            "c = config_from_dict(dict(env=dict(id='CartPole-v1', num_envs=4), algo=dict(name='ppo', num_steps=32), net=dict(hidden=[8]), train=dict(total_steps=128)))\n"
            "print(Trainer(c).train().algo.engine, 'rlstudio.fast.kernels' in sys.modules)\n"
            "Trainer(c, engine='compiled')")
    done = run(sys.executable, "-c", code)
    assert done.stdout.split() == ["tape", "False"] and done.returncode == 1, said(done)
    last = done.stderr.strip().splitlines()[-1]
    assert "EngineError: settings.ini: engine = compiled: the compiled kernels need numba" in last and "pip install 'rlstudio[fast]'" in last and "engine = auto" in last


def test_an_engine_that_nobody_brings() -> None:
    with pytest.raises(EngineError, match="did you mean 'compiled'"): trainer("ppo", "compild")


def test_a_memory_needs_autograd_and_the_message_says_so() -> None:
    c = config_from_dict(dict(env=dict(id="rlstudio/TMaze-v0", num_envs=4), algo=dict(name="ppo", num_steps=16), net=dict(hidden=[8], core="gru", core_size=8), train=dict(total_steps=128)))
    with pytest.raises(EngineError, match="engine = compiled: .*only autograd goes back through time.*fix: engine = auto"): Trainer(c, engine="compiled")


def test_a_convolution_needs_autograd_and_the_message_says_so() -> None:
    from rlstudio.core.options import NetConfig
    from rlstudio.nets.encoders import SmallCNN
    frames = SmallCNN(ArraySpec("obs", (3, 8, 8), np.dtype(np.uint8), "box", np.uint8(0), np.uint8(255)), NetConfig(), np.random.default_rng(0))
    with pytest.raises(TapeError, match="only autograd goes back through a convolution; fix: engine = auto"): frames(Tape().variable(np.zeros((2, 3, 8, 8), np.uint8)))


def test_the_compiler_is_a_fact_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_fact("tape") == "tape" and identity("")["engine"] == ""
    fact = engine_fact("compiled")
    assert fact.startswith("compiled, numba ") and "llvmlite" in fact
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    assert engine_fact("compiled") == fact + ", NUMBA_CPU_NAME=haswell"


TRAIN = "import sys; sys.path.insert(0, 'tests'); from test_kernels import *\nwith arithmetic_threads(): t = trainer('ppo').train()\nprint(weights_sha256(t.algo.module), *kernels.kernels_made())"


def test_two_processes_compile_at_once_and_a_third_reads(tmp_path: Path) -> None:
    "One empty cache, two processes that fill it, the same bits as here; a later process compiles nothing"
    want = weights_sha256(trainer("ppo").train().algo.module)
    env = child_env(NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    both = [subprocess.Popen([sys.executable, "-c", TRAIN], stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    told = [p.communicate(timeout=300)[0].split() for p in both]
    assert [t[0] for t in told] == [want, want] and all(int(t[1]) + int(t[2]) > 4 for t in told)
    digest, made, read = run(sys.executable, "-c", TRAIN, NUMBA_CACHE_DIR=str(tmp_path / "cache")).stdout.split()
    assert (digest, int(made)) == (want, 0) and int(read) > 4


def test_without_a_place_for_a_cache(tmp_path: Path) -> None:
    "A read-only home and a read-only package: each process compiles for itself, and the bits are the same"
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    done = run(sys.executable, "-c", TRAIN, NUMBA_CACHE_DIR=str(nowhere / "cache"), NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator")
    assert done.returncode == 0, said(done)
    digest, made, read = done.stdout.split()
    assert digest == weights_sha256(trainer("ppo").train().algo.module) and int(made) > 4 and int(read) == 0


def test_a_run_names_its_engine_resumes_and_passes_an_audit(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nengine = compiled\n")
    small = "algo.num_steps=32", "net.hidden=[16]", "eval.episodes=2", "train.total_steps=1024", "checkpoint.every=512"
    done = run("rlstudio", "run", "ppo/cartpole", *small, "--name", "a", "--json", cwd=tmp_path)
    assert done.returncode == 0, said(done)
    manifest, result = (json.loads((tmp_path / "runs/a" / name).read_text()) for name in ("manifest.json", "result.json"))
    assert manifest["engine"] == "compiled" and manifest["machine"]["engine"] == engine_fact("compiled") and manifest["level"] == "L3"
    assert "kernels" in manifest["engine_why"]
    done = run("rlstudio", "audit", "a", cwd=tmp_path)
    assert done.returncode == 0, said(done)
    done = run("rlstudio", "resume", "a", "train.total_steps=2048", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["level"] == "L3", said(done)
    assert json.loads(done.stdout)["weights_sha256"] != result["weights_sha256"]
    assert torch.get_num_threads() >= 1
