"""Evaluate saved epochs on the dynamic graph: python tools/infer.py -m config.yaml"""

from engine.cli import main

if __name__ == "__main__":
    main("infer")
