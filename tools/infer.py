"""Evaluate saved epochs on the dynamic graph: python tools/infer.py -m config.yaml"""

from engine.cli import main
from engine.dynamic import DynamicGraph

if __name__ == "__main__":
    main(DynamicGraph, job="infer")
