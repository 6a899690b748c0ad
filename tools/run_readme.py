"""Run the README's Python examples, each in a fresh folder, and fail where one fails."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the examples instead of running them")
    arguments = parser.parse_args()
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    if not examples:
        sys.exit(f"{README.name} has no Python example")
    for number, example in enumerate(examples, 1):
        print(f"-- example {number} of {len(examples)}", flush=True)
        if arguments.list:
            print(example)
            continue
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-c", example], cwd=folder, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
