"The engine `compiled` for SAC and TD3: whole gradient steps that equal autograd's, and only where it fits."
from typing import Any

import numpy as np
import pytest
import torch

from rlstudio.algos.sac import SAC
from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.finite import NonFiniteError
from rlstudio.core.options import config_from_dict
from rlstudio.core.registry import algos
from rlstudio.fast import critics as fast
from rlstudio.nets.flat import weights_sha256
from rlstudio.train.trainer import Trainer


def trainer(engine: str = "compiled", world: str = "Pendulum-v1", net: dict[str, Any] | None = None, **algo: Any) -> Trainer:
    algo = dict(name="sac", batch_size=16, learning_starts=64, num_steps=16, buffer_size=300, learning_rate=1e-3) | algo
    net = dict(hidden=[12, 10], activation="relu", normalize_obs=False, normalize_reward=False) | (net or {})
    return Trainer(config_from_dict(dict(env=dict(id=world, num_envs=1), algo=algo, net=net, train=dict(total_steps=400, seed=1))), engine=engine)


CASES: list[dict[str, Any]] = [
    dict(), dict(net=dict(activation="silu", hidden=[9, 8]), ent_coef=.2), dict(world="HalfCheetah-v5", net=dict(activation="tanh", normalize_obs=True)), dict(prioritized=True, n_step=3, target_entropy=-2., actor_learning_rate=1e-4),
    dict(name="td3"), dict(name="td3", twin=False, target_noise=0, net=dict(activation="elu")), dict(name="td3", world="HalfCheetah-v5", net=dict(hidden=[7, 6, 5], normalize_reward=True)), dict(name="td3", policy_delay=3, exploration="ou", net=dict(activation="silu"))]


def random_batch(t: Any, rows: int = 40) -> Any:
    rng, b = np.random.default_rng(2), t.algo.example()
    return type(b)(**{k: (.6 * rng.standard_normal((rows, *x.shape[1:]))).astype(x.dtype) for k, x in b.fields.items()}).replace(weight=rng.random(rows, np.float32), discount=np.full(rows, .99, np.float32))


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("equal", [False, True])
def test_a_step_is_the_step_of_autograd(case: int, equal: bool) -> None:
    "The same gradients, metrics in their order, TD errors, slow copies, and losses for the ledger; also where both critics say the same, so that they share"
    both: list[Any] = []
    for engine in ("autograd", "compiled"):
        t: Any = trainer(engine, **CASES[case])
        told, grads = list[tuple[str, float]](), list[np.ndarray]()
        names = {id(part): name for name, part in t.algo.parts.items()}
        if equal and len(nets := t.algo.module.critics.nets) == 2: nets[1].load_state_dict(nets[0].state_dict())
        with torch.no_grad(): t.algo.module.actor.linears[-1].weight.mul_(30)   # so that actions are pressed against their bounds
        def witness(part: Any, loss: float, told: Any = told, grads: Any = grads, names: Any = names) -> None:
            told.append((names[id(part)], loss))
            grads.append(part.flat.grad.numpy().copy())
        t.algo.witness = witness
        assert isinstance(t.algo.descend, fast.CriticsStep) == (engine == "compiled")
        batch = random_batch(t)
        for t.algo.updates in range(1, 4): metrics = t.algo.descend(batch)
        both.append((grads, metrics, told, np.asarray(t.algo.error), [p.target.vector.numpy() for p in t.algo.parts.values() if p.target], t.algo.streams.state_dict()))
    a, b = both
    assert max(np.abs(g).max() for g in a[0]) > .01 and all(np.allclose(x, y, atol=1e-5) for x, y in zip(a[0], b[0], strict=True))
    assert list(a[1]) == list(b[1]) and np.allclose([a[1][k] for k in a[1]], [b[1][k] for k in a[1]], atol=2e-5)
    assert [n for n, _ in a[2]] == [n for n, _ in b[2]] and np.allclose([x for _, x in a[2]], [x for _, x in b[2]], atol=2e-5)
    assert np.allclose(a[3], b[3], atol=2e-5) and all(np.allclose(x, y, atol=1e-6) for x, y in zip(a[4], b[4], strict=True)) and a[5] == b[5]


@pytest.mark.parametrize("case", [0, 3, 4, 7])
def test_two_halves_are_a_whole(case: int) -> None:
    with arithmetic_threads():
        whole, half, rest = (trainer(**CASES[case]) for _ in range(3))
        rest.load_state_dict(half.train(208).state_dict())
        assert weights_sha256(rest.train().algo.module) == weights_sha256(whole.train().algo.module)


