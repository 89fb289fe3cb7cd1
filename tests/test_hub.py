"Pushing an agent to the Hub and getting it back, against a server on this machine that speaks the Hub's protocol (chapter runs.hub)."
import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import run as run_command
from support import said

import rlstudio
from rlstudio.runs.export import AgentError, load_agent
from rlstudio.runs.hub import HubError, push
from rlstudio.runs.run import Run

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # between huggingface_hub and its HTTP library
REPO, TOKEN = "ann/cartpole-ppo", "hf_" + "x" * 30


class Hub(ThreadingHTTPServer):
    "A Hub with users, repositories and commits, all in memory"
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("", 0), Answer)
        self.repos: dict[str, dict[str, Any]] = {}     # name -> private, commits: [(id, {file: bytes})]
        self.blobs: dict[str, bytes] = {}              # large files by SHA-256
        self.asked: list[str] = []                     # every request, 'GET /path'
        self.before: dict[str, Any] = {}               # path's end -> what happens before it is answered

    @property
    def url(self) -> str: return f"http://localhost{':'}{self.server_port}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        commits = self.repos[repo]["commits"]
        return next(f for oid, f in reversed(commits) if revision in ("main", oid))

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        commits = self.repos.setdefault(repo, dict(private=False, commits=[]))["commits"]
        now = dict(commits[-1][1] if commits else {}) | files
        oid = hashlib.sha1(repr([len(commits), *sorted((k, hashlib.sha256(v).hexdigest()) for k, v in now.items())]).encode()).hexdigest()
        commits.append((oid, now))
        return oid


