"""A page as PDF, printed by a Chromium that is on the machine: what is on the paper is what a browser shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from kyomei.errors import KyomeiError
from kyomei.extras import absent, installation

BROWSER = "KYOMEI_BROWSER"
"""Environment variable with the path of a Chromium or Chrome."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge", "microsoft-edge")
"""What it is called on a search path."""
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
"""Where it is on machines that put it on no search path."""
SECONDS = 180
"""Time after which printing is given up."""
_PRINTED_AT = re.compile(rb"(?<=Date \(D:)\d{14}(?=\+00'00'\))")
"""The moment of printing, in UTC, as Chromium writes it down twice: /CreationDate and /ModDate."""
_PART = re.compile(rb"\(node(\d{8})\)")
"""The name of a part of a tagged document, of one length."""


def browser() -> str:
    """Path of a Chromium: the one that is named, one of the machine's, or that of playwright.

    Raises:
        KyomeiError: there is none.
    """
    named = os.environ.get(BROWSER)
    if named:
        found = shutil.which(named)
        if found:
            return found
        raise KyomeiError(f"a browser where {BROWSER} says", f"none at {named}", "correct the path, or unset it")
    for name in (*NAMES, *PLACES):
        found = shutil.which(name)
        if found:
            return found
    own = None if absent("pdf") else _of_playwright()
    if own:
        return own
    do = f"{installation('pdf')} and `playwright install chromium`, or print report.html from any browser"
    raise KyomeiError("Chromium or Chrome to print with", "none", do)


def print_pdf(page: Path, written: str) -> bytes:
    """A page as PDF: A4, pages numbered; from the same page the same browser prints the same bytes.

    Args:
        page: file of the page.
        written: when what it says was written, as ISO 8601 has it: the date of the document, instead of that of printing.

    Raises:
        KyomeiError: there is no browser, or it printed nothing.
    """
    executable = browser()
    with tempfile.TemporaryDirectory(prefix="kyomei-print-") as folder:
        printed = Path(folder) / "page.pdf"
        command = [executable, "--headless", "--disable-gpu", "--no-pdf-header-footer", f"--user-data-dir={folder}/profile"]
        # Chromium refuses its sandbox to root; the page runs no script and loads nothing.
        command += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command += [f"--print-to-pdf={printed}", page.resolve().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _failed(page, executable, str(error)) from error
        if not printed.exists():
            raise _failed(page, executable, (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
        return _numbered(_dated(printed.read_bytes(), written))


def _dated(pdf: bytes, written: str) -> bytes:
    """A printed document of another date; the dates have one length, so that every offset in it stays right."""
    moment = datetime.fromisoformat(written).astimezone(timezone.utc)
    return _PRINTED_AT.sub(moment.strftime("%Y%m%d%H%M%S").encode(), pdf)


def _numbered(pdf: bytes) -> bytes:
    """The same document with the names of its parts counted from one: Chromium counts on from whatever it drew before."""
    first = min((int(name) for name in _PART.findall(pdf)), default=1)
    return _PART.sub(lambda name: b"(node%08d)" % (int(name[1]) - first + 1), pdf)


def _failed(page: Path, executable: str, why: str) -> KyomeiError:
    return KyomeiError("a printed page", f"{executable} printed none ({why})", f"print {page} from a browser by hand")


def _of_playwright() -> str | None:
    """The browser that playwright has downloaded; none: it has not."""
    from playwright.sync_api import Error, sync_playwright

    try:
        with sync_playwright() as driver:
            path = driver.chromium.executable_path
    except Error:
        return None
    return path if os.path.exists(path) else None
