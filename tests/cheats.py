"""Worlds that cheat: each keeps something that neither its seed nor its actions decide. Imported by the children of test_cheats.py"""
import functools
import itertools
import os
import random
import threading
import time
import uuid
from array import array
from collections import Counter as Tally
from collections import defaultdict, deque, namedtuple
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from time import monotonic
from typing import Any

import gymnasium as gym
import numpy as np
import torch

LATE = 330  # steps in the life of one env: beyond the trial at the start of a run, before the kill
LATER = 560  # the same, beyond the kill
FROM_ENTROPY = np.random.default_rng()  # made at import, by nobody's seed
FROM_SEED = np.random.default_rng(7)  # made at import, the same in every process
RESETS = [0]  # of all envs in the process


@functools.lru_cache(None)
def remembered(x: float) -> float: return x


def today() -> date: return date.today()


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


Pair = namedtuple("Pair", "a b")


class Part:
    "An object of the user's own, which can be called"
    def __init__(self) -> None: self.n = 0
    def __call__(self) -> int:
        self.n += 1
        return self.n


class Heap(list[int]):
    "A list that holds something beside its items"
    total = 0


class Shapes(Honest):
    "Remembers in tables with a default, named tuples, dates, lists of tuples, deep lists, and objects in lists: each comes back as what it was"
    def __init__(self) -> None:
        super().__init__()
        self.visits, self.tally, self.pair, self.day, self.cash, self.span = defaultdict[int, int](int), Tally[int](), Pair(0, 0), datetime(2020, 1, 1), Decimal(0), range(0)
        self.ways: list[tuple[int, int]] = []
        self.deep, self.parts, self.mixed, self.best = [[[[[[[0]]]]]]], [[Part()], {"a": (Part(),)}], {"n": 0, "part": Part()}, -float("inf")

    def begin(self) -> None:
        self.visits[self.cash.__int__()] += 1
        self.tally[1] += 1
        self.pair, self.day, self.cash, self.span, self.best = self.pair._replace(a=self.pair.a + 1), self.day + timedelta(hours=1), self.cash + 1, range(len(self.span) + 1), -self.best
        self.ways.append((len(self.ways), 0))
        self.deep[0][0][0][0][0][0][0] += 1
        self.parts[0][0]()
        self.parts[1]["a"][0]()
        self.mixed["n"] += self.mixed["part"]()

    def luck(self) -> float:
        if self.life <= LATER: return 0.0
        told = self.visits[-1] + self.tally.most_common(1)[0][1] + self.pair.a + self.day.hour + float(self.cash) + len(self.span) + (self.best > 0)
        return 1e-3 * (told + len(set(self.ways)) + self.deep[0][0][0][0][0][0][0] + self.parts[0][0].n + self.parts[1]["a"][0].n + self.mixed["n"])


class Within(Honest):
    "Draws from seeded generators in a list, a function, a partial function and a bound method, which go on over episodes; and calls an object that counts"
    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        self.dice, self.draw, self.throw, self.rest, self.count = [np.random.default_rng(1)], lambda: rng.normal(), functools.partial(np.random.default_rng(4).normal, 0, 1), np.random.default_rng(5).normal, Part()
    def luck(self) -> float:
        drawn = 0.1 * (self.dice[0].normal() + self.draw() + self.throw() + self.rest()) + 1e-4 * self.count()
        return drawn if self.life > LATER else 0.0


class LateList(Honest):
    "A generator in a list, which nobody seeds; used only after the resume"
    def __init__(self) -> None:
        super().__init__()
        self.dice = [np.random.default_rng()]
    def luck(self) -> float: return 0.1 * self.dice[0].normal() if self.life > LATER else 0.0


class SystemDice(Honest):
    "Python's generator without a state, which asks the system each time"
    dice = random.SystemRandom()
    def luck(self) -> float: return 0.1 * self.dice.random() if self.life > LATER else 0.0


class Counting(Honest):
    "Counts its steps in an iterator"
    def __init__(self) -> None:
        super().__init__()
        self.ids = itertools.count()
    def luck(self) -> float:
        n = next(self.ids)
        return 1e-4 * n if self.life > LATER else 0.0


