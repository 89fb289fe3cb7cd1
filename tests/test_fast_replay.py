"The engine `compiled` for algorithms with a memory: the same rows and streams as the tape, to rounding the same gradients, and only where it fits."
from typing import Any

import gymnasium as gym
import numba
import numpy as np
import pytest

from rlstudio.algos.dqn import DQN
from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.batch import Batch
from rlstudio.core.finite import NonFiniteError
from rlstudio.core.options import config_from_dict
from rlstudio.core.registry import algos
from rlstudio.core.spec import spec_from_space
from rlstudio.data.replay import ReplayBuffer, places_between, transitions
from rlstudio.envs.classic import CartPole
from rlstudio.fast import replay as fast
from rlstudio.fast.rollout import layers_of, norm_rows_of
from rlstudio.train.trainer import Trainer


def trainer(engine: str = "compiled", world: str = "CartPole-v1", **algo: Any) -> Trainer:
    algo = dict(name="dqn", batch_size=16, learning_starts=64, num_steps=16, buffer_size=300, n_step=3, learning_rate=1e-4) | algo
    normalize = algo.pop("normalize_obs", False)
    return Trainer(config_from_dict(dict(env=dict(id=world, num_envs=algo.pop("num_envs", 4), **algo.pop("env", {})), algo=algo,
                                         net=dict(hidden=[16, 16], normalize_obs=normalize), train=dict(total_steps=4000, seed=1))), engine=engine)


@pytest.mark.parametrize("case", [dict(double=True, dueling=True), dict(prioritized=True, quantiles=3, dueling=True), dict(normalize_obs=True, num_envs=1), dict(env=dict(backend="inprocess"), num_envs=2)])
def test_the_same_rows_and_the_same_streams(case: dict[str, Any]) -> None:
    "Through warm-up, ends of episodes and turns of the ring: the memory holds the bytes that the tape's holds, and each stream stands where it stands there"
    with arithmetic_threads():
        a, b = (trainer(engine, **case).train(800) for engine in ("tape", "compiled"))
    one, two = a.state_dict(), b.state_dict()
    assert two["streams"] == one["streams"] and two["episodes"] == one["episodes"] > 5 and two["algo"]["updates"] == one["algo"]["updates"] > 50
    x, y = (t.algo.replay.memory for t in (a, b))  # type: ignore[attr-defined]
    assert all((x.arrays.row[k] == y.arrays.row[k]).all() for k in ("action", "reward", "end")) and np.allclose(x.arrays.row["obs"], y.arrays.row["obs"], atol=1e-5)
    assert len(x.finals) == len(y.finals) > 0 and (x.finals.keys[x.finals.first:x.finals.end] == y.finals.keys[y.finals.first:y.finals.end]).all()
    assert np.allclose(two["stepper"]["running_return"], one["stepper"]["running_return"]) and two["stepper"]["env_steps"] == one["stepper"]["env_steps"]
    kit = b.algo.kit  # type: ignore[attr-defined]
    assert kit.fits and (kit.step is None) == ("env" in case) and isinstance(b.algo.descend, fast.ValueStep) == ("quantiles" not in case)  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", (1, 2, 3, 255, 10**6, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 1, 2**32, 2**40))
