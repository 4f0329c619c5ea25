"""What few devices told of a model is found by the model; lists of devices in the order of two times that seldom change.

None is in the order of when devices were heard of: each call of each would move it in every index of the table.
"""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Add three indexes."""
    op.create_index("device_days_model", "device_days", ["model", "version", "day_s"])
    op.create_index("devices_certificate", "devices", ["certificate_not_after_s", "id"])
    op.create_index("devices_enrolled", "devices", ["enrolled_s", "id"])
