"""The paper's seven figures: each takes sweeps by experiment and gives a ``Document``, from ``result.json`` only.

| figure | sweeps | what |
|---|---|---|
| 1 | figure1 | accuracy of the USPS models on eight sets of images |
| 2 | figure2 | gap against rho over 70 models |
| 3 | the chest X-ray runs | drop in mean AUC on other hospitals |
| 4 | table2, figure1 | training time by method |
| 5 | table2, figure5, any with a penalty | what the time is spent on |
| 6, 7 | figure1 | histograms of distance and similarity to the test images |
"""

from __future__ import annotations

from spectral_run.reports.paper_figures_chest import figure3
from spectral_run.reports.paper_figures_gap import figure2
from spectral_run.reports.paper_figures_histograms import figure6, figure7
from spectral_run.reports.paper_figures_shares import figure5
from spectral_run.reports.paper_figures_time import figure4
from spectral_run.reports.paper_figures_usps import figure1

__all__ = ["figure1", "figure2", "figure3", "figure4", "figure5", "figure6", "figure7"]
