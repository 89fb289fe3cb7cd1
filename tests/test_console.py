"The console in a real terminal: narrow ones, resized ones and those that go away, other libraries' warnings, and shell completion."
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
from support import ROOT, child_env, run, said

from rlstudio.core.options import CONVERSIONS, NOT_HERE, SYNONYMS, Config, ConfigError, build_config, field_specs
from rlstudio.core.registry import algos
from rlstudio.runs.config import resolve
from rlstudio.runs.yaml import Source

LABELS = ["train", "return", "eval", "health", "speed"]


class Screen:
    "What a terminal shows: text, cursor moves and erasing, with lines that fold anew when it is resized (or, as in xterm, are cut)"
    def __init__(self, columns: int, folds: bool = True):
        self.columns, self.folds, self.rest = columns, folds, ""
        self.rows, self.soft, self.y, self.x = [""], [False], 0, 0  # soft: the line goes on in the next row

    def feed(self, text: str) -> None:
        text = self.rest + text
        cut = re.search(r"\x1b(\[[0-9;?]*)?$", text)  # a code whose end has not come yet
        self.rest, text = (cut[0], text[:cut.start()]) if cut else ("", text)
        for part in re.findall(r"\x1b\[[0-9;?]*[@-~]|.", text, re.S): self.code(part[2:-1], part[-1]) if part[0] == "\x1b" else self.put(part)

    def code(self, number: str, what: str) -> None:
        assert what in "AKmhl", f"this screen does not know ESC [ {number} {what}"
        if what == "A": self.y = max(0, self.y - int(number or 1))
        if what == "K": self.rows[self.y], self.soft[self.y] = "", False

    def put(self, c: str) -> None:
        if c == "\r": self.x = 0
        elif c == "\n": self.down()
        else:
            if self.x == self.columns:
                self.soft[self.y] = True
                self.down()
            row = self.rows[self.y].ljust(self.x)
            self.rows[self.y], self.x = row[:self.x] + c + row[self.x + 1:], self.x + 1

    def down(self) -> None:
        self.y, self.x = self.y + 1, 0
        if self.y == len(self.rows): self.rows.append(""); self.soft.append(False)

    def resize(self, columns: int) -> None:
        "The cursor stays behind its character, which in these tests is the last one; erased rows below it fall away"
        assert not "".join(self.rows[self.y + 1:])
        del self.rows[self.y + 1:], self.soft[self.y + 1:]
        if not self.folds: rows = [[row[:columns]] for row in self.rows]
        else:
            lines = "".join(row + ("" if soft else "\n") for row, soft in zip(self.rows, self.soft)).removesuffix("\n").split("\n")
            rows = [[line[i:i + columns] for i in range(0, max(1, len(line)), columns)] for line in lines]
        self.columns, self.rows = columns, [row for line in rows for row in line]
        self.soft = [soft for line in rows for soft in [True] * (len(line) - 1) + [False]]
        self.y, self.x = len(self.rows) - 1, len(self.rows[-1])

    @property
    def text(self) -> str: return "\n".join(self.rows)

    def labels(self) -> list[str]:
        return [m[1] for row in self.rows if (m := re.match(rf"({'|'.join(LABELS)}) +\S", row))]


class Terminal:
    "A command in a pseudo-terminal of its own"
    def __init__(self, *args: object, columns: int = 80, folds: bool = True, cwd: Path = ROOT, **env: str):
        self.screen, (self.master, slave) = Screen(columns, folds), pty.openpty()
        self.size(columns)
        settings = child_env(coverage=False) | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | env
        for name in ("COLUMNS", "LINES", "STY", "XTERM_VERSION"): settings.pop(name, None) if name not in env else None
        def own() -> None: os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its controlling terminal, so that it hears of its end
        self.child = subprocess.Popen([str(a) for a in args], stdin=slave, stdout=slave, stderr=slave, env=settings, cwd=cwd, preexec_fn=own)
        os.close(slave)

    def size(self, columns: int) -> None: fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def read(self, until: Callable[[Screen], bool] = lambda s: False, seconds: float = 60) -> Screen:
        "Look until something is seen, or the command ends"
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until(self.screen):
            if not select.select([self.master], [], [], .2)[0]: continue
            try: data = os.read(self.master, 65536)
            except OSError: break  # the command has ended
            self.screen.feed(data.decode("utf-8", "ignore"))
        return self.screen

    def resize(self, columns: int) -> None:
        "Between two frames, of which there are four a second"
        while select.select([self.master], [], [], .05)[0]: self.screen.feed(os.read(self.master, 65536).decode("utf-8", "ignore"))
        self.screen.resize(columns)
        self.size(columns)

    def stop(self) -> None:
        if self.child.poll() is None: self.child.kill()
        self.child.wait()
        os.close(self.master)


