#!/usr/bin/env python
"""RLStudio beside its peers: the same work, interleaved, on the same cores; one command makes each peer's own environment.

    python benchmarks/peers --rounds 5                            # PPO on CartPole-v1 with everybody
    python benchmarks/peers --case sac --only rlstudio,sb3,sbx
    python benchmarks/peers --rounds 5                            # the same again goes on where it was interrupted, or adds rounds
    python benchmarks/peers --case ppo-lunarlander --cores 2      # also with worlds in processes of their own, ours and theirs
    python benchmarks/peers --draw                                # nothing but the table and the picture of what is stored
    python benchmarks/peers --page                                # the table in docs/pages/howto/fast.md; --check fails if it is not fresh

| case | the work | what counts |
|---|---|---|
| ppo | CartPole-v1, 8 environments × 128 steps, 4 minibatches, 4 epochs, two tanh networks of 64 × 64 | env steps per second |
| ppo-acrobot, ppo-mountaincar, ppo-mountaincarcontinuous, ppo-pendulum | the same work in the other classic worlds | env steps per second |
| ppo-64, ppo-256 | CartPole-v1 as above with 64 or 256 environments | env steps per second |
| ppo-lunarlander, ppo-halfcheetah | LunarLander-v3 and HalfCheetah-v5, which nobody has compiled; as ppo | env steps per second |
| sac | Pendulum-v1, one update per env step, batch 256, relu networks of 256 × 256 | updates per second |
| dqn | CartPole-v1, one update per 4 env steps, batch 64, relu network of 64 × 64 | env steps per second |
| ppo-pixels | ALE/Pong-v5 as 84 × 84 × 4, 8 environments × 128 steps, 4 minibatches, 4 epochs, the Nature network | env steps per second |
| dqn-pixels | the same frames, one environment, one update per 4 env steps, batch 32 | env steps per second |

How long it takes from nothing to a solved CartPole is told by solve.py.

Observations and rewards are not normalised. The clock sees the training loop alone: start-up and evaluation are outside, compilation is told apart, and of SAC and DQN only what comes after the first steps counts, in which a memory is
filled. Every run is bound to the same cores and calculates with as many threads. In each round another library comes first. Equal work shows in equal settings, and in the returns.

Each run is a line in results/peer_runs.jsonl at once, under the name of a session (the day); a run that is there is not made again. Only the ratio within a round means anything: a machine's speed drifts. A peer that cannot be installed, or
fails, is told and left out. Its environment (build/peers) borrows torch, NumPy and Gymnasium from this one by a path; nothing is installed here. RLlib asks for an older Gymnasium and gets it
there: its worlds have the same versions. EnvPool's (`cleanrl-envpool`) have, too, and were compared with Gymnasium's: see work_cleanrl.py.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (1, 0)]   # the other scripts

from common import RESULTS, RLSTUDIO, ROOT, RunFailed, append, history, make_venv, one_thread, record, table  # noqa: E402
from solve import sentence  # noqa: E402

ROWS, PICTURE, PAGE = RESULTS / "peer_runs.jsonl", ROOT / "docs" / "images" / "peers.svg", ROOT / "docs" / "pages" / "howto" / "fast.md"
BEGIN, END = "<!-- peers: written by benchmarks/peers --page -->\n", "<!-- end of peers -->\n"


@dataclass(frozen=True)
class Case:
    "One comparison"
    title: str              # names the work
    config: str             # ours, in configs/
    same: tuple[str, ...]   # makes it the peers' work, whatever the file says
    peers: tuple[str, ...]  # whom it is compared with
    steps: int              # env steps of one run
    warm: int = 0           # env steps before the clock counts
    ratio: float | None = None  # updates per env step, if updates are what counts

    episodes: int = 20      # of the evaluation, which is not in the clock
    world: str = "CartPole-v1"
    envs: int = 8           # environments at once

    @property
    def figure(self) -> str: return "updates_per_second" if self.ratio else "env_steps_per_second"


PACKAGES = {   # peer → what its environment needs
    "sb3": ["stable-baselines3"], "sb3-subproc": ["stable-baselines3"], "sbx": ["sbx-rl"], "tianshou": ["tianshou"], "torchrl": ["torchrl"], "skrl": ["skrl"], "purejaxrl": ["jax[cpu]", "flax", "optax", "gymnax", "six"],
    "rllib": ["ray[rllib]"], "cleanrl-envpool": ["envpool"],
}
OURS = {   # → engine, and what spreads the work over several cores
    "rlstudio": ("auto", ()), "rlstudio-compiled": ("compiled", ()), "rlstudio-parallel": ("compiled", ("train.parallel={cores}",)), "rlstudio-workers": ("compiled", ("env.backend=workers",)),
}
SPREAD = ("rlstudio-parallel", "rlstudio-workers", "sb3-subproc")   # of use on several cores only
PLAIN = ("net.normalize_obs=false", "net.normalize_reward=false", "algo.learning_rate_schedule=constant", "algo.gamma=0.99")
REPLAY = ("env.num_envs=1", "net.activation=relu", "algo.num_steps=256", "algo.buffer_size=100000", "algo.n_step=1", "algo.prioritized=false",
          "log.every=1")
CASES = {
    "ppo": Case("ppo CartPole-v1, 8 × 128, 4 × 4, 64-64 tanh", "ppo/cartpole.yaml", (
        *PLAIN, "env.num_envs=8", "algo.num_steps=128", "algo.num_minibatches=4", "algo.num_epochs=4", "net.hidden=[64,64]", "net.activation=tanh",
        "algo.learning_rate=0.0003", "algo.gae_lambda=0.95", "algo.clip_range=0.2", "algo.ent_coef=0.0", "algo.vf_coef=0.5",
        "algo.max_grad_norm=0.5", "algo.target_kl=null"), ("cleanrl", "cleanrl-envpool", "sb3", "sbx", "tianshou", "torchrl", "skrl", "rllib", "purejaxrl"), 102_400),
    "sac": Case("sac Pendulum-v1, 1 update per step, batch 256, 256-256 relu", "sac/pendulum.yaml", (
        *PLAIN, *REPLAY, "algo.train_every=1", "algo.update_ratio=1", "algo.batch_size=256", "net.hidden=[256,256]", "algo.learning_rate=0.001",
        "algo.learning_starts=100", "algo.tau=0.005", "algo.ent_coef=auto"), ("sb3", "sbx"), 4_608, warm=512, ratio=1.0, world="Pendulum-v1"),
    "dqn": Case("dqn CartPole-v1, 1 update per 4 steps, batch 64, 64-64 relu", "dqn/cartpole.yaml", (
        *PLAIN, *REPLAY, "algo.train_every=4", "algo.update_ratio=0.25", "algo.batch_size=64", "net.hidden=[64,64]", "algo.learning_rate=0.0005",
        "algo.learning_starts=1000", "algo.tau=1", "algo.target_every=250", "algo.epsilon_start=1", "algo.epsilon_end=0.05",
        "algo.epsilon_fraction=0.1", "algo.max_grad_norm=10", "algo.double=false", "algo.dueling=false", "algo.quantiles=1"),
        ("sb3",), 51_200, warm=2_048),
    "ppo-pixels": Case("ppo ALE/Pong-v5, 84 × 84 × 4, 8 × 128, 4 × 4, nature", "ppo/pong.yaml", (
        "algo.learning_rate_schedule=constant", "algo.clip_range_schedule=constant", "net.normalize_obs=false"), ("sb3",), 6_144, episodes=1),
    "dqn-pixels": Case("dqn ALE/Pong-v5, 84 × 84 × 4, 1 update per 4 steps, batch 32, nature", "dqn/pong.yaml", (
        "env.num_envs=1", "algo.num_steps=256", "algo.buffer_size=10000", "algo.learning_starts=1000", "log.every=1", "net.normalize_reward=false"),
        ("sb3",), 6_144, warm=2_048, episodes=1),
}

CASES |= {f"ppo-{name.lower()}": Case(f"ppo {world}, 8 × 128, 4 × 4, 64-64 tanh", f"ppo/{name.lower()}.yaml", CASES["ppo"].same, ("sb3",), 102_400, world=world)
          for name, world in (("Acrobot", "Acrobot-v1"), ("MountainCar", "MountainCar-v0"), ("MountainCarContinuous", "MountainCarContinuous-v0"), ("Pendulum", "Pendulum-v1"))}
CLASSIC = [name for name in CASES if name.startswith("ppo-") and name != "ppo-pixels"]
CASES |= {f"ppo-{n}": Case(f"ppo CartPole-v1, {n} × 128, 4 × 4, 64-64 tanh", "ppo/cartpole.yaml", (*CASES["ppo"].same, f"env.num_envs={n}"), ("sb3", "purejaxrl"), steps, envs=n)
          for n, steps in ((64, 409_600), (256, 983_040))}
CASES |= {f"ppo-{name.lower()}": Case(f"ppo {world}, 8 × 128, 4 × 4, 64-64 tanh", f"ppo/{name.lower()}.yaml", CASES["ppo"].same, ("sb3", "sb3-subproc", *more), 40_960, episodes=2, world=world)
          for name, world, more in (("LunarLander", "LunarLander-v3", ("cleanrl", "cleanrl-envpool", "rllib")), ("HalfCheetah", "HalfCheetah-v5", ()))}


def rate_after(metrics: Path, warm: int) -> float:
    "Env steps per second from the first record at or after `warm` env steps to the last; records tell the rate since the beginning"
    records = [(r["step"], r["step"] / r["speed/env_steps_per_second"]) for r in map(json.loads, metrics.read_text().splitlines())]
    (step, seconds), (last, end) = next(r for r in records if r[0] >= warm), records[-1]
    return (last - step) / (end - seconds)


def child(command: list[str], cores: int, folder: str | None = None) -> str:
    "What a process says that is bound to some cores, the last ones of this machine"
    allowed = sorted(os.sched_getaffinity(0))[-cores:] if hasattr(os, "sched_getaffinity") else []
    env = one_thread() | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(cores))
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, stdin=subprocess.DEVNULL, preexec_fn=(lambda: os.sched_setaffinity(0, allowed)) if allowed else None)
    if done.returncode: raise RunFailed(f"{' '.join(command)[:200]}\n{done.stderr[-2000:]}")
    return done.stdout


def ours(name: str, case: str, seed: int, steps: int, cores: int) -> dict[str, Any]:
    "One run of RLStudio, in a workspace of its own"
    c, (engine, spread) = CASES[case], OURS[name]
    with tempfile.TemporaryDirectory() as home:
        Path(home, "settings.ini").write_text(f"[DEFAULT]\nruns_dir = runs\nthreads = {1 if spread else cores}\nengine = {engine}\n")
        out = child([str(RLSTUDIO), "run", str(ROOT / "configs" / c.config), f"train.seed={seed}", f"train.total_steps={steps}", f"eval.episodes={c.episodes}", *c.same, *(s.format(cores=cores) for s in spread), "--quiet", "--json"], cores, home)
        result = json.loads(out)
        found = {k: result[k] for k in ("total_steps", "env_steps_per_second", "eval_return_mean", "eval_return_std")}
        if c.warm: found["env_steps_per_second"] = rate_after(Path(home, result["run"], "metrics.jsonl"), c.warm)
    if c.ratio: found["updates_per_second"] = found["env_steps_per_second"] * c.ratio
    return found


def theirs(python: Path, name: str, case: str, seed: int, steps: int, cores: int) -> dict[str, Any]:
    "One run of a peer"
    c, worker = CASES[case], Path(__file__).parent / f"work_{'sb3' if name == 'sbx' else name.split('-')[0]}.py"
    task = json.dumps(dict(library=name, case=case, seed=seed, steps=steps, warm=c.warm, episodes=c.episodes, world=c.world, envs=c.envs, cores=cores))
    found: dict[str, Any] = json.loads(child([str(python), "-P", str(worker), task], cores).splitlines()[-1])
    return found if c.ratio else {k: v for k, v in found.items() if k != "updates_per_second"}


def environments(names: list[str], folder: Path) -> dict[str, Path]:
    "Peer → its Python; one that cannot be installed is told and left out"
    found: dict[str, Path] = {}
    for name in names:
        if name in OURS or name == "cleanrl": found[name] = Path(sys.executable)
        else:
            print(f"{name}: {', '.join(PACKAGES[name])}", file=sys.stderr, flush=True)
            try: found[name] = make_venv(folder / name.split("-")[0], *PACKAGES[name], constrained=name.startswith(("sb", "cleanrl")))
            except subprocess.CalledProcessError as e: print(f"{name} is left out: {e}", file=sys.stderr)
    return found


def rounds_of(options: argparse.Namespace, pythons: dict[str, Path]) -> None:
    "Make what is not there yet; every run is stored as soon as it is over"
    stored = set() if options.no_store else {(r["library"], r["round"]) for r in chosen_rows(options)}
    names, case, lost = list(pythons), options.case, set[str]()
    for n in range(1, options.rounds + 1):
        turn = (n - 1) % len(names)
        for name in names[turn:] + names[:turn]:
            if name in lost or (name, n) in stored: continue
            start = time.perf_counter()
            try: found = ours(name, case, n, options.steps, options.cores) if name in OURS else theirs(pythons[name], name, case, n, options.steps, options.cores)
            except RunFailed as e:
                lost.add(name)
                print(f"{name} failed, and is left out from here on: {e}", file=sys.stderr, flush=True)
                continue
            row = record(session=options.session, case=case, work=CASES[case].title, round=n, library=name, steps=options.steps, cores=options.cores,
                         load=round(os.getloadavg()[0], 1), seconds=round(time.perf_counter() - start, 2), **{k: v if k == "version" else float(v) for k, v in found.items()})
            if not options.no_store: append(ROWS, row)
            options.rows.append(row)
            print(f"round {n}: {name} {found[CASES[case].figure]:,.0f} {CASES[case].figure.replace('_', ' ')}, return {found['eval_return_mean']:.0f}", flush=True)


def chosen_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    "What is stored of this session, case and size"
    return [r for r in history(ROWS) if (r["session"], r["case"], r["steps"], r["cores"]) == (options.session, options.case, options.steps, options.cores)]


def summary(rows: list[dict[str, Any]], figure: str) -> list[dict[str, Any]]:
    "A line a library, the fastest first: median, least and most; the ratio to RLStudio at its best, within rounds"
    by: dict[str, dict[int, float]] = {}
    for r in rows: by.setdefault(r["library"], {})[r["round"]] = r[figure]
    best = max((n for n in by if n in OURS), key=lambda n: statistics.median(by[n].values()), default=None)
    lines = []
    for name, found in by.items():
        ratios = sorted(by[best][n] / x for n, x in found.items() if n in by[best]) if best else []
        own = [r for r in rows if r["library"] == name]
        lines.append(dict(library=name, version=own[-1].get("version") or own[-1]["versions"]["rlstudio"], rounds=len(found), median=statistics.median(found.values()), least=min(found.values()),
                          most=max(found.values()), ratio=statistics.median(ratios) if ratios else None, ratio_least=ratios[0] if ratios else None, ratio_most=ratios[-1] if ratios else None,
                          compile=max((r.get("compile_seconds", 0.) for r in own), default=0.), score=statistics.median(r["eval_return_mean"] for r in own)))
    return sorted(lines, key=lambda line: -line["median"])


def draw(lines: list[dict[str, Any]], case: Case, cores: int, file: Path) -> None:
    "Bars on a logarithmic axis; the same rows give the same file"
    import matplotlib
    from matplotlib.figure import Figure
    with matplotlib.rc_context({"svg.hashsalt": "rlstudio", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, .42 * len(lines) + 1.3), layout="constrained")
        ax, names = figure.add_subplot(), [line["library"] for line in lines][::-1]
        values = [line["median"] for line in lines][::-1]
        ax.barh(names, values, color=["#cc3311" if n in OURS else "#88aadd" for n in names])
        ax.hlines(names, [line["least"] for line in lines][::-1], [line["most"] for line in lines][::-1], color="black", lw=1)
        for name, value, line in zip(names, values, lines[::-1]): ax.text(line["most"], name, f"  {value:,.0f}", va="center", fontsize="small")
        ax.set(xscale="log", xlim=(min(values) / 2, max(values) * 4), xlabel=f"{case.figure.replace('_', ' ')}, {cores} core{'s' * (cores > 1)}; median of {min(line['rounds'] for line in lines)} rounds, least to most", title=case.title)
        ax.title.set_size("medium")
        ax.spines[["right", "top"]].set_visible(False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None, "Creator": None} if file.suffix == ".svg" else None)


def newest_rows() -> dict[tuple[str, int], list[dict[str, Any]]]:
    "(case, cores) → the rows of the newest session in which RLStudio met somebody"
    found: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for r in history(ROWS): found.setdefault((r["case"], int(r["cores"])), {}).setdefault(f"{r['session']} {r['steps']}", []).append(r)
    met = {key: [rows for rows in by.values() if {r["library"] for r in rows} & {*OURS} and {r["library"] for r in rows} - {*OURS}] for key, by in found.items()}
    return {key: max(several, key=lambda rows: str(rows[-1]["time"])) for key, several in met.items() if several}


COLUMNS = {"as it comes": ("rlstudio",), "`compiled`": ("rlstudio-compiled",), "`compiled`, several processes": ("rlstudio-parallel", "rlstudio-workers"),
           "Stable-Baselines3": ("sb3", "sb3-subproc"), "SBX": ("sbx",), "PureJaxRL": ("purejaxrl",), "RLlib": ("rllib",), "one file on EnvPool": ("cleanrl-envpool",)}   # those that nobody has measured are left out


def page(text: str, stored: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    "The page with the table of what is stored between its marks: medians, and how many times as fast RLStudio is at its best"
    def cell(lines: list[dict[str, Any]], names: tuple[str, ...]) -> str:
        best = max((x for x in lines if x["library"] in names), key=lambda x: x["median"], default=None)
        if best is None: return "–"
        speed = format(float(format(best["median"], ".3g")), ",.0f")
        return speed if best["library"] in OURS else f"{speed} ({best['ratio']:{'.3g' if best['ratio'] < 2 else '.2g'}} ×)"
    met = {r["library"] for rows in stored.values() for r in rows}
    columns = {title: names for title, names in COLUMNS.items() if met & {*names}}
    table_, rounds, others = [f"| work, and what counts | cores | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)], set[int](), list[float]()
    for name, c in CASES.items():
        for (_, cores), rows in sorted((k, v) for k, v in stored.items() if k[0] == name):
            lines = summary(rows, c.figure)
            rounds |= {x["rounds"] for x in lines}
            if name in CLASSIC:   # a sentence for all of them
                others += [x["ratio"] for x in lines if x["library"] == "sb3"]
                continue
            table_.append(f"| {c.title}: {c.figure.split('_per')[0].replace('_', ' ')}/s | {cores} | " + " | ".join(cell(lines, names) for names in columns.values()) + " |")
    where = sorted({f"{r['machine']['cpu']}, {max(str(x['time'])[:7] for x in rows)}" for rows in stored.values() for r in rows[-1:]})
    note = f"Medians of {min(rounds)} to {max(rounds)} rounds in turns ({'; '.join(where)}; [raw numbers](../../../benchmarks/results/peer_runs.jsonl), by [benchmarks/peers](../../../benchmarks/peers/__main__.py)). In brackets: how many times as fast RLStudio is at its best, within rounds. `8 × 128` are environments and steps of a rollout, `4 × 4` epochs and minibatches."
    if others: note += f" In the other classic worlds it is {min(others):.2g} to {max(others):.2g} × as fast as Stable-Baselines3."
    if "cleanrl-envpool" in met: note += " One file on EnvPool: PPO in CleanRL's manner, with torch, whose worlds EnvPool steps."
    if solved := sentence(): note += f" {solved}"
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + "\n".join(table_) + "\n\n" + note + "\n" + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="ppo", help="the work (default: ppo)")
    parser.add_argument("--rounds", type=int, default=5, help="of this session, all together (default: 5)")
    parser.add_argument("--only", metavar="NAME,NAME", help="these libraries, RLStudio's two engines included: " + ", ".join((*OURS, "cleanrl", *PACKAGES)))
    parser.add_argument("--steps", type=int, help="env steps of one run (default: " + ", ".join(f"{k} {c.steps}" for k, c in CASES.items()) + ")")
    parser.add_argument("--cores", type=int, default=1, help="that each run is bound to (default: 1)")
    parser.add_argument("--session", default=time.strftime("%Y-%m-%d", time.gmtime()), help="runs of one name belong together (default: the day)")
    parser.add_argument("--venvs", type=Path, default=ROOT / "build" / "peers", help="where the peers' environments are kept (default: build/peers)")
    parser.add_argument("--draw", action="store_true", help="no runs: the table and the picture of what is stored")
    parser.add_argument("--plot", type=Path, default=PICTURE, help="where the picture goes (default: docs/images/peers.svg)")
    parser.add_argument("--page", action="store_true", help="no runs: write the table of the page 'Make it fast'")
    parser.add_argument("--check", action="store_true", help="no runs: fail when that table is not what the stored rows say")
    parser.add_argument("--no-store", action="store_true", help="a trial: print the figures, leave the stored history and the picture alone")
    options = parser.parse_args()
    if options.page: PAGE.write_text(page(PAGE.read_text(), newest_rows()))
    if options.check and PAGE.read_text() != page(PAGE.read_text(), newest_rows()): sys.exit(f"{PAGE.name}: not what {ROWS.name} says; run: python benchmarks/peers --page")
    if options.page or options.check: return
    case = CASES[options.case]
    options.steps = options.steps or case.steps
    if options.steps < 2 * case.warm: parser.error(f"--steps {options.steps}: expected at least {2 * case.warm}, since the first {case.warm} do not count")
    names = options.only.split(",") if options.only else [n for n in (*OURS, *case.peers) if options.cores > 1 or n not in SPREAD]
    if odd := [n for n in names if n not in (*OURS, *case.peers)]: parser.error(f"--only: given {', '.join(odd)}, expected some of {', '.join((*OURS, *case.peers))}")
    options.rows = [] if options.no_store else chosen_rows(options)
    if not options.draw: rounds_of(options, environments(names, options.venvs))
    rows = [r for r in options.rows if r["library"] in names]
    if not rows: sys.exit("nothing was measured")
    lines = summary(rows, case.figure)
    print(table(("library", "version", "rounds", case.figure, "RLStudio is × faster", "least", "most", "compiles s", "return"), [
        [x["library"], x["version"], x["rounds"], round(x["median"]), *("–" if x[k] is None else float(x[k]) for k in ("ratio", "ratio_least", "ratio_most")), float(x["compile"]), float(x["score"])] for x in lines]))
    if not options.no_store: draw(lines, case, options.cores, options.plot)


if __name__ == "__main__": main()
