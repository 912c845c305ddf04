"""A new epoch after a restore.

Revision ID: 0007
Revises: 0006
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

FUNCTION = Path(__file__).parents[1] / "functions" / "renew_epoch.sql"


def upgrade() -> None:
    schema, login = (
        op.get_bind().execute(sa.text("SELECT quote_ident(current_schema()), quote_ident(current_user)")).one()
    )
    op.execute(FUNCTION.read_text().replace("@schema@", str(schema)).replace(":", "\\:"))
    # Of the one role that may write to the head, as append_batch is (0001).
    op.execute("GRANT DELETE ON worker_leases TO sightline_writer")
    op.execute(f"GRANT CREATE ON SCHEMA {schema} TO sightline_writer")
    op.execute("ALTER FUNCTION renew_epoch OWNER TO sightline_writer")
    op.execute("SET ROLE sightline_writer")
    op.execute("REVOKE ALL ON FUNCTION renew_epoch FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION renew_epoch TO {login}")
    op.execute("RESET ROLE")
    op.execute(f"REVOKE CREATE ON SCHEMA {schema} FROM sightline_writer")


def downgrade() -> None:
    op.execute("DROP FUNCTION renew_epoch")
    op.execute("REVOKE DELETE ON worker_leases FROM sightline_writer")
