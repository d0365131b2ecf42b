"""Train on the static graph: python tools/static_trainer.py -m config.yaml"""

from engine.cli import main

if __name__ == "__main__":
    main("static_trainer")
