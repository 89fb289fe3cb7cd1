"Pictures: encoders by size and by name, a world with a known answer, Atari games that are prepared alike and restored exactly."
import json
import sys
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import ROOT, run, said

from rlstudio.core.options import EnvConfig, NetConfig, config_from_dict
from rlstudio.core.seeding import untouched_generators
from rlstudio.core.spec import ArraySpec, spec_from_space
from rlstudio.envs.atari import LifeLoss, PressFire, atari
from rlstudio.envs.make import EnvError
from rlstudio.envs.snapshot import Recorder, fingerprint, snapshot_level
from rlstudio.envs.toy import catch_returns
from rlstudio.nets.encoders import as_picture, auto_encoder, channels_last, make_encoder
from rlstudio.nets.flat import weights_sha256
from rlstudio.nets.modules import ActorCritic
from rlstudio.runs.config import load_config
from rlstudio.train.evaluate import evaluate
from rlstudio.train.trainer import Trainer

gym.register_envs(ale_py)


def picture(*shape: int) -> Any: return spec_from_space(spaces.Box(0, 255, shape, np.uint8), "obs")


def encoder(shape: tuple[int, ...], name: str = "auto", seed: int = 0) -> Any:
    return make_encoder(NetConfig(encoder=name), picture(*shape), np.random.default_rng(seed))


# Encoders

@pytest.mark.parametrize("shape, name, last", [
    ((84, 84, 4), "nature", True), ((4, 84, 84), "nature", False), ((36, 36), "nature", False), ((210, 160, 3), "nature", True), ((3, 210, 160), "nature", False),
    ((35, 35, 3), "small", True), ((3, 20, 60), "small", False), ((5, 5, 1), "small", True), ((10, 10), "small", False), ((10, 10, 16), "small", True),
    ((16, 10, 10), "small", False), ((7, 7, 7), "small", True)])
def test_pictures_find_their_encoder(shape: tuple[int, ...], name: str, last: bool) -> None:
    "By size, wherever the colours are; a row for each picture"
    assert auto_encoder(picture(*shape)) == name and channels_last(shape) == last
    e = encoder(shape)
    assert e(torch.zeros(3, *shape, dtype=torch.uint8)).shape == (3, e.out)


def test_vectors_stay_flat() -> None:
    for space in (spaces.Box(0, 255, (128,), np.uint8), spaces.Box(-np.inf, np.inf, (84, 84, 4)), spaces.Box(0, 1, (5, 6, 4)), spaces.Box(-1, 1, (3,))):
        spec = spec_from_space(space, "obs")
        assert isinstance(spec, ArraySpec) and auto_encoder(spec) == "flat"


def test_other_pixels_are_seen_alike() -> None:
    "Bytes, yes and no, and brightness of one picture give one row; the size chooses, not the type"
    x = np.random.default_rng(0).integers(0, 2, (2, 10, 10, 3))
    kinds = (spaces.Box(0, 255, (10, 10, 3), np.uint8), x * 255), (spaces.Box(0, 1, (10, 10, 3), bool), x), (spaces.Box(-1, 1, (10, 10, 3)), x * 2 - 1), (spaces.Box(0, 7, (10, 10, 3), np.int64), x * 7)
    rows = []
    for space, frames in kinds:
        spec: Any = spec_from_space(space, "obs")
        assert auto_encoder(spec) == "small"
        for name in ("small", "flat"):
            e = make_encoder(NetConfig(encoder=name), spec, np.random.default_rng(0))
            rows.append(e(torch.from_numpy(frames.astype(space.dtype))).detach().numpy())
    for small, flat in zip(rows[2::2], rows[3::2]): assert np.allclose(small, rows[0], atol=1e-6) and np.allclose(flat, rows[1], atol=1e-6)


@pytest.mark.parametrize("name", ["nature", "small", "impala"])
def test_the_order_of_axes_changes_nothing(name: str) -> None:
    "The same weights from the same generator, never from torch's; bytes are scaled to [0, 1]"
    with untouched_generators(): last, first, other = encoder((40, 40, 3), name), encoder((3, 40, 40), name), encoder((3, 40, 40), name, seed=1)
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8))
    assert torch.equal(last(x), first(x.movedim(-1, 1))) and not torch.equal(last(x), other(x.movedim(-1, 1)))
    assert as_picture(x, last).max() == 1 and as_picture(x, last).shape == (2, 3, 40, 40)


