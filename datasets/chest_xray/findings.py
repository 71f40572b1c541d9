"""What is looked for in a chest X-ray: the 14 findings of ChestX-ray14, and the six it shares with the other data sets.

Source: Wang et al. 2017 and the data set's own order; Irvin et al. 2019 and Johnson et al. 2019 for what CheXpert and
MIMIC-CXR label too. "Effusion" and CheXpert's "Pleural Effusion" are the same, but the paper does not count it among
the six (appendix C.2 of the spectral-radius paper), so neither do we.
"""

from __future__ import annotations

from typing import Final

FINDINGS: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""A network's 14 outputs, in this order."""

NO_FINDING: Final = "No Finding"

COMMON: Final = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pneumonia", "Pneumothorax")
"""The six that ChestX-ray14, CheXpert and MIMIC-CXR label, in the order of a ``TransferSet``'s columns."""

COMMON_COLUMNS: Final = tuple(FINDINGS.index(name) for name in COMMON)
"""Which of a network's outputs they are."""