def training(folder: Path, name: str, *more: str, steps: int = 200_000) -> list[object]:
    return ["rlstudio", "run", "ppo/cartpole", f"train.total_steps={steps}", "eval.episodes=2", *more, "--runs-dir", folder, "--name", name]


def status(folder: Path) -> str: return str(json.loads((folder / "manifest.json").read_text())["status"])


# Names of other libraries

@pytest.mark.parametrize("algo, written, answer", [
    ("ppo", "algo.batch_size=64", "batch_size=64 is num_minibatches=16 here (8 × 128 / 64); write algo.num_minibatches=16"),
    ("ppo", "algo.batch_size=60", "17.07 here (8 × 128 / 60), which is not whole; write algo.num_minibatches=16"),
    ("ppo", "algo.n_steps=2048 algo.batch_size=64", "num_minibatches=256 here (8 × 2048 / 64)"), ("ppo", "algo.n_steps=2048", "write algo.num_steps=2048"),
    ("ppo", "algo.n_epochs=4", "write algo.num_epochs=4"), ("ppo", "algo.learning_rate=lin_3e-4", "write learning_rate=3e-4 and learning_rate_schedule=linear"),
    ("ppo", "algo.clip_range=lin_0.1", "write clip_range=0.1 and clip_range_schedule=linear"), ("ppo", "net.net_arch=[32,32]", "write net.hidden=[32, 32]"),
    ("ppo", "algo.policy_kwargs={net_arch: [32]}", "net_arch is net.hidden"), ("ppo", "algo.learning_starts=100", "a key of dqn, sac and td3, not of ppo"),
    ("ppo", "algo.gradient_steps=4", "gradient_steps is for dqn, sac and td3"), ("a2c", "algo.batch_size=64", "the whole rollout of 8 × 8 = 64 rows"),
    ("dqn", "algo.gradient_steps=1", "gradient_steps=1 is update_ratio=0.25 here (1 / (train_every 4 × 1 env))"), ("dqn", "algo.gradient_steps=-1", "write algo.update_ratio=1"),
    ("dqn", "algo.train_freq=16 algo.gradient_steps=8 env.num_envs=2", "update_ratio=0.25 here (8 / (train_every 16 × 2 envs))"),
    ("dqn", "algo.exploration_final_eps=0.02", "write algo.epsilon_end=0.02"), ("dqn", "algo.n_steps=3", "write algo.n_step=3"),
    ("dqn", "algo.target_update_interval=10000", "target_every=5000 here (10000 env steps × update_ratio 0.5); write algo.target_every=5000, and algo.tau=1"),
    ("sac", "algo.ent_coef=auto_0.1", "write ent_coef=auto and ent_coef_init=0.1"), ("sac", "algo.gae_lambda=0.9", "a key of ppo and a2c, not of sac"), ("sac", "algo.policy-lr=1e-4", "write algo.actor_learning_rate=0.0001"),
    ("ppo", "env.n_envs=16", "write env.num_envs=16"), ("ppo", "num-envs=4", "write env.num_envs=4"), ("ppo", "total-timesteps=5000", "write train.total_steps=5000"),
    ("ppo", "algo.anneal-lr=false", "write algo.learning_rate_schedule=constant"), ("ppo", "algo.num-minibatches=4", "did you mean 'algo.num_minibatches'"),
    ("ppo", "algo.clip-vloss=true", "write algo.clip_range_vf=0.2"), ("PPO", "", "did you mean 'ppo'"), ("QR-DQN", "", "dqn with algo.quantiles=51"), ("MaskablePPO", "", "here it is ppo"), ("DDPG", "", "td3 with algo.twin=false"),
])
def test_names_of_other_libraries(algo: str, written: str, answer: str) -> None:
    "They are answered with what it is here, in the numbers of this config"
    source = Source({"env": {"id": "CartPole-v1"}, "algo": {"name": algo}}, {}, [])
    parts = re.split(r" (?=\w+\.)", written) if written else []
    with pytest.raises(ConfigError) as e: resolve(source, parts)
    assert answer in str(e.value), str(e.value)