@pytest.mark.parametrize("name", ["nature", "small", "impala"])
def test_what_is_no_picture_is_refused(name: str) -> None:
    with pytest.raises(Exception, match="expected frames.*fix: net.encoder: flat"):
        make_encoder(NetConfig(encoder=name), spec_from_space(spaces.Box(-np.inf, np.inf, (40, 40, 3)), "obs"), np.random.default_rng(0))  # type: ignore[arg-type]


# All algorithms learn from pictures

class Dot(gym.Env):
    "A bright column in a picture; the best action is where it is"
    observation_space, action_space = spaces.Box(0, 255, (8, 8), np.uint8), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.column, x = int(self.np_random.integers(8)), np.zeros((8, 8), np.uint8)
        x[:, self.column] = 255
        return x, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        miss = abs(float(action[0]) - (self.column / 3.5 - 1))
        return self.reset()[0], -miss, True, False, {}


class Layers(Dot):
    "The same in layers of yes and no, as MinAtar's"
    observation_space = spaces.Box(0, 1, (8, 8, 2), bool)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        x, info = super().reset(seed=seed, options=options)
        return np.stack([x > 0, x == 0], -1), info


class Glow(Dot):
    "The same as brightness from -1 to 1"
    observation_space = spaces.Box(-1, 1, (1, 8, 8))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        x, info = super().reset(seed=seed, options=options)
        return (x[None] / 127.5 - 1).astype(np.float32), info


def game(name: str, **kwargs: Any) -> Any:
    "Under an id of its own, prepared by the preset"
    return lambda **more: atari(gym.make(f"ALE/{name}-v5", **kwargs, **more))


IDS = {"Dot-v0": Dot, "Layers-v0": Layers, "Glow-v0": Glow, "Preset/Pong-v5": game("Pong"), "Preset/Breakout-v5": game("Breakout"), "Preset/PongRam-v5": game("Pong", obs_type="ram")}
for name, entry in IDS.items():
    if name not in gym.registry: gym.register(name, entry)

OFF: dict[str, Any] = dict(batch_size=8, learning_starts=16, num_steps=16, buffer_size=300, train_every=8, update_ratio=.1)
CASES: dict[str, tuple[dict, dict, dict]] = {   # name → env, algo, net
    "ppo": (dict(id="rlstudio/Catch-v0"), dict(name="ppo", num_steps=16, num_epochs=2), {}),
    "a2c": (dict(id="rlstudio/Catch-v0"), dict(name="a2c", num_steps=16), {}),
    "dqn": (dict(id="rlstudio/Catch-v0"), OFF | dict(name="dqn"), dict(normalize_obs=True)),
    "sac": (dict(id="Dot-v0"), OFF | dict(name="sac"), {}),
    "td3": (dict(id="Dot-v0"), OFF | dict(name="td3"), {}),
    "ppo, layers": (dict(id="Layers-v0"), dict(name="ppo", num_steps=16, num_epochs=2), {}),
    "sac, layers": (dict(id="Layers-v0"), OFF | dict(name="sac"), {}),
    "a2c, glow": (dict(id="Glow-v0"), dict(name="a2c", num_steps=16), {}),
    "td3, glow": (dict(id="Glow-v0"), OFF | dict(name="td3"), dict(normalize_obs=True)),
    "ppo, impala": (dict(id="rlstudio/Catch-v0", num_envs=2), dict(name="ppo", num_steps=16, num_epochs=1), dict(encoder="impala")),
    "ppo, shared": (dict(id="rlstudio/Catch-v0"), dict(name="ppo", num_steps=16, num_epochs=2), dict(features=16, hidden=[])),
    "a2c, shared": (dict(id="rlstudio/Catch-v0"), dict(name="a2c", num_steps=16), dict(features=16, core="gru", core_size=8)),
    "dqn, shared": (dict(id="rlstudio/Catch-v0"), OFF | dict(name="dqn"), dict(features=16)),
    "sac, shared": (dict(id="Dot-v0"), OFF | dict(name="sac"), dict(features=16)),
    "ppo, Pong": (dict(id="Preset/Pong-v5", num_envs=1), dict(name="ppo", num_steps=16, num_epochs=1), {}),
    "dqn, Breakout": (dict(id="Preset/Breakout-v5", num_envs=2), OFF | dict(name="dqn", frame_stack=4), {}),
    "dqn, Pong's memory": (dict(id="Preset/PongRam-v5", num_envs=1), OFF | dict(name="dqn"), dict(normalize_obs=True)),
}


