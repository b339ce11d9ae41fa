"""What the tests written in Python need of this machine: packages of Debian's and of PyPI's, and kvferry's programs."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[1]


def say(text):
    print(f"=== {text}", flush=True)


def install(package):
    """A package of Debian's, where one may install it."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"{package} is missing here: install it (Debian: apt-get install {package})")
    say(f"installing {package}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", package]):
        subprocess.run(["apt-get", "-qq", *arguments], check=True, timeout=300, env=env, stdout=subprocess.DEVNULL)


def environment(home, *packages):
    """The folder of programs of a virtual environment that has these packages; it is made where it is missing."""
    stamp, wanted = home / "installed", "\n".join(packages)
    if not (stamp.is_file() and stamp.read_text() == wanted):
        if importlib.util.find_spec("ensurepip") is None:
            install("python3-venv")
        say(f"installing {', '.join(packages)}")
        venv.create(home, clear=True, with_pip=True)
        pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(pip, check=True, timeout=600)
        stamp.write_text(wanted)
    return home / "bin"


def programs():
    """The folder of the programs to test: of target/release and target/debug the newer; they are built when neither is there."""
    built = [ROOT / "target" / profile for profile in ("release", "debug")]
    present = [path for path in built if all((path / name).is_file() for name in ("kvferry", "router"))]
    if not present:
        say("building")
        subprocess.run(["cargo", "build"], cwd=ROOT, check=True)
        return built[-1]
    return max(present, key=lambda path: (path / "kvferry").stat().st_mtime)