LIBRARIES = dict(   # what people type who come from Stable-Baselines3, CleanRL, RLlib, Tianshou and Spinning Up → what the answer must name
    n_steps="algo.num_steps", n_epochs="algo.num_epochs", batch_size="algo.num_minibatches", clip_coef="algo.clip_range", clip_param="algo.clip_range", clip_ratio="algo.clip_range", eps_clip="algo.clip_range", ent_coeff="algo.ent_coef",
    entropy_coeff="algo.ent_coef", lr="algo.learning_rate", lambda_="algo.gae_lambda", total_timesteps="train.total_steps", warmup_steps="algo.learning_starts", start_timesteps="algo.learning_starts", random_steps="algo.learning_starts",
    update_after="algo.learning_starts", learning_starts="learning_starts is a key of dqn", train_freq="algo.train_every", target_network_update_freq="algo.target_every", exploration_fraction="algo.epsilon_fraction", policy_kwargs="section net",
    vf_loss_coeff="algo.vf_coef", rollout_fragment_length="algo.num_steps", train_batch_size="env.num_envs × algo.num_steps", sgd_minibatch_size="algo.num_minibatches", num_sgd_iter="algo.num_epochs", repeat_per_collect="algo.num_epochs",
    grad_clip="algo.max_grad_norm", discount_factor="algo.gamma", step_per_epoch="train.total_steps", step_per_collect="divide by env.num_envs", training_num="env.num_envs", num_workers="env.backend=workers", estimation_step="algo.n_step",
    replay_size="algo.buffer_size", target_update_freq="algo.target_every", norm_obs="net.normalize_obs", fcnet_hiddens="net.hidden", actor_lr="algo.actor_learning_rate", policy_freq="algo.policy_delay", kl_coeff="algo.target_kl")


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_the_key_means_is_named(name: str) -> None:
    "Not the key that looks most like it: `warmup_steps` is no `num_steps`"
    with pytest.raises(ConfigError) as e: resolve(Source({"env": {"id": "CartPole-v1"}, "algo": {"name": "ppo"}}, {}, []), [f"algo.{name}=3"])
    assert LIBRARIES[name] in str(e.value) and "did you mean" not in str(e.value) and "expected one of" not in str(e.value), str(e.value)


def test_every_foreign_name_leads_somewhere() -> None:
    "In every algorithm, to a key that exists"
    ours = {f"{section}.{key}" for section, cls in get_type_hints(Config).items() if section != "algo" for key in field_specs(cls)} | {f"algo.{key}" for algo in ("ppo", "a2c", "dqn", "sac", "td3") for key in field_specs(algos.get(algo).Config)}
    assert {*SYNONYMS.values()} <= ours, {*SYNONYMS.values()} - ours
    assert not {key.partition(".")[2] for key in ours if key.startswith("algo.")} & (SYNONYMS.keys() | NOT_HERE.keys()) - {"frame_stack"}, "what is a key of ours means that"
    for algo in ("ppo", "a2c", "dqn", "sac", "td3"):
        for name in SYNONYMS | NOT_HERE | CONVERSIONS:
            if name in field_specs(algos.get(algo).Config): continue
            faults = build_config({"env": {"id": "CartPole-v1"}, "algo": {"name": algo, name: 3}})[1]
            why = next(why for path, why in faults if path[-1] == name)
            named = re.findall(r"\b(?:env|algo|net|train|eval|checkpoint|log)\.[a-z_]+", why)
            assert "expected one of" not in why and "did you mean" not in why or name in ("num_envs", "steps"), (algo, name, why)
            assert {*named} <= ours and (named or name in NOT_HERE), (algo, name, why)


