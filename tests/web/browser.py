"""The Chromium that the page is tested in: one that is installed, or Debian's.

`python tests/web/browser.py` installs it where there is none and this may be done (as root, with apt-get). Where it cannot
be, it says so and the page's tests are left out; in continuous integration (CI=true) that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
MISSING = (
    "no Chromium is installed and it cannot be installed here, so the page at / is not tested; "
    "install Debian's chromium or Chrome, or name one with BITDELTA_BROWSER=/path/to/chromium"
)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


def runs(path: str) -> bool:
    """Whether it is a browser; Ubuntu's chromium-browser is a script that only names a snap."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find() -> str | None:
    """The browser's path; one that BITDELTA_BROWSER names is the only one looked at."""
    named = os.environ.get("BITDELTA_BROWSER")
    found = [named] if named else [path for path in map(shutil.which, NAMES) if path]
    return next((path for path in found if runs(path)), None)


def install() -> None:
    """Debian's package, without what it only recommends."""
    if os.geteuid() != 0 or not shutil.which("apt-get") or os.environ.get("BITDELTA_BROWSER"):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        if subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL).returncode != 0:
            return


def main() -> int:
    if find() is None:
        install()
    path = find()
    if path is None:
        print(MISSING, file=sys.stderr)
        return int(in_ci())
    print(f"the page is tested in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
