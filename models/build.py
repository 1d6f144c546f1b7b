"""Write zoo models beside this file, where git ignores them: `python -m models.build mlp bert_tiny`."""

from __future__ import annotations

import argparse

from models import zoo


def main() -> None:
    """Export each model named on the command line to `models/<name>.onnx`."""
    # digits.onnx is committed and trained: models/make_digits.py writes it.
    names = [name for name in zoo.ZOO if name != "digits"]
    parser = argparse.ArgumentParser(prog="python -m models.build", description="Write models/<name>.onnx.")
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    for name in parser.parse_args().names:
        path = zoo.export(name, zoo.MODELS / f"{name}.onnx")
        print(f"{path.relative_to(zoo.MODELS.parent)}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
