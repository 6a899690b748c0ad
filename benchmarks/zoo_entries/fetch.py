"""Fill a folder with what the zoo's entries read, by this machine's pip, npm and apt-get (on Debian).

    python benchmarks/zoo_entries/fetch.py --data DIR

Nothing is installed. `mobilenetv2_three/` is not in a registry; see `mobilenetv2_three.py`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

DEBIAN = (
    "fortunes-ru",
    "fonts-liberation",
    *(f"tesseract-ocr-{language}" for language in ("eng", "spa", "por", "nld")),
    *("wamerican", "wspanish", "wportuguese", "wdutch"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder to fill")
    data = parser.parse_args().data
    data.mkdir(parents=True, exist_ok=True)
    npm("@vladmandic/face-api@1.7.15", data / "face-api")
    pip("natasha==1.6.0", data / "natasha", source=True)
    pip("scikit-image", data / "scikit-image", source=False)
    for package in DEBIAN:
        apt(package, data / package)


def npm(package: str, to: Path) -> None:
    """Unpack the archive of an npm package."""
    with tempfile.TemporaryDirectory() as folder:
        run(["npm", "pack", "--silent", package], folder)
        unpack_tar(only_file(folder), to)


def pip(package: str, to: Path, *, source: bool) -> None:
    """Unpack the source archive of a PyPI package, or its wheel."""
    with tempfile.TemporaryDirectory() as folder:
        form = "--no-binary" if source else "--only-binary"
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, ":all:", package], folder)
        if source:
            unpack_tar(only_file(folder), to)
        else:
            with zipfile.ZipFile(only_file(folder)) as archive:
                archive.extractall(to)


def apt(package: str, to: Path) -> None:
    """Unpack a Debian package."""
    with tempfile.TemporaryDirectory() as folder:
        run(["apt-get", "download", "--quiet", package], folder)
        run(["dpkg-deb", "--extract", str(only_file(folder)), str(to.resolve())], folder)


def unpack_tar(file: Path, to: Path) -> None:
    """Unpack an archive without the one folder that holds everything in it."""
    with tempfile.TemporaryDirectory(dir=to.parent) as folder, tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
        (top,) = Path(folder).iterdir()
        shutil.copytree(top, to, dirs_exist_ok=True)


def only_file(folder: str) -> Path:
    (file,) = Path(folder).iterdir()
    return file


def run(command: list[str], folder: str) -> None:
    print(" ".join(command))
    subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    main()
