#!/usr/bin/env python3
"""README.md from nbs/index.ipynb: `python docs/make_readme.py` writes it, `--check` fails when it is not fresh.

Markdown cells stay as they are, code cells become fenced python followed by the text that they have stored. Cells with `#| hide` are
left out, of one with `#| echo: false` only the output is kept. Relative links, which start at nbs/ in the notebook, start at the root in the README, and must lead to a file.
"""
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
HEADER = "<!-- Written by docs/make_readme.py from nbs/index.ipynb: edit the notebook, not this file. -->\n"
LINK = re.compile(r'(\]\(|\bsrc=")([^)"\s#]+)')
FENCE = re.compile(r"^(```.*?^```$)", re.M | re.S)


class ReadmeError(ValueError):
    "The notebook cannot become a README as it is"


def relink(text: str, root: Path = ROOT) -> str:
    "Relative links of prose, from nbs/ to the root; code fences stay as they are"
    def at_root(m: re.Match[str]) -> str:
        link = m[2]
        if re.match(r"[a-z]+:", link): return m[0]
        path = posixpath.normpath(posixpath.join("nbs", link))
        if not (root / path).exists(): raise ReadmeError(f"the link {link!r} leads to {path}, which does not exist; mend it in nbs/index.ipynb")
        return m[1] + path
    return "".join(part if part.startswith("```") else LINK.sub(at_root, part) for part in FENCE.split(text))


def fence(text: str, language: str) -> str: return f"```{language}\n{text.strip()}\n```"


def join(text: "str | list[str]") -> str: return text if isinstance(text, str) else "".join(text)


def output(out: dict, root: Path = ROOT) -> str:
    "What one stored output shows as text, or nothing for a picture"
    if out["output_type"] == "stream": return fence(join(out["text"]), "text") if out["name"] == "stdout" else ""
    if out["output_type"] == "error": raise ReadmeError("a cell of nbs/index.ipynb has stored an error; run it again")
    data = out["data"]
    if "text/markdown" in data: return relink(join(data["text/markdown"]).strip(), root)
    if any(kind.startswith("image/") for kind in data): return ""
    return fence(join(data.get("text/plain", "")), "text")


def render(notebook: dict, root: Path = ROOT) -> str:
    "The README's text"
    parts = [HEADER.strip()]
    for cell in notebook["cells"]:
        source = join(cell["source"])
        directives = re.findall(r"^#\|\s*(\S+)", source, re.M) + list(cell.get("metadata", {}).get("nbdev", {}))
        if cell["cell_type"] == "raw" or "hide" in directives or not source.strip(): continue
        if cell["cell_type"] == "markdown": parts.append(relink(source.strip(), root)); continue
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
        if code.startswith(("!", "%%bash")): parts.append(fence(re.sub(r"^(!|%%bash\s*\n)", "", code), "sh"))
        elif code and "echo:" not in directives: parts.append(fence(code, "python"))
        parts += filter(None, (output(o, root) for o in cell["outputs"]))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    fresh = render(json.loads(INDEX.read_text()))
    if "--check" not in sys.argv[1:]: README.write_text(fresh); return 0
    if README.read_text() == fresh: return 0
    print("README.md is not what nbs/index.ipynb says; run: python docs/make_readme.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try: sys.exit(main())
    except (ReadmeError, FileNotFoundError) as error: sys.exit(f"make_readme: {error}")