def trainer(case: str, seed: int = 1) -> Trainer:
    env, algo, net = CASES[case]
    n = env.get("num_envs", 4)
    return Trainer(config_from_dict(dict(env=dict(num_envs=n) | env, algo=algo, net=dict(hidden=[16], normalize_reward=False) | net,
                                         train=dict(total_steps=16 * n * 6, seed=seed))))


@pytest.mark.parametrize("case", ["ppo", "a2c", "dqn", "sac", "td3", "ppo, layers", "sac, layers", "a2c, glow", "td3, glow", "ppo, impala", "ppo, shared", "a2c, shared", "dqn, shared", "sac, shared"])
def test_every_algorithm_takes_pictures(case: str) -> None:
    "Its encoder learns, bytes are not normalised, nothing is drawn from a global generator, and the seed is the whole difference"
    with untouched_generators():
        t = trainer(case)
        m: Any = t.algo.module
        before = {k: x.clone() for k, x in m.state_dict().items() if "encoder" in k}
        t.train()
    assert m.obs_norm is None and before
    assert all(not torch.equal(x, m.state_dict()[k]) for k, x in before.items() if k.endswith("weight"))
    assert weights_sha256(trainer(case).train().algo.module) == weights_sha256(m) != weights_sha256(trainer(case, 2).algo.module)


def test_the_published_network() -> None:
    "Mnih et al. 2015 and 2016: three convolutions and 512 units that both heads share; as many weights as the CnnPolicy of Stable-Baselines3"
    config = load_config(ROOT / "configs/ppo/pong.yaml")[0]
    frames, paddle = spec_from_space(spaces.Box(0, 255, (4, 84, 84), np.uint8), "obs"), spec_from_space(spaces.Discrete(6), "action")
    m = ActorCritic(frames, paddle, config.net, np.random.default_rng(0))
    assert sum(p.numel() for p in m.parameters()) == (4 * 64 + 1) * 32 + (32 * 16 + 1) * 64 + (64 * 9 + 1) * 64 + (3136 + 1) * 512 + (512 + 1) * (6 + 1) == 1_687_719


@pytest.mark.parametrize("case", ["sac", "td3", "sac, shared"])
def test_the_critic_alone_teaches_the_shared_encoder(case: str) -> None:
    "The actor sees the encoder's features, and its loss has no way back to them; they are in the critics' part, not in the actor's"
    t = trainer(case)
    m: Any = t.algo.module
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8))
    out = m.params(x) if "sac" in case else m.policy(x)
    shared, own = list(m.critics.encoder.parameters()), list(m.actor.parameters())
    def ways(y: torch.Tensor, to: list[Any]) -> list[bool]: return [g is not None for g in torch.autograd.grad(y.square().sum(), to, allow_unused=True, retain_graph=True)]
    assert all(ways(out, own)) and not any(ways(out, shared))
    assert all(ways(m.critics(x, torch.zeros(4, 1)), shared))
    assert not any("encoder" in name for name, _ in m.actor.named_parameters())


# Catch

@pytest.mark.parametrize("seed", [1, 2])
def test_catch_is_solved(seed: int) -> None:
    "From -0.8, what any policy earns that does not look, to 1"
    config = load_config(ROOT / "configs/ppo/catch.yaml", [f"train.seed={seed}"])[0]
    t = Trainer(config)
    blind = evaluate(t.algo.module, config.env, config.eval).mean
    t.train()
    after = evaluate(t.algo.module, config.env, config.eval).mean
    assert blind < -.4 and after >= .95 * catch_returns()[1]


