#!/bin/sh
# Prints .env.example with random secrets where it has none:  sh docker/new-env.sh > .env && chmod 600 .env
set -eu
umask 077
random() { od -An -N20 -tx1 /dev/urandom | tr -d ' \n'; }
while IFS= read -r line; do
  case $line in
    *_PASSWORD= | *_PASS= | *_KEY=) printf '%s%s\n' "$line" "$(random)" ;;
    *) printf '%s\n' "$line" ;;
  esac
done < "$(dirname "$0")/../.env.example"