@pytest.mark.parametrize("option, answer", [("--total-timesteps", "train.total_steps=…"), ("--num-envs", "env.num_envs=…"), ("--cuda", "--device cuda")])
def test_options_of_other_programs(option: str, answer: str) -> None:
    done = run("rlstudio", "run", "ppo/cartpole", option, "1000", coverage=False, COLUMNS="200")
    assert done.returncode == 2 and answer in done.stderr and "Traceback" not in done.stderr, said(done)


# A terminal of any width

def test_the_screen_of_these_tests() -> None:
    "Our small terminal folds, erases and moves as a real one does"
    s = Screen(10)
    s.feed("abc\r\n0123456789xyz\x1b[31m!\x1b[0")
    s.feed("m")
    assert s.rows == ["abc", "0123456789", "xyz!"]
    s.resize(5)
    assert s.rows == ["abc", "01234", "56789", "xyz!"]
    s.resize(10)
    assert s.rows == ["abc", "0123456789", "xyz!"]
    s.feed("\r\x1b[2K\x1b[1A\x1b[2Knew")
    assert s.text.split() == ["abc", "new"]


@pytest.mark.parametrize("columns", [40, 50, 60])
def test_a_narrow_terminal(tmp_path: Path, columns: int) -> None:
    "Labels stay, the bar shrinks, no word breaks, nothing is folded by the terminal itself"
    t = Terminal(*training(Path("r"), "narrow", steps=15_000), columns=columns, cwd=tmp_path)
    try: screen = t.read(lambda s: "rlstudio evaluate" in s.text and s.rows[-1] == "")
    finally: t.stop()
    assert screen.labels() == LABELS, screen.text
    bar = next(row for row in screen.rows if row.startswith("train"))
    assert re.match(r"train   [━─]{6,24} 100%  15,360", bar) and "…" not in screen.text, screen.text
    words = {w for row in screen.rows for w in row.split()}
    assert {"CartPole-v1,", "arithmetic", "backend", "checkpoints/"} <= words, screen.text
    assert not any(screen.soft), screen.text


@pytest.mark.parametrize("folds", [True, False])
def test_a_resize_leaves_no_copies(tmp_path: Path, folds: bool) -> None:
    "Neither where the terminal folds what it shows, nor where it cuts it"
    t = Terminal(*training(tmp_path, "resized", steps=100_000_000), columns=100, folds=folds, **({} if folds else {"XTERM_VERSION": "XTerm(390)"}))
    def settled(s: Screen) -> bool: return "learn" in s.text or "env steps/s" in s.text
    try:
        t.read(settled)
        for columns in (60, 45, 120, 40):
            t.resize(columns)
            t.read(seconds=.8)
        screen = t.read(lambda s: s.labels() == LABELS and s.rows[-1].startswith("speed"), seconds=5)
        t.child.send_signal(signal.SIGINT)
        t.read(lambda s: "rlstudio show" in s.text and s.rows[-1] == "", seconds=60)
    finally: t.stop()
    assert screen.labels() == LABELS, screen.text
    assert "CartPole-v1" in screen.text, "what stood above was erased"


# A terminal that goes away

@pytest.mark.faults(3)
@pytest.mark.parametrize("stderr", ["apart", "too"])
def test_head_stops_no_training(tmp_path: Path, stderr: str) -> None:
    "The reader leaves after one line; the training goes on to its end, and says nothing about it"
    child = subprocess.Popen(list(map(str, training(tmp_path, "headed", steps=15_000))), env=child_env(coverage=False), stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT if stderr == "too" else subprocess.PIPE, text=True)
    assert child.stdout
    assert "rlstudio" in child.stdout.readline()
    child.stdout.close()
    complaints = ""
    if child.stderr:
        complaints = child.stderr.read()
        child.stderr.close()
    assert child.wait(60) == 0 and not complaints
    assert status(tmp_path / "headed") == "completed" and (tmp_path / "headed" / "result.json").exists()


