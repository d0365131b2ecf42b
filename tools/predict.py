"""Run an exported model over the test data: python tools/predict.py -m config.yaml"""

from engine.cli import main

if __name__ == "__main__":
    main("predict")
