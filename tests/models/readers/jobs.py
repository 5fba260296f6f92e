"""The readers as export jobs: `hybrid-deploy export tests.models.readers.jobs:deep ...`."""

from __future__ import annotations

from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.reference.job import line_job
from tests.models.readers.models import load_reader


def deep() -> ExportJob:
    """Returns the job of the reader with a residual encoder and six decoder layers."""
    return line_job(load_reader("deep"), "digits-deep")


def hybrid() -> ExportJob:
    """Returns the job of the reader with a Transformer encoder and three decoder layers."""
    return line_job(load_reader("hybrid"), "digits-hybrid")
