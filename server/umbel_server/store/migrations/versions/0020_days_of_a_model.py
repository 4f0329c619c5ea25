"""What few devices told of a model is found by the model: no device is asked that told nothing."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Add an index."""
    op.create_index("device_days_model", "device_days", ["model", "version", "day_s"])
