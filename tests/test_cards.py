"What shows itself in a cell: cards that can do nothing, pictures without pyplot, and a package that says what it has."
import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gymnasium as gym
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from support import ROOT, cells, child_env, run, said

import rlstudio
from rlstudio.core.batch import Batch
from rlstudio.core.options import ConfigError, config_from_dict
from rlstudio.core.seeding import Streams
from rlstudio.core.spec import ArraySpec, spec_from_space
from rlstudio.data.replay import ReplayBuffer
from rlstudio.envs.backends import make_vector
from rlstudio.envs.check import EnvReport, Finding, check_env
from rlstudio.nets.modules import ActorCritic
from rlstudio.runs.checkpoint import latest_checkpoint
from rlstudio.runs.config import Settings, any_config, as_overrides, load_config
from rlstudio.runs.folder import RunError
from rlstudio.runs.run import Run
from rlstudio.studio.cards import CARDS, as_html, register_cards
from rlstudio.train.evaluate import Evaluation
from rlstudio.train.trainer import Trainer

EVIL = '"><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>\x1b[31m\u202e'
SHORT = {"train.total_steps": 2048, "eval.episodes": 2, "checkpoint.every": 1024}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run.from_config("ppo/cartpole", SHORT, runs_dir=tmp_path_factory.mktemp("runs"), name="mine")
    made.train()
    return made


# Cards

class Strict(HTMLParser):
    "Reads a card, and notes whatever could act or ask another computer"
    ACTS = {"script", "iframe", "object", "embed", "link", "meta", "form", "input", "a", "base"}
    VOID = {"img", "hr", "br"}

    def __init__(self) -> None: super().__init__(); self.found, self.open = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self.ACTS: self.found.append(tag)
        for name, value in attrs:
            outside = name in ("src", "href", "action", "data", "srcset") and not (value or "").startswith("data:image/webp;base64,")
            if name.startswith("on") or outside: self.found.append(f"{tag} {name}={value}")
        if tag not in self.VOID and tag != "polyline": self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "polyline" and (not self.open or self.open.pop() != tag): self.found.append(f"</{tag}> without its start")


def acts(html: str) -> list[str]:
    reader = Strict()
    reader.feed(html)
    return reader.found + reader.open + re.findall(r"url\(|@import|javascript:", html)


def test_what_acts_is_found() -> None:
    for bad in ("<script></script>", "<img src=//x>", "<b onclick=x></b>", "<b>", "</b>", "<style>@import x</style>"): assert acts(bad), bad
    assert not acts("<div class='a'><b>x</b></div>")


def things(trained: Run, evil: str) -> Iterator[Any]:
    "One of each kind, with words of somebody else in it"
    tree = gym.spaces.Dict({evil: gym.spaces.Box(-1, 1, (4,)), "b": gym.spaces.Discrete(3, start=-1)})
    spec, action = ArraySpec(evil, (4,), np.dtype("float32")), spec_from_space(gym.spaces.Discrete(2), "action")
    config = config_from_dict({"env": {"id": "CartPole-v1", "kwargs": {evil: evil}}, "algo": {"name": "ppo"}})
    yield from (spec, spec_from_space(tree), Batch(obs=np.zeros((2, 3))), Batch(**{evil: np.zeros((2, 3))}), Batch(x=Batch(y=np.zeros((0, 3)))))
    yield from (config, config.env, config.algo, Settings(runs_dir=evil))
    yield EnvReport(evil, [Finding("problem", evil, evil, evil, evil, evil)], {evil: evil}, {evil: evil}, evil)
    yield Evaluation((1., 2., 4.), (1, 2, 3), True, 5, (1,))
    env = make_vector(config_from_dict({"env": {"id": "CartPole-v1"}, "algo": {"name": "ppo"}}).env)
    env.env_id = evil
    yield env
    yield ActorCritic(spec, action, config.net, Streams(1)["init"])
    yield ReplayBuffer(100, 2, spec, action)
    trainer = Trainer(trained.config)
    trainer.metrics, trainer.stop_reason = {evil: 1.}, evil
    yield trainer
    saved, _ = latest_checkpoint(trained.folder / "checkpoints")
    assert saved
    saved.meta["level"] = evil
    yield saved
    agent = trained.agent()
    agent.facts |= {evil: evil}
    yield agent
    yield trained


