#!/usr/bin/env bash
# A base backup of the database at DATABASE_DIRECT_URL into a new directory, verified.
#
#   DATABASE_DIRECT_URL=postgresql://backup@db/sightline ./base.sh /backups/base-2026-11-21
#
# The role needs REPLICATION, and a line `host replication …` in pg_hba.conf; a pooler cannot carry it.
set -euo pipefail

to="${1:?usage: base.sh DIRECTORY}"
: "${DATABASE_DIRECT_URL:?the database, without a pooler between}"

pg_basebackup --dbname="$DATABASE_DIRECT_URL" --pgdata="$to" --checkpoint=fast --wal-method=stream \
  --manifest-checksums=SHA256 --no-password --progress
pg_verifybackup "$to"
