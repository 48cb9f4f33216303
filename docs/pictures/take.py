"""Take the pictures in the documentation: of reports about runs that are traced and tuned for this.

``python docs/pictures/take.py`` takes two minutes, and a Chromium. Costs and times are those of the
machine, so nothing else should run on it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# The checkout's own packages, whether or not they are installed.
PATHS = [str(ROOT), str(ROOT / "connectors")]
sys.path[:0] = PATHS

from tests.chromium import Chromium, Page, chromium  # noqa: E402 - found by the above

SHADES = {"light": False, "dark": True}

# In pixels: of the window, and around what is shown.
WIDTH = 960
MARGIN = 14

SECTIONS = ("policies", "verified", "costs", "timeline", "live", "unread")


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, default=HERE, help="the directory for the pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, chromium() as browser:
        place = Path(directory)
        report = tuned(HERE / "cells.py", place / "cells", verify=True)
        take(browser, report, options.to)
        program = place / "survey.py"
        program.write_text(example("survey.py"), encoding="utf-8")
        report = tuned(program, place / "survey", verify=False)
        for name, dark in SHADES.items():
            with browser.open(report, width=WIDTH, dark=dark) as page:
                point(page)
                page.picture(options.to / f"survey-{name}.png", "#timeline", MARGIN)


def example(name: str) -> str:
    """Return a program of the page on tuning."""
    text = (HERE.parent / "tuning.md").read_text(encoding="utf-8")
    after = text.partition(f"<!-- file: {name} -->\n```python\n")[2]
    return after.partition("\n```\n")[0] + "\n"


def tuned(program: Path, directory: Path, *, verify: bool) -> Path:
    """Run a program, which writes a trace, tune it, and return the path of the report."""
    directory.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(PATHS),
        "XDG_CACHE_HOME": str(directory / "cache"),
    }
    tune = ["-m", "proxyexec", "tune", "run.jsonl", "--report", "report.html"]
    if verify:
        tune += ["--rounds", "5", "--verify", str(program)]
    for arguments in ([str(program)], tune):
        command = [sys.executable, *arguments]
        subprocess.run(command, cwd=directory, env=environment, check=True)
    return directory / "report.html"


def take(browser: Chromium, report: Path, to: Path) -> None:
    """Take pictures of a report: of its sections, with light and dark colours, and on a phone."""
    for name, dark in SHADES.items():
        with browser.open(report, width=WIDTH, dark=dark) as page:
            point(page)
            for section in SECTIONS:
                if page.run(f"document.getElementById({section!r}) !== null"):
                    page.picture(to / f"{section}-{name}.png", f"#{section}", MARGIN)
    with browser.open(report, width=380, height=780, scale=1.5) as page:
        page.picture(to / "phone.png", "#timeline", MARGIN)


def point(page: Page) -> None:
    """Click at a function in the chart of the run: the picture is to show what that does."""
    bars = "[...document.querySelectorAll('#timeline-run rect.run')]"
    longest = f"{bars}.sort((a, b) => b.width.baseVal.value - a.width.baseVal.value)[0]"
    page.run(f"{longest}.id = 'longest'")
    page.click("#longest")


if __name__ == "__main__":
    main()
