"""The kinds of task that a config can name, a row each. Another one is a file here, or module.name of the user's."""

from dselect_k_model.kinds.binary import Binary
from dselect_k_model.kinds.classes import Classes
from dselect_k_model.kinds.kind import Kind
from dselect_k_model.kinds.multi_label import MultiLabel
from dselect_k_model.kinds.regression import Regression

KINDS = {"classes": Classes, "binary": Binary, "regression": Regression, "multi_label": MultiLabel}

__all__ = ["KINDS", "Kind"]