def test_places_are_drawn_as_numpy_draws_them(number: int) -> None:
    "From the oldest of a ring that is full or not, whatever was drawn before; the generator goes on from the same state"
    one, two = (np.random.default_rng(number) for _ in range(2))
    for low, size in (0, number), (0, number + 7), (number // 3 + 1, number), (5 * number + 2, number + 1):
        for n in 1, 2, 300:
            a, b = (draw(rng, low, low + number, n, size) for draw, rng in ((places_between, one), (fast.compiled_places, two)))
            assert a.dtype == b.dtype == np.int64 and (a == b).all() and 0 <= b.min() and b.max() < size
            assert one.bit_generator.state == two.bit_generator.state
        assert one.integers(9, dtype=np.int32) == two.integers(9, dtype=np.int32)   # leaves half a draw behind


def test_other_generators_draw_by_numpy() -> None:
    for bits in np.random.MT19937, np.random.Philox:
        one, two = (np.random.Generator(bits(3)) for _ in range(2))
        assert (places_between(one, 5, 99, 50, 100) == fast.compiled_places(two, 5, 99, 50, 100)).all()


def test_a_sample_of_the_engine_is_a_sample() -> None:
    "The same bytes from the same generator, of a ring that was written over, with and without steps that never happened"
    t = trainer(n_step=1).train(800).algo
    engine, plain = t.replay, ReplayBuffer(300, 4, t.observation_spec, t.action_spec)   # type: ignore[attr-defined]
    assert engine.sampler.pick is fast.compiled_places and plain.sampler.pick is places_between   # type: ignore[attr-defined]
    plain.load_state_dict(engine.state_dict())
    for gaps in False, True:
        if gaps:
            x = np.zeros((9, 4, 4), np.float32)
            for b in engine, plain:
                b.add(Batch(obs=x, next_obs=x, action=np.zeros((9, 4), np.int64), reward=x[..., 0], terminated=x[..., 0] > 0, truncated=x[..., 0] > 0, valid=np.arange(36).reshape(9, 4) % 3 > 0))
            assert plain.memory.gaps > 0
        one, two = np.random.default_rng(1), np.random.default_rng(1)
        for n in 1, 16, 17, 300:
            told, wanted = engine.sample(n, one).fields, plain.sample(n, two).fields
            assert list(told) == list(wanted) and all(told[k].tobytes() == wanted[k].tobytes() for k in wanted)
    with pytest.raises(numba.TypingError, match="given float64 to copy into float32, expected the same"): fast.copy_row(np.zeros((1, 3), np.float32), 0, np.zeros((1, 3)), 0)


def test_whoever_has_a_way_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(DQN):
        def losses(self, b: Any) -> Any:
            for name, loss, metrics in super().losses(b): yield name, .5 * loss, metrics
    class Still(DQN):
        def act(self, seen: Any) -> Any: return super().act(seen).replace(action=np.zeros(self.num_envs, np.int64))
    monkeypatch.setattr(algos, "_here", dict(algos._here))
    algos.register("half-dqn")(Half), algos.register("still-dqn")(Still)
    half, still = trainer(name="half-dqn"), trainer(name="still-dqn").train(320)
    assert not isinstance(half.algo.descend, fast.ValueStep) and half.algo.gather is not None  # type: ignore[attr-defined]
    assert still.algo.gather is None and (still.algo.replay.memory.arrays.row["action"] == 0).all()  # type: ignore[attr-defined]
    doors = trainer(world="rlstudio/Doors-v0").train(160).algo
    assert doors.gather is None and not isinstance(doors.descend, fast.ValueStep) and doors.engine == "compiled"  # type: ignore[attr-defined]


def test_numbers_that_are_not_finite_stop_it_before_the_step() -> None:
    t = trainer().train(320)
    before = t.algo.parts["q"].flat.vector.detach().numpy().copy()  # type: ignore[attr-defined]
    batch = t.algo.replay.sample(16, np.random.default_rng(1))  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match="loss"): t.algo.descend(batch.replace(reward=np.full(16, np.nan, np.float32)))  # type: ignore[attr-defined]
    assert (t.algo.parts["q"].flat.vector.detach().numpy() == before).all()  # type: ignore[attr-defined]


