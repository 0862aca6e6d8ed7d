"""Do all links of a built site lead somewhere? Those within it, without a network: files, and places within pages.

    python tools/links.py build/site

Addresses of other sites are counted and not asked.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the places in it that can be linked to.

    Attributes:
        links: targets of href and src, as they are written.
        places: names that may stand behind a #.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        for name, value in attrs:
            if value and (name in ("href", "src") or (name == "content" and tag == "meta" and "url=" in value)):
                self.links.append(value.rpartition("url=")[2])
            elif value and (name == "id" or (name == "name" and tag == "a")):
                self.places.add(value)


def broken(site: Path) -> tuple[list[str], int, int]:
    """Links of a site's pages that lead nowhere.

    Args:
        site: its folder.

    Returns:
        Each broken link in a line with its page, the number of links within the site, and that of other sites' addresses.
    """
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    found, inside, outside = [], 0, 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside += 1
                continue
            inside += 1
            # 404.html is shown at any address, so its links begin at the root.
            start = site.resolve() if parts.path.startswith("/") else path.parent
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            there = target in pages and (not parts.fragment or unquote(parts.fragment) in pages[target].places)
            if not there and (target in pages or not target.is_file()):
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found, inside, outside


def main() -> None:
    """Check, and say what is broken."""
    found, inside, outside = broken(Path(sys.argv[1]))
    print(f"{inside} links within the site, {len(found)} of them broken; {outside} addresses of other sites, not asked")
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
