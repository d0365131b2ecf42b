"""Train on the dynamic graph: python tools/trainer.py -m config.yaml"""

from engine.cli import main

if __name__ == "__main__":
    main("trainer")
