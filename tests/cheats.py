"""Worlds that cheat: each keeps something that neither its seed nor its actions decide. Imported by the children of test_cheats.py"""
import os
import random
import threading
import time
from array import array
from collections import deque
from enum import Enum
from typing import Any

import gymnasium as gym
import numpy as np
import torch

LATE = 330  # steps in the life of one env: beyond the trial at the start of a run, before the kill
LATER = 560  # the same, beyond the kill
FROM_ENTROPY = np.random.default_rng()  # made at import, by nobody's seed
FROM_SEED = np.random.default_rng(7)  # made at import, the same in every process
RESETS = [0]  # of all envs in the process


class Honest(gym.Env):
    "A walk on a line, pushed by its own generator; an episode takes 10 to 60 steps"
    observation_space, action_space = gym.spaces.Box(-99, 99, (3,), np.float32), gym.spaces.Discrete(2)

    def __init__(self) -> None: self.life = 0

    def begin(self) -> None: ...
    def luck(self) -> float: return 0.0  # what a cheat adds

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.normal(), 0
        self.begin()
        return self.see(), {}

    def see(self) -> np.ndarray: return np.array([self.x, self.t / 60, 1], np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.life += 1
        self.x = 0.9 * self.x + (0.5 if action else -0.5) + 0.2 * self.np_random.normal() + self.luck()
        return self.see(), float(1 - abs(self.x)), abs(self.x) > 3, self.t == 60, {}


class Episodes(Honest):
    "Remembers how many episodes there were, and gets harder"
    count = 0
    def begin(self) -> None: self.count += 1
    def luck(self) -> float: return 0.01 * self.count


class LateEpisodes(Episodes):
    "The same, but it shows only after the resume"
    def luck(self) -> float: return 0.01 * self.count if self.life > LATER else 0.0


class History(Honest):
    "Remembers its last places over episodes, in a deque, and is drawn to them late"
    def __init__(self) -> None:
        super().__init__()
        self.places: deque[float] = deque(maxlen=200)
    def luck(self) -> float:
        self.places.append(float(self.x))
        return 0.1 * float(np.mean(self.places)) if self.life > LATER else 0.0


class ModuleState(Honest):
    "Counts the resets of all envs in the process"
    def begin(self) -> None: RESETS[0] += 1
    def luck(self) -> float: return 0.001 * RESETS[0] if self.life > LATER else 0.0


class ClassState(Honest):
    "Counts its steps in the class"
    steps = 0
    def luck(self) -> float:
        type(self).steps += 1
        return 1e-4 * self.steps if self.life > LATER else 0.0


class OwnGenerator(Honest):
    "Draws from a generator of its own, from the system's entropy"
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng()
    def luck(self) -> float: return 0.1 * self.rng.normal()


class LateOwnGenerator(OwnGenerator):
    "The same, but it draws only after the resume"
    def luck(self) -> float: return 0.1 * self.rng.normal() if self.life > LATER else 0.0


class PythonGenerator(Honest):
    "Python's generator, seeded by the clock"
    def __init__(self) -> None:
        super().__init__()
        self.rng = random.Random(time.time_ns())
    def luck(self) -> float: return 0.1 * self.rng.random() if self.life > LATER else 0.0


class ImportedGenerator(Honest):
    "A generator of the module, made at import by nobody's seed; used only after the resume"
    def luck(self) -> float: return 0.1 * FROM_ENTROPY.normal() if self.life > LATER else 0.0


class SeededModule(Honest):
    "A generator of the module, the same in every process: shared by all envs, over all episodes"
    def luck(self) -> float: return 0.1 * FROM_SEED.normal() if self.life > LATE else 0.0


class GlobalDraws(Honest):
    "Draws from NumPy's global generator, late"
    def luck(self) -> float: return 0.1 * float(np.random.normal()) if self.life > LATE else 0.0  # noqa: NPY002


class PythonDraws(Honest):
    "Draws from Python's global generator, after the resume"
    def luck(self) -> float: return 0.1 * random.random() if self.life > LATER else 0.0


class Entropy(Honest):
    "The system's entropy, from some step on"
    def luck(self) -> float: return os.urandom(1)[0] / 999 if self.life > LATE else 0.0


class RareEntropy(Honest):
    "The system's entropy, once in 97 steps, after the resume"
    def luck(self) -> float: return os.urandom(1)[0] / 999 if self.life > LATER and self.life % 97 == 0 else 0.0


class FreshGenerators(Honest):
    "A new generator now and then, after the resume, seeded by nobody"
    def luck(self) -> float: return 0.1 * np.random.default_rng().normal() if self.life > LATER and self.life % 50 == 0 else 0.0


class WallClock(Honest):
    "The time of day, from some step on"
    def luck(self) -> float: return time.time_ns() % 997 / 9970 if self.life > LATE else 0.0


class SharedBuffer(Honest):
    "All envs of the process write into one array, and read what the others wrote"
    buffer = np.zeros(3, np.float32)
    def see(self) -> np.ndarray:
        self.buffer[:] = self.buffer[::-1] * 0.1 + super().see()
        return self.buffer


class SameArray(Honest):
    "Gives the same array every time, changed in place: honest, but a trap for whoever keeps it"
    def __init__(self) -> None:
        super().__init__()
        self.seen = np.zeros(3, np.float32)
    def see(self) -> np.ndarray:
        self.seen[:] = super().see()
        return self.seen


class Threaded(Honest):
    "Something that a thread counts"
    def __init__(self) -> None:
        super().__init__()
        self.ticks = 0
        threading.Thread(target=self.tick, daemon=True).start()
    def tick(self) -> None:
        while True:
            self.ticks += 1
            time.sleep(1e-4)
    def luck(self) -> float: return 1e-5 * self.ticks if self.life > LATE else 0.0


class Hashes(Honest):
    "Depends on the hash of a text, which each process salts anew"
    def luck(self) -> float: return hash("luck") % 97 / 970


class Addresses(Honest):
    "Depends on where it lies in memory"
    def luck(self) -> float: return id(self) // 16 % 97 / 970


class OtherWay(Honest):
    "The hidden reward of a step comes from entropy, the observation does not"
    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        return obs, reward + (os.urandom(1)[0] / 255 if self.life > LATE else 0), *rest


class FailsInReplay(Honest):
    "Raises in the first replay of a second process"
    broken = bool(os.environ.get("CHEAT_RAISES"))
    real = False  # is it one of a run, and not of a trial?

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed: self.real = self.real or seed > 1000
        return super().reset(seed=seed)

    def luck(self) -> float:
        if self.broken and self.real:
            type(self).broken = False
            raise OSError("no connection yet")
        return 0.0


class Ill(Honest):
    "Cannot be reset in a second process, until somebody repairs it"
    def begin(self) -> None:
        if os.environ.get("CHEAT_RAISES"): raise OSError("the licence has run out")


class Grown(Honest):
    "Has another observation space in a second process"
    wide = bool(os.environ.get("CHEAT_RAISES"))
    if wide: observation_space = gym.spaces.Box(-99, 99, (4,), np.float32)
    def see(self) -> np.ndarray: return np.append(super().see(), np.float32(0)) if self.wide else super().see()


class Moved(gym.Wrapper[Any, Any, Any, Any]):
    "A wrapper that pays relative to the mean of all it has ever paid"
    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.sum = self.n = 0.0

    def step(self, action: Any) -> Any:
        obs, reward, *rest = self.env.step(action)
        self.sum, self.n = self.sum + float(reward), self.n + 1
        return obs, float(reward) - self.sum / self.n, *rest


class Mood(Enum):
    "What a world may be in"
    calm, wild = 0, 1


class Words(Honest):
    "Remembers text, bytes, an enum, numbers and arrays of every kind over episodes; it shows only after the resume"
    def __init__(self) -> None:
        super().__init__()
        self.text, self.raw, self.buffer, self.mood, self.turn = "", b"", bytearray(), Mood.calm, 1 + 0j
        self.table, self.any, self.day, self.tensor, self.bag = np.zeros(1, [("n", "i8")]), np.array([0, None], object), np.datetime64("2020-01-01"), torch.zeros(1), array("d", [0])

    def begin(self) -> None:
        self.text, self.raw, self.mood, self.turn, self.day = self.text + "x", self.raw + b"x", Mood(1 - self.mood.value), self.turn * 1j, self.day + 1
        self.buffer.append(1)
        self.table["n"] += 1
        self.any[0] += 1
        self.tensor += 1
        self.bag[0] += 1

    def luck(self) -> float:
        told = len(self.text) + len(self.raw) + len(self.buffer) + self.mood.value + self.turn.real + int(self.table["n"][0]) + self.any[0] + float(self.tensor[0]) + self.bag[0]
        return 1e-3 * float(told + (self.day - np.datetime64("2020-01-01")).astype(int)) if self.life > LATER else 0.0


class Defaults(Honest):
    "Counts its steps in the default of an argument"
    def luck(self, count: list[int] = [0]) -> float:  # noqa: B006
        count[0] += 1
        return 1e-4 * count[0] if self.life > LATER else 0.0


class Counter:
    "An object without a dictionary"
    __slots__ = ("n",)
    def __init__(self) -> None: self.n = 0


class Slots(Honest):
    "Counts its steps in a slot of an object"
    def __init__(self) -> None:
        super().__init__()
        self.counter = Counter()
    def luck(self) -> float:
        self.counter.n += 1
        return 1e-4 * self.counter.n if self.life > LATER else 0.0


class OtherEntropy(Honest):
    "The system's entropy, by its other name, after the resume"
    def luck(self) -> float: return os.getrandom(1)[0] / 999 if self.life > LATER else 0.0


class Timed(Honest):
    "Honest: it writes down when it began, and nothing depends on it"
    def __init__(self) -> None:
        super().__init__()
        self.began, self.clock = time.time(), time.perf_counter()


WORLDS = {k: c for k, c in list(globals().items()) if isinstance(c, type) and issubclass(c, Honest)}
for name, world in WORLDS.items(): gym.register(f"Cheat/{name}-v0", world)
gym.register("Cheat/Wrapper-v0", lambda: Moved(Honest()))
