"""The watchdog over analysts: whatever they SET, no query and no transaction of theirs outlives its time.

A duty of the clock. A query is cancelled first, so that the session lives on; one that cannot be cancelled (it catches
that, or waits for a client that does not read) loses its session, and so does a transaction that is left open: its
snapshot keeps the database from clearing up. Ages are the database's own.
"""

from datetime import datetime

import structlog

from ..adapters import metrics
from .lifecycle import Services

GRACE_S = 1.0  # for a cancelled query to be over

log = structlog.get_logger(__name__)

# Whoever is a member of the group because somebody granted it, and not for having made it, as this login may have.
# Of a role whose rights this login lacks everything but its being there is hidden: that is what `watched` says.
# An advisory lock is for those who migrate; where hardening.sql was not said, an analyst can take one.
END = """
WITH judged AS (
    SELECT a.pid, a.usename AS role, pg_has_role(a.usesysid, 'USAGE') AS watched,
        extract(epoch FROM clock_timestamp() - a.xact_start)::double precision AS transaction_s,
        CASE WHEN a.state IN ('active', 'fastpath function call')
            THEN extract(epoch FROM clock_timestamp() - a.query_start)::double precision END AS query_s,
        EXISTS (SELECT FROM pg_locks AS l WHERE l.pid = a.pid AND l.locktype = 'advisory') AS locks
    FROM pg_stat_activity AS a
    JOIN pg_auth_members AS m ON m.member = a.usesysid AND NOT m.admin_option
    JOIN pg_roles AS g ON g.oid = m.roleid AND g.rolname = 'sightline_analyst'
    WHERE coalesce(a.backend_type, 'client backend') = 'client backend' AND a.usename <> current_user
), sentenced AS (
    SELECT *, CASE
        WHEN NOT watched THEN 'unwatched'
        WHEN locks OR greatest(query_s, transaction_s) > %(query_s_max)s + %(grace_s)s
            OR (query_s IS NULL AND transaction_s > %(query_s_max)s) THEN 'terminated'
        WHEN greatest(query_s, transaction_s) > %(query_s_max)s THEN 'cancelled'
    END AS how FROM judged
)
SELECT role, pid, how, greatest(query_s, transaction_s), CASE how
    WHEN 'cancelled' THEN pg_cancel_backend(pid)
    WHEN 'terminated' THEN pg_terminate_backend(pid)
END
FROM sentenced WHERE how IS NOT NULL
"""


async def watch(services: Services, _: datetime) -> None:
    """End what analysts run for longer than `analyst_query_s_max`; called again and again, by whoever keeps time.

    Raises:
        psycopg.Error: the database does not answer.
    """
    values = {"query_s_max": services.settings.analyst_query_s_max, "grace_s": GRACE_S}
    async with services.store.pool.connection() as connection:
        cursor = await connection.execute(END, values)
        for role, pid, how, age_s, _ended in await cursor.fetchall():
            metrics.ANALYST_QUERIES_ENDED.labels(how).inc()
            say = log.debug if how == "unwatched" else log.warning  # said every second, for as long as it is there
            say("analyst_query_ended", role=role, pid=pid, how=how, age_s=age_s)
