#!/usr/bin/env bash
# Receives the WAL of the database at DATABASE_DIRECT_URL into a directory, flushed as it comes, until stopped.
#
#   DATABASE_DIRECT_URL=postgresql://backup@db/sightline ./wal.sh /backups/wal
#
# Start it before the first base backup. A lost connection is made again after a pause. For no loss at all let the
# server wait for it: ALTER SYSTEM SET synchronous_standby_names = 'sightline_backup'; SELECT pg_reload_conf();
# From then on appends wait whenever this does not run.
set -euo pipefail

to="${1:?usage: wal.sh DIRECTORY}"
: "${DATABASE_DIRECT_URL:?the database, without a pooler between}"
slot=sightline_backup
export PGAPPNAME="$slot"

mkdir -p "$to"
receiver=
trap 'if [ -n "$receiver" ]; then kill -INT "$receiver" || true; wait "$receiver" || true; fi; exit 0' INT TERM

run() {
  pg_receivewal --dbname="$DATABASE_DIRECT_URL" --slot="$slot" --no-password "$@" &
  receiver=$!
  wait "$receiver"
}

pause_s=1
while true; do
  if run --create-slot --if-not-exists; then
    pause_s=1
    # One that died while it filled a new segment with zeros left a shorter one (of 16 MiB, the default), beside which
    # the next refuses to go on.
    find "$to" -name '*.partial' -size -16777216c -exec truncate -s 16777216 {} +
    run --directory="$to" --synchronous --no-loop --status-interval=1 || true
  fi
  receiver=
  echo "not receiving; again in $pause_s s" >&2
  sleep "$pause_s"
  pause_s=$((pause_s < 30 ? pause_s * 2 : 30))
done
