#!/usr/bin/env bash
# Runs `jest-tf` with the given arguments, and again while it exits with 75,
# which asks for that. A SIGTERM to this script, as before a spot machine goes,
# is passed on, and its exit code returned: whoever stopped it restarts it.
set -u
stopped= run=
trap 'stopped=1; [[ -z $run ]] || kill -TERM "$run" 2>/dev/null' TERM
while true; do
  "${JEST_TF:-jest-tf}" "$@" &
  run=$!
  # A signal may have come before the number was known.
  [[ -z $stopped ]] || kill -TERM "$run" 2>/dev/null
  wait "$run"
  code=$?
  # A signal interrupts `wait`; the state is still being saved.
  while kill -0 "$run" 2>/dev/null; do
    wait "$run"
    code=$?
  done
  if [[ $code -ne 75 || -n $stopped ]]; then
    exit "$code"
  fi
  run=
  sleep 1
done
