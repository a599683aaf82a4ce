"""From files of published measurements to their comparison with what gambrel predicts by default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gambrel.calibrate.names import Models
from gambrel.calibrate.predict import Predictor
from gambrel.calibrate.profile import load_profile
from gambrel.calibrate.table import read_table
from gambrel.calibrate.validate import validate
from gambrel.catalog.accelerators import accelerator
from gambrel.catalog.efficiency import efficiency
from gambrel.cost import Roofline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from gambrel.calibrate.predict import Prediction
    from gambrel.calibrate.validate import Validation
    from gambrel.core.deployment import Deployment
    from gambrel.core.efficiency import Efficiency

__all__ = ["default_price", "stated_spread", "validate_tables"]


def default_price(change: Callable[[Efficiency, Deployment], Efficiency] = lambda e, _: e) -> Callable[..., Roofline]:
    """A pricer with the shipped constants, ``change`` applied to them."""

    def make(deployment: Deployment) -> Roofline:
        constants = efficiency(deployment.accelerator, deployment.engine, deployment.engine_version)
        return Roofline(deployment, change(constants, deployment))

    return make


def stated_spread(prediction: Prediction, metric: str) -> float:
    """One-sigma log error of a predicted metric, as shipped."""
    return prediction.ttft_spread if metric == "ttft" else prediction.spread


def validate_tables(paths: Iterable[Path], models: Path | None = None, profile: Path | None = None) -> Validation:
    """Every row of the tables, predicted and compared.

    Raises:
        WorkloadError: a table or profile that cannot be read.
        CatalogError: no such directory of models.
    """
    rows = [row for path in paths for row in read_table(path)]
    price = default_price() if profile is None else default_price(load_profile(profile).apply)
    predictor = Predictor(price, Models(models), accelerator)
    return validate(rows, predictor, stated_spread)
