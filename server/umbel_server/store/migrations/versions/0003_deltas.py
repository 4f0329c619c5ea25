"""What releases differ by from those before them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make ``deltas``; releases of before have none."""
    op.create_table(
        "deltas",
        sa.Column(
            "package_sha256",
            sa.LargeBinary(32),
            sa.ForeignKey("releases.sha256"),
            comment="The released package it makes.",
        ),
        sa.Column(
            "base_sha256",
            sa.LargeBinary(32),
            sa.ForeignKey("releases.sha256"),
            comment="The release it makes it of.",
        ),
        sa.Column("sha256", sa.LargeBinary(32), nullable=False, comment="Hash of the delta itself."),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="The delta's size, bytes."),
        sa.PrimaryKeyConstraint("package_sha256", "base_sha256"),
    )
    op.create_index("deltas_sha256", "deltas", ["sha256"])
