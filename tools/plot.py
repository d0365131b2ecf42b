"""Draw a picture from the logs of trainings: python tools/plot.py gates run.json --out gates.png"""

from engine.pictures import main

if __name__ == "__main__":
    main()
