"""Evaluate saved epochs on the static graph: python tools/static_infer.py -m config.yaml"""

from engine.cli import main
from engine.static import StaticGraph

if __name__ == "__main__":
    main(StaticGraph, job="infer")
