"""Evaluate saved epochs on the static graph: python tools/static_infer.py -m config.yaml"""

from engine.cli import main

if __name__ == "__main__":
    main("static_infer")
