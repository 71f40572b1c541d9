"""The numbers that the paper prints, from ``paper/*.csv``, under the names that our methods have."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Final

import pandas as pd

FILES: Final = MappingProxyType(
    {
        "table2": "table2_forest_cover",
        "table3": "table3_forest_cover_batch_size",
        "table4": "table4_rho_by_measuring_batch_size",
        "table5": "table5_usps_batch_size",
        "table6": "table6_gradcam_chexpert",
        "table7": "table7_gradcam_mimic",
        "figure1": "figure1_usps_stated_in_text",
    }
)
METHODS: Final = MappingProxyType(
    {
        "Unregularized": "unregularized",
        "Asym. Valley": "asymmetric_valley",
        "Entropy-SGD": "entropy_sgd",
        "K-FAC": "kfac",
        "LOBPCG": "lobpcg_covtype",
    }
)
"""Table 2's models and what ``method=`` calls them; its power iteration is ``mu<mu>-K<K>``."""
CHEST: Final = MappingProxyType(
    {
        "SpecRad": "chest_spectral_radius_slow",  # mu 1e-4 and rate 1e-6: appendix E
        "EntropySGD": "chest_entropy_sgd",
        "UnReg": "chest_unregularized",
        "KFAC": "chest_kfac",
        "AsymValley": "chest_asymmetric_valley",
    }
)
"""The models of tables 6 and 7 and what ``method=`` calls them."""
METHOD: Final = "method"


def numbers(name: str) -> pd.DataFrame:
    """One of ``FILES`` as it is printed: accuracies and changes in percent, missing numbers NaN."""
    if name not in FILES:
        raise ValueError(f"paper_numbers: name must be one of {', '.join(FILES)}, got {name!r}.")
    return pd.read_csv(Path(__file__).parent / "paper" / f"{FILES[name]}.csv")


def by_method(name: str) -> pd.DataFrame:
    """``table2``, ``table6`` or ``table7`` with our method's name as index, in the paper's order."""
    found = numbers(name)
    known = METHODS if name == "table2" else CHEST
    if name not in ("table2", "table6", "table7"):
        raise ValueError(f"paper_numbers: table must be one of methods: table2, table6, table7, got {name!r}.")
    methods = []
    for row in found.to_dict("records"):
        model = str(row["model"])
        methods.append(known[model] if model in known else penalty(row["mu"], row["K"]))
    if name != "table2":
        found = found.rename(columns=dict(CHEST))
    return found.set_axis(pd.Index(methods, name=METHOD), axis=0)


def penalty(mu: float, K: float) -> str:
    """``mu0.01-K1``: what ``method=`` calls algorithm 1 with these."""
    return f"mu{mu:g}-K{K:g}"