def test_whoever_has_a_way_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(SAC):
        def losses(self, b: Any) -> Any:
            for name, loss, metrics in super().losses(b): yield name, .5 * loss, metrics
    class Named(SAC): pass
    monkeypatch.setattr(algos, "_here", dict(algos._here))
    algos.register("half-sac")(Half), algos.register("named-sac")(Named)
    def whole(**case: Any) -> bool: return isinstance(trainer(**case).algo.descend, fast.CriticsStep)  # type: ignore[attr-defined]
    assert [whole(name="named-sac"), whole(name="half-sac"), whole(net=dict(layer_norm=True)), whole(net=dict(hidden=[]))] == [True, False, False, False]
    late: Any = trainer().algo   # losses that are set later count, too
    late.losses = lambda b: iter([("critics", 0 * late.module.critics(b.obs, b.action).sum(), {"mine": 1.})])
    assert late.descend(late.example()) == {"mine": 1.}


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_what_is_not_finite_or_has_moved_stops_it_before_the_step(algo: str) -> None:
    t: Any = trainer(name=algo)
    batch, flats = random_batch(t), [part.flat.vector.detach().numpy() for part in t.algo.parts.values()]
    before = [x.copy() for x in flats]
    with pytest.raises(NonFiniteError, match="loss"): t.algo.descend(batch.replace(reward=np.full(40, np.nan, np.float32)))
    layer = t.algo.module.critics.nets[0].linears[0]
    layer.weight.data = layer.weight.data.clone()
    with pytest.raises(RuntimeError, match="no longer part"): t.algo.descend(batch)
    assert all((x == y).all() for x, y in zip(flats, before))


def test_python_and_machine_code_agree() -> None:
    "Each kernel gives in plain Python what it gives compiled, to rounding; so what is read is what runs"
    rng = np.random.default_rng(0)
    def f(*shape: int) -> np.ndarray: return rng.standard_normal(shape, np.float32)
    def fresh(x: Any) -> Any: return tuple(map(fresh, x)) if isinstance(x, tuple) else x.copy() if isinstance(x, np.ndarray) else x
    def flat(x: Any) -> list[Any]: return [z for y in x for z in flat(y)] if isinstance(x, tuple) else [x]
    def same(kernel: Any, *args: Any) -> None:
        one, two = fresh(args), fresh(args)
        told = kernel(*one), kernel.py_func(*two)
        for x, y in zip(flat((told[0], one)), flat((told[1], two)), strict=True):
            if isinstance(x, np.ndarray | float | int): assert np.allclose(x, y, atol=2e-6), kernel.py_func.__name__
    def net(*sizes: int) -> Any: return tuple(f(o, i) for i, o in zip(sizes, sizes[1:])), tuple(f(o) for o in sizes[1:])
    B, d, n = 6, 3, 2
    def layers(out: int) -> Any: return f(B, 5), f(B, 4), f(B, out)
    actor, critics, two = net(d, 5, 4, 2 * n), (net(d + n, 5, 4, 1), net(d + n, 5, 4, 1)), net(d, 5, 4, n)
    numbers = np.zeros((2, B), np.int64), f(2, B), f(B), f(B, n), f(B)
    for kind in range(4):
        room, other, rooms, both = (layers(2 * n), layers(2 * n)), (layers(n), layers(n)), ((layers(1), layers(1)), (layers(1), layers(1))), f(B, d + n)
        def slopes(net: Any) -> Any: return fresh(net)
        same(fast.unbend_some, f(3, 5), np.array([0, 2, 5]), f(B, 5), kind)
        same(fast.climb_rows, np.array([0, 2, 5]), f(3), critics[0][0], kind, rooms[0][0], layers(1), f(B, n))
        same(fast.critics_gradient, f(B, d), f(B, n), f(B), f(B), critics, kind, both, rooms, layers(1), (slopes(critics[0]), slopes(critics[1])), f(B))
        same(fast.soft_target_rows, f(B, d), f(B, n), f(B), f(B), np.float32(.3), actor, critics, kind, both, room, rooms, f(B, n), f(B), f(B))
        same(fast.soft_gradient, f(B, d), f(B, n), np.float32(.3), actor, critics, kind, both, room, rooms, layers(2 * n), f(B, n), f(B), numbers, slopes(actor))
        same(fast.smooth_target_rows, f(B, d), f(B, n), np.float32(.2), np.float32(.5), f(B), f(B), two, critics, kind, both, other, rooms, f(B, n), f(B))
        same(fast.steep_gradient, f(B, d), two, critics, kind, both, other, rooms, layers(n), f(B, n), numbers, slopes(two))
    same(fast.join_rows, f(B, d), f(B, n), f(B, d + n))
    for twins in (1, 2): same(fast.lower_rows, rooms, twins, *numbers[:3])
