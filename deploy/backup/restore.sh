#!/usr/bin/env bash
# Makes a data directory of PostgreSQL from a base backup and received WAL, ready to be started.
#
#   ./restore.sh /backups/base-2026-11-21 /backups/wal /var/lib/postgresql/18/restored [XID | TIME]
#
# A number is the transaction to stop after; find that of a position in a restore of everything:
#   SELECT xmin FROM events WHERE position = 123456;
# Anything else is a time with zone. Without either, everything. Run it as the user that PostgreSQL runs as; then start
# the server, wait until `SELECT pg_is_in_recovery()` says f, and before anything else connects:
#   SELECT renew_epoch();
#   sightline people replay-erasures
set -euo pipefail

base="${1:?usage: restore.sh BASE WAL DATA [XID | TIME]}"
wal="$(cd "${2:?usage: restore.sh BASE WAL DATA [XID | TIME]}" && pwd)"
data="${3:?usage: restore.sh BASE WAL DATA [XID | TIME]}"
target="${4:-}"

case "$wal" in
*[\'\"%\\]*) echo "the path of the WAL must not hold quotes, percent signs or backslashes" >&2; exit 1 ;;
esac
if [ -e "$data" ]; then
  echo "$data exists" >&2
  exit 1
fi
case "$target" in
'' | *[!0-9]*) kind=time ;;
*) kind=xid ;;
esac
case "$target" in
*\'*) echo "not a time: $target" >&2; exit 1 ;;
esac

pg_verifybackup "$base"
cp -a "$base" "$data"
chmod 700 "$data"
rm -f "$data/backup_manifest"
touch "$data/recovery.signal"
{
  # More than 125 stops the replay: a file that cannot be read is not the end of the WAL. A receiver that died while it
  # filled a new segment with zeros left a shorter one (of 16 MiB, the default): the missing zeros are added.
  echo "restore_command = 'test -r \"$wal\" || exit 126; if test -e \"$wal/%f\"; then cp \"$wal/%f\" \"%p\" || exit 126; elif test -e \"$wal/%f.partial\"; then cp \"$wal/%f.partial\" \"%p\" && truncate -s 16777216 \"%p\" || exit 126; else exit 1; fi'"
  echo "recovery_target_action = 'promote'"
  echo "synchronous_standby_names = ''"
  if [ -n "$target" ]; then echo "recovery_target_$kind = '$target'"; fi
} >>"$data/postgresql.auto.conf"
echo "start the server on $data; afterwards take the lines above out of postgresql.auto.conf"
