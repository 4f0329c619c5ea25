"""The indexes that lead from a tag or a version to its devices have the devices in them: no row is read to count them."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add the device to two indexes."""
    op.drop_index("device_tags_tag", table_name="device_tags")
    op.create_index("device_tags_tag", "device_tags", ["tag", "device_id"])
    op.drop_index("device_models_version", table_name="device_models")
    op.create_index("device_models_version", "device_models", ["model", "version", "device_id"])