def test_everything_has_a_card_that_cannot_act(trained: Run) -> None:
    shown = set()
    for x in things(trained, EVIL):
        html = as_html(x)
        assert html and not acts(html) and "cannot be shown" not in html, (type(x), html)
        assert "<script" not in html and "<img" not in html and "\x1b" not in html and "\u202e" not in html, type(x)
        shown |= {f"{c.__module__}.{c.__qualname__}" for c in type(x).__mro__}
    assert CARDS.keys() == CARDS.keys() & shown, CARDS.keys() - shown


def test_a_text_says_something(trained: Run) -> None:
    "Where a page shows no HTML, `repr` is what one sees: no address in it"
    for x in things(trained, "odd"): assert not re.search(r" object at 0x|^<rlstudio", repr(x)), repr(x)
    assert repr(trained).endswith("goal 475)") and "ppo on CartPole-v1, seed 1; completed, 2,048 steps" in repr(trained)


def test_a_card_of_a_damaged_run(trained: Run, tmp_path: Path) -> None:
    import shutil
    folder = tmp_path / "hurt"
    shutil.copytree(trained.folder, folder)
    hurt = Run.open(folder)
    for name in ("manifest.json", "result.json"):
        for text in ("[1", "[1]", '{"status": {"a": []}, "env_steps": "x", "goal": "y", "level": 3, "solved": [], "eval_return_mean": "z"}', json.dumps({"status": EVIL, "goal": 1e308})):
            (folder / name).write_text(text)
            html = as_html(hurt)
            assert html and not acts(html) and "ppo on CartPole-v1" in html and "cannot be shown" not in html, (name, text, html)
            assert repr(hurt).startswith("Run(") and "\x1b" not in repr(hurt)
    (folder / "metrics.jsonl").write_text('{"step": "x", "episode/return_mean": []}\n{"step": 1}\n')
    assert "cannot be shown" not in (as_html(hurt) or "cannot be shown")


def test_what_cannot_be_shown_says_why() -> None:
    html = as_html(Evaluation(("<b>",), (1,), True))  # type: ignore[arg-type]
    assert html and "cannot be shown" in html and "Error: " in html and not acts(html)


class Shell:
    "What `register_cards` needs of a shell"
    def __init__(self) -> None:
        from IPython.core.formatters import DisplayFormatter
        self.display_formatter = DisplayFormatter()


def test_registering_is_local_and_repeats() -> None:
    from IPython.core.formatters import DisplayFormatter
    shell, other = Shell(), DisplayFormatter()
    for _ in range(2): register_cards(shell)
    x = Batch(obs=np.zeros(3))
    assert "<b>Batch</b>" in shell.display_formatter.format(x)[0]["text/html"] and "text/html" not in other.format(x)[0]


def test_a_figure_keeps_the_form_that_somebody_chose() -> None:
    from matplotlib.figure import Figure
    shell = Shell()
    shell.display_formatter.formatters["image/svg+xml"].for_type(Figure, lambda f: "<svg>theirs</svg>")
    register_cards(shell)
    shown = shell.display_formatter.format(Figure())[0]
    assert shown["image/svg+xml"] == "<svg>theirs</svg>" and "image/png" not in shown


def test_pyplot_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Whoever sets a format after the import gets it, and no picture twice"
    monkeypatch.setattr("os.environ", child_env(coverage=False))
    _, shown, closed = executed(tmp_path, "import rlstudio\nfrom matplotlib_inline.backend_inline import set_matplotlib_formats\nimport matplotlib.pyplot as plt\nset_matplotlib_formats('svg')",
        "from rlstudio.runs.pictures import learning_curve\nlearning_curve([])", "plt.plot([1, 2]);")
    assert "image/svg+xml" in data(shown) and "image/png" not in data(shown) and [o.output_type for o in closed] == ["display_data"]


# A real kernel

