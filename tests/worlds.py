"Worlds that a fresh process can import, and that do what they are asked to: nothing heavy is imported here."
import ctypes
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rlstudio.core.registry import wrappers

RESETS: list[int | None] = []   # the seeds of `note_reset`


def note_reset(seed: int | None) -> None:
    "For worlds of other modules: what a world remembers in its own is looked for by snapshots"
    RESETS.append(seed)


OK, RAISE, EXIT, QUIT, KILL, HANG, HANG_IN_C, SLOW, WARN, SHAPE, REWARD = range(11)


class Ill(gym.Env[Any, Any]):
    "Fails in the way of its action; `close` says in a file that it was called"
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(11)

    def __init__(self, where: str = "step", closed: str = "") -> None: self.where, self.closed, self.moved = where, closed, False

    def fail(self, how: int) -> None:
        if how == RAISE: raise ZeroDivisionError("gears collided")
        if how == EXIT: sys.exit("bye")
        if how == QUIT: os._exit(3)
        if how == KILL: os.kill(os.getpid(), signal.SIGKILL)
        if how == HANG: time.sleep(1000)
        if how == HANG_IN_C: ctypes.PyDLL(None).sleep(1000)   # and holds Python's lock
        if how == SLOW: time.sleep(0.4)
        if how == WARN: warnings.warn("the gears are warm", stacklevel=1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if self.where == "reset" and seed: self.fail(seed)
        return np.array([os.getpid() % 7 / 10, "torch" in sys.modules], np.float32), {}

    def step(self, action: Any) -> Any:
        self.moved = True
        self.fail(int(action))
        obs = np.zeros(3 if action == SHAPE else 2, np.float32)
        return obs, "1" if action == REWARD else 0.0, action == REWARD, False, {}

    def close(self) -> None:
        if self.where == "close" and self.moved: self.fail(HANG_IN_C)
        if self.closed: Path(self.closed, str(os.getpid())).touch()


class Clock(gym.Env[Any, Any]):
    "Seconds since 1970, more digits than float32 has"
    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = self.np_random.integers(100)
        return np.array([1.7e9 + self.t]), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.array([1.7e9 + self.t]), 1.0, bool(self.np_random.random() < 0.1), False, {}


class Tree(gym.Env[Any, Any]):
    "Dicts and tuples everywhere, pictures among them"
    observation_space = gym.spaces.Dict(eye=gym.spaces.Box(0, 255, (6, 6, 3), np.uint8), rest=gym.spaces.Tuple([gym.spaces.Discrete(5), gym.spaces.Box(-9, 9, (2,))]))
    action_space = gym.spaces.Dict(gas=gym.spaces.Discrete(2), wheel=gym.spaces.Box(-1, 1, (1,)))

    def see(self) -> Any:
        r = self.np_random
        return dict(eye=r.integers(256, size=(6, 6, 3), dtype=np.uint8), rest=(int(r.integers(5)), r.normal(size=2).clip(-9, 9).astype(np.float32)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.see(), {}

    def step(self, action: Any) -> Any:
        r = self.np_random.random()
        return self.see(), float(action["gas"] + action["wheel"][0]), r < 0.05, r > 0.95, {}


class Draws(gym.Env[Any, Any]):
    "Draws from NumPy's global generator, once in so many steps"
    observation_space, action_space = gym.spaces.Box(-9, 9, (1,)), gym.spaces.Discrete(2)

    def __init__(self, seldom: int = 1000) -> None: self.seldom = seldom

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        x = np.random.random() if self.np_random.integers(self.seldom) == 0 else 0.5  # noqa: NPY002, that is the point
        return np.array([x], np.float32), 1.0, bool(self.np_random.random() < 0.1), False, {}


for world in (Ill, Clock, Tree, Draws): gym.register(f"worlds/{world.__name__}-v0", world, max_episode_steps=40)


class Twice(gym.RewardWrapper[Any, Any]):
    "Pays twice"
    def reward(self, reward: Any) -> Any: return 2 * reward


if "Twice" not in wrappers: wrappers.add("Twice", Twice)