def test_python_and_machine_code_agree() -> None:
    "Each kernel gives in plain Python what it gives compiled, to rounding; so what is read is what runs"
    rng, t = np.random.default_rng(0), trainer(num_envs=2, n_step=4).train(700)
    def f(*shape: int) -> np.ndarray: return rng.standard_normal(shape, np.float32)
    def same(kernel: Any, *args: Any) -> None:
        def fresh(x: Any) -> Any: return tuple(map(fresh, x)) if isinstance(x, tuple) else x.copy(order="K") if isinstance(x, np.ndarray) else x
        def flat(x: Any) -> list[Any]: return [z for y in x for z in flat(y)] if isinstance(x, tuple) else [x]
        one, two = fresh(args), fresh(args)
        told = kernel(*one), kernel.py_func(*two)
        for x, y in zip(flat((told[0], one)), flat((told[1], two)), strict=True):
            if isinstance(x, np.ndarray | float | int): assert np.allclose(x, y, atol=2e-6), kernel.py_func.__name__
    weights, biases = layers_of(t.algo.module.q.mlp)
    policy = np.float32(.4), np.float32(5), 1, 0, norm_rows_of(None, 4), weights, biases, 1, np.zeros((2, 3, 16), np.float32)
    same(fast.act_values, f(3, 4), rng.random((3, 1), np.float32), np.zeros(3, np.int64), *policy)
    env: Any = CartPole(3)
    env.reset([1, 2, 3])
    def step(state: Any, i: int, action: Any, option: Any, obs: Any) -> Any:
        after, reward, over = env.rule(*state[:, i], *action)
        state[:, i] = obs[:] = after
        return reward, over
    T, u, rows = 30, rng.random((30, 3, 1), np.float32), []
    for loop, s in (fast.rollout_values, fast.try_step(env)), (fast.rollout_values.py_func, step):
        room = np.zeros((T + 1, 3, 4), np.float32), np.zeros((T, 3), np.int64), np.zeros((T, 3), np.float32), np.zeros((T, 3), bool), np.zeros((T, 3), bool)
        room[0][0] = env.out.obs
        rows.append((loop(s, np.zeros(0), 12, 0, env._state.copy(), env._steps.copy(), np.zeros(3), *room, u, *policy), *room))
    assert rows[0][0] == rows[1][0] <= 12 and all(np.allclose(x, y, atol=1e-6) for x, y in zip(*rows))
    m, index = t.algo.replay.memory, t.algo.replay.sampler.draw(40, rng)  # type: ignore[attr-defined]
    told = [transitions(m, index, .99, t.algo.replay.discounts)]  # type: ignore[attr-defined]
    for kernel in fast.fetch_rows, fast.fetch_rows.py_func:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fast, "fetch_rows", kernel)
            told.append(fast.compiled_fetch(m, index, .99, t.algo.replay.discounts))  # type: ignore[attr-defined]
    assert all(told[0][k].tobytes() == x[k].tobytes() for x in told[1:] for k in x)
    obs = f(5, 2, 4)
    flags, choice = rng.random((5, 2)) < .3, rng.integers(0, 2, (5, 2))
    for broken in (0, 1): same(fast.flag_rows, obs[0], np.zeros(2, np.uint8), obs, np.concatenate([obs[1:], obs[:1]]) + np.float32(broken), flags, ~flags, choice, 2, np.zeros((5, 2), np.uint8))
    same(fast.write_rows, 2, obs, obs, choice, f(5, 2), flags.astype(np.uint8), (np.zeros((9, 2, 4), np.float32), np.zeros((9, 2), np.float32), np.zeros((9, 2), np.uint8), np.zeros((9, 2), np.uint8)), obs[0])
    Ws, n = tuple(map(np.ascontiguousarray, weights)), [16, 16, 2]
    def layers() -> tuple[np.ndarray, ...]: return tuple(np.zeros((5, k), np.float32) for k in n)
    for kind in 1, 3:
        ys, zs = layers(), layers()
        same(fast.forward_rows, f(5, 4), Ws, biases, kind, ys, zs)
        fast.forward_rows(x := f(5, 4), Ws, biases, kind, ys, zs)
        same(fast.backward_rows, x, Ws, kind, ys, zs, (*layers()[:2], f(5, 2)), tuple(map(np.zeros_like, Ws)), tuple(map(np.zeros_like, biases)))
    for duel in 0, 1:
        same(fast.q_value, f(3), 1, duel)
        same(fast.td_rows, f(5, 3), f(5, 3), f(5, 3), rng.integers(0, 2, 5), f(5), f(5), f(5), duel, f(5), f(5, 3))
    same(fast.q_gradient, f(5, 4), f(5, 4), (rng.integers(0, 2, 5), f(5), f(5), f(5)), True, 0, norm_rows_of(None, 4), 1, (Ws, biases), (Ws, biases), np.zeros((2, 1, 5, 4), np.float32),
         ((layers(), layers()), (layers(), layers()), (layers(), layers()), layers()), f(5), tuple(map(np.zeros_like, Ws)), tuple(map(np.zeros_like, biases)))


@pytest.mark.parametrize("n_step", (1, 3))
@pytest.mark.parametrize("steps", (7, 20, 21, 50))
def test_every_place_of_a_ring_is_fetched_as_numpy_fetches_it(steps: int, n_step: int) -> None:
    "Half full, full, and written over; machine code and plain Python"
    rng = np.random.default_rng(steps)
    buffer = ReplayBuffer(60, 3, spec_from_space(gym.spaces.Box(-np.inf, np.inf, (2,))), spec_from_space(gym.spaces.Discrete(2), "action"), n_step=n_step)
    for _ in range(steps):
        x = rng.standard_normal((2, 1, 3, 2)).astype(np.float32)
        end = rng.random((2, 1, 3)) < .2
        buffer.add(Batch(obs=x[0], next_obs=x[1], action=rng.integers(0, 2, (1, 3)), reward=x[0, ..., 0], terminated=end[0], truncated=end[1]))
    r = buffer.memory.ring
    index = np.arange(r.oldest(r.time) * 3, r.time * 3) % r.size
    wanted = transitions(buffer.memory, index, .99, buffer.discounts)
    for kernel in fast.fetch_rows, fast.fetch_rows.py_func:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fast, "fetch_rows", kernel)
            told = fast.compiled_fetch(buffer.memory, index, .99, buffer.discounts)
        assert list(told) == list(wanted) and all(told[k].tobytes() == wanted[k].tobytes() for k in wanted)