def executed(folder: Path, *sources: str) -> list[Any]:
    "The outputs of each cell, run in a fresh kernel in a folder"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    NotebookClient(nb, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return [c.outputs for c in nb.cells]


def data(outputs: list[Any]) -> dict[str, Any]:
    "What the last line of a cell shows"
    return next(o.data for o in outputs if o.output_type == "execute_result")


def test_the_example_of_the_readme_in_a_fresh_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A card, a picture without pyplot, a film: and no chapter is imported before it is used"
    monkeypatch.setattr("os.environ", child_env(coverage=False))
    example = next(s for s in cells(ROOT / "nbs" / "index.ipynb") if ".plot()" in s)
    assert "matplotlib" not in example and "pyplot" not in example and "train.seed=1" in example
    example = example.replace("'train.seed=1'", "'train.seed=1', 'train.total_steps=2048', 'eval.episodes=2'")
    first, readme, shown, film, plain, config = executed(tmp_path,
        "import sys, rlstudio\nsorted(m for m in sys.modules if m.startswith(('rlstudio', 'torch', 'numpy')))", example,
        "print(run); run", "run.video()", "any('pyplot' in m for m in sys.modules)", "run.config")
    assert ast.literal_eval(data(first)["text/plain"]) == ["rlstudio", "rlstudio.core", "rlstudio.core.files", "rlstudio.studio", "rlstudio.studio.cards"]
    assert data(readme)["image/png"].startswith("iVBORw0KGgo") and data(plain)["text/plain"] == "False"
    assert "<b>Run</b> ppo on CartPole-v1" in data(shown)["text/html"] and "completed, 2,048 steps" in data(shown)["text/plain"]
    assert "base64,UklGR" in data(film)["text/html"] and "<b>Config</b>" in data(config)["text/html"]


# The package says what it has

def test_what_the_package_lists() -> None:
    listed = dir(rlstudio)
    assert {"Run", "Config", "Trainer", "Batch", "Spec", "check_env", "evaluate", "load_config", "runs", "__version__"} <= {*listed}
    assert not {"Any", "sys", "TYPE_CHECKING", "_HOMES"} & {*listed} and sorted(rlstudio.__all__, key=str.lower) == sorted({*rlstudio.__all__}, key=str.lower)
    for name in listed: getattr(rlstudio, name)
    for name in rlstudio.__all__: assert rlstudio._HOMES[name]
    with pytest.raises(AttributeError, match="'Runn'; it has .*Run"): rlstudio.Runn  # noqa: B018
    with pytest.raises(AttributeError, match="it is in rlstudio.algos.ppo: from rlstudio.algos.ppo import PPO"): rlstudio.PPO  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'PPO' from 'rlstudio'; it is in rlstudio.algos.ppo"): exec("from rlstudio import PPO")
    exec("from rlstudio import fast, algos")


def test_an_import_costs_nothing() -> None:
    code = "import sys, rlstudio; dir(rlstudio); assert not [m for m in sys.modules if m.startswith(('rlstudio.', 'numpy', 'torch', 'IPython'))]"
    done = run(sys.executable, "-c", code, coverage=False)
    assert done.returncode == 0, said(done)


def test_a_star_import_gives_the_names() -> None:
    done = run(sys.executable, "-c", "from rlstudio import *; print(Run.__name__, load_config('ppo/cartpole')[0].env.id, sorted(n for n in dir() if n[0] != '_'))")
    assert done.returncode == 0 and "Run CartPole-v1" in done.stdout and "'sys'" not in done.stdout and "'Any'" not in done.stdout, said(done)


# Forgiving inputs

@pytest.mark.parametrize("changes", [
    "train.total_steps=4096 train.seed=3", "total_steps=4096, seed=3", ["total_steps=4096", {"seed": 3}], [{"train": {"total_steps": 4096}}, "train.seed=3"],
    {"train": {"total_steps": 4096, "seed": 3}}, ("train.total_steps=4096", "seed=3"), {"train.total_steps": np.int64(4096), "seed": 3},
])
def test_overrides_of_any_form(changes: Any) -> None:
    config, _ = load_config("ppo/cartpole", changes)
    assert (config.train.total_steps, config.train.seed) == (4096, 3)


@pytest.mark.parametrize("changes, why", [
    ("every=3", "every: given a key of 3 sections; write eval.every, checkpoint.every or log.every"), (4096, "overrides: given 4096, expected 'section.key=value'"),
    ("total_step=3", "train.total_step: unknown key; did you mean 'total_steps'?"), ({"gama": .9}, "algo.gama: unknown key; did you mean 'gamma'?"),
    ("nonsense", "override 'nonsense': expected section.key=value"), ("train.total_stops=4096", "train.total_stops: unknown key; did you mean 'total_steps'?"),
    ({1: 2}, "algo.1"), (b"seed=3", "expected 'section.key=value'"),
])
def test_a_wrong_override_is_one_error(changes: Any, why: str) -> None:
    "Not one for each character"
    with pytest.raises(ConfigError) as e: load_config("ppo/cartpole", changes)
    assert why in str(e.value) and len(e.value.problems) == 1, e.value


def test_a_text_is_cut_only_between_overrides() -> None:
    assert as_overrides("env.kwargs={a: 1, b: 'x seed=4'} env.wrappers=[{name: A, k: [1, 2]}]\nseed=3") == [
        "env.kwargs={a: 1, b: 'x seed=4'}", "env.wrappers=[{name: A, k: [1, 2]}]", "train.seed=3"]


def test_configs_from_whatever_is_at_hand(trained: Run, tmp_path: Path) -> None:
    config, places = load_config("ppo/cartpole")
    as_dict = {"env": {"id": "CartPole-v1"}, "algo": {"name": "ppo"}}
    for given in ("ppo/cartpole", "configs/ppo/cartpole.yaml", "ppo/cartpole.yaml", Path("ppo/cartpole"), config, (config, places)): assert any_config(given)[0] == config
    assert any_config(as_dict, seed := "seed=3")[0].train.seed == 3 and as_dict == {"env": {"id": "CartPole-v1"}, "algo": {"name": "ppo"}}
    assert any_config(trained.folder)[0] == any_config(str(trained.folder / "config.yaml"))[0] == trained.config
    made = Run.from_config(as_dict, seed, runs_dir=str(tmp_path), total_steps=1024)
    assert made.config.train.seed == 3 and made.config.train.total_steps == 1024 and "new" in repr(made)
    for bad, why in ((None, "given null"), ("cartpole", "there are a2c/cartpole, dqn/cartpole"), ("ppo/cartpol", "did you mean 'ppo/cartpole'"), (3.5, "given 3.5")):
        with pytest.raises(ConfigError, match=re.escape(why)): Run.from_config(bad, runs_dir=tmp_path)


def test_runs_are_found_again(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, settings = trained.folder, Settings(runs_dir=str(trained.folder.parent))
    for given in (folder, str(folder), trained, folder / "config.yaml", folder / "manifest.json", folder / "checkpoints", next((folder / "checkpoints").glob("step_*")), "mine"):
        assert Run.open(given, settings=settings).folder == folder, given
    (tmp_path / "config.yaml").write_text("env: {id: x}")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for bad in ("runs", "runs/gone", "gone"):
        with pytest.raises(RunError, match=f"{bad}: not a run"): Run.open(bad, settings=settings)
    with pytest.raises(RunError, match="did you mean 'mine'"): Run.open("mime", settings=settings)
    with pytest.raises(RunError, match="given None, expected a folder"): Run.open(None)


def test_films(trained: Run, tmp_path: Path) -> None:
    assert trained.video().path.name == "rollout.webp" and not acts(trained.video()._repr_html_())
    untrained = Run.from_config("ppo/cartpole", SHORT, runs_dir=tmp_path)
    with pytest.raises(RunError, match=re.escape("no film 'rollout' in its folder videos; a training leaves one at its end; make one of the newest weights: run.video(make=True)")):
        untrained.video()
    with pytest.raises(RunError, match="nothing was learned yet"): untrained.video(make=True)
    trained.video().path.rename(trained.folder / "videos" / "step_000002048.webp")
    assert trained.video(2048).path.stem == "step_000002048" and trained.video(make=True).path.stem == "rollout"
    (trained.folder / "videos" / "bad.webp").symlink_to(trained.folder / "config.yaml")
    with pytest.raises(ValueError, match="expected a WebP film"): trained.video("bad")


def test_a_check_takes_a_config_too(trained: Run) -> None:
    assert check_env(trained.config, steps=20).env == check_env(trained.config.env, steps=20).env == "CartPole-v1"


def test_the_shell_says_the_same(tmp_path: Path) -> None:
    done = subprocess.run(["rlstudio", "run", "ppo/cartpole", "total_steps=512", "seed=4", "eval.episodes=1", "--json"], cwd=tmp_path, env=child_env(), text=True, capture_output=True)
    assert done.returncode == 0 and json.loads(done.stdout)["seed"] == 4, said(done)
