"""A trained network as one file, and its answers to pictures.

predictor = Predictor.load("flowers.regraft")
predictor.predict(["a.jpg", "b.png"]).labels
"""

from regraft.predictor.build import predictor_of
from regraft.predictor.manifest import Manifest
from regraft.predictor.predict import Predictions, Predictor

__all__ = ["Manifest", "Predictions", "Predictor", "predictor_of"]
