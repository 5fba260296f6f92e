"""The rows of one model: kept ones, and those that are measured now."""

from __future__ import annotations

from pathlib import Path

from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.errors import HybridDeployError
from tests.benchmarks.real import variants
from tests.benchmarks.real.entries import ENTRIES, Entry
from tests.benchmarks.real.measure import Place, measure
from tests.benchmarks.real.page import Section
from tests.benchmarks.real.row import Row
from tests.benchmarks.real.speech import Speech
from tests.benchmarks.real.variants import LEAST_TOKENS, Made
from tests.kept_results import Dated, KeptResults, Origin


class ModelRun:
    """Measures the rows of one model, and keeps each with what it depends on.

    Attributes:
        origin: what our rows depend on.
        failures: reasons why rows are missing, by the keys of their entries.

    Args:
        title: description of the model.
        place: the files of the model.
        speech: the recordings.
        calibration: folder with those that calibrate.
        origin: what our rows depend on.
        rivals_origin: what the rivals' rows depend on.
        whole: whether the export has to compare `LEAST_TOKENS`: not if fewer recordings calibrate.
    """

    def __init__(
        self,
        title: str,
        place: Place,
        speech: Speech,
        calibration: Path,
        origin: Origin,
        rivals_origin: Origin,
        *,
        whole: bool,
    ) -> None:
        self.origin, self.failures = origin, dict[str, str]()
        self._title, self._place, self._speech = title, place, speech
        self._calibration, self._whole = calibration, whole
        self._cache = place.folder / "cache"
        kept = place.folder / "kept"
        self._made = KeptResults(kept, origin, Made)
        self._stores = {
            True: KeptResults(kept, origin, Row),
            False: KeptResults(kept, rivals_origin, Row),
        }

    def measure(self, entry: Entry) -> str:
        """Measures a row unless a kept one is of the same origin; returns what came of it."""
        store = self._stores[entry.is_ours]
        if store.load(entry.key) is not None:
            return "from an earlier run"
        if not entry.is_ours and self._place.rivals is None:
            return "not run, it needs --rivals"
        try:
            refusal = self._variant(entry.form).refusal if entry.is_ours else ""
            store.keep(entry.key, measure(entry, self._place, self._speech, refusal))
        except HybridDeployError as error:
            self.failures[entry.key] = str(error)
            return f"failed: {error}"
        return "measured"

    def section(self) -> Section:
        """Returns the results so far."""
        rows = {}
        for entry in ENTRIES:
            row: Dated[Row] | None = self._stores[entry.is_ours].load(entry.key)
            if row is not None:
                rows[entry.key] = row
        exported = self._made.load(_made_name(FLOAT_VARIANT))
        return Section(self._title, exported, rows, self.failures)

    def _variant(self, variant: str) -> Made:
        """Returns how a variant came to be; makes it unless it is there and of this origin."""
        bundle = self._place.bundle
        kept = self._made.load(_made_name(variant))
        if kept is not None and variants.is_there(bundle, variant):
            return kept.result
        if variant == FLOAT_VARIANT:
            least = LEAST_TOKENS if self._whole else 0
            model = self._place.models.hugging_face
            made = variants.export(model, bundle, self._calibration, least, self._cache)
        else:
            self._variant(FLOAT_VARIANT)
            made = variants.make_variant(bundle, variant, self._calibration, self._cache)
        return self._made.keep(_made_name(variant), made).result


def _made_name(variant: str) -> str:
    return f"made-{variant}"
