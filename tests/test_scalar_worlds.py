"A user's world as one function of numbers (`fast.worlds.scalar`): the same bits one by one, as arrays and in workers; compiled, saved and resumed; never old machine code."
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import run, said

from rlstudio.core import registry
from rlstudio.core.arithmetic import arithmetic_threads
from rlstudio.core.options import Config, config_from_dict
from rlstudio.core.registry import import_own
from rlstudio.nets.flat import weights_sha256
from rlstudio.train.trainer import Trainer

CART = '''
import numpy as np
from gymnasium.spaces import Box
from rlstudio.envs.classic import either
from rlstudio.fast import worlds

FRICTION = .9

def brake(v, friction): return friction * FRICTION * v

def start(rng): return rng.uniform(-1, 1), rng.uniform(-.1, .1)

def see(x, v): return x, v, np.abs(x)

def picture(x, v):
    shown = np.zeros((16, 32, 3), np.uint8)
    shown[:, int(np.clip(16 + 5 * x, 0, 31))] = 255
    return shown

@worlds.scalar("Cart1D-v0", begin=start, sight=see, draw=picture, observation_space=Box(-10, 10, (3,), np.float32), action_space=Box(-1, 1, (1,)), max_episode_steps=40)
def cart(x, v, push, friction=1.):
    "Bring a cart to the middle, and keep it there"
    v = brake(v, friction) + .2 * push
    x = x + v
    return (x, v), either(np.abs(x) < .2, 1., -.1 * np.abs(x)), np.abs(x) > 3
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "A module with a world, imported as a user does"
    path, before = tmp_path_factory.mktemp("scalar"), registry.imported()
    (path / "my_cart.py").write_text(CART)
    import_own("my_cart", folders=[path])
    yield path
    registry._imported[:] = before


def config(**env: Any) -> Config:
    return config_from_dict(dict(env=dict(id="Cart1D-v0", num_envs=4) | env, algo=dict(name="ppo", num_steps=32, num_epochs=2), net=dict(hidden=[8]), train=dict(total_steps=640)))


def trained(engine: str = "auto", **env: Any) -> str:
    with arithmetic_threads(): return weights_sha256(Trainer(config(**env), engine=engine).train().algo.module)


def test_the_same_bits_wherever_it_is_stepped(folder: Path) -> None:
    "As arrays, one after the other, and in two workers; and another option is another world"
    want = trained()
    assert trained(backend="inprocess") == trained(backend="workers", workers=2) == want != trained(kwargs=dict(friction=.5))


def test_compiled_and_resumed(folder: Path) -> None:
    with arithmetic_threads():
        whole, half, rest = (Trainer(config(), engine="compiled") for _ in range(3))
        rest.load_state_dict(half.train(256).state_dict())
        assert weights_sha256(whole.train().algo.module) == weights_sha256(rest.train().algo.module) == trained("compiled")
        assert whole.algo.kit.step and rest.env_steps == 640  # type: ignore[attr-defined]


SCRIPT = """import sys; sys.path[:0] = ['tests', sys.argv[1]]; import my_cart
from test_scalar_worlds import *
from rlstudio.fast.kernels import kernels_made
print(trained('compiled'), kernels_made()[0])"""


def test_machine_code_is_never_older_than_the_rule(folder: Path) -> None:
    "A constant that a helper of the rule reads is changed in the file: the next process compiles anew; changed back, it compiles nothing"
    def told(friction: str, second: int) -> list[str]:
        (folder / "my_cart.py").write_text(CART.replace("FRICTION = .9", f"FRICTION = {friction}"))
        os.utime(folder / "my_cart.py", (second, second))   # Python's own cache looks at the seconds
        done = run(sys.executable, "-c", SCRIPT, str(folder))
        assert done.returncode == 0, said(done)
        return done.stdout.split()
    here, other, again = trained("compiled"), told(".8", 1_000_000_000), told(".9", 1_000_000_100)
    assert other[0] != here and again == [here, "0"]


def test_a_picture(folder: Path) -> None:
    import my_cart  # type: ignore[import-not-found]
    env = my_cart.cart.single("rgb_array")
    env.reset(seed=1)
    before = env.render()
    for _ in range(20): env.step(np.ones(1, np.float32))
    assert before.shape == (16, 32, 3) and (env.render() != before).any()
