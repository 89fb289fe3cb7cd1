"The page of the prologue: short, alone, as good as its stored results say, and equal to the library where both compute the same."
import ast
import hashlib
import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT

from rlstudio.algos.ppo import clipped_surrogate, value_loss
from rlstudio.data.returns import gae
from rlstudio.runs.config import load_config


def script() -> ModuleType:
    "benchmarks/one_page.py, which reads the page out of the notebook"
    spec = importlib.util.spec_from_file_location("one_page", ROOT / "benchmarks" / "one_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one_page() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield script()
    sys.modules.pop("common", None)


@pytest.fixture(scope="module")
def page(one_page: ModuleType) -> Any:
    threads = torch.get_num_threads()
    yield one_page.program()
    torch.set_num_threads(threads)


def stored(one_page: ModuleType) -> list[dict[str, Any]]:
    return [json.loads(line) for line in one_page.PATH.read_text().splitlines()]


def test_it_is_a_page_and_alone(one_page: ModuleType) -> None:
    source = one_page.page()
    lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert 50 < len(lines) <= 150
    names = {a.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for a in node.names}
    names |= {str(node.module) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} == {"torch", "numpy", "gymnasium"}


def test_stored_results_are_those_of_this_page(one_page: ModuleType) -> None:
    "At least five seeds, trained by the very cells that stand in the notebook; 475 or more on four of five"
    rows = stored(one_page)
    assert {r["page_sha256"] for r in rows} == {hashlib.sha256(one_page.page().encode()).hexdigest()}, "run benchmarks/one_page.py again"
    assert len({r["seed"] for r in rows}) == len(rows) >= 5
    assert all(len(r["eval_returns"]) == 100 and np.isclose(np.mean(r["eval_returns"]), r["eval_return_mean"]) for r in rows)
    assert sum(r["eval_return_mean"] >= 475 for r in rows) >= .8 * len(rows)


def test_same_hyper_parameters(page: dict[str, Any]) -> None:
    "The page trains with what configs/ppo/cartpole.yaml says"
    config = load_config("ppo/cartpole")[0]
    told = dict(zip(page["train"].__code__.co_varnames[1:], page["train"].__defaults__))
    both = dict(gamma="gamma", lam="gae_lambda") | {k: k for k in told if hasattr(config.algo, k)}
    assert {k: told.pop(k) for k in both} == {k: getattr(config.algo, name) for k, name in both.items()}
    assert told == dict(total_steps=config.train.total_steps, num_envs=config.env.num_envs)
    assert config.algo.ent_coef == 0 and config.algo.learning_rate_schedule == "linear" and config.net.hidden == (64, 64)


def test_same_advantages(page: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 64, 5)).astype(np.float32)
    terminated = rng.random((64, 5)) < .1
    truncated = ~terminated & (rng.random((64, 5)) < .1)
    ours = gae(reward, value, next_value, terminated, truncated, .98, .9)
    assert np.allclose(page["gae"](reward, value, next_value, terminated, terminated | truncated, .98, .9), ours, atol=1e-5)


def test_same_loss_and_gradient(page: dict[str, Any]) -> None:
    "On random data with ratios away from one, against the library's two functions"
    torch.manual_seed(0)
    actor, critic = page["mlp"](4, 2, 1.), page["mlp"](4, 1, 1.)
    obs, action, A, G = torch.randn(32, 4), torch.randint(2, (32,)), torch.randn(32), torch.randn(32)
    old = torch.full((32,), .5).log() + .3 * torch.randn(32)
    params = [*actor.parameters(), *critic.parameters()]
    mine = page["loss"](actor, critic, obs, action, old, A, G, .2, .5)
    log_ratio = torch.distributions.Categorical(logits=actor(obs)).log_prob(action) - old
    standard = (A - A.mean()) / (A.std() + 1e-8)
    ours = -clipped_surrogate(log_ratio, standard, .2) + .5 * value_loss(critic(obs)[:, 0], G)
    assert torch.allclose(mine, ours, atol=1e-6) and (log_ratio.exp() - 1).abs().max() > .3
    for a, b in zip(torch.autograd.grad(mine, params), torch.autograd.grad(ours, params)): assert torch.allclose(a, b, atol=1e-6)