# Exact, also through all that is around an Atari game

HALF = """
import json, sys
from pathlib import Path
sys.path.insert(0, 'tests')
from test_pixels import *
from rlstudio.runs.checkpoint import latest_checkpoint, save_checkpoint
half, folder, ends = sys.argv[1], Path(sys.argv[2]), {}
for case in CASES:
    t = trainer(case)
    if half == 'first': save_checkpoint(folder / case, 3, t.train(t.config.train.total_steps // 2).state_dict(), {})
    else:
        t.load_state_dict(latest_checkpoint(folder / case)[0].state)
        ends[case] = t.iteration, t.env.level, weights_sha256(t.train().algo.module)
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def second_halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    folder = tmp_path_factory.mktemp("halves")
    for half in ("first", "second"):
        done = run(sys.executable, "-c", HALF, half, folder, coverage=False)
        assert done.returncode == 0, said(done)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_two_halves_are_a_whole(case: str, second_halves: dict[str, list]) -> None:
    whole = trainer(case).train()
    assert second_halves[case] == [3, "exact", weights_sha256(whole.algo.module)] and whole.iteration == 6


def seen(env: Recorder, actions: np.ndarray) -> tuple[list[str], list[int]]:
    "Fingerprints of all that is seen, and the lives at each end"
    prints, lives = [], []
    for a in actions:
        obs, reward, terminated, truncated, info = env.step(a)
        prints.append(fingerprint((obs, float(reward), bool(terminated), bool(truncated))))
        if terminated or truncated:
            lives.append(info["lives"])
            prints.append(fingerprint(env.reset()[0]))
    return prints, lives


@pytest.mark.parametrize("make", [
    lambda: atari(gym.make("ALE/Breakout-v5")),
    lambda: atari(gym.make("ALE/Breakout-v5", max_episode_steps=90)),
    lambda: atari(gym.make("ALE/Breakout-v5", obs_type="ram")),
    lambda: atari(gym.make("ALE/Breakout-v5"), training=False),
    lambda: gym.make("ALE/Breakout-v5")], ids=["preset", "cut short", "memory", "evaluation", "no preset"])
def test_a_game_is_restored_over_lives_and_games(make: Any) -> None:
    "Snapshots from several places of several games; each has the whole game's future"
    actions = np.random.default_rng(0).integers(4, size=450)
    one = Recorder(make())
    one.reset(5)
    for begin in range(0, 450, 150):
        state = one.state()
        two = Recorder(make())
        two.restore(state)
        past, lives = seen(one, actions[begin:begin + 150])
        assert seen(two, actions[begin:begin + 150]) == (past, lives) and two.state()["obs"] == one.state()["obs"]
        assert fingerprint(two.state()["now"]) == fingerprint(one.state()["now"])


def test_levels() -> None:
    for make in (IDS["Preset/Pong-v5"], IDS["Preset/PongRam-v5"], lambda: gym.make("ALE/Pong-v5")): assert snapshot_level(make) == "exact"


# The preset

def test_a_life_is_an_episode_in_training_only() -> None:
    "Five lives are five episodes of one game; then a new game begins. An evaluation plays whole games"
    actions = np.random.default_rng(1).integers(4, size=500)
    for training in (True, False):
        env = Recorder(atari(gym.make("ALE/Breakout-v5"), training=training))
        env.reset(3)
        lives = seen(env, actions)[1]
        assert lives[:6] == ([4, 3, 2, 1, 0, 4] if training else [0] * len(lives[:6])) and lives


def test_starts_differ_and_come_from_the_games_own_generator() -> None:
    "As many steps without an action as the env's own generator says; none, and all starts are alike"
    def begun(seed: int, **args: Any) -> int:
        env = atari(gym.make("ALE/Pong-v5", repeat_action_probability=0), fire_reset=False, **args)
        env.reset(seed=seed)
        return int(env.unwrapped.ale.getEpisodeFrameNumber())  # type: ignore[attr-defined]
    with untouched_generators(): frames = [begun(seed) for seed in range(6)]
    assert frames == [begun(seed) for seed in range(6)] and 1 <= min(frames) < max(frames) <= 30
    assert [begun(seed, noop_max=0) for seed in range(3)] == [0] * 3


def test_a_step_is_four_frames_and_rewards_are_signs_in_training_only() -> None:
    def played(env: gym.Env) -> list[float]:
        env.reset(seed=1)
        rng = np.random.default_rng(0)
        return [float(env.step(rng.integers(6))[1]) for _ in range(200)]
    args = dict(noop_max=0, fire_reset=False, terminal_on_life_loss=False)
    plain, raw = played(gym.make("ALE/SpaceInvaders-v5")), atari(gym.make("ALE/SpaceInvaders-v5"), training=False, **args)  # type: ignore[arg-type]
    assert played(raw) == plain and max(plain) > 1 and raw.unwrapped.ale.getEpisodeFrameNumber() == 800  # type: ignore[attr-defined]
    assert played(atari(gym.make("ALE/SpaceInvaders-v5"), **args)) == [float(r > 0) for r in plain]  # type: ignore[arg-type]


def test_fire_is_pressed_where_a_life_begins() -> None:
    "A greedy agent that never fires still gets a ball in each life of an evaluation; Ms. Pac-Man has no such button"
    env = atari(gym.make("ALE/Breakout-v5"), training=False)
    env.reset(seed=1)
    ended, steps = False, 0
    while not ended and steps < 2000: *_, ended, cut, info = env.step(0); steps += 1
    assert ended and info["lives"] == 0
    around, wrappers = atari(gym.make("ALE/MsPacman-v5")), []
    while isinstance(around, gym.Wrapper): wrappers.append(type(around)); around = around.env
    assert LifeLoss in wrappers and PressFire not in wrappers


def test_mistakes_are_explained() -> None:
    with pytest.raises(EnvError, match="given CartPole-v1, expected an Atari env"): atari(gym.make("CartPole-v1"))
    with pytest.raises(EnvError, match="grayscale=False with a frame_stack.*frame_stack=1"): atari(gym.make("ALE/Pong-v5"), grayscale=False)
    with pytest.raises(EnvError, match="continuous=True"): atari(gym.make("ALE/Pong-v5", continuous=True))


GAMES = ["ppo/pong", "ppo/breakout", "dqn/pong", "dqn/breakout", "ppo/pong-ram", "dqn/breakout-ram"]


@pytest.mark.skipif("wrappers" not in EnvConfig.__dataclass_fields__, reason="a config cannot name wrappers yet")
@pytest.mark.parametrize("path", GAMES)
def test_configs_of_games(path: str) -> None:
    "They load, and their worlds are what their networks and memories expect"
    config = load_config(ROOT / "configs" / f"{path}.yaml")[0]
    t = Trainer(load_config(ROOT / "configs" / f"{path}.yaml", ["env.num_envs=1"])[0])
    assert t.env.observation_spec.shape == ((128,) if path.endswith("ram") else (4, 84, 84)) and t.env.level == "exact"
    assert config.train.total_steps % (config.algo.num_steps * config.env.num_envs) == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", GAMES)
def test_configs_name_their_source(path: str) -> None:
    assert "Source: " in Path(ROOT / "configs" / f"{path}.yaml").read_text()


@pytest.mark.parametrize("seed", range(3))
def test_no_button_is_carried_over(seed: int) -> None:
    "Sticky actions hold the last button, which no state of the emulator tells: lives that follow a lost one are restored exactly as well"
    rng, one = np.random.default_rng(seed), Recorder(atari(gym.make("ALE/Breakout-v5")))
    one.reset(seed=seed)
    for _ in range(4):
        seen(one, rng.integers(4, size=60))
        two, future = Recorder(atari(gym.make("ALE/Breakout-v5"))), rng.integers(4, size=80)
        two.restore(one.state())
        assert seen(one, future) == seen(two, future)
        two.env.close()
