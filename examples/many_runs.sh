#!/bin/sh
# Starts Redis and two servers, trains a sweep of 16 runs on them, and stops all of it.
#
#   examples/many_runs.sh [DIRECTORY]
#
# Needs redis-server and tamiyo_jax[redis,telemetry]. Set PYTHON to choose an interpreter.
set -eu

mkdir -p "${1:-runs/many}/redis"
directory=$(cd "${1:-runs/many}" && pwd)
python=${PYTHON:-python}
here=$(dirname "$0")
chmod 700 "$directory"

# The servers' secret, from which the runs' keys are derived. Keep yours in a secret store.
TAMIYO_SECRET=${TAMIYO_SECRET:-$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')}
# A socket in a private directory: no other user of this machine reaches it.
TAMIYO_REDIS_URL="unix://$directory/redis/socket"
export TAMIYO_SECRET TAMIYO_REDIS_URL
# What all runs of the sweep have in common: no seeds, and losses of any size.
export TAMIYO__PACKET__SEEDLESS=true TAMIYO__RISK__DETECTION=relative

redis-server --port 0 --unixsocket "$directory/redis/socket" --dir "$directory/redis" \
  --appendonly yes --appendfsync always --save "" --maxmemory-policy noeviction \
  > "$directory/redis.log" &
redis=$!
servers=""
stop() {
  for server in $servers; do kill -TERM "$server" && wait "$server" || true; done
  kill -TERM "$redis" && wait "$redis" || true
}
trap stop EXIT
until [ -S "$directory/redis/socket" ]; do
  kill -0 "$redis" || exit 1
  sleep 0.1
done

for number in 1 2; do
  "$python" -m tamiyo_jax serve --directory "$directory/server-$number" --policy heuristic \
    --mode guard --port "$((9463 + number))" > "$directory/server-$number.log" 2>&1 &
  servers="$servers $!"
done

"$python" "$here/sweep.py" --directory "$directory/sweep"