@pytest.mark.faults(3)
def test_a_closed_terminal_stops_no_training(tmp_path: Path) -> None:
    "Closing the window sends SIGHUP and breaks every write; the training goes on to its end"
    t = Terminal(*training(tmp_path, "closed", steps=60_000))
    t.read(lambda s: "env steps/s" in s.text)
    assert status(tmp_path / "closed") == "running"
    os.close(t.master)
    assert t.child.wait(60) == 0
    assert status(tmp_path / "closed") == "completed" and (tmp_path / "closed" / "result.json").exists()


def test_a_listing_into_head_ends_quietly() -> None:
    done = run("bash", "-c", "set -o pipefail; rlstudio list envs | head -1", coverage=False)
    assert done.returncode == 0 and done.stdout.startswith("id") and not done.stderr, said(done)


def test_the_library_outlives_its_reader(tmp_path: Path) -> None:
    "The same for a script with a `Progress` of its own"
    script = ("from rlstudio.runs.run import Run; from rlstudio.studio.console import Progress\n"
              f"r = Run.from_config('ppo/cartpole', total_steps=20480, runs_dir={str(tmp_path)!r}, name='script')\n"
              "r.train([Progress(seconds=1e-6)])")
    done = run("bash", "-c", f'python -c "{script}" | head -1', coverage=False)
    assert "env steps" in done.stdout and status(tmp_path / "script") == "completed", said(done)


# What others say

LOUD = """
import gymnasium as gym
import numpy as np
from gymnasium import logger

class Loud(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    def __init__(self): logger.warn('Loud-v0 is out of date'); self.age = 0
    def reset(self, seed=None, options=None):
        super().reset(seed=seed); self.age = 0
        logger.warn('reset is \x1b[2J[bold]loud[/bold]')
        return np.zeros(2, np.float32), {}
    def step(self, action): self.age += 1; return np.zeros(2, np.float32), 1., self.age == 9, False, {}

gym.register('Loud-v0', Loud)
"""


def test_warnings_of_others_come_once_and_clean(tmp_path: Path) -> None:
    "Neither colours nor escape codes, nor once for every copy; also in a library call"
    (tmp_path / "loud.py").write_text(LOUD)
    (tmp_path / "loud.yaml").write_text("env: {id: Loud-v0, num_envs: 4}\nalgo: {name: ppo, num_steps: 32}\ntrain: {total_steps: 256}\neval: {episodes: 3}\n")
    done = run("rlstudio", "run", "loud.yaml", "--import", "loud", cwd=tmp_path, coverage=False)
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr, said(done)
    assert done.stderr.count("Loud-v0 is out of date") == 1 and done.stderr.count("[bold]loud[/bold]") == 1 and "WARN" not in done.stderr, said(done)
    script = "import loud; from rlstudio.core.options import EnvConfig; from rlstudio.envs.make import make_env; [make_env(EnvConfig(id='Loud-v0')) for _ in range(3)]"
    done = run("python", "-c", script, cwd=tmp_path, coverage=False)
    assert done.returncode == 0 and done.stderr.count("Loud-v0 is out of date") == 1 and "\x1b" not in done.stderr and "WARN" not in done.stderr, said(done)


# Small things

def test_a_silent_rounding_is_said(tmp_path: Path) -> None:
    "In one line, and the bar goes to the real goal"
    done = run("rlstudio", "run", "ppo/cartpole", "train.total_steps=3000", "eval.episodes=0", cwd=tmp_path, coverage=False)
    assert "3,000 steps is 2.93 rollouts of 1,024 (8 envs × 128): 3,072 will be taken" in done.stdout and "3,072/3,072 env steps" in done.stdout, said(done)


def test_device(tmp_path: Path) -> None:
    "Over settings.ini, for run, resume and evaluate; one that is not there leaves no run behind"
    (tmp_path / "settings.ini").write_text("[DEFAULT]\ndevice = mps\n")
    tiny = ("run", "ppo/cartpole", "train.total_steps=1024", "eval.episodes=2", "--name", "r", "--quiet")
    done = run("rlstudio", *tiny, "--device", "gpu", cwd=tmp_path, coverage=False)
    assert done.returncode == 2 and "--device: given 'gpu', expected cpu, mps, cuda" in done.stderr and not (tmp_path / "runs").exists(), said(done)
    for args in ((*tiny, "--device", "cpu"), ("evaluate", "r", "--device", "cpu"), ("resume", "r", "--device", "cpu", "--quiet")):
        done = run("rlstudio", *args, cwd=tmp_path, coverage=False)
        assert done.returncode == 0, said(done)
    done = run("rlstudio", "evaluate", "r", cwd=tmp_path, coverage=False)
    assert done.returncode == 2 and "device mps" in done.stderr and "Traceback" not in done.stderr, said(done)


