"""What analysts may see: schema `analytics`, the roles around it, and row security on read models.

Revision ID: 0006
Revises: 0005
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

FUNCTIONS = Path(__file__).parents[1] / "functions"

# Two roles that nobody logs in as: sightline_analyst is what analysts are members of, sightline_analytics owns the
# views. Roles belong to the whole server, so another database may have made them already.
ROLE = """
DO $$ BEGIN
    CREATE ROLE {name} NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""

ANALYSTS = """
CREATE TABLE analysts (
    role TEXT NOT NULL,
    owners TEXT[],
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT analysts_pkey PRIMARY KEY (role),
    CONSTRAINT analysts_owners_not_empty CHECK (cardinality(owners) > 0)
)
"""

OPEN = "analysts, events, projection_checkpoints"  # without row security: no rows of anybody's, or the view has it
SCOPE = ", ".join(f"analytics_source.{name}" for name in ("sees_all", "is_known", "my_owners", "my_streams"))

PROTECTED = """
SELECT format('%I.%I', p.schemaname, p.tablename), string_agg(quote_ident(a.attname), ', ')
FROM pg_policies AS p JOIN pg_attribute AS a ON a.attrelid = format('%I.%I', p.schemaname, p.tablename)::regclass
WHERE p.policyname = 'analysts' AND a.attnum > 0 AND NOT a.attisdropped GROUP BY 1
"""
DATABASE_AS_BEFORE = """
DO $$ BEGIN
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO PUBLIC', current_database());
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM sightline_analyst', current_database());
END $$
"""


def upgrade() -> None:
    schema, login = names()
    for name in ("sightline_analyst", "sightline_analytics"):
        op.execute(ROLE.format(name=name))
    op.execute("GRANT sightline_analytics TO CURRENT_USER WITH INHERIT FALSE, SET TRUE")
    op.execute(ANALYSTS)
    op.execute("CREATE SCHEMA analytics")
    op.execute("CREATE SCHEMA analytics_source")
    op.execute("GRANT USAGE ON SCHEMA analytics TO sightline_analyst")
    op.execute("GRANT USAGE, CREATE ON SCHEMA analytics, analytics_source TO sightline_analytics")
    op.execute(f"GRANT USAGE ON SCHEMA {schema} TO sightline_analytics")
    op.execute(f"GRANT SELECT ON {OPEN} TO sightline_analytics")

    # Where everybody may use plpgsql this is a warning, and where not (hardening.sql) it must be said.
    op.execute("GRANT USAGE ON LANGUAGE plpgsql TO sightline_analytics")
    op.execute("SET ROLE sightline_analytics")
    op.execute(text_of("scope", schema))
    op.execute(text_of("point", schema))
    op.execute(f"REVOKE ALL ON FUNCTION {SCOPE}, analytics_source.point FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SCOPE} TO sightline_analyst, {login}")
    op.execute(f"GRANT EXECUTE ON FUNCTION analytics_source.point TO {login}")
    op.execute("RESET ROLE")
    op.execute(text_of("follow", schema))
    op.execute("SELECT analytics_source.protect_database(), analytics_source.follow()")

    op.execute("SET ROLE sightline_analytics")
    for name in ("views", "as_of", "comments"):
        op.execute(text_of(name, schema))
    op.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA analytics FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA analytics TO sightline_analyst, {login}")
    op.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA analytics TO sightline_analyst, {login}")
    op.execute("RESET ROLE")
    op.execute("REVOKE CREATE ON SCHEMA analytics FROM sightline_analytics")


def downgrade() -> None:
    schema, _ = names()
    op.execute("DROP SCHEMA analytics CASCADE")
    for table, columns in op.get_bind().execute(sa.text(PROTECTED.replace(":", "\\:"))).all():
        op.execute(f"DROP POLICY analysts ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        op.execute(f"REVOKE SELECT ({columns}) ON {table} FROM sightline_analytics")  # noqa: S608  # quoted names
    op.execute("DROP SCHEMA analytics_source CASCADE")
    op.execute(f"REVOKE SELECT ON {OPEN} FROM sightline_analytics")  # noqa: S608  # a literal
    op.execute(f"REVOKE USAGE ON SCHEMA {schema} FROM sightline_analytics")
    op.drop_table("analysts")
    op.execute(DATABASE_AS_BEFORE)


def names() -> tuple[str, str]:
    """The schema that this migration runs in and the role that runs it, quoted."""
    found = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema()), quote_ident(current_user)")).one()
    return str(found[0]), str(found[1])


def text_of(name: str, schema: str) -> str:
    return (FUNCTIONS / f"analytics_{name}.sql").read_text().replace("@schema@", schema).replace(":", "\\:")