class Yields(Honest):
    "Counts its steps in a function that yields"
    def __init__(self) -> None:
        super().__init__()
        self.ids = self.go()
    def go(self) -> Iterator[int]:
        n = 0
        while True:
            n += 1
            yield n
    def luck(self) -> float:
        n = next(self.ids)
        return 1e-4 * n if self.life > LATER else 0.0


class NestedClass(Honest):
    "Counts its steps in a class within the class"
    class Facts: n = 0
    def luck(self) -> float:
        self.Facts.n += 1
        return 1e-4 * self.Facts.n if self.life > LATER else 0.0


class ListAndMore(Honest):
    "Counts its steps in an attribute of a list of its own kind"
    def __init__(self) -> None:
        super().__init__()
        self.heap = Heap()
    def luck(self) -> float:
        self.heap.total += 1
        return 1e-4 * self.heap.total if self.life > LATER else 0.0


class Transitions(Honest):
    "Remembers a list of named tuples, whose type no checkpoint tells"
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Pair] = []
    def begin(self) -> None: self.seen.append(Pair(len(self.seen), 0))
    def luck(self) -> float: return 1e-3 * sum(p.a for p in self.seen) if self.life > LATER else 0.0


class Hidden(Honest):
    "Remembers in a masked array"
    def __init__(self) -> None:
        super().__init__()
        self.seen = np.ma.masked_array([0.0, 1.0], [False, True])
    def luck(self) -> float:
        self.seen[0] += 1
        return 1e-4 * float(self.seen[0]) if self.life > LATER else 0.0


class Seconds(Honest):
    "The time of day in whole seconds: the same for all that happens within one"
    def luck(self) -> float: return int(time.time()) % 97 / 970


class Today(Honest):
    "The date, by a name of its own"
    def luck(self) -> float: return today().toordinal() % 97 / 970


class Hour(Honest):
    "The hour"
    def begin(self) -> None: self.x += datetime.now().hour / 99


class Ticks(Honest):
    "A clock under the name under which it was imported"
    def luck(self) -> float: return int(monotonic()) % 97 / 970


class Process(Honest):
    "The number of the process"
    def luck(self) -> float: return os.getpid() % 97 / 970


class Noted(Honest):
    "Honest: it notes the day, the process and how fast it is, and waits now and then; nothing depends on it"
    def begin(self) -> None: self.day, self.second, self.process = date.today(), int(time.time()), os.getpid()
    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        *rest, info = super().step(action)
        if self.t % 20 == 0: time.sleep(1e-6)
        return *rest, info | dict(when=datetime.now(), fps=1 / (1 + abs(time.perf_counter() - self.second)))   # type: ignore[return-value]


class Waits(Honest):
    "Honest: it waits for the clock before each episode"
    def begin(self) -> None:
        end = time.monotonic() + 1e-4
        while time.monotonic() < end: pass


class Device(Honest):
    "The system's entropy as a file, after the resume"
    def luck(self) -> float:
        if self.life <= LATER or self.life % 97: return 0.0
        with Path("/dev/urandom").open("rb") as f: return f.read(1)[0] / 999


class Ticket(Honest):
    "A name that no other has"
    def luck(self) -> float: return uuid.uuid4().int % 97 / 970


class Memo(Honest):
    "How much a cache of the module holds"
    def luck(self) -> float:
        remembered(round(self.x, 3))
        return 1e-4 * remembered.cache_info().currsize


class OwnFile(Honest):
    "Counts its episodes in a file of its own"
    path = Path("own-file")
    def begin(self) -> None:
        self.x += 0.001 * (n := int(self.path.read_text() if self.path.exists() else 0))
        self.path.write_text(str(n + 1))


class Order(Honest):
    "The order of a set of texts, which each process salts anew"
    def luck(self) -> float: return ord(next(iter({"a", "f", "m", "t", "z"}))) % 97 / 970


class Variable(Honest):
    "A variable of the process"
    def luck(self) -> float: return len(os.environ.get("CHEAT_RAISES", "")) / 10


WORLDS = {k: c for k, c in list(globals().items()) if isinstance(c, type) and issubclass(c, Honest)}
for name, world in WORLDS.items(): gym.register(f"Cheat/{name}-v0", world)
gym.register("Cheat/Wrapper-v0", lambda: Moved(Honest()))
