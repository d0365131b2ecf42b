"""Train on the dynamic graph: python tools/trainer.py -m config.yaml"""

from engine.cli import main
from engine.dynamic import DynamicGraph

if __name__ == "__main__":
    main(DynamicGraph, job="train")
