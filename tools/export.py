"""Write a saved epoch as a model for serving: python tools/export.py -m config.yaml"""

from engine.cli import main

if __name__ == "__main__":
    main("export")