def test_the_last_evaluation_shows_progress(tmp_path: Path) -> None:
    "In a terminal, episode by episode; the line goes away when it is done"
    (tmp_path / "slow.py").write_text(LOUD.replace("logger.warn", "str").replace("Loud-v0", "Slow-v0").replace("self.age += 1;", "self.age += 1; __import__('time').sleep(.004);"))
    (tmp_path / "slow.yaml").write_text("env: {id: Slow-v0, num_envs: 1}\nalgo: {name: ppo, num_steps: 32}\ntrain: {total_steps: 32}\neval: {episodes: 80, num_envs: 1, every: 0}\n")
    t = Terminal("rlstudio", "run", "slow.yaml", "--import", "slow", cwd=tmp_path)
    try:
        seen = t.read(lambda s: re.search(r"eval    episode \d+ of 80", s.text) is not None).text
        end = t.read(lambda s: "rlstudio show" in s.text and s.rows[-1] == "").text
    finally: t.stop()
    assert "of 80" in seen and "episode 7" not in end and "over 80 greedy episodes" in end, end


# Completion

def completed(shelf: Path, *words: str, **env: str) -> list[str]:
    "What the shell is told, by the protocol that its script speaks"
    done = run("rlstudio", cwd=shelf, coverage=False, _RLSTUDIO_COMPLETE="complete_bash", COMP_WORDS="\n".join(["rlstudio", *words]), COMP_CWORD=str(len(words)), **env)
    assert done.returncode == 0, said(done)
    if env: assert not set(re.findall(r"^import time:.*\\| +(\\S+)$", done.stderr, re.M)) & {"torch", "gymnasium", "matplotlib"}
    return done.stdout.split()


@pytest.mark.parametrize("words, answers", [
    (["resu"], ["resume"]), (["run", "ppo/cartp"], ["ppo/cartpole"]), (["run", "mine"], ["mine.yaml"]), (["show", "first"], ["first-run"]), (["delete", "first-run", "sec"], ["second-run"]),
    (["run", "ppo/cartpole", "train.to"], ["train.total_steps="]), (["run", "dqn/cartpole", "algo.epsilon_e"], ["algo.epsilon_end="]), (["resume", "second-run", "algo.ent_coef_i"], ["algo.ent_coef_init="]),
    (["run", "ppo/cartpole", "net.activation=r"], ["net.activation=relu"]), (["list", "run"], ["runs"]), (["list", "runs", "--status", "kil"], ["killed"]), (["list", "runs", "--algo", "dq"], ["dqn"]),
], ids=lambda x: " ".join(x))
def test_completion(tmp_path: Path, words: list[str], answers: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text("env: {id: CartPole-v1}\n")
    for name, algo in (("first-run", "ppo"), ("second-run", "sac")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(f"env:\n  id: x\nalgo:\n  name: {algo}\ntrain:\n  seed: 1\n")
    found = completed(tmp_path, *words, PYTHONPROFILEIMPORTTIME="1")
    assert set(answers) <= set(found) and all(f.startswith(words[-1]) for f in found), found


def test_bash_completes(tmp_path: Path) -> None:
    "In bash itself, with the script that the command prints; a key gets no space behind it"
    script = ('eval "$(rlstudio completion bash)"; COMP_WORDS=(rlstudio run ppo/cartpole train.to); COMP_CWORD=3; '
              'compopt() { printf "compopt %s %s\\n" "$@"; }; _rlstudio_completion rlstudio; echo "${COMPREPLY[@]}"')
    done = run("bash", "-c", script, cwd=tmp_path, coverage=False)
    assert done.stdout.splitlines() == ["compopt -o nospace", "train.total_steps="], said(done)
    for shell in ("zsh", "fish"): assert "_RLSTUDIO_COMPLETE" in run("rlstudio", "completion", shell, coverage=False).stdout