class Answer(BaseHTTPRequestHandler):
    "What the Hub says"
    server: Hub
    protocol_version = "HTTP/1.1"
    def log_message(self, *args: Any) -> None: pass

    def reply(self, code: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for k, v in dict({"Content-Length": str(len(data)), "Content-Type": "application/json"}, **headers).items(): self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(data)

    def may(self) -> bool: return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.headers.get("Content-Length") and self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16): body += self.rfile.read(size); self.rfile.readline()
            self.rfile.readline()
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml": return self.reply(200, dict(errors=[], warnings=[]))
        if not self.may(): return self.reply(401, dict(error="Invalid username or password."))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
            if name.partition("/")[0] != "ann": return self.reply(403, dict(error="You don't have the rights to create a model under this namespace"))
            if name in hub.repos: return self.reply(409, dict(error="You already created this model repo", url=f"{hub.url}/{name}"))
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            hub.repos[name] = dict(private=private, commits=[])
            hub.commit(name, {".gitattributes": b""})
            return self.reply(200, dict(url=f"{hub.url}/{name}", name=name, id=name))
        repo = "/".join(path.split("/")[3:5]) if path.startswith("/api/models/") else "/".join(path.split("/")[1:3]).removesuffix(".git")
        if repo not in hub.repos: return self.reply(404, dict(error="Repository not found"), **{"X-Error-Code": "RepoNotFound"})
        if "/preupload/" in path:
            large = (".safetensors", ".png", ".webp")
            return self.reply(200, dict(files=[dict(path=f["path"], uploadMode="lfs" if f["path"].endswith(large) else "regular", shouldIgnore=False)
                                               for f in json.loads(body)["files"]]))
        if path.endswith("/info/lfs/objects/batch"):
            objects = [dict(o, actions=dict(upload=dict(href=f"{hub.url}/lfs/{o['oid']}"))) for o in json.loads(body)["objects"]]
            return self.reply(200, dict(transfer="basic", objects=objects), **{"Content-Type": "application/vnd.git-lfs+json"})
        if "/commit/" in path:
            files = {}
            for line in map(json.loads, body.splitlines()):
                v = line["value"]
                if line["key"] == "file": files[v["path"]] = base64.b64decode(v["content"])
                if line["key"] == "lfsFile": files[v["path"]] = hub.blobs[v["oid"]]
            oid = hub.commit(repo, files)
            return self.reply(200, dict(success=True, commitOid=oid, commitUrl=f"{hub.url}/{repo}/commit/{oid}"))
        self.reply(404)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[hashlib.sha256(data).hexdigest()] = data
        self.reply(200)

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        for end, do in list(hub.before.items()):
            if path.endswith(end) and self.command == "GET": do(hub.before.pop(end) and None)
        parts = path.strip("/").split("/")
        repo = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
        here = hub.repos.get(repo)
        if here is None or here["private"] and not self.may():
            return self.reply(401 if not self.may() else 404, dict(error="Repository not found"), **{"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api": return self.reply(200, dict(id=repo, private=here["private"], sha=here["commits"][-1][0], siblings=[]))
        _, _, word, revision, name = parts
        try: oid, files = next((o, f) for o, f in reversed(here["commits"]) if revision in ("main", o))
        except StopIteration: return self.reply(404, **{"X-Error-Code": "RevisionNotFound"})
        if name not in files: return self.reply(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        self.reply(200, files[name], ETag=f'"{hashlib.sha256(files[name]).hexdigest()}"', **{"X-Repo-Commit": oid, "Content-Type": "application/octet-stream"})

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"): monkeypatch.delenv(name, raising=False)
    for key, value in dict(HF_HUB_CACHE=str(tmp_path / "cache"), HF_HUB_DISABLE_XET=True,
                           HF_TOKEN_PATH=str(tmp_path / "token"), HF_HUB_DISABLE_PROGRESS_BARS=True).items(): monkeypatch.setattr(constants, key, value)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.from_config("ppo/cartpole", ["net.hidden=[16]", "eval.episodes=3", "env.num_envs=4"], tmp_path_factory.mktemp("runs"), "short", total_steps=4096)
    run.train()
    return run


def test_there_and_back(hub: Hub, trained: Run, capfd: pytest.CaptureFixture[str]) -> None:
    url = push(trained, REPO)
    assert url.startswith(f"{hub.url}/{REPO}/commit/")
    assert {*hub.files(REPO)} == {".gitattributes", "README.md", "agent.json", "config.yaml", "learning_curve.png", "rollout.webp", "verdict.json",
                                  "weights.safetensors"}
    assert len(hub.repos[REPO]["commits"]) == 2   # made, and one commit: never half an agent
    hub.asked.clear()
    agent, mine = rlstudio.load_agent(f"hf://{REPO}"), trained.agent()
    obs = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    assert (agent(obs) == mine(obs)).all() and (agent.value(obs) == mine.value(obs)).all() and agent.spec == mine.spec
    fetched = {a.rpartition("/")[2] for a in hub.asked if a.startswith("GET")}
    assert fetched == {"agent.json", "weights.safetensors"}   # nothing else is even asked for


def test_the_card_says_what_one_asks(hub: Hub, trained: Run) -> None:
    push(trained, REPO)
    card, result = hub.files(REPO)["README.md"].decode(), trained.read("result.json")
    _, front, text = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["pipeline_tag"] == "reinforcement-learning" and {"ppo", "CartPole-v1", "rlstudio"} <= set(facts["tags"])
    [outcome] = facts["model-index"][0]["results"]
    assert outcome["dataset"]["name"] == "CartPole-v1"
    assert outcome["metrics"][0]["value"] == f"{result['eval_return_mean']:.2f} +/- {result['eval_return_std']:.2f}"
    for part in (f"{result['eval_return_mean']:,.1f} ± {result['eval_return_std']:,.1f}", "over 3 greedy episodes", "**L3**", "torch ", "Seed 1, 4,096 environment steps",
                 f"rlstudio.load_agent('hf://{REPO}')", "![learning curve](learning_curve.png)", "![rollout](rollout.webp)"): assert part in text, part
    from huggingface_hub import ModelCard
    assert ModelCard(card).data.eval_results[0].metric_type == "mean_reward"   # the Hub's own reader takes it


def test_no_path_and_no_user_of_this_machine_goes_up(hub: Hub, trained: Run) -> None:
    import getpass
    push(trained, REPO)
    words = [str(trained.folder.parent).encode(), str(Path.home()).encode() + b"/"] + ([getpass.getuser().encode()] if len(getpass.getuser()) > 4 else [])
    assert not [(n, w) for n, data in hub.files(REPO).items() for w in words if w in data]


def test_a_step_without_an_evaluation_has_no_score(hub: Hub, tmp_path: Path, trained: Run) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    (folder / "evaluations.json").unlink()
    push(folder, REPO)
    assert b"This step was not evaluated." in hub.files(REPO)["README.md"] and b"model-index" not in hub.files(REPO)["README.md"]


def test_private_is_private(hub: Hub, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    push(trained, REPO, private=True)
    assert hub.repos[REPO]["private"] and load_agent(f"hf://{REPO}")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"load_agent\('hf://ann/cartpole-ppo'\) failed .*fix: .*hf auth login"): load_agent(f"hf://{REPO}")


def test_private_onto_a_public_repository_sends_nothing(hub: Hub, trained: Run) -> None:
    hub.commit(REPO, {"README.md": b"public"})
    with pytest.raises(HubError, match="there already, and public, expected a private one; nothing was sent"): push(trained, REPO, private=True)
    assert {*hub.files(REPO)} == {"README.md"} and not hub.blobs


def test_a_revision_is_that_version(hub: Hub, trained: Run) -> None:
    first = push(trained, REPO).rpartition("/")[2]
    hub.commit(REPO, {"agent.json": b"{}"})
    assert load_agent(f"hf://{REPO}@{first}")
    with pytest.raises(AgentError, match=f"hf://{REPO}/agent.json: .*damaged or not ours"): load_agent(f"hf://{REPO}")
    with pytest.raises(HubError, match=r"failed \(404\).*fix: check owner, name, revision"): load_agent(f"hf://{REPO}@v9")
    with pytest.raises(AgentError, match="at an address there is one agent"): load_agent(f"hf://{REPO}", step=4096)


def test_both_files_are_of_one_commit(hub: Hub, trained: Run) -> None:
    "Somebody pushes between the two downloads"
    push(trained, REPO)
    hub.before["/agent.json"] = lambda _: hub.commit(REPO, {"weights.safetensors": b"other"})
    assert load_agent(f"hf://{REPO}") and not hub.before


@pytest.mark.parametrize("change, words", [
    (lambda f: {"agent.json": f["agent.json"] + b" " * 2**26}, r"agent.json has .* bytes, expected at most .*not taken"),
    (lambda f: {"weights.safetensors": f["weights.safetensors"] + b"x"}, r"weights.safetensors has .* bytes, expected at most .*not taken"),
    (lambda f: {"weights.safetensors": f["weights.safetensors"][:-1] + b"x"}, "SHA-256"),
    (lambda f: {"weights.safetensors": f["weights.safetensors"][:-1]}, "SHA-256"),
    (lambda f: {"agent.json": f["agent.json"].replace(b"CartPole-v1", b"CartPole-v0")}, "SHA-256"),
    (lambda f: {"agent.json": b"[" * 10**5}, "damaged or not ours"),
], ids=["large", "longer", "changed", "shorter", "facts", "nested"])
def test_what_a_stranger_changed_is_refused(hub: Hub, trained: Run, change: Any, words: str) -> None:
    push(trained, REPO)
    hub.commit(REPO, change(hub.files(REPO)))
    hub.asked.clear()
    with pytest.raises(AgentError, match=words): load_agent(f"hf://{REPO}")
    if "not taken" in words: assert not any(a.startswith("GET") and a.endswith(words.split(" has")[0]) for a in hub.asked)


def test_a_repository_without_an_agent_is_said(hub: Hub) -> None:
    hub.commit(REPO, {"pytorch_model.bin": b"", "agent.py": b"raise SystemExit"})
    with pytest.raises(HubError, match=r"failed \(404\).*fix: check owner, name, revision and file"): load_agent(f"hf://{REPO}")
    with pytest.raises(HubError, match="fix: check owner, name"): load_agent("hf://ann/nobody")


def test_what_was_fetched_is_there_offline(hub: Hub, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    push(trained, REPO)
    first = load_agent(f"hf://{REPO}")
    monkeypatch.setenv("HF_ENDPOINT", hub.url.rpartition(":")[0] + ":9")   # nobody is there
    again = load_agent(f"hf://{REPO}")
    assert again(np.zeros(4, np.float32)) == first(np.zeros(4, np.float32))
    with pytest.raises(HubError, match="failed: .*fix: check the network"): load_agent("hf://ann/other")


def test_push_needs_a_token_that_may_write(hub: Hub, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"push to bob/x failed \(403\).*fix: use a token that may write to bob"): push(trained, "bob/x")
    with pytest.raises(HubError, match=r"push to ann/x failed \(401\).*fix: log in: hf auth login"): push(trained, "ann/x", token="hf_wrong")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="push needs a token .*fix: hf auth login"): push(trained, REPO)
    assert not hub.repos


def test_the_missing_extra_is_named(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"pip install 'rlstudio\[hub\]'"): push(trained, REPO)
    with pytest.raises(HubError, match=r"pip install 'rlstudio\[hub\]'"): load_agent(f"hf://{REPO}")


def test_the_command(hub: Hub, trained: Run, tmp_path: Path) -> None:
    env = dict(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET="1")
    done = run_command("rlstudio", "push", trained.folder, REPO, "--private", "--json", coverage=False, **env)
    assert done.returncode == 0, said(done)
    told = json.loads(done.stdout)
    assert told["repo"] == REPO and told["url"].startswith(f"{hub.url}/{REPO}/commit/") and hub.repos[REPO]["private"]
    done = run_command("rlstudio", "push", trained.folder, "nonsense", coverage=False, **env)
    assert done.returncode == 2 and "expected hf://OWNER/NAME" in done.stderr and "Traceback" not in done.stderr, said(done)
