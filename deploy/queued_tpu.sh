#!/usr/bin/env bash
# Trains on a queued spot TPU VM of one host, and asks for another whenever the
# machine is taken away, until the run has its final weights:
#
#     IMAGE=... ZONE=... ACCELERATOR=v5litepod-8 VERSION=v2-alpha-tpuv5-lite \
#         deploy/queued_tpu.sh NAME gs://BUCKET/runs/jest \
#         --config configs/jest_b16.py --set distribution.strategy=tpu ...
#
# Runs where `gcloud` is, not on the TPU. What follows the run directory are
# arguments of `jest-tf train`. The next machine takes compiled steps from
# jax-cache beside the run directory.
set -euo pipefail
name=$1 workdir=$2
shift 2
: "${IMAGE:?}" "${ZONE:?}" "${ACCELERATOR:?}" "${VERSION:?}"
# Seconds between two looks.
every=${EVERY:-60}

startup=$(mktemp)
trap 'rm -f "$startup"' EXIT
cat >"$startup" <<SCRIPT
#!/bin/bash
docker run --rm --privileged --net=host --name=train \
  --env=$(printf '%q' "JAX_COMPILATION_CACHE_DIR=${workdir%/*}/jax-cache") $IMAGE \
  train --workdir $(printf '%q' "$workdir")$(printf ' %q' "$@")
SCRIPT

queued() {
  gcloud compute tpus queued-resources "$@" --zone="$ZONE" --quiet
}

finished() {
  gcloud storage ls "$workdir/final.weights.h5" >/dev/null 2>&1
}

until finished; do
  state=$(queued describe "$name" --format='value(state.state)' 2>/dev/null ||
    echo NONE)
  case $state in
    NONE)
      queued create "$name" --node-id="$name" --spot \
        --accelerator-type="$ACCELERATOR" --runtime-version="$VERSION" \
        --metadata-from-file=startup-script="$startup"
      ;;
    # A spot machine that was taken away, or never given.
    SUSPENDED | FAILED) queued delete "$name" --force ;;
  esac
  echo "$(date +%T) $name: $state"
  sleep "$every"
done
queued delete "$name" --force
echo "$workdir is finished"
