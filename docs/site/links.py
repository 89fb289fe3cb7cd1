"Where each file of the repository is on the site, and links that lead there."
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"(^[ ]*(?P<ticks>`{3,}|~{3,}).*?^[ ]*(?P=ticks)[ ]*$|(?P<t>`+)(?!`).+?(?<!`)(?P=t)(?!`))", re.M | re.S)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
SRC = re.compile(r'(<(?:img|a)\b[^>]*?\b(?:src|href)=")([^"]+)(")')


class Site:
    "Which page a file of the repository has become; files without a page are copied on demand"
    def __init__(self) -> None:
        self.pages: dict[str, str] = {}   # path in the repository → page, with the suffix of its source
        self.copies: set[str] = set()     # paths in the repository that a page links to
        self.lost: list[str] = []         # links that lead nowhere
        self.pictures: set[str] = set()   # those that Markdown shows as pictures

    def leads(self, path: str, anchor: str, page: str) -> str | None:
        "A link from a page to a file of the repository: a source of the site, an address, or None for what is not shown"
        here = posixpath.dirname(page)
        if path in self.pages: return posixpath.relpath(self.pages[path], here or ".") + (f"#{anchor}" if anchor else "")
        if path in self.pages.values(): return posixpath.relpath(path, here or ".") + (f"#{anchor}" if anchor else "")
        if (ROOT / path).is_file(): self.copies.add(path); return posixpath.relpath(f"files/{path}", here or ".")
        if (ROOT / path).is_dir(): return None
        self.lost.append(f"{page}: no file and no page {path}")
        return None

    def link(self, match: re.Match[str], source: str, page: str) -> str:
        "One Markdown link"
        bang, text, target = match.groups()
        if re.match(r"[a-z]+:", target) or target.startswith("#"): return match[0]
        path, _, anchor = target.partition("#")
        at = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        to = self.leads(at if not at.startswith("docs/pages/") or (ROOT / at).is_file() else at.removeprefix("docs/pages/"), anchor, page)
        if to is None: return text
        if anchor and (at.startswith("rlstudio/") or posixpath.normpath(posixpath.join(posixpath.dirname(page), to.partition("#")[0])).startswith("reference/")):
            return f'<a href="{re.sub(r"[.]md(?=#)", ".html", to)}">{text}</a>'   # names and keys are known to the page, and not to MyST
        copied = at in self.copies and at not in self.pages
        if copied and not bang: return f'<a href="{to}">{text}</a>'
        if copied: self.pictures.add(at); to = posixpath.relpath(f"pictures/{at}", posixpath.dirname(page) or ".")
        return f"{bang}[{text}]({to})"

    def relink(self, text: str, source: str, page: str) -> str:
        "A Markdown text of the repository with the links of the site; code stays as it is"
        def picture(m: re.Match[str]) -> str:
            if re.match(r"[a-z]+:|#|data:", m[2]): return m[0]
            at = posixpath.normpath(posixpath.join(posixpath.dirname(source), m[2]))
            to = self.leads(at, "", page) or ""
            return m[1] + (re.sub(r"\.(md|ipynb)$", ".html", to) if at in self.pages else to) + m[3]
        # links whose text holds code: code is put aside while they are rewritten
        kept: list[str] = []
        def aside(m: re.Match[str]) -> str: kept.append(m[0]); return f"\0{len(kept) - 1}\0"
        text = FENCE.sub(aside, text)
        text = LINK.sub(lambda m: self.link(m, source, page), SRC.sub(picture, text))
        return re.sub("\0(\\d+)\0", lambda m: kept[int(m[1])], text)


def one_line(text: str) -> str: return " ".join(text.split())
