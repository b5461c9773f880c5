"""All commands under one name: `entropy-rl train …` is `python -m entropy_rl.train …`.

entropy-rl train | evaluate | analyze | preflight | sweep  [--help | its flags]
"""

import runpy
import sys

COMMANDS = ("train", "evaluate", "analyze", "preflight", "sweep")


def main() -> None:
    """Runs the command that the first argument names, as its module."""
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name not in COMMANDS:
        print(__doc__)
        sys.exit(0 if name in ("--help", "-h", "help") else f"error: {name!r} is none of {', '.join(COMMANDS)}")
    sys.argv = [f"entropy-rl {name}", *rest]
    runpy.run_module(f"entropy_rl.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
